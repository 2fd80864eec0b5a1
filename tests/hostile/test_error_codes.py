"""Well-formed commands that ask for what cannot be: the response code of each (virtio 1.3, 5.7.6.8 to 5.7.6.10)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.fake_vmm import Bind, Box, Format, GpuCommand, Rect, ResourceDescription, Resp, Target, commands
from tests.fake_vmm.wire import Command
from tests.hostile.conftest import TEXTURE, TEXTURE_BYTES, UNKNOWN, Guest

OK = Resp.OK_NODATA
UNSPEC = Resp.ERR_UNSPEC
NO_MEMORY = Resp.ERR_OUT_OF_MEMORY
NO_SCANOUT = Resp.ERR_INVALID_SCANOUT_ID
NO_RESOURCE = Resp.ERR_INVALID_RESOURCE_ID
NO_CONTEXT = Resp.ERR_INVALID_CONTEXT_ID
BAD_PARAMETER = Resp.ERR_INVALID_PARAMETER

WHOLE = Rect(64, 64)
MAX = 0xFFFF_FFFF
WRAPPING = (
    Rect(1, 1, x=MAX),
    Rect(MAX, 1, x=1),
    Rect(1, MAX, y=1),
    Rect(0x8000_0001, 64, x=0x7FFF_FFFF),
    Rect(2, 64, x=63),
    Rect(64, 2, y=63),
    Rect(65, 64),
    Rect(64, 65),
    Rect(0, 64),
    Rect(64, 0),
    Rect(0, 0),
    Rect(1, 1, x=64),
    Rect(1, 1, y=64),
)
"""Rectangles that are empty or not in 64x64; some would be if 32-bit sums were made."""

BAD_BOXES = (
    Box(65, 32),
    Box(64, 33),
    Box(1, 1, x=64),
    Box(2, 1, x=63),
    Box(MAX, 1, x=1),
    Box(1, MAX, y=1),
    Box(1, 1, MAX, z=1),
    Box(1, 1, 2),
    Box(1, 1, 1, z=1),
    Box(0, 1),
    Box(1, 0),
    Box(1, 1, 0),
    Box(1, 1, x=MAX, y=MAX, z=MAX),
)
"""Boxes that are empty or not in 64x32x1."""

Make = Callable[[Guest], GpuCommand]
Case = tuple[str, Resp, Make]


def _create_3d(guest: Guest, **changes: int) -> GpuCommand:
    what = replace(ResourceDescription(64, 64), **changes)
    return commands.resource_create_3d(guest.gpu.new_resource_id(), what)


def _create_2d(guest: Guest, format: int, width: int, height: int) -> GpuCommand:
    return commands.resource_create_2d(guest.gpu.new_resource_id(), format, width, height)


RESOURCES: list[Case] = [
    ("2D of id 0", NO_RESOURCE, lambda g: commands.resource_create_2d(0, Format.B8G8R8X8, 8, 8)),
    ("2D of an id in use", NO_RESOURCE, lambda g: commands.resource_create_2d(g.picture.resource_id, 1, 8, 8)),
    ("2D of a 3D's id", NO_RESOURCE, lambda g: commands.resource_create_2d(g.texture.resource_id, 1, 8, 8)),
    ("2D of format 0", BAD_PARAMETER, lambda g: _create_2d(g, 0, 8, 8)),
    ("2D of an unknown format", BAD_PARAMETER, lambda g: _create_2d(g, 5, 8, 8)),
    ("2D of format 2^32-1", BAD_PARAMETER, lambda g: _create_2d(g, MAX, 8, 8)),
    ("2D of width 0", BAD_PARAMETER, lambda g: _create_2d(g, 1, 0, 8)),
    ("2D of height 0", BAD_PARAMETER, lambda g: _create_2d(g, 1, 8, 0)),
    ("2D of width 2^32-1", BAD_PARAMETER, lambda g: _create_2d(g, 1, MAX, 8)),
    ("2D of 2^16 x 2^16, 0 bytes in 32 bits", BAD_PARAMETER, lambda g: _create_2d(g, 1, 1 << 16, 1 << 16)),
    ("2D just too wide", BAD_PARAMETER, lambda g: _create_2d(g, 1, 16385, 1)),
    ("3D of id 0", NO_RESOURCE, lambda g: commands.resource_create_3d(0, ResourceDescription(8, 8))),
    ("3D of an id in use", NO_RESOURCE, lambda g: commands.resource_create_3d(g.bare.resource_id, TEXTURE)),
    ("3D of an unknown target", BAD_PARAMETER, lambda g: _create_3d(g, target=9)),
    ("3D of target 2^32-1", BAD_PARAMETER, lambda g: _create_3d(g, target=MAX)),
    ("3D of format 0", BAD_PARAMETER, lambda g: _create_3d(g, format=0)),
    ("3D of an unknown format", BAD_PARAMETER, lambda g: _create_3d(g, format=9999)),
    ("3D of width 0", BAD_PARAMETER, lambda g: _create_3d(g, width=0)),
    ("3D of height 0", BAD_PARAMETER, lambda g: _create_3d(g, height=0)),
    ("3D of depth 0", BAD_PARAMETER, lambda g: _create_3d(g, depth=0)),
    ("3D of array size 0", BAD_PARAMETER, lambda g: _create_3d(g, array_size=0)),
    ("3D of width 2^32-1", BAD_PARAMETER, lambda g: _create_3d(g, width=MAX)),
    ("3D of height 2^32-1", BAD_PARAMETER, lambda g: _create_3d(g, height=MAX)),
    ("3D of depth 2^32-1", BAD_PARAMETER, lambda g: _create_3d(g, target=Target.TEXTURE_3D, depth=MAX)),
    ("3D of array size 2^32-1", BAD_PARAMETER, lambda g: _create_3d(g, array_size=MAX)),
    ("2D texture with a depth", BAD_PARAMETER, lambda g: _create_3d(g, depth=2)),
    ("3D of level 15", BAD_PARAMETER, lambda g: _create_3d(g, last_level=15)),
    ("3D of level 2^32-1", BAD_PARAMETER, lambda g: _create_3d(g, last_level=MAX)),
    ("3D of 33 samples", BAD_PARAMETER, lambda g: _create_3d(g, nr_samples=33)),
    ("buffer of two rows", BAD_PARAMETER, lambda g: _create_3d(g, target=Target.BUFFER, format=64, height=2)),
    ("unref of 0", NO_RESOURCE, lambda g: commands.resource_unref(0)),
    ("unref of nothing", NO_RESOURCE, lambda g: commands.resource_unref(UNKNOWN)),
    ("UUID of nothing", NO_RESOURCE, lambda g: commands.resource_assign_uuid(UNKNOWN)),
]

BACKINGS: list[Case] = [
    ("attach to nothing", NO_RESOURCE, lambda g: commands.resource_attach_backing(UNKNOWN, [(4096, 4096)])),
    ("attach to 0", NO_RESOURCE, lambda g: commands.resource_attach_backing(0, [(4096, 4096)])),
    (
        "attach twice",
        UNSPEC,
        lambda g: commands.resource_attach_backing(g.picture.resource_id, g.picture.pixels.segments()),
    ),
    ("no entries", BAD_PARAMETER, lambda g: commands.resource_attach_backing(g.bare.resource_id, [])),
    ("an empty entry", BAD_PARAMETER, lambda g: commands.resource_attach_backing(g.bare.resource_id, [(4096, 0)])),
    (
        "an empty entry behind a good one",
        BAD_PARAMETER,
        lambda g: commands.resource_attach_backing(g.bare.resource_id, [(4096, 4096), (8192, 0)]),
    ),
    (
        "an entry outside RAM",
        BAD_PARAMETER,
        lambda g: commands.resource_attach_backing(g.bare.resource_id, [(1 << 46, 4096)]),
    ),
    (
        "an entry that leaves RAM",
        BAD_PARAMETER,
        lambda g: commands.resource_attach_backing(g.bare.resource_id, [(g.vmm.memory.regions[-1].end - 4096, 8192)]),
    ),
    (
        "an entry that wraps",
        BAD_PARAMETER,
        lambda g: commands.resource_attach_backing(g.bare.resource_id, [((1 << 64) - 4096, 8192)]),
    ),
    (
        "entries counted that are not there",
        UNSPEC,
        lambda g: GpuCommand(
            Command.RESOURCE_ATTACH_BACKING, struct.pack("<II", g.bare.resource_id, 2), payload=bytes(16)
        ),
    ),
    (
        "2^32-1 entries counted",
        UNSPEC,
        lambda g: GpuCommand(
            Command.RESOURCE_ATTACH_BACKING, struct.pack("<II", g.bare.resource_id, MAX), payload=bytes(16)
        ),
    ),
    ("detach of nothing", NO_RESOURCE, lambda g: commands.resource_detach_backing(UNKNOWN)),
    ("detach what was never attached", UNSPEC, lambda g: commands.resource_detach_backing(g.bare.resource_id)),
]

TWO_D: list[Case] = [
    ("transfer to nothing", NO_RESOURCE, lambda g: commands.transfer_to_host_2d(UNKNOWN, WHOLE)),
    ("transfer to 0", NO_RESOURCE, lambda g: commands.transfer_to_host_2d(0, WHOLE)),
    ("transfer to a 3D resource", BAD_PARAMETER, lambda g: commands.transfer_to_host_2d(g.texture.resource_id, WHOLE)),
    ("transfer without backing", UNSPEC, lambda g: commands.transfer_to_host_2d(g.bare.resource_id, WHOLE)),
    (
        "offset past the backing",
        BAD_PARAMETER,
        lambda g: commands.transfer_to_host_2d(g.picture.resource_id, WHOLE, 4 * 64 * 64),
    ),
    ("offset one too far", BAD_PARAMETER, lambda g: commands.transfer_to_host_2d(g.picture.resource_id, WHOLE, 1)),
    (
        "offset 2^64-1",
        BAD_PARAMETER,
        lambda g: commands.transfer_to_host_2d(g.picture.resource_id, WHOLE, (1 << 64) - 1),
    ),
    (
        "offset that wraps to 0",
        BAD_PARAMETER,
        lambda g: commands.transfer_to_host_2d(g.picture.resource_id, WHOLE, (1 << 64) - 4 * 64 * 64),
    ),
    ("scanout of nothing", NO_RESOURCE, lambda g: commands.set_scanout(0, UNKNOWN, WHOLE)),
    ("scanout 1", NO_SCANOUT, lambda g: commands.set_scanout(1, g.picture.resource_id, WHOLE)),
    ("scanout 16", NO_SCANOUT, lambda g: commands.set_scanout(16, g.picture.resource_id, WHOLE)),
    ("scanout 2^32-1 off", NO_SCANOUT, lambda g: commands.set_scanout(MAX, 0, WHOLE)),
    ("scanout of a buffer", BAD_PARAMETER, lambda g: commands.set_scanout(0, g.buffer.resource_id, Rect(16, 1))),
    ("flush of nothing", NO_RESOURCE, lambda g: commands.resource_flush(UNKNOWN, WHOLE)),
    ("flush of 0", NO_RESOURCE, lambda g: commands.resource_flush(0, WHOLE)),
    ("flush of a buffer", BAD_PARAMETER, lambda g: commands.resource_flush(g.buffer.resource_id, Rect(16, 1))),
    ("EDID of scanout 1", NO_SCANOUT, lambda g: commands.get_edid(1)),
    ("EDID of scanout 2^32-1", NO_SCANOUT, lambda g: commands.get_edid(MAX)),
    ("capset index 2", BAD_PARAMETER, lambda g: commands.get_capset_info(2)),
    ("capset index 2^32-1", BAD_PARAMETER, lambda g: commands.get_capset_info(MAX)),
    ("capset 0", BAD_PARAMETER, lambda g: commands.get_capset(0, 0, 64)),
    ("capset 4711", BAD_PARAMETER, lambda g: commands.get_capset(UNKNOWN, 0, 64)),
    ("capset version 2^32-1", BAD_PARAMETER, lambda g: commands.get_capset(1, MAX, 1024)),
]
for rect in WRAPPING:
    TWO_D += [
        (
            f"transfer of {rect}",
            BAD_PARAMETER,
            lambda g, r=rect: commands.transfer_to_host_2d(g.picture.resource_id, r),  # type: ignore[misc]
        ),
        (
            f"scanout of {rect}",
            BAD_PARAMETER,
            lambda g, r=rect: commands.set_scanout(0, g.picture.resource_id, r),  # type: ignore[misc]
        ),
        (
            f"flush of {rect}",
            BAD_PARAMETER,
            lambda g, r=rect: commands.resource_flush(g.picture.resource_id, r),  # type: ignore[misc]
        ),
    ]

CONTEXTS: list[Case] = [
    ("create context 0", NO_CONTEXT, lambda g: commands.ctx_create(0, "zero")),
    ("create one that exists", NO_CONTEXT, lambda g: commands.ctx_create(g.context.ctx_id, "again")),
    ("create one that is lost", NO_CONTEXT, lambda g: commands.ctx_create(g.lost, "again")),
    ("context_init not negotiated", BAD_PARAMETER, lambda g: commands.ctx_create(UNKNOWN, "init", 2)),
    ("context_init 2^32-1", BAD_PARAMETER, lambda g: commands.ctx_create(UNKNOWN, "init", MAX)),
    ("destroy 0", NO_CONTEXT, lambda g: commands.ctx_destroy(0)),
    ("destroy nothing", NO_CONTEXT, lambda g: commands.ctx_destroy(UNKNOWN)),
    ("attach to no context", NO_CONTEXT, lambda g: commands.ctx_attach_resource(UNKNOWN, g.texture.resource_id)),
    ("attach to context 0", NO_CONTEXT, lambda g: commands.ctx_attach_resource(0, g.texture.resource_id)),
    ("attach nothing", NO_RESOURCE, lambda g: commands.ctx_attach_resource(g.context.ctx_id, UNKNOWN)),
    ("attach 0", NO_RESOURCE, lambda g: commands.ctx_attach_resource(g.context.ctx_id, 0)),
    ("attach to a lost one", UNSPEC, lambda g: commands.ctx_attach_resource(g.lost, g.texture.resource_id)),
    ("attach again", OK, lambda g: commands.ctx_attach_resource(g.context.ctx_id, g.texture.resource_id)),
    ("detach from no context", NO_CONTEXT, lambda g: commands.ctx_detach_resource(UNKNOWN, g.texture.resource_id)),
    ("detach nothing", NO_RESOURCE, lambda g: commands.ctx_detach_resource(g.context.ctx_id, UNKNOWN)),
    (
        "detach what it never had",
        NO_RESOURCE,
        lambda g: commands.ctx_detach_resource(g.context.ctx_id, g.stray.resource_id),
    ),
    ("detach from a lost one", UNSPEC, lambda g: commands.ctx_detach_resource(g.lost, g.texture.resource_id)),
]


def _transfers(name: str, make: Callable[..., GpuCommand]) -> list[Case]:
    small = Box(8, 8)
    cases: list[Case] = [
        ("in no context", NO_CONTEXT, lambda g: make(UNKNOWN, g.texture.resource_id, small)),
        ("in context 0", NO_CONTEXT, lambda g: make(0, g.texture.resource_id, small)),
        ("in a lost context", UNSPEC, lambda g: make(g.lost, g.texture.resource_id, small)),
        ("of nothing", NO_RESOURCE, lambda g: make(g.context.ctx_id, UNKNOWN, small)),
        ("of 0", NO_RESOURCE, lambda g: make(g.context.ctx_id, 0, small)),
        ("of what is not attached", NO_RESOURCE, lambda g: make(g.context.ctx_id, g.stray.resource_id, small)),
        ("without backing", UNSPEC, lambda g: make(g.context.ctx_id, g.bare_texture.resource_id, small)),
        (
            "past the backing",
            BAD_PARAMETER,
            lambda g: make(g.context.ctx_id, g.texture.resource_id, Box(64, 32), offset=TEXTURE_BYTES),
        ),
        (
            "one byte past it",
            BAD_PARAMETER,
            lambda g: make(g.context.ctx_id, g.texture.resource_id, Box(64, 32), offset=1),
        ),
        (
            "at 2^64-1",
            BAD_PARAMETER,
            lambda g: make(g.context.ctx_id, g.texture.resource_id, small, offset=(1 << 64) - 1),
        ),
        (
            "with a stride of 1",
            BAD_PARAMETER,
            lambda g: make(g.context.ctx_id, g.texture.resource_id, small, stride=1),
        ),
        (
            "with a stride one too small",
            BAD_PARAMETER,
            lambda g: make(g.context.ctx_id, g.texture.resource_id, small, stride=31),
        ),
        (
            "with a huge stride",
            BAD_PARAMETER,
            lambda g: make(g.context.ctx_id, g.texture.resource_id, small, stride=MAX),
        ),
        ("of level 3", BAD_PARAMETER, lambda g: make(g.context.ctx_id, g.texture.resource_id, Box(1, 1), level=3)),
        (
            "of level 2^32-1",
            BAD_PARAMETER,
            lambda g: make(g.context.ctx_id, g.texture.resource_id, Box(1, 1), level=MAX),
        ),
        (
            "larger than level 1",
            BAD_PARAMETER,
            lambda g: make(g.context.ctx_id, g.texture.resource_id, Box(33, 16), level=1),
        ),
        ("past a buffer", BAD_PARAMETER, lambda g: make(g.context.ctx_id, g.buffer.resource_id, Box(257))),
        ("of a buffer's second row", BAD_PARAMETER, lambda g: make(g.context.ctx_id, g.buffer.resource_id, Box(1, 2))),
    ]
    cases += [
        (
            f"of {box}",
            BAD_PARAMETER,
            lambda g, b=box: make(g.context.ctx_id, g.texture.resource_id, b),  # type: ignore[misc]
        )
        for box in BAD_BOXES
    ]
    return [(f"{name} {what}", expected, make_command) for what, expected, make_command in cases]


TRANSFERS = _transfers("to host", commands.transfer_to_host_3d)
TRANSFERS += _transfers("from host", commands.transfer_from_host_3d)

NOP = bytes(4)
SUBMITS: list[Case] = [
    ("in no context", NO_CONTEXT, lambda g: commands.submit_3d(UNKNOWN, NOP)),
    ("in context 0", NO_CONTEXT, lambda g: commands.submit_3d(0, NOP)),
    ("in a lost context", UNSPEC, lambda g: commands.submit_3d(g.lost, NOP)),
    ("odd size", BAD_PARAMETER, lambda g: commands.submit_3d(g.context.ctx_id, bytes(8), size=7)),
    ("more than is there", BAD_PARAMETER, lambda g: commands.submit_3d(g.context.ctx_id, NOP, size=8)),
    ("4 GiB less 4", BAD_PARAMETER, lambda g: commands.submit_3d(g.context.ctx_id, NOP, size=0xFFFF_FFFC)),
    ("2^32-1", BAD_PARAMETER, lambda g: commands.submit_3d(g.context.ctx_id, NOP, size=MAX)),
    ("nothing sent", BAD_PARAMETER, lambda g: commands.submit_3d(g.context.ctx_id, b"", size=4)),
    ("larger than any ring", NO_MEMORY, lambda g: commands.submit_3d(g.context.ctx_id, bytes(1 << 20))),
    ("less than is there", OK, lambda g: commands.submit_3d(g.context.ctx_id, bytes(64), size=0)),
]


def _unknown(number: int) -> Case:
    return f"type {number:#x}", UNSPEC, lambda g: GpuCommand(number, bytes(512 - 24))


UNKNOWN_TYPES = [_unknown(n) for n in (0, 1, 0xFF, 0x010E, 0x01FF, 0x020A, 0x1100, 0x1200, 0x7FFF_FFFF, MAX)]
# Their features are not offered; or they belong to the cursor queue.
UNKNOWN_TYPES += [
    _unknown(command)
    for command in (
        Command.RESOURCE_CREATE_BLOB, Command.SET_SCANOUT_BLOB, Command.RESOURCE_MAP_BLOB, Command.RESOURCE_UNMAP_BLOB,
        Command.UPDATE_CURSOR, Command.MOVE_CURSOR,
    )
]  # fmt: skip

ALL = RESOURCES + BACKINGS + TWO_D + CONTEXTS + TRANSFERS + SUBMITS + UNKNOWN_TYPES


def _name(case: Case) -> str:
    return case[0]


@pytest.mark.parametrize("case", RESOURCES, ids=_name)
def test_resource(guest: Guest, case: Case) -> None:
    _check(guest, case)


@pytest.mark.parametrize("case", BACKINGS, ids=_name)
def test_backing(guest: Guest, case: Case) -> None:
    _check(guest, case)


@pytest.mark.parametrize("case", TWO_D, ids=_name)
def test_2d(guest: Guest, case: Case) -> None:
    _check(guest, case)


@pytest.mark.parametrize("case", CONTEXTS, ids=_name)
def test_context(guest: Guest, case: Case) -> None:
    _check(guest, case)


@pytest.mark.parametrize("case", TRANSFERS, ids=_name)
def test_transfer(guest: Guest, case: Case) -> None:
    _check(guest, case)


@pytest.mark.parametrize("case", SUBMITS, ids=_name)
def test_submit(guest: Guest, case: Case) -> None:
    _check(guest, case)


@pytest.mark.parametrize("case", UNKNOWN_TYPES, ids=_name)
def test_unknown_type(guest: Guest, case: Case) -> None:
    _check(guest, case)


def _check(guest: Guest, case: Case) -> None:
    _, expected, make = case
    for fenced in (False, True):  # with a fence the answer goes another way, and Gpu.call checks that it is echoed
        response = guest.gpu.call(make(guest), fenced=fenced)
        assert response.type == expected, response.name


def test_all_at_once_in_one_batch_come_back_in_order(guest: Guest) -> None:
    with guest.gpu.batch():
        pending = [guest.gpu.submit(make(guest), fenced=True) for _, _, make in ALL]
    responses = guest.gpu.wait_all(pending)
    assert [response.type for response in responses] == [expected for _, expected, _ in ALL]
    assert sorted(pending, key=lambda p: p.completed_at) == pending


def test_victims_own_objects_still_work(guest: Guest) -> None:
    data = bytes(range(256)) * (TEXTURE_BYTES // 256)
    guest.texture.pixels.write(data)
    guest.gpu.transfer_to_host_3d(guest.context.ctx_id, guest.texture.resource_id, Box(64, 32)).check()
    guest.texture.pixels.clear()
    assert guest.texture.read_back(guest.context, TEXTURE_BYTES) == data


def test_bind_flags_nobody_knows_cost_the_context_at_most_that_resource(guest: Guest) -> None:
    what = ResourceDescription(16, 16, bind=MAX)
    resource = guest.gpu.create_resource_3d(what, backing_size=1024)
    response = guest.gpu.call(commands.ctx_attach_resource(guest.context.ctx_id, resource.resource_id), fenced=True)
    transfer = guest.gpu.transfer_to_host_3d(guest.context.ctx_id, resource.resource_id, Box(16, 16))
    assert transfer.ok == response.ok
    guest.context.detach(resource)
    resource.unref()


def test_a_resource_larger_than_any_memory_harms_nobody_else(guest: Guest) -> None:
    """Drivers may accept it and fail later; what the context gets is its own business, but it gets answers."""
    what = ResourceDescription(16384, 16384, target=Target.TEXTURE_2D_ARRAY, array_size=2048, bind=Bind.SAMPLER_VIEW)
    resource = guest.gpu.create_resource_3d(what, backing_size=4096)
    greedy = guest.gpu.create_context("greedy")
    guest.gpu.call(commands.ctx_attach_resource(greedy.ctx_id, resource.resource_id), fenced=True)
    guest.gpu.transfer_to_host_3d(greedy.ctx_id, resource.resource_id, Box(1, 1))
    guest.gpu.transfer_from_host_3d(greedy.ctx_id, resource.resource_id, Box(1, 1, z=2047))
    resource.unref()
    greedy.destroy()
