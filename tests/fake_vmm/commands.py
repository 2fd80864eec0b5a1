"""virtio-gpu commands ready to be submitted: one function per command type.

A GpuCommand has its arguments encoded, but not its header: fence and ring index are chosen at submission.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from tests.fake_vmm import wire
from tests.fake_vmm.memory import GuestBuffer
from tests.fake_vmm.wire import Box, Command, Rect, ResourceDescription

_TWO = struct.Struct("<II")
_FOUR = struct.Struct("<IIII")
_RESOURCE_3D = struct.Struct("<12I")
_CTX_CREATE = struct.Struct("<II64s")
_BACKING = struct.Struct("<II")
_TRANSFER_2D = struct.Struct("<QII")
_TRANSFER_3D = struct.Struct("<6IQIIII")
_CURSOR = struct.Struct("<8I")
_CREATE_BLOB = struct.Struct("<4IQQ")
_SCANOUT_BLOB = struct.Struct("<IIIIII4I4I")
_MAP_BLOB = struct.Struct("<IIQ")
_NAMES = {int(command): command.name for command in Command}


class GpuCommand(NamedTuple):
    """A command to submit.

    body: the bytes after the 24-byte header. payload: what follows in buffers of its own (bytes, or guest memory as it
    lies). response_size: bytes of the device-writable part.
    """

    type: int
    body: bytes = b""
    ctx_id: int = 0
    payload: bytes | memoryview | GuestBuffer | None = None
    response_size: int = wire.NO_DATA_SIZE

    @property
    def name(self) -> str:
        return _NAMES.get(self.type) or f"command {self.type:#x}"


def get_display_info() -> GpuCommand:
    return GpuCommand(Command.GET_DISPLAY_INFO, response_size=wire.DISPLAY_INFO_SIZE)


def get_edid(scanout: int) -> GpuCommand:
    return GpuCommand(Command.GET_EDID, _TWO.pack(scanout, 0), response_size=wire.EDID_RESPONSE_SIZE)


def get_capset_info(index: int) -> GpuCommand:
    return GpuCommand(Command.GET_CAPSET_INFO, _TWO.pack(index, 0), response_size=wire.CAPSET_INFO_SIZE)


def get_capset(capset_id: int, version: int, size: int) -> GpuCommand:
    """`size`: room for the capset, its max_size in GET_CAPSET_INFO."""
    return GpuCommand(Command.GET_CAPSET, _TWO.pack(capset_id, version), response_size=wire.NO_DATA_SIZE + size)


def resource_create_2d(resource_id: int, format: int, width: int, height: int) -> GpuCommand:
    return GpuCommand(Command.RESOURCE_CREATE_2D, _FOUR.pack(resource_id, format, width, height))


def resource_create_3d(resource_id: int, what: ResourceDescription, ctx_id: int = 0) -> GpuCommand:
    body = _RESOURCE_3D.pack(
        resource_id, what.target, what.format, what.bind, what.width, what.height, what.depth, what.array_size,
        what.last_level, what.nr_samples, what.flags, 0,
    )  # fmt: skip
    return GpuCommand(Command.RESOURCE_CREATE_3D, body, ctx_id)


def resource_unref(resource_id: int) -> GpuCommand:
    return GpuCommand(Command.RESOURCE_UNREF, _TWO.pack(resource_id, 0))


def resource_attach_backing(resource_id: int, segments: Sequence[tuple[int, int]]) -> GpuCommand:
    """`segments`: (guest address, bytes) of each entry."""
    body = _BACKING.pack(resource_id, len(segments))
    return GpuCommand(Command.RESOURCE_ATTACH_BACKING, body, payload=_entries(segments))


def _entries(segments: Sequence[tuple[int, int]]) -> bytes | None:
    return b"".join(wire.MEM_ENTRY.pack(gpa, length, 0) for gpa, length in segments) or None


def resource_detach_backing(resource_id: int) -> GpuCommand:
    return GpuCommand(Command.RESOURCE_DETACH_BACKING, _TWO.pack(resource_id, 0))


def resource_assign_uuid(resource_id: int) -> GpuCommand:
    return GpuCommand(Command.RESOURCE_ASSIGN_UUID, _TWO.pack(resource_id, 0), response_size=wire.UUID_SIZE)


def resource_create_blob(
    resource_id: int, mem: int, flags: int, size: int, *, ctx_id: int = 0, blob_id: int = 0,
    segments: Sequence[tuple[int, int]] = (),
) -> GpuCommand:  # fmt: skip
    """`blob_id`: the object of context `ctx_id` that it is made of; `segments`: as for a backing."""
    body = _CREATE_BLOB.pack(resource_id, mem, flags, len(segments), blob_id, size)
    return GpuCommand(Command.RESOURCE_CREATE_BLOB, body, ctx_id, _entries(segments))


def resource_map_blob(resource_id: int, offset: int) -> GpuCommand:
    """`offset`: bytes into the host-visible region."""
    return GpuCommand(
        Command.RESOURCE_MAP_BLOB, _MAP_BLOB.pack(resource_id, 0, offset), response_size=wire.MAP_INFO_SIZE
    )


def resource_unmap_blob(resource_id: int) -> GpuCommand:
    return GpuCommand(Command.RESOURCE_UNMAP_BLOB, _TWO.pack(resource_id, 0))


def set_scanout_blob(
    scanout: int, resource_id: int, rect: Rect, size: tuple[int, int], format: int, strides: Sequence[int],
    offsets: Sequence[int] = (),
) -> GpuCommand:  # fmt: skip
    """`size`: the picture's width and height; `strides`, `offsets`: bytes of up to four planes, missing ones are 0."""
    strides, offsets = (tuple([*planes, 0, 0, 0, 0][:4]) for planes in (strides, offsets))
    body = rect.encode() + _SCANOUT_BLOB.pack(scanout, resource_id, *size, format, 0, *strides, *offsets)
    return GpuCommand(Command.SET_SCANOUT_BLOB, body)


def set_scanout(scanout: int, resource_id: int, rect: Rect) -> GpuCommand:
    """resource_id 0 turns the scanout off."""
    return GpuCommand(Command.SET_SCANOUT, rect.encode() + _TWO.pack(scanout, resource_id))


def resource_flush(resource_id: int, rect: Rect) -> GpuCommand:
    return GpuCommand(Command.RESOURCE_FLUSH, rect.encode() + _TWO.pack(resource_id, 0))


def transfer_to_host_2d(resource_id: int, rect: Rect, offset: int = 0) -> GpuCommand:
    return GpuCommand(Command.TRANSFER_TO_HOST_2D, rect.encode() + _TRANSFER_2D.pack(offset, resource_id, 0))


def ctx_create(ctx_id: int, name: str | bytes = "", context_init: int = 0) -> GpuCommand:
    debug_name = name.encode() if isinstance(name, str) else name
    return GpuCommand(Command.CTX_CREATE, _CTX_CREATE.pack(len(debug_name), context_init, debug_name[:64]), ctx_id)


def ctx_destroy(ctx_id: int) -> GpuCommand:
    return GpuCommand(Command.CTX_DESTROY, ctx_id=ctx_id)


def ctx_attach_resource(ctx_id: int, resource_id: int) -> GpuCommand:
    return GpuCommand(Command.CTX_ATTACH_RESOURCE, _TWO.pack(resource_id, 0), ctx_id)


def ctx_detach_resource(ctx_id: int, resource_id: int) -> GpuCommand:
    return GpuCommand(Command.CTX_DETACH_RESOURCE, _TWO.pack(resource_id, 0), ctx_id)


def _transfer_3d(
    command: Command, ctx_id: int, resource_id: int, box: Box, offset: int, level: int, stride: int, layer_stride: int
) -> GpuCommand:
    body = _TRANSFER_3D.pack(
        box.x, box.y, box.z, box.width, box.height, box.depth, offset, resource_id, level, stride, layer_stride
    )
    return GpuCommand(command, body, ctx_id)


def transfer_to_host_3d(
    ctx_id: int, resource_id: int, box: Box, *, offset: int = 0, level: int = 0, stride: int = 0, layer_stride: int = 0
) -> GpuCommand:
    """Guest backing at `offset` into the box; strides in bytes, 0 for tightly packed."""
    return _transfer_3d(
        Command.TRANSFER_TO_HOST_3D, ctx_id, resource_id, box, offset, level, stride, layer_stride
    )


def transfer_from_host_3d(
    ctx_id: int, resource_id: int, box: Box, *, offset: int = 0, level: int = 0, stride: int = 0, layer_stride: int = 0
) -> GpuCommand:
    """The box into the guest backing at `offset`; strides in bytes, 0 for tightly packed."""
    return _transfer_3d(
        Command.TRANSFER_FROM_HOST_3D, ctx_id, resource_id, box, offset, level, stride, layer_stride
    )


def submit_3d(ctx_id: int, stream: bytes | memoryview | GuestBuffer, size: int | None = None) -> GpuCommand:
    """A context's command stream; `size` other than the stream's own is a lie on purpose."""
    length = (stream.size if isinstance(stream, GuestBuffer) else len(stream)) if size is None else size
    return GpuCommand(Command.SUBMIT_3D, _TWO.pack(length, 0), ctx_id, stream if length or size is not None else None)


def update_cursor(
    scanout: int, x: int, y: int, resource_id: int, hot_x: int = 0, hot_y: int = 0
) -> GpuCommand:
    """For the cursor queue; resource_id 0 hides the cursor. No response."""
    body = _CURSOR.pack(scanout, x, y, 0, resource_id, hot_x, hot_y, 0)
    return GpuCommand(Command.UPDATE_CURSOR, body, response_size=0)


def move_cursor(scanout: int, x: int, y: int, resource_id: int = 0) -> GpuCommand:
    """For the cursor queue. No response."""
    return GpuCommand(Command.MOVE_CURSOR, _CURSOR.pack(scanout, x, y, 0, resource_id, 0, 0, 0), response_size=0)
