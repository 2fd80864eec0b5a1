"""The virtio-gpu codecs, against the fake VMM's own, which were written apart from them."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from master import wire
from master.errors import GuestError
from master.virtio_gpu import CommandType, HeaderFlag, MapInfo, ResponseType
from master.wire import DisplayMode, GuestCommand, Header, Rect
from tests.fake_vmm import commands
from tests.fake_vmm import wire as guest
from tests.fake_vmm.commands import GpuCommand

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
U8 = st.integers(0, 255)
HEADERS = st.builds(Header, type=U32, flags=U32, fence_id=U64, ctx_id=U32, ring_idx=U8)

ISSUED = [
    commands.get_display_info(),
    commands.get_edid(3),
    commands.get_capset_info(1),
    commands.get_capset(2, 2, 64),
    commands.resource_create_2d(7, guest.Format.B8G8R8X8, 640, 480),
    commands.resource_create_3d(8, guest.ResourceDescription(64, 32), 5),
    commands.resource_unref(7),
    commands.resource_attach_backing(7, [(0x1000, 4096), (0x8000, 8192)]),
    commands.resource_detach_backing(7),
    commands.resource_assign_uuid(9),
    commands.set_scanout(1, 7, guest.Rect(640, 480, 1, 2)),
    commands.resource_flush(7, guest.Rect(10, 20, 30, 40)),
    commands.transfer_to_host_2d(7, guest.Rect(10, 20, 30, 40), 1234567890123),
    commands.ctx_create(5, "kmscube", 4),
    commands.ctx_destroy(5),
    commands.ctx_attach_resource(5, 7),
    commands.ctx_detach_resource(5, 7),
    commands.resource_create_blob(7, 3, 5, 8192, ctx_id=5, blob_id=9, segments=[(0x1000, 4096), (0x8000, 4096)]),
    commands.resource_create_blob(7, 2, 1, 4096, ctx_id=5, blob_id=9),
    commands.resource_map_blob(7, 0x10000),
    commands.resource_unmap_blob(7),
    commands.set_scanout_blob(1, 7, guest.Rect(640, 480, 1, 2), (1280, 800), 2, [5120]),
    commands.update_cursor(1, 100, 200, 7, 3, 4),
    commands.move_cursor(1, 100, 200),
]


def on_the_wire(command: GpuCommand, flags: int = 0, fence_id: int = 0, ring_idx: int = 0) -> bytes:
    payload = command.payload
    assert payload is None or isinstance(payload, bytes)
    header = guest.HEADER.pack(command.type, flags, fence_id, command.ctx_id, ring_idx)
    return header + command.body + (payload or b"")


def decoded(command: GpuCommand) -> GuestCommand:
    return wire.decode(on_the_wire(command, 1, 77))


def plain(ctx_id: int, type_: CommandType) -> Header:
    return Header(type_, HeaderFlag.FENCE, 77, ctx_id, 0)


def refused(command: bytes) -> ResponseType:
    with pytest.raises(GuestError) as caught:
        wire.decode(command)
    return caught.value.response


def test_the_table_knows_every_command_of_the_device_and_no_other() -> None:
    data_plane = {CommandType.SUBMIT_3D, CommandType.TRANSFER_TO_HOST_3D, CommandType.TRANSFER_FROM_HOST_3D}
    assert {command.type for command in ISSUED} == set(CommandType) - data_plane
    for type_ in [*data_plane, 0, 0x1100, 0xFFFFFFFF]:
        assert refused(guest.HEADER.pack(type_, 0, 0, 0, 0) + bytes(256)) is ResponseType.ERR_UNSPEC


def test_commands_without_much_in_them() -> None:
    assert decoded(commands.get_display_info()) == wire.GetDisplayInfo(plain(0, CommandType.GET_DISPLAY_INFO))
    assert decoded(commands.get_edid(3)) == wire.GetEdid(plain(0, CommandType.GET_EDID), 3)
    assert decoded(commands.get_capset_info(1)) == wire.GetCapsetInfo(plain(0, CommandType.GET_CAPSET_INFO), 1)
    assert decoded(commands.get_capset(4, 2, 0)) == wire.GetCapset(plain(0, CommandType.GET_CAPSET), 4, 2)
    assert decoded(commands.resource_unref(7)) == wire.ResourceUnref(plain(0, CommandType.RESOURCE_UNREF), 7)
    assert decoded(commands.ctx_destroy(5)) == wire.CtxDestroy(plain(5, CommandType.CTX_DESTROY))
    attach = decoded(commands.ctx_attach_resource(5, 7))
    assert attach == wire.CtxAttachResource(plain(5, CommandType.CTX_ATTACH_RESOURCE), 7)
    detach = decoded(commands.ctx_detach_resource(5, 7))
    assert detach == wire.CtxDetachResource(plain(5, CommandType.CTX_DETACH_RESOURCE), 7)


@given(U32, U32, U32, U32)
def test_2d_commands(a: int, b: int, c: int, d: int) -> None:
    create = decoded(commands.resource_create_2d(a, b, c, d))
    assert create == wire.ResourceCreate2D(plain(0, CommandType.RESOURCE_CREATE_2D), a, b, c, d)
    theirs, ours = guest.Rect(width=c, height=d, x=a, y=b), Rect(x=a, y=b, width=c, height=d)
    scanout = decoded(commands.set_scanout(c, d, theirs))
    assert scanout == wire.SetScanout(plain(0, CommandType.SET_SCANOUT), ours, c, d)
    flush = decoded(commands.resource_flush(a, theirs))
    assert flush == wire.ResourceFlush(plain(0, CommandType.RESOURCE_FLUSH), ours, a)
    transfer = decoded(commands.transfer_to_host_2d(b, theirs, a << 32 | b))
    assert transfer == wire.TransferToHost2D(plain(0, CommandType.TRANSFER_TO_HOST_2D), ours, a << 32 | b, b)
    cursor = decoded(commands.update_cursor(a, b, c, d, b, a))
    assert cursor == wire.UpdateCursor(plain(0, CommandType.UPDATE_CURSOR), a, b, c, d, b, a)
    assert decoded(commands.move_cursor(a, b, c)) == wire.MoveCursor(plain(0, CommandType.MOVE_CURSOR), a, b, c)


@given(*[U32] * 10)
def test_3d_commands(a: int, b: int, c: int, d: int, e: int, f: int, g: int, h: int, i: int, j: int) -> None:
    what = guest.ResourceDescription(
        target=a, format=b, bind=c, width=d, height=e, depth=f, array_size=g, last_level=h, nr_samples=i, flags=j
    )
    created = decoded(commands.resource_create_3d(j, what, a))
    assert created == wire.ResourceCreate3D(
        plain(a, CommandType.RESOURCE_CREATE_3D), j, a, b, c, d, e, f, g, h, i, j
    )


@given(*[U32] * 8, U64)
def test_blob_commands(a: int, b: int, c: int, d: int, e: int, f: int, g: int, h: int, i: int) -> None:
    created = decoded(commands.resource_create_blob(a, b, c, i, ctx_id=d, blob_id=i ^ 1))
    assert created == wire.ResourceCreateBlob(
        plain(d, CommandType.RESOURCE_CREATE_BLOB), a, b, c, 0, i ^ 1, i, memoryview(b"")
    )
    mapped = decoded(commands.resource_map_blob(a, i))
    assert mapped == wire.ResourceMapBlob(plain(0, CommandType.RESOURCE_MAP_BLOB), a, i)
    unmapped = decoded(commands.resource_unmap_blob(b))
    assert unmapped == wire.ResourceUnmapBlob(plain(0, CommandType.RESOURCE_UNMAP_BLOB), b)
    theirs, ours = guest.Rect(width=c, height=d, x=a, y=b), Rect(x=a, y=b, width=c, height=d)
    shown = decoded(commands.set_scanout_blob(e, f, theirs, (g, h), a, [b, c, d, e], [f, g, h, a]))
    assert shown == wire.SetScanoutBlob(
        plain(0, CommandType.SET_SCANOUT_BLOB), ours, e, f, g, h, a, (b, c, d, e), (f, g, h, a)
    )


@given(st.lists(st.tuples(U64, U32), max_size=50), st.binary(max_size=40))
def test_entries_of_blobs_are_handed_on_as_they_came(segments: list[tuple[int, int]], more: bytes) -> None:
    command = commands.resource_create_blob(7, 1, 0, 4096, segments=segments)
    create = wire.decode(on_the_wire(command) + more)
    assert isinstance(create, wire.ResourceCreateBlob)
    assert (create.resource_id, create.nr_entries, create.size) == (7, len(segments), 4096)
    assert list(struct.iter_unpack("<QI4x", create.entries)) == segments


@given(st.lists(st.tuples(U64, U32), max_size=50), st.binary(max_size=40))
def test_backing_entries_are_handed_on_as_they_came(segments: list[tuple[int, int]], more: bytes) -> None:
    command = commands.resource_attach_backing(7, segments)
    attach = wire.decode(on_the_wire(command) + more)
    assert isinstance(attach, wire.ResourceAttachBacking)
    assert (attach.resource_id, attach.nr_entries) == (7, len(segments))
    assert attach.entries == (command.payload or b"")
    assert list(struct.iter_unpack("<QI4x", attach.entries)) == segments


def test_fewer_backing_entries_than_counted() -> None:
    for command in (
        commands.resource_attach_backing(7, [(0, 4096)] * 3),
        commands.resource_create_blob(7, 1, 0, 4096, segments=[(0, 4096)] * 3),
    ):
        assert refused(on_the_wire(command)[:-1]) is ResponseType.ERR_UNSPEC
    most = b"\xff\xff\xff\xff"
    counted = guest.HEADER.pack(CommandType.RESOURCE_ATTACH_BACKING, 0, 0, 0, 0) + b"\1\0\0\0" + most
    assert refused(counted + bytes(64)) is ResponseType.ERR_UNSPEC
    counted = guest.HEADER.pack(CommandType.RESOURCE_CREATE_BLOB, 0, 0, 0, 0) + bytes(12) + most + bytes(16)
    assert refused(counted + bytes(64)) is ResponseType.ERR_UNSPEC


@pytest.mark.parametrize("command", ISSUED, ids=lambda command: command.name)
def test_every_truncation_is_refused_and_every_excess_accepted(command: GpuCommand) -> None:
    whole = on_the_wire(command)
    assert wire.decode(whole + b"\xa5" * 100) == wire.decode(whole)
    fixed = guest.HEADER.size + len(command.body)
    for length in range(fixed):
        assert refused(whole[:length]) is ResponseType.ERR_UNSPEC


@given(st.binary(max_size=300))
def test_arbitrary_bytes_either_decode_or_are_refused(command: bytes) -> None:
    try:
        wire.decode(command)
    except GuestError as refusal:
        assert refusal.response in (ResponseType.ERR_UNSPEC, ResponseType.ERR_INVALID_PARAMETER)


@given(st.sampled_from(ISSUED), st.binary(max_size=120))
def test_known_types_with_arbitrary_bodies(command: GpuCommand, body: bytes) -> None:
    try:
        wire.decode(guest.HEADER.pack(command.type, 0, 0, 0, 0) + body)
    except GuestError as refusal:
        assert refusal.response in (ResponseType.ERR_UNSPEC, ResponseType.ERR_INVALID_PARAMETER)


@given(st.binary(max_size=64))
def test_a_header_can_always_be_had(command: bytes) -> None:
    header = wire.header_of(command)
    packed = wire.HEADER.pack(header.type, header.flags, header.fence_id, header.ctx_id, header.ring_idx)
    assert packed[:21] == command[:21].ljust(21, b"\0")


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        (b"kmscube", "kmscube"),
        (b"kms\0cube", "kms"),
        (b"a\x1b[31m\n\xc3\xa9", "a?[31m???"),
        (b"x" * 200, "x" * 64),
        (b"", ""),
    ],
)
def test_context_names_are_safe_to_print(sent: bytes, seen: str) -> None:
    create = decoded(commands.ctx_create(5, sent, 2))
    assert create == wire.CtxCreate(plain(5, CommandType.CTX_CREATE), 2, seen)


def test_a_context_name_is_as_long_as_it_says() -> None:
    header = guest.HEADER.pack(CommandType.CTX_CREATE, 0, 0, 5, 0)
    create = wire.decode(header + struct.pack("<II64s", 3, 0, b"kmscube"))
    assert isinstance(create, wire.CtxCreate)
    assert create.debug_name == "kms"


@given(st.binary(max_size=64))
def test_a_context_name_never_holds_control_characters(name: bytes) -> None:
    create = decoded(commands.ctx_create(5, name))
    assert isinstance(create, wire.CtxCreate)
    assert all(" " <= character <= "~" for character in create.debug_name)


def answer(response: ResponseType, body: bytes) -> bytes:
    """As the data plane writes it, for a command without a fence."""
    return guest.HEADER.pack(response, 0, 0, 0, 0) + body


def test_response_bodies() -> None:
    modes = [DisplayMode(Rect(0, 0, 1280, 800), True), DisplayMode(Rect(1280, 0, 640, 480), False, 5)]
    raw = answer(ResponseType.OK_DISPLAY_INFO, wire.display_info_body(modes))
    info = guest.decode_response(raw)
    assert isinstance(info, guest.DisplayInfo)
    assert len(raw) == 408
    assert info.modes[0] == guest.DisplayMode(guest.Rect(1280, 800), True, 0)
    assert info.modes[1] == guest.DisplayMode(guest.Rect(640, 480, 1280, 0), False, 5)
    assert len(info.modes) == 16 and not any(mode.enabled for mode in info.modes[1:])
    assert wire.decode_display_info(raw)[:2] == modes

    raw = answer(ResponseType.OK_EDID, wire.edid_body(bytes(range(128))))
    edid = guest.decode_response(raw)
    assert isinstance(edid, guest.Edid)
    assert (len(raw), edid.size, edid.edid) == (1056, 128, bytes(range(128)))
    assert wire.decode_edid(raw) == bytes(range(128))

    capset_info = guest.decode_response(answer(ResponseType.OK_CAPSET_INFO, wire.capset_info_body(2, 3, 1380)))
    assert isinstance(capset_info, guest.CapsetInfo)
    assert (capset_info.capset_id, capset_info.max_version, capset_info.max_size) == (2, 3, 1380)

    raw = answer(ResponseType.OK_MAP_INFO, wire.map_info_body(MapInfo.CACHED))
    map_info = guest.decode_response(raw)
    assert isinstance(map_info, guest.MapInfo)
    assert (len(raw), map_info.caching) == (32, guest.Caching.CACHED)


def test_what_does_not_fit_into_a_response() -> None:
    mode = DisplayMode(Rect(0, 0, 1, 1), True)
    for encode in (
        lambda: wire.display_info_body([mode] * 17),
        lambda: wire.edid_body(bytes(1025)),
        lambda: wire.decode_display_info(bytes(407)),
        lambda: wire.decode_edid(bytes(1055)),
        lambda: wire.decode_edid(bytes(24) + b"\x01\x04\0\0" + bytes(1028)),
    ):
        with pytest.raises(ValueError):
            encode()


@given(U32, U32, U32, U32, st.integers(1, 64), st.integers(1, 64))
def test_a_rectangle_inside(x: int, y: int, w: int, h: int, width: int, height: int) -> None:
    inside = Rect(x, y, w, h).within(width, height)
    pixels_outside = w == 0 or h == 0 or x > width - w or y > height - h
    assert inside == (not pixels_outside)
