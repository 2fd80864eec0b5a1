"""What textures and pictures are: their v1 arguments, sizes and pixels (native/src/texture.h, native/src/pixels.h)."""

from dataclasses import dataclass
from typing import Any

from native._dataplane import ffi, lib

MIRROR_HEADER_BYTES: int = lib.ISO_MIRROR_HEADER_BYTES


@dataclass(frozen=True, slots=True)
class MirrorLevel:
    """Where a level lies in a mirror: `offset` of its first row from the start of the memory, `stride` from row to row
    and `layer_stride` in bytes; width and height in pixels, depth in layers or slices. A buffer is one row of bytes.
    """

    offset: int
    width: int
    height: int
    depth: int
    stride: int
    layer_stride: int


@dataclass(frozen=True, slots=True)
class Texture:
    """The v1 arguments of RESOURCE_CREATE_3D (virtio 1.3, 5.7.6.9); targets and formats are virgl's."""

    target: int
    format: int
    bind: int
    width: int
    height: int
    depth: int
    array_size: int
    last_level: int
    nr_samples: int
    flags: int

    def is_valid(self) -> bool:
        """Whether such a resource could exist: known target and format, sizes that agree with them."""
        return bool(lib.iso_texture_valid(self.struct()))

    @property
    def nbytes(self) -> int:
        """Bytes of all its levels, layers and samples, without what a driver adds; 0 if it is not valid."""
        return int(lib.iso_texture_bytes(self.struct()))

    @property
    def mirror_bytes(self) -> int:
        """Bytes of a mirror of it (native/src/mirror.h), header and all; 0 if it cannot have one."""
        return int(lib.iso_mirror_bytes(self.struct()))

    def mirror_level(self, level: int = 0) -> MirrorLevel | None:
        """Where a level lies in its mirror. None if there is no such level, or no mirror."""
        out = ffi.new("struct iso_mirror_level *")
        if not lib.iso_mirror_level(self.struct(), level, out):
            return None
        return MirrorLevel(*(getattr(out, name) for name in MirrorLevel.__slots__))

    def struct(self) -> Any:
        """As struct iso_texture."""
        values = (self.target, self.format, self.bind, self.width, self.height, self.depth)
        return ffi.new("struct iso_texture *", (*values, self.array_size, self.last_level, self.nr_samples, self.flags))


@dataclass(frozen=True, slots=True)
class Rect:
    """A rectangle in pixels."""

    x: int
    y: int
    width: int
    height: int


def is_scanout_format(format: int) -> bool:
    """Whether it is one of enum virtio_gpu_formats: four bytes a pixel, can be shown."""
    return bool(lib.iso_pixels_known(format))


def convert_to_xrgb(format: int, source: memoryview, stride: int, rect: Rect) -> bytearray:
    """The rectangle of a picture in `source` (rows `stride` apart) as tightly packed x8r8g8b8 rows.

    Raises ValueError if the rectangle reaches past the source or the format is not one of enum virtio_gpu_formats.
    """
    end = (rect.y + rect.height - 1) * stride + 4 * (rect.x + rect.width)
    if rect.width < 1 or rect.height < 1 or 4 * (rect.x + rect.width) > stride or end > len(source):
        raise ValueError("rectangle outside the picture")
    out = bytearray(4 * rect.width * rect.height)
    start = ffi.from_buffer("uint8_t[]", source) + (rect.y * stride + 4 * rect.x)
    row = 4 * rect.width
    if not lib.iso_pixels_to_xrgb(
        format, start, stride, ffi.from_buffer("uint8_t[]", out), row, rect.width, rect.height
    ):
        raise ValueError(f"format {format} is not a scanout's")
    return out
