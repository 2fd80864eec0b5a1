"""Pictures that several drivers can have in one memory: which virgl formats, as what, and how they lie there.

A texture can lie in memory that others see if EGL can import it (EGL_EXT_image_dma_buf_import) and virglrenderer can do
with an EGLImage what it does with a texture of its own. That holds for two-dimensional textures of one level, one layer
and one sample in the formats of this table; each entry was drawn to, copied to, transferred and sampled (llvmpipe of
Mesa 25.0, virglrenderer 0.10.4 and 1.1.0; tests/test_virgl_import.py does it again).

What is missing is missing for a reason: sRGB formats lose their transfer function when they are imported, A8R8G8B8 and
its kin are no format of EGL's import, and a GL_TEXTURE_RECTANGLE cannot be made of an EGLImage.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from native.storage import MODIFIER_LINEAR, Layout

TARGET_BUFFER: Final = 0
TARGET_2D: Final = 2
"""Gallium's enum pipe_texture_target, as the wire has it."""

MAX_PIXELS: Final = 16384
"""Of a side, as for any texture (native/src/texture.c)."""

_BLOCK: Final = 4
"""Software renderers draw blocks of 4 x 4 pixels, beyond the picture's right and lower edge if need be."""

_Y_0_TOP: Final = 1
"""VIRGL_RESOURCE_Y_0_TOP: virglrenderer draws such a texture upside down, and turns it round when it transfers."""

_STRIDE_ALIGNMENT: Final = 64
_PAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class SharedFormat:
    """What a virgl format is to EGL and to virglrenderer when it is imported.

    fourcc: drm_fourcc.h; pixel_bytes: bytes of one pixel; imported_as: the virgl format that virglrenderer is told.
    """

    fourcc: int
    pixel_bytes: int
    imported_as: int


def _fourcc(text: str) -> int:
    return int.from_bytes(text.encode("ascii"), "little")


# virgl_hw.h, enum virgl_formats.
_B8G8R8A8_UNORM: Final = 1
_R8G8B8A8_UNORM: Final = 67

SHARED_FORMATS: Final[Mapping[int, SharedFormat]] = {
    _B8G8R8A8_UNORM: SharedFormat(_fourcc("AR24"), 4, _B8G8R8A8_UNORM),
    # With alpha, which those who want none do not look at: virglrenderer copies and views XR24 with GL errors.
    2: SharedFormat(_fourcc("AR24"), 4, _B8G8R8A8_UNORM),  # B8G8R8X8_UNORM
    5: SharedFormat(_fourcc("AR15"), 2, 5),  # B5G5R5A1_UNORM
    6: SharedFormat(_fourcc("AR12"), 2, 6),  # B4G4R4A4_UNORM
    7: SharedFormat(_fourcc("RG16"), 2, 7),  # B5G6R5_UNORM
    8: SharedFormat(_fourcc("AB30"), 4, 8),  # R10G10B10A2_UNORM
    48: SharedFormat(_fourcc("R16 "), 2, 48),  # R16_UNORM
    49: SharedFormat(_fourcc("GR32"), 4, 49),  # R16G16_UNORM
    51: SharedFormat(_fourcc("AB48"), 8, 51),  # R16G16B16A16_UNORM
    64: SharedFormat(_fourcc("R8  "), 1, 64),  # R8_UNORM
    65: SharedFormat(_fourcc("GR88"), 2, 65),  # R8G8_UNORM
    _R8G8B8A8_UNORM: SharedFormat(_fourcc("AB24"), 4, _R8G8B8A8_UNORM),
    94: SharedFormat(_fourcc("AB4H"), 8, 94),  # R16G16B16A16_FLOAT
    131: SharedFormat(_fourcc("AR30"), 4, 131),  # B10G10R10A2_UNORM
    134: SharedFormat(_fourcc("AB24"), 4, _R8G8B8A8_UNORM),  # R8G8B8X8_UNORM
}
"""By virgl format."""


# drm_fourcc.h: what is stored with a byte that nobody looks at is imported with alpha.
_WITH_ALPHA: Final = {
    _fourcc(without): _fourcc(with_alpha)
    for without, with_alpha in (("XR24", "AR24"), ("XB24", "AB24"), ("XR30", "AR30"), ("XB30", "AB30"))
}


def with_alpha(fourcc: int) -> int:
    """The fourcc as which such pixels are imported."""
    return _WITH_ALPHA.get(fourcc, fourcc)


def is_fourcc_of(format: int, fourcc: int) -> bool:
    """Whether pixels of this virgl format may be said to be of that fourcc: of the same size, in whatever order a
    driver has their parts. 0: nothing was said."""
    shared = SHARED_FORMATS.get(format)
    if shared is None or fourcc == 0:
        return True
    return any(
        each.fourcc == with_alpha(fourcc) and each.pixel_bytes == shared.pixel_bytes
        for each in SHARED_FORMATS.values()
    )


def is_image(target: int, format: int, *, last_level: int, array_size: int, nr_samples: int, flags: int = 0) -> bool:
    """Whether a texture with these v1 arguments can be imported as an EGLImage."""
    return (
        target == TARGET_2D
        and format in SHARED_FORMATS
        and last_level == 0
        and array_size <= 1
        and nr_samples <= 1
        and not flags & _Y_0_TOP
    )


def linear_layout(format: int, width: int, height: int) -> Layout:
    """How a picture of a format of SHARED_FORMATS is to lie in memory that is made for it; nbytes are whole pages.

    Raises KeyError for another format, ValueError for a size that no texture has.
    """
    shared = SHARED_FORMATS[format]
    if not (1 <= width <= MAX_PIXELS and 1 <= height <= MAX_PIXELS):
        raise ValueError(f"{width} x {height} pixels")
    stride = _up(_up(width, _BLOCK) * shared.pixel_bytes, _STRIDE_ALIGNMENT)
    nbytes = _up(stride * _up(height, _BLOCK), _PAGE)
    return Layout(nbytes=nbytes, stride=stride, fourcc=shared.fourcc, modifier=MODIFIER_LINEAR)


def packed_layout(format: int, width: int, height: int, nbytes: int) -> Layout:
    """How a picture of a format of SHARED_FORMATS lies in memory of `nbytes` that somebody else chose: the rows behind
    each other if blocks do not reach into the next row, so that who maps it can tell.

    Raises KeyError, ValueError as linear_layout(), and ValueError if the memory is too small.
    """
    wide = linear_layout(format, width, height)
    packed = width * SHARED_FORMATS[format].pixel_bytes
    stride = packed if width % _BLOCK == 0 else wide.stride
    layout = Layout(nbytes=nbytes, stride=stride, fourcc=wide.fourcc)
    if not holds(layout, format, width, height, software=True):
        raise ValueError(f"{width} x {height} pixels in {nbytes} bytes")
    return layout


def holds(layout: Layout, format: int, width: int, height: int, *, software: bool) -> bool:
    """Whether storage of this layout holds all pixels of a picture, for a `software` renderer whole blocks of them.

    Mesa does not look: what is too small is written beyond its end. Formats that are not in SHARED_FORMATS do not fit.
    """
    shared = SHARED_FORMATS.get(format)
    if shared is None or not (1 <= width <= MAX_PIXELS and 1 <= height <= MAX_PIXELS):
        return False
    if software:
        width, height = _up(width, _BLOCK), _up(height, _BLOCK)
    row = width * shared.pixel_bytes
    return layout.stride >= row and layout.offset + layout.stride * (height - 1) + row <= layout.nbytes


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
