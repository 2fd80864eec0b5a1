"""What of a resource is a picture, and where its pixels are if they are within our reach.

Formats are enum virtio_gpu_formats: four bytes a pixel, named in the order of memory.
"""

from dataclasses import dataclass
from typing import Final

from master.display_messages import DmabufScanout
from master.errors import GuestError
from master.virtio_gpu import CURSOR_SIZE, Format, ResponseType
from master.wire import Rect
from native import texture
from native.guest_memory import GuestMemory, Rows
from native.storage import MODIFIER_LINEAR, StorageKind
from native.texture import convert_to_xrgb, is_scanout_format
from resource_table import Policy, Resource, Storage
from resource_table.table import MAX_IMAGE_SIZE

_FOURCCS: Final = {
    Format.B8G8R8A8_UNORM: b"AR24",
    Format.B8G8R8X8_UNORM: b"XR24",
    Format.A8R8G8B8_UNORM: b"BA24",
    Format.X8R8G8B8_UNORM: b"BX24",
    Format.R8G8B8A8_UNORM: b"AB24",
    Format.X8B8G8R8_UNORM: b"RX24",
    Format.A8B8G8R8_UNORM: b"RA24",
    Format.R8G8B8X8_UNORM: b"XB24",
}
"""drm_fourcc.h, which names them in the order of a little-endian word."""

_AS_SHOWN: Final = (Format.B8G8R8A8_UNORM, Format.B8G8R8X8_UNORM)
"""What x8r8g8b8 words are in memory."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A resource as rows of pixels; size in pixels. stride (from row to row) and offset (of the first row) in bytes:
    where the guest says that they are in a blob; stride 0 for other resources, where we know."""

    format: int
    width: int
    height: int
    stride: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class ShownDmabuf:
    """A dma-buf as a display is to show it. Two are the same if the display need not be told."""

    storage: Storage
    scanout: DmabufScanout


def picture_of(resource: Resource) -> Picture:
    """Of a resource that is one by itself. Raises GuestError (INVALID_PARAMETER)."""
    image = resource.image
    if image is None:
        raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"resource {resource.resource_id} is no picture")
    return Picture(image.format, image.width, image.height)


def picture_in_blob(resource: Resource, picture: Picture) -> Picture:
    """The picture, if it is in the blob. Raises GuestError (INVALID_PARAMETER)."""
    blob, row = resource.blob, 4 * picture.width
    if blob is None:
        raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"resource {resource.resource_id} is no blob")
    if (
        not is_scanout_format(picture.format)
        or not (0 < picture.width <= MAX_IMAGE_SIZE and 0 < picture.height <= MAX_IMAGE_SIZE)
        or picture.stride < row
        or picture.stride % 4
        or picture.offset + picture.stride * (picture.height - 1) + row > blob.nbytes
    ):
        raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"{picture} in a blob of {blob.nbytes} bytes")
    return picture


def cursor_picture(resource: Resource) -> Picture:
    """What UPDATE_CURSOR makes of a resource; of a blob, its first bytes. Raises GuestError (INVALID_PARAMETER)."""
    if resource.blob is not None:
        packed = Picture(Format.B8G8R8A8_UNORM, CURSOR_SIZE, CURSOR_SIZE, 4 * CURSOR_SIZE)
        return picture_in_blob(resource, packed)
    picture = picture_of(resource)
    if (picture.width, picture.height) != (CURSOR_SIZE, CURSOR_SIZE):
        raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"resource {resource.resource_id} is no 64x64 picture")
    return picture


def lives_in_worker(resource: Resource, picture: Picture) -> bool:
    """Whether its pixels are better asked for: they are an object of a driver, and what we can map of it, if anything,
    may be slow to read or not in rows."""
    v1, storage = resource.v1, resource.storage
    if v1 is None or (storage is not None and storage.kind is not StorageKind.DMABUF):
        return False
    return is_scanout_format(v1.format) and picture.width <= v1.width and picture.height <= v1.height


def is_guest_blob(resource: Resource) -> bool:
    """Whether its pixels are in guest memory."""
    return resource.blob is not None and resource.policy is Policy.GUEST_ONLY


def read(resource: Resource, picture: Picture, rect: Rect, memory: GuestMemory | None) -> bytearray | None:
    """A rectangle of the picture as packed x8r8g8b8, as far as it is here: from its shadow, guest memory or storage.

    None if it is not, or not any more. Raises OSError.
    """
    box = texture.Rect(rect.x, rect.y, rect.width, rect.height)
    if resource.shadow is not None:
        return resource.shadow.to_xrgb(picture.format, box)
    if is_guest_blob(resource):
        return _read_guest(resource, picture, box, memory)
    if resource.storage is None:
        return None
    offset, stride = _rows(resource, resource.storage, picture)
    if not stride:
        return None
    rows = texture.Rect(box.x, 0, box.width, box.height)
    nbytes = stride * (box.height - 1) + 4 * (box.x + box.width)
    with resource.storage.bytes_at(offset + box.y * stride, nbytes) as pixels:
        return convert_to_xrgb(picture.format, pixels, stride, rows)


def _read_guest(
    resource: Resource, picture: Picture, box: texture.Rect, memory: GuestMemory | None
) -> bytearray | None:
    if resource.iov is None or memory is None:
        return None
    row = 4 * box.width
    offset = picture.offset + box.y * picture.stride + 4 * box.x
    pixels = bytearray(row * box.height)
    rows = Rows(offset=offset, stride=picture.stride, row_bytes=row, rows=box.height)
    with memoryview(pixels) as view:
        if not resource.iov.read_rows(memory, rows, view, row):
            return None
        if picture.format in _AS_SHOWN:
            return pixels
        return convert_to_xrgb(picture.format, view, row, texture.Rect(0, 0, box.width, box.height))


def _rows(resource: Resource, storage: Storage, picture: Picture) -> tuple[int, int]:
    """Where the first row lies in the storage, and bytes from row to row. Stride 0: not in rows."""
    if storage.kind is StorageKind.MIRROR:
        level = resource.texture.mirror_level(0)
        return (level.offset, level.stride) if level is not None else (0, 0)
    if storage.layout.modifier != MODIFIER_LINEAR:
        return 0, 0
    if picture.stride:
        return picture.offset, picture.stride
    return storage.layout.offset, storage.layout.stride


def as_dmabuf(resource: Resource, picture: Picture, rect: Rect) -> ShownDmabuf | None:
    """How a display would show a part of it without our copying pixels. None if it cannot: there is no dma-buf, or the
    picture does not begin where it does (the display's protocol has no offset)."""
    storage = resource.storage
    if storage is None or storage.kind is not StorageKind.DMABUF:
        return None
    layout = storage.layout
    offset, stride, fourcc = layout.offset, layout.stride, layout.fourcc
    if picture.stride and layout.modifier == MODIFIER_LINEAR:
        offset, stride = picture.offset, picture.stride
        fourcc = int.from_bytes(_FOURCCS[Format(picture.format)], "little")
    if offset or not stride or not fourcc:
        return None
    return ShownDmabuf(storage, DmabufScanout(rect, picture.width, picture.height, stride, fourcc, layout.modifier))
