"""Guest memory and backings: translation over regions, rows, and everything that lies outside."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from native.guest_memory import Backing, GuestMemory, Rows
from native.texture import Rect, convert_to_xrgb, is_scanout_format
from tests.fake_vmm.wire import MEM_ENTRY

PAGE = 4096
UVA = 0x7000_0000_0000
GIB = 1 << 30


def memfd(size: int) -> int:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, size)
    return fd


def make_memory() -> GuestMemory:
    """16 pages at 0, 16 more right behind them from another file, 16 at 4 GiB."""
    memory = GuestMemory()
    for number, gpa in enumerate((0, 16 * PAGE, 4 * GIB)):
        fd = memfd(16 * PAGE)
        memory.add(fd, gpa, 16 * PAGE, UVA + number * GIB, 0)
        os.close(fd)
    return memory


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    yield make_memory()


def backing(memory: GuestMemory, *pieces: tuple[int, int]) -> Backing:
    return Backing(memory, b"".join(MEM_ENTRY.pack(gpa, length, 0) for gpa, length in pieces), len(pieces))


def fails_with(code: int, function: object, *arguments: object) -> None:
    with pytest.raises(OSError) as caught:
        function(*arguments)  # type: ignore[operator]
    assert caught.value.errno == code


def test_a_buffer_may_cross_regions(memory: GuestMemory) -> None:
    memory.write(16 * PAGE - 5, b"0123456789")
    assert memory.read(16 * PAGE - 5, 10) == b"0123456789"
    assert memory.contains(0, 32 * PAGE)
    assert not memory.contains(0, 32 * PAGE + 1)
    assert not memory.contains(32 * PAGE, 1)
    assert memory.contains(4 * GIB, 16 * PAGE)
    assert memory.contains(12345, 0)


@pytest.mark.parametrize("gpa", [32 * PAGE, 32 * PAGE - 1, 4 * GIB - 1, 4 * GIB + 16 * PAGE, (1 << 64) - 1])
def test_outside(memory: GuestMemory, gpa: int) -> None:
    fails_with(errno.EFAULT, memory.read, gpa, 2)
    fails_with(errno.EFAULT, memory.write, gpa, b"xy")


def test_regions_that_cannot_be(memory: GuestMemory) -> None:
    fd = memfd(16 * PAGE)
    for gpa, size, uva, offset in (
        (8 * GIB, 0, UVA, 0),
        (8 * GIB, 17 * PAGE, UVA, 0),  # longer than its file
        (8 * GIB, 16 * PAGE, UVA, 1),
        (8 * GIB, 16 * PAGE, UVA, (1 << 64) - 1),
        ((1 << 64) - PAGE, 16 * PAGE, UVA, 0),  # wraps
        (8 * GIB, 16 * PAGE, (1 << 64) - PAGE, 0),
        (15 * PAGE, 2 * PAGE, UVA, 0),  # overlaps
        (4 * GIB, PAGE, UVA, 0),
    ):
        fails_with(errno.EINVAL, memory.add, fd, gpa, size, uva, offset)
    for number in range(61):
        memory.add(fd, (8 + number) * GIB, PAGE, UVA, 0)
    fails_with(errno.ENOSPC, memory.add, fd, 100 * GIB, PAGE, UVA, 0)
    os.close(fd)
    fails_with(errno.EBADF, GuestMemory().add, fd, 0, PAGE, UVA, 0)


def test_neighbouring_entries_are_one_piece(memory: GuestMemory) -> None:
    pages = backing(memory, *((page * PAGE, PAGE) for page in range(32)))
    assert (pages.nbytes, pages.pieces) == (32 * PAGE, 1)
    scattered = backing(memory, *((page * PAGE, PAGE) for page in range(0, 32, 2)))
    assert (scattered.nbytes, scattered.pieces) == (16 * PAGE, 16)


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [(0, 0)],
        [(0, PAGE), (0, 0)],
        [(32 * PAGE, 1)],
        [(31 * PAGE, PAGE + 1)],
        [((1 << 64) - 1, 2)],
        [(0, 0xFFFF_FFFF)],
    ],
)
def test_backings_that_cannot_be(memory: GuestMemory, pieces: list[tuple[int, int]]) -> None:
    fails_with(errno.EINVAL, backing, memory, *pieces)


def test_count_of_entries_that_lies(memory: GuestMemory) -> None:
    fails_with(errno.EINVAL, Backing, memory, MEM_ENTRY.pack(0, PAGE, 0), 2)
    fails_with(errno.EINVAL, Backing, memory, MEM_ENTRY.pack(0, 1, 0) * ((1 << 20) + 1), (1 << 20) + 1)


def test_a_backing_outlives_its_memory(memory: GuestMemory) -> None:
    """It holds guest addresses: after the table has changed it may lie outside, and then it says so."""
    pages = backing(memory, (4 * GIB, PAGE))
    smaller = GuestMemory()
    out = bytearray(16)
    assert pages.read_rows(memory, Rows(0, 16, 16, 1), memoryview(out), 16)
    assert not pages.read_rows(smaller, Rows(0, 16, 16, 1), memoryview(out), 16)
    assert not pages.write_rows(smaller, Rows(0, 16, 16, 1), bytes(16), 16)


PIECES = st.lists(
    st.tuples(st.integers(0, 31 * PAGE), st.integers(1, 3000)).filter(lambda p: p[0] + p[1] <= 32 * PAGE),
    min_size=1,
    max_size=12,
)


@given(PIECES, st.integers(0, 5000), st.integers(0, 900), st.integers(1, 300), st.integers(1, 20), st.integers(0, 50))
def test_rows_are_where_a_plain_copy_finds_them(
    pieces: list[tuple[int, int]], offset: int, stride: int, row_bytes: int, rows: int, slack: int
) -> None:
    memory = make_memory()
    data = os.urandom(32 * PAGE)
    memory.write(0, data)
    pages = backing(memory, *pieces)
    whole = b"".join(data[gpa : gpa + length] for gpa, length in pieces)
    assert pages.nbytes == len(whole)
    ours = row_bytes + slack
    out = bytearray(ours * rows)
    fits = offset + stride * (rows - 1) + row_bytes <= len(whole)
    assert pages.read_rows(memory, Rows(offset, stride, row_bytes, rows), memoryview(out), ours) == fits
    if fits:
        for row in range(rows):
            start = offset + row * stride
            assert out[row * ours : row * ours + row_bytes] == whole[start : start + row_bytes]
            assert not any(out[row * ours + row_bytes : (row + 1) * ours])


@given(st.integers(1, 64), st.integers(1, 12), st.integers(0, 8), st.integers(0, 3000))
def test_written_rows_are_read_again(row_bytes: int, rows: int, gap: int, offset: int) -> None:
    memory = make_memory()
    pages = backing(memory, *((page * PAGE, 700) for page in (20, 3, 15, 16, 31)))
    stride = row_bytes + gap
    at = Rows(offset, stride, row_bytes, rows)
    data = os.urandom(row_bytes * rows)
    fits = offset + stride * (rows - 1) + row_bytes <= 5 * 700
    assert pages.write_rows(memory, at, data, row_bytes) == fits
    if fits:
        out = bytearray(len(data))
        assert pages.read_rows(memory, at, memoryview(out), row_bytes)
        assert out == data


def test_rows_beyond_64_bits(memory: GuestMemory) -> None:
    pages = backing(memory, (0, PAGE))
    out = bytearray(64)
    for at in (
        Rows((1 << 64) - 1, 16, 16, 1),
        Rows(0, (1 << 64) - 1, 16, 2),
        Rows(0, 1 << 63, 16, 3),
        Rows((1 << 64) - 16, 16, 16, 2),
    ):
        assert not pages.read_rows(memory, at, memoryview(out), 16)


# --- pixels ---------------------------------------------------------------------------------------------------------

PLACES = {1: "BGRA", 2: "BGRX", 3: "ARGB", 4: "XRGB", 67: "RGBA", 68: "XBGR", 121: "ABGR", 134: "RGBX"}


@given(st.sampled_from(sorted(PLACES)), st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.integers(0, 3))
def test_conversion_to_xrgb(format: int, width: int, height: int, x: int, y: int) -> None:
    stride = 4 * (x + width + 2)
    source = os.urandom(stride * (y + height))
    out = convert_to_xrgb(format, memoryview(source), stride, Rect(x, y, width, height))
    places = [PLACES[format].index(color) for color in "BGR"]
    for row in range(height):
        for column in range(width):
            pixel = source[(y + row) * stride + 4 * (x + column) :][:4]
            got = out[4 * (row * width + column) :][:3]
            assert list(got) == [pixel[place] for place in places]


def test_conversion_of_what_is_not_there() -> None:
    source = memoryview(bytes(64))
    for rect in (Rect(0, 0, 5, 1), Rect(0, 0, 4, 5), Rect(4, 0, 1, 1), Rect(0, 4, 1, 1), Rect(0, 0, 0, 1)):
        with pytest.raises(ValueError, match="outside"):
            convert_to_xrgb(1, source, 16, rect)
    with pytest.raises(ValueError, match="format"):
        convert_to_xrgb(5, source, 16, Rect(0, 0, 1, 1))


def test_scanout_formats() -> None:
    assert {number for number in range(400) if is_scanout_format(number)} == set(PLACES)
