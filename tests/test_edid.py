"""The EDID, taken apart by hand, judged by edid-decode, and compared with published CVT timings."""

import shutil
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from master.edid import make_edid, reduced_blanking_timing

SIZES = [(16, 16), (320, 200), (640, 480), (1280, 800), (1366, 768), (1920, 1080), (3840, 2160), (5120, 2880)]


def described_size(edid: bytes) -> tuple[int, int]:
    """Of the first detailed timing descriptor, at byte 54."""
    descriptor = edid[54:72]
    return descriptor[2] | (descriptor[4] & 0xF0) << 4, descriptor[5] | (descriptor[7] & 0xF0) << 4


def described_refresh(edid: bytes) -> float:
    descriptor = edid[54:72]
    (clock,) = struct.unpack_from("<H", descriptor)
    width, height = described_size(edid)
    h_blank = descriptor[3] | (descriptor[4] & 0x0F) << 8
    v_blank = descriptor[6] | (descriptor[7] & 0x0F) << 8
    return float(clock * 10_000 / ((width + h_blank) * (height + v_blank)))


@pytest.mark.parametrize(
    ("size", "clock_khz", "total"),
    [
        # VESA's published reduced-blanking timings (DMT ids 1920x1080R: CVT 2.07M9-R, and so on)
        ((1280, 800), 71_000, (1440, 823)),
        ((1920, 1200), 154_000, (2080, 1235)),
        ((1920, 1080), 138_500, (2080, 1111)),
        ((1400, 1050), 101_000, (1560, 1080)),
        ((2560, 1600), 268_500, (2720, 1646)),
        ((1280, 768), 68_250, (1440, 790)),
    ],
)
def test_timings_are_those_that_vesa_publishes(
    size: tuple[int, int], clock_khz: int, total: tuple[int, int]
) -> None:
    timing = reduced_blanking_timing(*size)
    assert timing.clock_khz == clock_khz
    assert (timing.width + timing.h_blank, timing.height + timing.v_blank) == total


@given(st.integers(16, 16384), st.integers(16, 16384))
def test_every_size_has_a_sound_edid(width: int, height: int) -> None:
    edid = make_edid(width, height)
    assert len(edid) == 128
    assert edid[:8] == bytes.fromhex("00ffffffffffff00")
    assert sum(edid) % 256 == 0
    assert edid[126] == 0
    described = described_size(edid)
    if max(width, height) <= 4095 and width * height * 60 < 500_000_000:
        assert described == (width, height)
    else:
        assert described[0] <= width and described[1] <= height
    assert 58 < described_refresh(edid) < 61


def test_a_huge_display_is_described_as_large_as_possible() -> None:
    assert min(described_size(make_edid(16384, 16384))) > 3000
    assert described_size(make_edid(8192, 4320))[0] == 4095


def test_shapes_survive_shrinking() -> None:
    width, height = described_size(make_edid(7680, 4320))
    assert abs(width / height - 16 / 9) < 0.01


@pytest.mark.parametrize("size", [(0, 0), (15, 800), (1280, 15), (-1, 800)])
def test_no_edid_for_nothing(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError):
        make_edid(*size)


@pytest.mark.skipif(shutil.which("edid-decode") is None, reason="needs edid-decode: apt install edid-decode")
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_edid_decode_finds_no_fault(size: tuple[int, int]) -> None:
    edid = make_edid(*size)
    judged = subprocess.run(["edid-decode", "--check"], input=edid, capture_output=True, timeout=30, check=False)
    output = judged.stdout.decode()
    assert judged.returncode == 0, output
    assert "EDID conformity: PASS" in output
    width, height = described_size(edid)
    assert f"{width}x{height}" in output
    assert "Display Product Name: 'isorend'" in output
