"""Requests that are too short or too long, and responses without enough room."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from tests.fake_vmm import Box, GpuCommand, GuestBuffer, Rect, Resp, commands
from tests.fake_vmm.wire import HEADER, Command
from tests.hostile.conftest import TEXTURE, Guest

WHOLE = Rect(64, 64)
Make = Callable[[Guest], GpuCommand]

GOOD: dict[Command, tuple[Make, Resp]] = {
    Command.GET_DISPLAY_INFO: (lambda g: commands.get_display_info(), Resp.OK_DISPLAY_INFO),
    Command.RESOURCE_CREATE_2D: (
        lambda g: commands.resource_create_2d(g.gpu.new_resource_id(), 1, 8, 8),
        Resp.OK_NODATA,
    ),
    Command.RESOURCE_CREATE_3D: (
        lambda g: commands.resource_create_3d(g.gpu.new_resource_id(), TEXTURE),
        Resp.OK_NODATA,
    ),
    Command.SET_SCANOUT: (lambda g: commands.set_scanout(0, g.picture.resource_id, WHOLE), Resp.OK_NODATA),
    Command.RESOURCE_FLUSH: (lambda g: commands.resource_flush(g.picture.resource_id, WHOLE), Resp.OK_NODATA),
    Command.TRANSFER_TO_HOST_2D: (
        lambda g: commands.transfer_to_host_2d(g.picture.resource_id, WHOLE),
        Resp.OK_NODATA,
    ),
    Command.GET_CAPSET_INFO: (lambda g: commands.get_capset_info(0), Resp.OK_CAPSET_INFO),
    Command.GET_CAPSET: (lambda g: commands.get_capset(1, 1, g.vmm.capsets[0].max_size), Resp.OK_CAPSET),
    Command.GET_EDID: (lambda g: commands.get_edid(0), Resp.OK_EDID),
    Command.RESOURCE_ASSIGN_UUID: (
        lambda g: commands.resource_assign_uuid(g.picture.resource_id),
        Resp.OK_RESOURCE_UUID,
    ),
    Command.CTX_ATTACH_RESOURCE: (
        lambda g: commands.ctx_attach_resource(g.context.ctx_id, g.texture.resource_id),
        Resp.OK_NODATA,
    ),
    Command.TRANSFER_TO_HOST_3D: (
        lambda g: commands.transfer_to_host_3d(g.context.ctx_id, g.texture.resource_id, Box(64, 32)),
        Resp.OK_NODATA,
    ),
    Command.TRANSFER_FROM_HOST_3D: (
        lambda g: commands.transfer_from_host_3d(g.context.ctx_id, g.texture.resource_id, Box(64, 32)),
        Resp.OK_NODATA,
    ),
    Command.SUBMIT_3D: (lambda g: commands.submit_3d(g.context.ctx_id, b""), Resp.OK_NODATA),
}
"""Commands that succeed however often they are sent."""

ONCE: dict[Command, Make] = {
    Command.RESOURCE_UNREF: lambda g: commands.resource_unref(g.stray.resource_id),
    Command.RESOURCE_ATTACH_BACKING: lambda g: commands.resource_attach_backing(g.bare.resource_id, [(8192, 4096)]),
    Command.RESOURCE_DETACH_BACKING: lambda g: commands.resource_detach_backing(g.stray.resource_id),
    Command.CTX_CREATE: lambda g: commands.ctx_create(99, "short"),
    Command.CTX_DESTROY: lambda g: commands.ctx_destroy(g.context.ctx_id),
    Command.CTX_DETACH_RESOURCE: lambda g: commands.ctx_detach_resource(g.context.ctx_id, g.texture.resource_id),
}
"""The others: sent here only so short that they must not have any effect."""

RESPONSE_ROOM = 4096


def raw(command: GpuCommand) -> bytes:
    """The command in one piece."""
    payload = command.payload if command.payload is not None else b""
    assert not isinstance(payload, GuestBuffer)
    return HEADER.pack(command.type, 0, 0, command.ctx_id, 0) + command.body + bytes(payload)


@pytest.mark.parametrize("command", [*GOOD, *ONCE], ids=lambda c: c.name)
def test_short(guest: Guest, command: Command) -> None:
    make = GOOD[command][0] if command in GOOD else ONCE[command]
    whole = raw(make(guest))
    lengths = {0, 1, 4, HEADER.size - 1} | ({HEADER.size, (HEADER.size + len(whole)) // 2, len(whole) - 1})
    for length in sorted(lengths - {len(whole)}):
        pending = guest.gpu.submit_bytes(whole[:length], RESPONSE_ROOM)
        assert guest.gpu.wait(pending).type == Resp.ERR_UNSPEC, f"{length} of {len(whole)} bytes"
        assert pending.used_length == HEADER.size


def test_short_ones_had_no_effect(guest: Guest) -> None:
    """What `test_short` might have destroyed is still there."""
    guest.gpu.transfer_to_host_3d(guest.context.ctx_id, guest.texture.resource_id, Box(64, 32)).check()
    guest.gpu.resource_assign_uuid(guest.stray.resource_id).check()
    assert guest.gpu.transfer_to_host_2d(guest.bare.resource_id, WHOLE).type == Resp.ERR_UNSPEC


@pytest.mark.parametrize("command", GOOD, ids=lambda c: c.name)
def test_long(guest: Guest, command: Command) -> None:
    """The rest is ignored."""
    make, expected = GOOD[command]
    for extra in (1, 24, 5000):
        pending = guest.gpu.submit_bytes(raw(make(guest)) + b"\xff" * extra, RESPONSE_ROOM)
        assert guest.gpu.wait(pending).type == expected


def test_megabytes_of_request(guest: Guest) -> None:
    """Python is handed commands up to the length of the longest backing; longer ones are refused unseen."""
    request = raw(commands.get_edid(0))
    fits = guest.gpu.submit_bytes(request + bytes(8 << 20), RESPONSE_ROOM)
    assert guest.gpu.wait(fits).type == Resp.OK_EDID
    too_long = guest.gpu.submit_bytes(request + bytes(17 << 20), RESPONSE_ROOM)
    assert guest.gpu.wait(too_long).type == Resp.ERR_OUT_OF_MEMORY


@pytest.mark.parametrize("command", GOOD, ids=lambda c: c.name)
def test_no_room_for_a_response(guest: Guest, command: Command) -> None:
    make, _ = GOOD[command]
    pending = guest.gpu.control.wait(guest.gpu.submit_bytes(raw(make(guest)), 0))
    assert pending.used_length == 0


def test_without_a_response_the_command_is_still_done(guest: Guest) -> None:
    resource_id = guest.gpu.new_resource_id()
    create = raw(commands.resource_create_2d(resource_id, 1, 8, 8))
    guest.gpu.control.wait(guest.gpu.submit_bytes(create, 0))
    guest.gpu.resource_unref(resource_id).check()


@pytest.mark.parametrize("command", GOOD, ids=lambda c: c.name)
@pytest.mark.parametrize("room", [1, 4, 8, 23])
def test_too_little_room_for_a_response(guest: Guest, command: Command, room: int) -> None:
    """As much of the response as there is room for, and nothing behind it."""
    make, expected = GOOD[command]
    pending = guest.gpu.control.wait(guest.gpu.submit_bytes(raw(make(guest)), room))
    assert pending.used_length == room
    assert pending.raw == HEADER.pack(expected, 0, 0, 0, 0)[:room]


@pytest.mark.parametrize("command", [c for c, (_, response) in GOOD.items() if response != Resp.OK_NODATA])
def test_room_for_the_header_alone(guest: Guest, command: Command) -> None:
    make, expected = GOOD[command]
    pending = guest.gpu.control.wait(guest.gpu.submit_bytes(raw(make(guest)), HEADER.size))
    assert pending.raw == HEADER.pack(expected, 0, 0, 0, 0)


@pytest.mark.parametrize("command", GOOD, ids=lambda c: c.name)
def test_in_pieces_of_a_few_bytes(guest: Guest, command: Command) -> None:
    """Framing is the driver's choice (virtio 1.3, 2.7.4): no part of a command has a right to one descriptor."""
    make, expected = GOOD[command]
    request = raw(make(guest))
    pending = guest.gpu.submit_bytes(request, RESPONSE_ROOM, request_split=[1, 2, 3] * 5, response_split=[1, 0, 7, 5])
    assert guest.gpu.wait(pending).type == expected


def test_more_entries_than_the_largest_backing(guest: Guest) -> None:
    """2^20 entries are the limit; one more comes in a command that is short enough to be looked at."""
    entries = struct.pack("<QII", 8192, 1, 0) * ((1 << 20) + 1)
    command = GpuCommand(
        Command.RESOURCE_ATTACH_BACKING, struct.pack("<II", guest.bare.resource_id, (1 << 20) + 1), payload=entries
    )
    assert guest.gpu.call(command).type == Resp.ERR_INVALID_PARAMETER
