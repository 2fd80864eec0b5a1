"""Pictures that several drivers can have in one memory: the table and its arithmetic. That the driver agrees is
shown by test_virgl_import.py."""

import pytest

from native.shared_formats import SHARED_FORMATS, holds, is_image, linear_layout, packed_layout
from native.storage import Layout

B8G8R8A8, B8G8R8X8, B5G6R5, R8 = 1, 2, 7, 64


def fourcc(text: str) -> int:
    return int.from_bytes(text.encode(), "little")


def test_what_the_table_says_of_the_usual_formats() -> None:
    assert SHARED_FORMATS[B8G8R8A8].fourcc == SHARED_FORMATS[B8G8R8X8].fourcc == fourcc("AR24")
    assert SHARED_FORMATS[B8G8R8X8].imported_as == B8G8R8A8
    assert SHARED_FORMATS[B5G6R5].pixel_bytes == 2
    for number, entry in SHARED_FORMATS.items():
        assert entry.imported_as == number or SHARED_FORMATS[entry.imported_as].fourcc == entry.fourcc


@pytest.mark.parametrize(
    ("target", "format", "last_level", "array_size", "nr_samples", "expected"),
    [
        (2, B8G8R8A8, 0, 1, 0, True),
        (2, B8G8R8A8, 0, 1, 1, True),
        (2, B8G8R8A8, 1, 1, 0, False),
        (2, B8G8R8A8, 0, 2, 0, False),
        (2, B8G8R8A8, 0, 1, 4, False),
        (5, B8G8R8A8, 0, 1, 0, False),  # a rectangle texture
        (0, R8, 0, 1, 0, False),
        (2, 100, 0, 1, 0, False),  # sRGB
        (2, 19, 0, 1, 0, False),  # depth and stencil
    ],
)
def test_what_can_be_imported(
    target: int, format: int, last_level: int, array_size: int, nr_samples: int, expected: bool
) -> None:
    found = is_image(target, format, last_level=last_level, array_size=array_size, nr_samples=nr_samples)
    assert found is expected


def test_a_linear_layout_has_room_for_whole_blocks() -> None:
    assert linear_layout(B8G8R8A8, 1920, 1080) == Layout(1920 * 1080 * 4, 0, 7680, fourcc("AR24"))
    assert linear_layout(B8G8R8A8, 17, 5).stride == 128
    assert linear_layout(R8, 1, 1) == Layout(4096, 0, 64, fourcc("R8  "))
    for format in SHARED_FORMATS:
        for width, height in ((1, 1), (3, 4), (64, 63), (65, 1), (16384, 16384)):
            layout = linear_layout(format, width, height)
            assert layout.stride % 64 == 0
            assert layout.nbytes % 4096 == 0
            assert holds(layout, format, width, height, software=True)


def test_no_layout_for_what_no_texture_has() -> None:
    for width, height in ((0, 1), (1, 0), (16385, 1), (1, 16385), (-1, 1)):
        with pytest.raises(ValueError, match="pixels"):
            linear_layout(B8G8R8A8, width, height)
    with pytest.raises(KeyError):
        linear_layout(19, 1, 1)


def test_what_holds_a_picture() -> None:
    exact = Layout(nbytes=64 * 4, stride=64)
    assert holds(exact, B8G8R8A8, 16, 4, software=True)
    assert not holds(exact, B8G8R8A8, 17, 4, software=True)
    assert not holds(exact, B8G8R8A8, 16, 5, software=True)
    assert not holds(Layout(nbytes=64 * 4, stride=64, offset=1), B8G8R8A8, 16, 4, software=True)
    assert not holds(Layout(nbytes=64 * 4, stride=63), B8G8R8A8, 16, 4, software=True)
    assert not holds(Layout(nbytes=1 << 40, stride=1 << 20), 100, 16, 4, software=True)
    short = Layout(nbytes=64 * 2 + 60, stride=64)
    assert holds(short, B8G8R8A8, 15, 3, software=False)
    assert not holds(short, B8G8R8A8, 15, 3, software=True)


def test_a_packed_layout_is_what_a_program_expects_that_maps_it() -> None:
    assert packed_layout(B8G8R8A8, 20, 4, 4096).stride == 80
    assert packed_layout(B8G8R8A8, 21, 4, 4096).stride == 128
    assert packed_layout(B8G8R8A8, 32, 32, 4096).nbytes == 4096
    with pytest.raises(ValueError, match="32 x 33 pixels in 4096 bytes"):
        packed_layout(B8G8R8A8, 32, 33, 4096)
