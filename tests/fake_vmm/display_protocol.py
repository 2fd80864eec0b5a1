"""The vhost-user-gpu display protocol on the wire (QEMU docs/interop/vhost-user-gpu.rst): messages decoded."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from tests.fake_vmm.errors import ProtocolViolation
from tests.fake_vmm.wire import Rect

HEADER = struct.Struct("<III")  # request, flags, size
FLAG_REPLY = 4
F_EDID = 1 << 0
F_DMABUF2 = 1 << 1
CURSOR_SIDE = 64

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_CURSOR_POS = struct.Struct("<III")
_CURSOR_UPDATE = struct.Struct("<5I")
_SCANOUT = struct.Struct("<III")
_UPDATE = struct.Struct("<5I")
_DMABUF_SCANOUT = struct.Struct("<9II")
_DMABUF_SCANOUT2 = struct.Struct("<9IIQ")

Pixels = npt.NDArray[np.uint8]


class DisplayRequest(IntEnum):
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


@dataclass(frozen=True)
class DisplayMessage:
    """A message without arguments of interest (GET_PROTOCOL_FEATURES, GET_DISPLAY_INFO), and base of the others."""

    request: DisplayRequest


@dataclass(frozen=True)
class SetProtocolFeatures(DisplayMessage):
    features: int


@dataclass(frozen=True)
class GetEdid(DisplayMessage):
    scanout: int


@dataclass(frozen=True)
class CursorPos(DisplayMessage):
    """CURSOR_POS or CURSOR_POS_HIDE."""

    scanout: int
    x: int
    y: int


@dataclass(frozen=True, eq=False)
class CursorUpdate(DisplayMessage):
    """`image`: 64 x 64 x 4, bytes B G R A."""

    scanout: int
    x: int
    y: int
    hot_x: int
    hot_y: int
    image: Pixels


@dataclass(frozen=True)
class Scanout(DisplayMessage):
    """0 x 0 turns the scanout off."""

    scanout: int
    width: int
    height: int


@dataclass(frozen=True)
class Update(DisplayMessage):
    """UPDATE or DMABUF_UPDATE. `pixels`: bytes of x8r8g8b8 data that came along."""

    scanout: int
    rect: Rect
    pixels: int


@dataclass(frozen=True)
class DmabufScanout(DisplayMessage):
    """DMABUF_SCANOUT or, with a modifier, DMABUF_SCANOUT2. `rect` lies within the `fd_width` x `fd_height` buffer."""

    scanout: int
    rect: Rect
    fd_width: int
    fd_height: int
    fd_stride: int
    fd_flags: int
    fourcc: int
    modifier: int | None


@dataclass(frozen=True)
class Incoming:
    """A decoded message with what is not kept in the record: pixel bytes of an UPDATE."""

    message: DisplayMessage
    data: memoryview


def decode(request: int, payload: bytes) -> Incoming:
    """ProtocolViolation for an unknown request or a payload of the wrong size."""
    try:
        kind = DisplayRequest(request)
    except ValueError:
        raise ProtocolViolation(f"display socket: unknown request {request}") from None
    view = memoryview(payload)
    try:
        if kind is DisplayRequest.UPDATE:
            return _update(kind, view)
        return Incoming(_decode_fixed(kind, payload), memoryview(b""))
    except struct.error:
        raise ProtocolViolation(f"display socket: {kind.name} with {len(payload)} bytes of payload") from None


def _update(kind: DisplayRequest, view: memoryview) -> Incoming:
    scanout, x, y, width, height = _UPDATE.unpack_from(view)
    data = view[_UPDATE.size :]
    if len(data) != 4 * width * height:
        raise ProtocolViolation(f"display socket: UPDATE of {width}x{height} with {len(data)} bytes of pixels")
    return Incoming(Update(kind, scanout, Rect(width, height, x, y), len(data)), data)


def _decode_fixed(kind: DisplayRequest, payload: bytes) -> DisplayMessage:
    if kind is DisplayRequest.SET_PROTOCOL_FEATURES:
        return SetProtocolFeatures(kind, *_U64.unpack(payload))
    if kind is DisplayRequest.GET_EDID:
        return GetEdid(kind, *_U32.unpack(payload))
    if kind in (DisplayRequest.CURSOR_POS, DisplayRequest.CURSOR_POS_HIDE):
        return CursorPos(kind, *_CURSOR_POS.unpack(payload))
    if kind is DisplayRequest.CURSOR_UPDATE:
        return _cursor_update(kind, payload)
    if kind is DisplayRequest.SCANOUT:
        return Scanout(kind, *_SCANOUT.unpack(payload))
    if kind is DisplayRequest.DMABUF_UPDATE:
        scanout, x, y, width, height = _UPDATE.unpack(payload)
        return Update(kind, scanout, Rect(width, height, x, y), 0)
    if kind is DisplayRequest.DMABUF_SCANOUT:
        return _dmabuf_scanout(kind, (*_DMABUF_SCANOUT.unpack(payload), None))
    if kind is DisplayRequest.DMABUF_SCANOUT2:
        return _dmabuf_scanout(kind, _DMABUF_SCANOUT2.unpack(payload))
    if payload:
        raise ProtocolViolation(f"display socket: {kind.name} with {len(payload)} bytes of payload")
    return DisplayMessage(kind)


def _cursor_update(kind: DisplayRequest, payload: bytes) -> CursorUpdate:
    if len(payload) != _CURSOR_UPDATE.size + 4 * CURSOR_SIDE * CURSOR_SIDE:
        raise ProtocolViolation(f"display socket: {kind.name} with {len(payload)} bytes of payload")
    image = np.frombuffer(payload, np.uint8, offset=_CURSOR_UPDATE.size).reshape(CURSOR_SIDE, CURSOR_SIDE, 4)
    scanout, x, y, hot_x, hot_y = _CURSOR_UPDATE.unpack_from(payload)
    return CursorUpdate(kind, scanout, x, y, hot_x, hot_y, image)


def _dmabuf_scanout(kind: DisplayRequest, fields: tuple[int | None, ...]) -> DmabufScanout:
    scanout, x, y, width, height, fd_width, fd_height, stride, flags, fourcc = (field or 0 for field in fields[:10])
    return DmabufScanout(
        kind, scanout, Rect(width, height, x, y), fd_width, fd_height, stride, flags, fourcc, fields[10]
    )
