"""The virtio-gpu wire format: guest commands decoded into frozen copies, responses encoded.

Source: virtio 1.3 section 5.7.6 and linux/virtio_gpu.h; everything is little endian.

What is decoded here came from the guest and has been copied out of its memory before. Decoding checks lengths and
nothing else; ids, rectangles and formats are the dispatcher's to judge. How lengths are judged:
- longer than its structure: accepted, the rest is ignored. Drivers round up, and a later spec may append fields.
- shorter than its structure, or a type that is not in the table: ERR_UNSPEC. The spec has no code for "cannot be
  parsed"; of the renderers in use, one answers ERR_UNSPEC and another success (it skips the command), and a success
  would be a lie.
- ATTACH_BACKING with fewer entries than it counts: ERR_UNSPEC, which is what drivers get for it elsewhere.

SUBMIT_3D and the 3D transfers are not here: the data plane decodes them itself (native/src/commands.c), and writes the
headers of all responses.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from master.errors import GuestError
from master.virtio_gpu import (
    DEBUG_NAME_BYTES,
    EDID_MAX_BYTES,
    MAX_SCANOUTS,
    CommandType,
    HeaderFlag,
    ResponseType,
)

Buffer: TypeAlias = bytes | bytearray | memoryview

HEADER: Final = struct.Struct("<IIQIB3x")  # type, flags, fence_id, ctx_id, ring_idx
MEM_ENTRY_BYTES: Final = 16  # struct virtio_gpu_mem_entry

_DISPLAY_ONE: Final = struct.Struct("<6I")  # rect, enabled, flags
DISPLAY_INFO_BYTES: Final = HEADER.size + MAX_SCANOUTS * _DISPLAY_ONE.size
EDID_RESPONSE_BYTES: Final = HEADER.size + 8 + EDID_MAX_BYTES


@dataclass(frozen=True, slots=True)
class Header:
    """struct virtio_gpu_ctrl_hdr. type is a plain int: a guest may send any."""

    type: int
    flags: int
    fence_id: int
    ctx_id: int
    ring_idx: int

    @property
    def fenced(self) -> bool:
        """The guest waits for the work itself, not just for the answer."""
        return bool(self.flags & HeaderFlag.FENCE)

    @property
    def has_ring_idx(self) -> bool:
        """The fence belongs to the context's timeline ring_idx and not to the global one."""
        return bool(self.flags & HeaderFlag.INFO_RING_IDX)


@dataclass(frozen=True, slots=True)
class Rect:
    """struct virtio_gpu_rect, in pixels."""

    x: int
    y: int
    width: int
    height: int

    def within(self, width: int, height: int) -> bool:
        """Whether it is not empty and lies inside width x height. Python's integers do not wrap, so the sums are
        safe.
        """
        return (
            self.width > 0 and self.height > 0 and self.x + self.width <= width and self.y + self.height <= height
        )


@dataclass(frozen=True, slots=True)
class DisplayMode:
    """struct virtio_gpu_display_one: one scanout of GET_DISPLAY_INFO's answer."""

    rect: Rect
    enabled: bool
    flags: int = 0


@dataclass(frozen=True, slots=True)
class GuestCommand:
    """A guest command, decoded from a copy. Its fields keep the names of linux/virtio_gpu.h."""

    header: Header


@dataclass(frozen=True, slots=True)
class GetDisplayInfo(GuestCommand):
    pass


@dataclass(frozen=True, slots=True)
class ResourceCreate2D(GuestCommand):
    resource_id: int
    format: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class ResourceUnref(GuestCommand):
    resource_id: int


@dataclass(frozen=True, slots=True)
class SetScanout(GuestCommand):
    """resource_id 0 disables the scanout."""

    rect: Rect
    scanout_id: int
    resource_id: int


@dataclass(frozen=True, slots=True)
class ResourceFlush(GuestCommand):
    rect: Rect
    resource_id: int


@dataclass(frozen=True, slots=True)
class TransferToHost2D(GuestCommand):
    """offset: bytes into the backing, of the rectangle's first pixel."""

    rect: Rect
    offset: int
    resource_id: int


@dataclass(frozen=True, slots=True)
class ResourceAttachBacking(GuestCommand):
    """entries: nr_entries times struct virtio_gpu_mem_entry, as they came (16 bytes each: u64 addr, u32 length, u32
    padding).
    """

    resource_id: int
    nr_entries: int
    entries: memoryview


@dataclass(frozen=True, slots=True)
class ResourceDetachBacking(GuestCommand):
    resource_id: int


@dataclass(frozen=True, slots=True)
class GetCapsetInfo(GuestCommand):
    capset_index: int


@dataclass(frozen=True, slots=True)
class GetCapset(GuestCommand):
    capset_id: int
    capset_version: int


@dataclass(frozen=True, slots=True)
class GetEdid(GuestCommand):
    scanout: int


@dataclass(frozen=True, slots=True)
class ResourceAssignUuid(GuestCommand):
    resource_id: int


@dataclass(frozen=True, slots=True)
class CtxCreate(GuestCommand):
    """debug_name is safe to print: what is not printable ASCII has been replaced by '?', at most 64 characters."""

    context_init: int
    debug_name: str


@dataclass(frozen=True, slots=True)
class CtxDestroy(GuestCommand):
    pass


@dataclass(frozen=True, slots=True)
class CtxAttachResource(GuestCommand):
    resource_id: int


@dataclass(frozen=True, slots=True)
class CtxDetachResource(GuestCommand):
    resource_id: int


@dataclass(frozen=True, slots=True)
class ResourceCreate3D(GuestCommand):
    """target, format and bind in Gallium's numbers (virgl_hw.h)."""

    resource_id: int
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


@dataclass(frozen=True, slots=True)
class ResourceCreateBlob(GuestCommand):
    """entries: as in ResourceAttachBacking, nr_entries of them. size in bytes; blob_id: the context's object."""

    resource_id: int
    blob_mem: int
    blob_flags: int
    nr_entries: int
    blob_id: int
    size: int
    entries: memoryview


@dataclass(frozen=True, slots=True)
class SetScanoutBlob(GuestCommand):
    """resource_id 0 disables the scanout. strides and offsets: bytes, of four planes."""

    rect: Rect
    scanout_id: int
    resource_id: int
    width: int
    height: int
    format: int
    strides: tuple[int, int, int, int]
    offsets: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class ResourceMapBlob(GuestCommand):
    """offset: bytes into the host-visible memory region."""

    resource_id: int
    offset: int


@dataclass(frozen=True, slots=True)
class ResourceUnmapBlob(GuestCommand):
    resource_id: int


@dataclass(frozen=True, slots=True)
class UpdateCursor(GuestCommand):
    """resource_id 0 hides the cursor."""

    scanout_id: int
    x: int
    y: int
    resource_id: int
    hot_x: int
    hot_y: int


@dataclass(frozen=True, slots=True)
class MoveCursor(GuestCommand):
    scanout_id: int
    x: int
    y: int


_Fields: TypeAlias = tuple[Any, ...]
_Build: TypeAlias = Callable[[Header, _Fields, memoryview], GuestCommand]


def printable(name: bytes) -> str:
    """The name up to its first NUL, with everything but printable ASCII replaced by '?': it goes into logs and
    process titles.
    """
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "?" for byte in name.split(b"\0", 1)[0])


def _ctx_create(header: Header, fields: _Fields, _rest: memoryview) -> CtxCreate:
    nlen, context_init, name = fields
    return CtxCreate(header, context_init, printable(name[:nlen]))


def _attach_backing(header: Header, fields: _Fields, rest: memoryview) -> ResourceAttachBacking:
    resource_id, nr_entries = fields
    wanted = nr_entries * MEM_ENTRY_BYTES
    if len(rest) < wanted:
        raise GuestError(ResponseType.ERR_UNSPEC, f"{nr_entries} backing entries counted in {len(rest)} bytes")
    return ResourceAttachBacking(header, resource_id, nr_entries, rest[:wanted])


def _create_blob(header: Header, fields: _Fields, rest: memoryview) -> ResourceCreateBlob:
    resource_id, blob_mem, blob_flags, nr_entries, blob_id, size = fields
    wanted = nr_entries * MEM_ENTRY_BYTES
    if len(rest) < wanted:
        raise GuestError(ResponseType.ERR_UNSPEC, f"{nr_entries} blob entries counted in {len(rest)} bytes")
    return ResourceCreateBlob(header, resource_id, blob_mem, blob_flags, nr_entries, blob_id, size, rest[:wanted])


def _set_scanout_blob(header: Header, fields: _Fields, _rest: memoryview) -> SetScanoutBlob:
    rect, (scanout_id, resource_id, width, height, format) = Rect(*fields[:4]), fields[4:9]
    return SetScanoutBlob(header, rect, scanout_id, resource_id, width, height, format, fields[9:13], fields[13:17])


def _with_rect(build: Callable[..., GuestCommand]) -> _Build:
    return lambda header, fields, _rest: build(header, Rect(*fields[:4]), *fields[4:])


def _plain(build: Callable[..., GuestCommand]) -> _Build:
    return lambda header, fields, _rest: build(header, *fields)


@dataclass(frozen=True, slots=True)
class _Codec:
    """layout: what follows the header, as fixed by the spec; build: makes the command of its fields and of the bytes
    behind.
    """

    layout: struct.Struct
    build: _Build


def _codec(layout: str, build: _Build) -> _Codec:
    return _Codec(struct.Struct("<" + layout), build)


_CODECS: Final[dict[int, _Codec]] = {
    CommandType.GET_DISPLAY_INFO: _codec("", _plain(GetDisplayInfo)),
    CommandType.RESOURCE_CREATE_2D: _codec("4I", _plain(ResourceCreate2D)),
    CommandType.RESOURCE_UNREF: _codec("I4x", _plain(ResourceUnref)),
    CommandType.SET_SCANOUT: _codec("6I", _with_rect(SetScanout)),
    CommandType.RESOURCE_FLUSH: _codec("5I4x", _with_rect(ResourceFlush)),
    CommandType.TRANSFER_TO_HOST_2D: _codec("4IQI4x", _with_rect(TransferToHost2D)),
    CommandType.RESOURCE_ATTACH_BACKING: _codec("2I", _attach_backing),
    CommandType.RESOURCE_DETACH_BACKING: _codec("I4x", _plain(ResourceDetachBacking)),
    CommandType.GET_CAPSET_INFO: _codec("I4x", _plain(GetCapsetInfo)),
    CommandType.GET_CAPSET: _codec("2I", _plain(GetCapset)),
    CommandType.GET_EDID: _codec("I4x", _plain(GetEdid)),
    CommandType.RESOURCE_ASSIGN_UUID: _codec("I4x", _plain(ResourceAssignUuid)),
    CommandType.RESOURCE_CREATE_BLOB: _codec("4I2Q", _create_blob),
    CommandType.SET_SCANOUT_BLOB: _codec("9I4x4I4I", _set_scanout_blob),
    CommandType.RESOURCE_MAP_BLOB: _codec("I4xQ", _plain(ResourceMapBlob)),
    CommandType.RESOURCE_UNMAP_BLOB: _codec("I4x", _plain(ResourceUnmapBlob)),
    CommandType.CTX_CREATE: _codec(f"2I{DEBUG_NAME_BYTES}s", _ctx_create),
    CommandType.CTX_DESTROY: _codec("", _plain(CtxDestroy)),
    CommandType.CTX_ATTACH_RESOURCE: _codec("I4x", _plain(CtxAttachResource)),
    CommandType.CTX_DETACH_RESOURCE: _codec("I4x", _plain(CtxDetachResource)),
    CommandType.RESOURCE_CREATE_3D: _codec("11I4x", _plain(ResourceCreate3D)),
    CommandType.UPDATE_CURSOR: _codec("3I4x3I4x", _plain(UpdateCursor)),
    CommandType.MOVE_CURSOR: _codec("3I20x", _plain(MoveCursor)),
}


def header_of(command: Buffer) -> Header:
    """The header, for an answer to a command whatever is wrong with it: bytes that were not sent count as zero. Never
    raises.
    """
    return Header(*HEADER.unpack(bytes(command[: HEADER.size]).ljust(HEADER.size, b"\0")))


def decode(command: Buffer) -> GuestCommand:
    """Decode a command: header and payload in one buffer, already copied out of guest memory.

    Variable parts (entries, commands) are memoryviews of that buffer, which must therefore not change afterwards.
    Raises GuestError: ERR_UNSPEC for an unknown type or a command that is too short; see the module's text for the
    rest.
    """
    view = memoryview(command)
    if len(view) < HEADER.size:
        raise GuestError(ResponseType.ERR_UNSPEC, f"{len(view)} bytes are no command")
    header = Header(*HEADER.unpack_from(view))
    codec = _CODECS.get(header.type)
    if codec is None:
        raise GuestError(ResponseType.ERR_UNSPEC, f"unknown command type {header.type:#x}")
    body = view[HEADER.size :]
    if len(body) < codec.layout.size:
        raise GuestError(ResponseType.ERR_UNSPEC, f"{CommandType(header.type).name} of {len(view)} bytes is too short")
    return codec.build(header, codec.layout.unpack_from(body), body[codec.layout.size :])


def display_info_body(modes: Sequence[DisplayMode]) -> bytes:
    """384 bytes: 16 scanouts, those not given disabled. ValueError for more than 16."""
    if len(modes) > MAX_SCANOUTS:
        raise ValueError(f"{len(modes)} scanouts, at most {MAX_SCANOUTS} can be told")
    body = b"".join(
        _DISPLAY_ONE.pack(mode.rect.x, mode.rect.y, mode.rect.width, mode.rect.height, mode.enabled, mode.flags)
        for mode in modes
    )
    return body.ljust(MAX_SCANOUTS * _DISPLAY_ONE.size, b"\0")


def edid_body(edid: bytes) -> bytes:
    """1032 bytes: the EDID's length, then the EDID in a field of 1024. ValueError for a longer one."""
    if len(edid) > EDID_MAX_BYTES:
        raise ValueError(f"EDID of {len(edid)} bytes, at most {EDID_MAX_BYTES} can be told")
    return struct.pack("<I4x", len(edid)) + edid.ljust(EDID_MAX_BYTES, b"\0")


def capset_info_body(capset_id: int, max_version: int, max_size: int) -> bytes:
    """16 bytes. max_size: of the capability set, in bytes."""
    return struct.pack("<3I4x", capset_id, max_version, max_size)


def map_info_body(map_info: int) -> bytes:
    """8 bytes."""
    return struct.pack("<I4x", map_info)


def decode_display_info(response: Buffer) -> list[DisplayMode]:
    """The 16 scanouts of a GET_DISPLAY_INFO response (a front end that has the display answers with it). ValueError
    if short.
    """
    if len(response) < DISPLAY_INFO_BYTES:
        raise ValueError(f"display info of {len(response)} bytes")
    modes = _DISPLAY_ONE.iter_unpack(response[HEADER.size : DISPLAY_INFO_BYTES])
    return [DisplayMode(Rect(x, y, w, h), bool(enabled), flags) for x, y, w, h, enabled, flags in modes]


def decode_edid(response: Buffer) -> bytes:
    """The EDID of a GET_EDID response. ValueError if it is short or counts more bytes than it has."""
    if len(response) < EDID_RESPONSE_BYTES:
        raise ValueError(f"EDID response of {len(response)} bytes")
    (size,) = struct.unpack_from("<I", response, HEADER.size)
    if size > EDID_MAX_BYTES:
        raise ValueError(f"EDID of {size} bytes")
    return bytes(response[HEADER.size + 8 :][:size])
