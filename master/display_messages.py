"""The vhost-user-gpu messages, by which a back end drives the front end's display.

Source: QEMU's docs/interop/vhost-user-gpu.rst. Numbers are in the machine's byte order.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from master.errors import ProtocolError
from master.virtio_gpu import CURSOR_SIZE
from master.wire import DISPLAY_INFO_BYTES, EDID_RESPONSE_BYTES, Rect

FLAG_REPLY: Final = 1 << 2
CURSOR_BYTES: Final = CURSOR_SIZE * CURSOR_SIZE * 4
BYTES_PER_PIXEL: Final = 4


class DisplayRequest(IntEnum):
    """Back end to front end; the replies carry the same number."""

    GET_PROTOCOL_FEATURES = 1
    SET_PROTOCOL_FEATURES = 2
    GET_DISPLAY_INFO = 3
    CURSOR_POS = 4
    CURSOR_POS_HIDE = 5
    CURSOR_UPDATE = 6
    SCANOUT = 7
    UPDATE = 8
    DMABUF_SCANOUT = 9
    DMABUF_UPDATE = 10
    GET_EDID = 11
    DMABUF_SCANOUT2 = 12


class DisplayFeature(IntFlag):
    """VHOST_USER_GPU_PROTOCOL_F_*, as masks."""

    EDID = 1 << 0
    DMABUF2 = 1 << 1


_REPLY_SIZES: Final[dict[int, int]] = {
    DisplayRequest.GET_PROTOCOL_FEATURES: 8,
    DisplayRequest.GET_DISPLAY_INFO: DISPLAY_INFO_BYTES,
    DisplayRequest.DMABUF_UPDATE: 0,
    DisplayRequest.GET_EDID: EDID_RESPONSE_BYTES,
}

U64: Final = struct.Struct("=Q")
_U32: Final = struct.Struct("=I")
_SCANOUT: Final = struct.Struct("=3I")
_CURSOR_POS: Final = struct.Struct("=3I")
_CURSOR_UPDATE: Final = struct.Struct("=5I")
_UPDATE: Final = struct.Struct("=5I")
_DMABUF_SCANOUT: Final = struct.Struct("=10I")


@dataclass(frozen=True, slots=True)
class Cursor:
    """A cursor image: 64x64 pixels, a8r8g8b8 words with premultiplied colour, 16384 bytes. hot_x, hot_y: in pixels."""

    hot_x: int
    hot_y: int
    argb: bytes

    def __post_init__(self) -> None:
        if len(self.argb) != CURSOR_BYTES:
            raise ValueError(f"cursor image of {len(self.argb)} bytes, expected {CURSOR_BYTES}")


@dataclass(frozen=True, slots=True)
class DmabufScanout:
    """What part of a dma-buf is shown, and what the dma-buf is.

    rect: the part, in pixels; width, height, stride (bytes), fourcc (drm_fourcc.h) and modifier: the whole buffer's,
    whose first row is the top one.
    """

    rect: Rect
    width: int
    height: int
    stride: int
    fourcc: int
    modifier: int


def check_reply(request: int, flags: int, size: int) -> None:
    """Raises ProtocolError unless the header is that of a reply that exists, of its size."""
    if flags != FLAG_REPLY:
        raise ProtocolError(f"flags {flags:#x} on the display socket are not those of a reply")
    expected = _REPLY_SIZES.get(request)
    if expected is None:
        raise ProtocolError(f"a reply to display request {request}, which has none")
    if size != expected:
        raise ProtocolError(f"{DisplayRequest(request).name} reply of {size} bytes, expected {expected}")


def encode_edid_request(scanout_id: int) -> bytes:
    return _U32.pack(scanout_id)


def encode_scanout(scanout_id: int, width: int, height: int) -> bytes:
    """width and height 0 disable it."""
    return _SCANOUT.pack(scanout_id, width, height)


def encode_update(scanout_id: int, rect: Rect) -> bytes:
    """The fixed part; UPDATE's pixels follow it."""
    return _UPDATE.pack(scanout_id, rect.x, rect.y, rect.width, rect.height)


def encode_cursor_pos(scanout_id: int, x: int, y: int) -> bytes:
    return _CURSOR_POS.pack(scanout_id, x, y)


def encode_cursor_update(scanout_id: int, x: int, y: int, cursor: Cursor) -> bytes:
    return _CURSOR_UPDATE.pack(scanout_id, x, y, cursor.hot_x, cursor.hot_y) + cursor.argb


def encode_dmabuf_scanout(scanout_id: int, scanout: DmabufScanout, *, with_modifier: bool) -> bytes:
    """DMABUF_SCANOUT's payload, or DMABUF_SCANOUT2's with the modifier."""
    rect = scanout.rect
    flags = 0  # VIRTIO_GPU_RESOURCE_FLAG_Y_0_TOP is for textures of GL, and turns them upside down
    payload = _DMABUF_SCANOUT.pack(
        scanout_id,
        *(rect.x, rect.y, rect.width, rect.height),
        *(scanout.width, scanout.height, scanout.stride, flags, scanout.fourcc),
    )
    return payload + U64.pack(scanout.modifier) if with_modifier else payload


def encode_no_dmabuf(scanout_id: int) -> bytes:
    """DMABUF_SCANOUT without a descriptor: nothing is shown any more."""
    return _DMABUF_SCANOUT.pack(scanout_id, *(0,) * 9)
