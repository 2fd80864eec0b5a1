"""virtio-gpu on the wire: command and response types, formats, and decoded responses.

Written from virtio 1.3 section 5.7 and include/uapi/linux/virtio_gpu.h, on purpose without a look at the service under
test: a test must not share its bugs. All numbers little endian; sizes and rectangles in pixels, offsets in bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from uuid import UUID

from tests.fake_vmm.errors import CommandFailed, ProtocolViolation

HEADER = struct.Struct("<IIQIB3x")  # type, flags, fence_id, ctx_id, ring_idx
RECT = struct.Struct("<IIII")
MEM_ENTRY = struct.Struct("<QII")  # address, length, padding
DISPLAY_ONE = struct.Struct("<IIIIII")  # rect, enabled, flags
CAPSET_INFO = struct.Struct("<IIII")  # id, max version, max size, padding
MAP_INFO = struct.Struct("<II")  # caching, padding
DEVICE_CONFIG = struct.Struct("<IIII")  # events_read, events_clear, num_scanouts, num_capsets

MAX_SCANOUTS = 16
EDID_SIZE = 1024
NO_DATA_SIZE = HEADER.size
DISPLAY_INFO_SIZE = HEADER.size + MAX_SCANOUTS * DISPLAY_ONE.size
CAPSET_INFO_SIZE = HEADER.size + CAPSET_INFO.size
EDID_RESPONSE_SIZE = HEADER.size + 8 + EDID_SIZE
UUID_SIZE = HEADER.size + 16
MAP_INFO_SIZE = HEADER.size + MAP_INFO.size

FLAG_FENCE = 1
FLAG_RING_IDX = 2


class Feature(IntFlag):
    """virtio-gpu device features, as masks."""

    VIRGL = 1 << 0
    EDID = 1 << 1
    RESOURCE_UUID = 1 << 2
    RESOURCE_BLOB = 1 << 3
    CONTEXT_INIT = 1 << 4


class Command(IntEnum):
    GET_DISPLAY_INFO = 0x0100
    RESOURCE_CREATE_2D = 0x0101
    RESOURCE_UNREF = 0x0102
    SET_SCANOUT = 0x0103
    RESOURCE_FLUSH = 0x0104
    TRANSFER_TO_HOST_2D = 0x0105
    RESOURCE_ATTACH_BACKING = 0x0106
    RESOURCE_DETACH_BACKING = 0x0107
    GET_CAPSET_INFO = 0x0108
    GET_CAPSET = 0x0109
    GET_EDID = 0x010A
    RESOURCE_ASSIGN_UUID = 0x010B
    RESOURCE_CREATE_BLOB = 0x010C
    SET_SCANOUT_BLOB = 0x010D
    CTX_CREATE = 0x0200
    CTX_DESTROY = 0x0201
    CTX_ATTACH_RESOURCE = 0x0202
    CTX_DETACH_RESOURCE = 0x0203
    RESOURCE_CREATE_3D = 0x0204
    TRANSFER_TO_HOST_3D = 0x0205
    TRANSFER_FROM_HOST_3D = 0x0206
    SUBMIT_3D = 0x0207
    RESOURCE_MAP_BLOB = 0x0208
    RESOURCE_UNMAP_BLOB = 0x0209
    UPDATE_CURSOR = 0x0300
    MOVE_CURSOR = 0x0301


class Resp(IntEnum):
    OK_NODATA = 0x1100
    OK_DISPLAY_INFO = 0x1101
    OK_CAPSET_INFO = 0x1102
    OK_CAPSET = 0x1103
    OK_EDID = 0x1104
    OK_RESOURCE_UUID = 0x1105
    OK_MAP_INFO = 0x1106
    ERR_UNSPEC = 0x1200
    ERR_OUT_OF_MEMORY = 0x1201
    ERR_INVALID_SCANOUT_ID = 0x1202
    ERR_INVALID_RESOURCE_ID = 0x1203
    ERR_INVALID_CONTEXT_ID = 0x1204
    ERR_INVALID_PARAMETER = 0x1205


class Format(IntEnum):
    """The formats of 2D resources; names give the bytes in memory order."""

    B8G8R8A8 = 1
    B8G8R8X8 = 2
    A8R8G8B8 = 3
    X8R8G8B8 = 4
    R8G8B8A8 = 67
    X8B8G8R8 = 68
    A8B8G8R8 = 121
    R8G8B8X8 = 134


class BlobMem(IntEnum):
    """Where a blob's memory is: the guest's pages, the host's, or both."""

    GUEST = 1
    HOST3D = 2
    HOST3D_GUEST = 3


class BlobFlag(IntFlag):
    """What a blob is for."""

    MAPPABLE = 1 << 0
    SHAREABLE = 1 << 1
    CROSS_DEVICE = 1 << 2
    CREATE_GUEST_HANDLE = 1 << 3


class Caching(IntEnum):
    """How a guest may map a blob."""

    NONE = 0
    CACHED = 1
    UNCACHED = 2
    WRITE_COMBINED = 3


class Target(IntEnum):
    """Texture target of a 3D resource (gallium's pipe_texture_target)."""

    BUFFER = 0
    TEXTURE_1D = 1
    TEXTURE_2D = 2
    TEXTURE_3D = 3
    TEXTURE_CUBE = 4
    TEXTURE_RECT = 5
    TEXTURE_1D_ARRAY = 6
    TEXTURE_2D_ARRAY = 7
    TEXTURE_CUBE_ARRAY = 8


class Bind(IntFlag):
    """What a 3D resource is for (virgl's bind flags)."""

    DEPTH_STENCIL = 1 << 0
    RENDER_TARGET = 1 << 1
    SAMPLER_VIEW = 1 << 3
    VERTEX_BUFFER = 1 << 4
    INDEX_BUFFER = 1 << 5
    CONSTANT_BUFFER = 1 << 6
    CURSOR = 1 << 16
    CUSTOM = 1 << 17
    SCANOUT = 1 << 18
    SHARED = 1 << 20


@dataclass(frozen=True)
class Rect:
    width: int
    height: int
    x: int = 0
    y: int = 0

    def encode(self) -> bytes:
        return RECT.pack(self.x, self.y, self.width, self.height)


@dataclass(frozen=True)
class Box:
    """Part of a 3D resource: x, y, z and extent in texels (bytes for a buffer)."""

    width: int
    height: int = 1
    depth: int = 1
    x: int = 0
    y: int = 0
    z: int = 0


@dataclass(frozen=True)
class ResourceDescription:
    """Arguments of RESOURCE_CREATE_3D besides the id. `format` is a virgl format number."""

    width: int
    height: int = 1
    format: int = Format.B8G8R8A8
    bind: int = Bind.RENDER_TARGET | Bind.SAMPLER_VIEW
    target: int = Target.TEXTURE_2D
    depth: int = 1
    array_size: int = 1
    last_level: int = 0
    nr_samples: int = 0
    flags: int = 0


@dataclass(frozen=True)
class Response:
    """A response's header. `type` is a Resp where it is a known one; `ok` for 0x11xx."""

    type: int
    flags: int
    fence_id: int
    ctx_id: int
    ring_idx: int

    @property
    def ok(self) -> bool:
        return 0x1100 <= self.type < 0x1200

    @property
    def fenced(self) -> bool:
        return bool(self.flags & FLAG_FENCE)

    @property
    def name(self) -> str:
        return Resp(self.type).name if self.type in Resp._value2member_map_ else f"response {self.type:#x}"

    def check(self, command: str = "the command") -> None:
        """CommandFailed unless it is a success."""
        if not self.ok:
            raise CommandFailed(command, self.type, self.name)


@dataclass(frozen=True)
class DisplayMode:
    rect: Rect
    enabled: bool
    flags: int


@dataclass(frozen=True)
class DisplayInfo(Response):
    modes: tuple[DisplayMode, ...]

    @property
    def enabled(self) -> tuple[DisplayMode, ...]:
        return tuple(mode for mode in self.modes if mode.enabled)


@dataclass(frozen=True)
class CapsetInfo(Response):
    capset_id: int
    max_version: int
    max_size: int


@dataclass(frozen=True)
class Capset(Response):
    data: bytes


@dataclass(frozen=True)
class Edid(Response):
    """`edid` holds the `size` valid bytes."""

    size: int
    edid: bytes


@dataclass(frozen=True)
class ResourceUuid(Response):
    uuid: UUID


@dataclass(frozen=True)
class MapInfo(Response):
    """`caching` is a Caching."""

    caching: int


_Header = tuple[int, int, int, int, int]


def _display_info(header: _Header, body: bytes) -> Response:
    modes = []
    for x, y, width, height, enabled, flags in DISPLAY_ONE.iter_unpack(body[: MAX_SCANOUTS * DISPLAY_ONE.size]):
        modes.append(DisplayMode(Rect(width, height, x, y), bool(enabled), flags))
    return DisplayInfo(*header, modes=tuple(modes))


def _capset_info(header: _Header, body: bytes) -> Response:
    capset_id, max_version, max_size, _ = CAPSET_INFO.unpack_from(body)
    return CapsetInfo(*header, capset_id=capset_id, max_version=max_version, max_size=max_size)


def _capset(header: _Header, body: bytes) -> Response:
    return Capset(*header, data=body)


def _edid(header: _Header, body: bytes) -> Response:
    (size,) = struct.unpack_from("<I", body)
    if size > EDID_SIZE:
        raise ProtocolViolation(f"an EDID of {size} bytes")
    return Edid(*header, size=size, edid=body[8 : 8 + size])


def _resource_uuid(header: _Header, body: bytes) -> Response:
    return ResourceUuid(*header, uuid=UUID(bytes=body[:16]))


def _map_info(header: _Header, body: bytes) -> Response:
    caching, _ = MAP_INFO.unpack_from(body)
    return MapInfo(*header, caching=caching)


_DECODERS: dict[int, tuple[int, Callable[[_Header, bytes], Response]]] = {
    Resp.OK_DISPLAY_INFO: (DISPLAY_INFO_SIZE, _display_info),
    Resp.OK_CAPSET_INFO: (CAPSET_INFO_SIZE, _capset_info),
    Resp.OK_CAPSET: (HEADER.size, _capset),
    Resp.OK_EDID: (EDID_RESPONSE_SIZE, _edid),
    Resp.OK_RESOURCE_UUID: (UUID_SIZE, _resource_uuid),
    Resp.OK_MAP_INFO: (MAP_INFO_SIZE, _map_info),
}


def decode_response(raw: bytes) -> Response:
    """The response in the bytes that the device wrote; ProtocolViolation when they are too few for its type."""
    if len(raw) < HEADER.size:
        raise ProtocolViolation(f"a response of {len(raw)} bytes: {raw.hex()}")
    header = HEADER.unpack_from(raw)
    decoder = _DECODERS.get(header[0])
    if decoder is None:
        return Response(*header)
    size, decode = decoder
    if len(raw) < size:
        raise ProtocolViolation(f"{Resp(header[0]).name} of {len(raw)} bytes instead of {size}")
    return decode(header, raw[HEADER.size :])
