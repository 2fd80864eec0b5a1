"""Textures in memory that several workers have: imported by each, pixels equal by bytes. With a Mesa that can."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ipc.messages import AttachResource, Capability, CreateContext, Fault
from ipc.ring import RecordStatus
from native.shared_formats import SHARED_FORMATS, linear_layout
from native.storage import MODIFIER_INVALID, Layout, StorageKind
from tests.fake_vmm.virgl.encoder import CommandStream
from tests.fake_vmm.virgl.protocol import Command, ObjectType, Target
from tests.ring_producer import Launcher
from tests.virgl_lab import (
    B8G8R8A8,
    B8G8R8X8,
    OK,
    PAGE,
    Peer,
    clear,
    launcher_with,
    memory,
    picture_memory,
    resource,
    rows,
    set_type,
)

WIDTH, HEIGHT = 37, 21
COLOR = (0.8, 0.4, 0.2, 0.6)
NOTHING = CommandStream().emit(Command.NOP, [])
SRGB = 100
AB4H = int.from_bytes(b"AB4H", "little")


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with launcher_with("newer") as running:
        yield running


@pytest.fixture
def one(launcher: Launcher) -> Peer:
    return Peer(launcher)


@pytest.fixture
def other(launcher: Launcher) -> Peer:
    return Peer(launcher)


def let_go(surface: int) -> CommandStream:
    """Of what clear() binds."""
    return CommandStream().set_framebuffer([]).destroy_object(ObjectType.SURFACE, surface)


def open_files(pid: int) -> list[str]:
    """What a process' descriptors are."""
    return [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]


def test_what_the_driver_says_it_can(one: Peer) -> None:
    assert one.capabilities & Capability.MEMFD_IMPORT
    assert one.capabilities & Capability.DMABUF_IMPORT
    assert one.capabilities & Capability.PINNED_BUFFERS


@pytest.mark.parametrize("format", SHARED_FORMATS)
def test_each_format_is_what_it_would_be_without_sharing(one: Peer, other: Peer, format: int) -> None:
    """Cleared, copied, transferred in one worker; read, sampled and copied in the other; seen by whoever maps it."""
    shared, own = resource(5, WIDTH, HEIGHT, format=format), resource(6, WIDTH, HEIGHT, format=format)
    fd, layout = picture_memory(shared)
    row = WIDTH * SHARED_FORMATS[format].pixel_bytes
    for peer in (one, other):
        assert peer.take_in(shared, StorageKind.MEMFD, fd, layout) == OK
        assert peer.do(own) == OK

    assert one.submit(clear(10, 5, format, COLOR)) == OK
    assert one.submit(clear(11, 6, format, COLOR)) == OK
    pixels = one.read(own)
    assert any(pixels)
    assert rows(fd, layout, HEIGHT, row) == one.read(shared) == other.read(shared) == pixels

    blit = [0xF, 0, 0, 6, 0, format, 0, 0, 0, WIDTH, HEIGHT, 1, 5, 0, format, 0, 0, 0, WIDTH, HEIGHT, 1]
    assert other.submit(CommandStream().emit(Command.BLIT, blit)) == OK
    assert other.read(own) == pixels

    written = bytes(range(256)) * (len(pixels) // 256 + 1)
    other.write(shared, written[: len(pixels)])
    assert rows(fd, layout, HEIGHT, row) == one.read(shared) == written[: len(pixels)]

    copy = [5, 0, 0, 0, 0, 6, 0, 0, 0, 0, WIDTH, HEIGHT, 1]
    assert one.submit(CommandStream().emit(Command.RESOURCE_COPY_REGION, copy)) == OK
    assert rows(fd, layout, HEIGHT, row) == other.read(shared) == pixels
    for peer in (one, other):
        assert peer.detach(5) == OK


def test_a_format_can_be_imported_as_a_view_without_alpha(one: Peer) -> None:
    made = resource(5, 16, 16, format=B8G8R8X8)
    fd, layout = picture_memory(made)
    assert one.take_in(made, StorageKind.MEMFD, fd, layout) == OK
    assert one.submit(clear(10, 5, B8G8R8X8, COLOR)) == OK
    assert rows(fd, layout, 16, 64)[:3] == bytes([51, 102, 204])
    assert one.submit(NOTHING) == OK


@pytest.mark.parametrize("modifier", [0, MODIFIER_INVALID])
def test_any_stride_and_offset(one: Peer, modifier: int) -> None:
    made = resource(5, 16, 8)
    layout = Layout(8 * PAGE, offset=PAGE + 64, stride=192, fourcc=SHARED_FORMATS[B8G8R8A8].fourcc, modifier=modifier)
    fd = memory(layout.nbytes)
    assert one.take_in(made, StorageKind.MEMFD, fd, layout) == OK
    assert one.submit(clear(10, 5, B8G8R8A8, COLOR)) == OK
    assert rows(fd, layout, 8, 64) == one.read(made)
    assert set(rows(fd, replace(layout, offset=PAGE), 1, 64)) == {0}, "before the picture"
    assert set(rows(fd, replace(layout, offset=layout.offset + 64), 8, 128)) == {0}, "between rows"


def test_frames_go_from_one_worker_to_the_other(one: Peer, other: Peer) -> None:
    made = resource(5, 64, 64)
    fd, layout = picture_memory(made)
    for peer in (one, other):
        assert peer.take_in(made, StorageKind.MEMFD, fd, layout) == OK
    assert one.submit(clear(10, 5, B8G8R8A8, COLOR)) == OK
    for frame in range(100):
        value = frame * 2 / 255
        assert one.submit(clear(10, 5, B8G8R8A8, (value, 0, 1 - value, 1))) == OK
        assert other.read(made)[:4] == bytes([255 - frame * 2, 0, frame * 2, 255])


def test_no_descriptor_is_kept(one: Peer) -> None:
    """Of ours: llvmpipe has one of its own until it draws to something else."""
    assert one.do(resource(6, 16, 16)) == OK
    assert one.submit(clear(11, 6, B8G8R8A8, COLOR)) == OK
    before = open_files(one.worker.pid)
    for resource_id in range(20, 30):
        made = resource(resource_id, 64, 64)
        fd, layout = picture_memory(made)
        assert one.take_in(made, StorageKind.MEMFD, fd, layout) == OK
        assert one.submit(clear(resource_id, resource_id, B8G8R8A8, COLOR)) == OK
        assert len(open_files(one.worker.pid)) <= len(before) + 1
        assert one.submit(let_go(resource_id)) == OK
        assert one.detach(resource_id) == OK
    assert one.submit(clear(11, 6, B8G8R8A8, COLOR)) == OK
    assert sorted(open_files(one.worker.pid)) == sorted(before)


def test_memory_goes_with_the_resource(one: Peer) -> None:
    """/proc/PID/maps names what is mapped."""
    made = resource(5, 512, 512)
    maps = Path(f"/proc/{one.worker.pid}/maps")
    for _ in range(3):
        fd, layout = picture_memory(made)
        assert one.take_in(made, StorageKind.MEMFD, fd, layout) == OK
        assert "memfd:storage" in maps.read_text()
        assert one.detach(5) == OK
        assert "memfd:storage" not in maps.read_text()


@pytest.mark.parametrize(
    ("made", "layout"),
    [
        pytest.param(resource(5, 64, 64), Layout(PAGE * 3, stride=256), id="too small"),
        pytest.param(resource(5, 64, 64), Layout(PAGE * 4, offset=64, stride=256), id="offset beyond"),
        pytest.param(resource(5, 64, 64), Layout(PAGE * 4, offset=1 << 63, stride=256), id="offset that overflows"),
        pytest.param(resource(5, 64, 64), Layout(PAGE * 5, stride=256), id="smaller than it is said to be"),
        pytest.param(resource(5, 64, 64), Layout(PAGE * 4, stride=128), id="rows that overlap"),
        pytest.param(resource(5, 61, 61), Layout(244 * 61, stride=244), id="no room for whole blocks"),
        pytest.param(resource(5, 64, 64), Layout(PAGE * 4, stride=256, fourcc=AB4H), id="larger pixels"),
        pytest.param(resource(5, 64, 64), Layout(PAGE * 4, stride=256, modifier=1), id="modifier"),
        pytest.param(resource(5, 64, 64, format=SRGB), Layout(PAGE * 4, stride=256), id="sRGB"),
        pytest.param(resource(5, 64, 64, last_level=1), Layout(PAGE * 4, stride=256), id="levels"),
        pytest.param(resource(5, 64, 64, target=Target.TEXTURE_RECT), Layout(PAGE * 4, stride=256), id="rectangle"),
        pytest.param(resource(5, 64, 64, samples=4), Layout(PAGE * 4, stride=256), id="samples"),
    ],
)
def test_what_does_not_fit_is_refused(one: Peer, made: AttachResource, layout: Layout) -> None:
    assert one.take_in(made, StorageKind.MEMFD, memory(PAGE * 4), layout) != OK
    assert one.detach(5) == RecordStatus.INVALID_RESOURCE
    whole = resource(5, 64, 64)
    fd, right = picture_memory(whole)
    assert one.take_in(whole, StorageKind.MEMFD, fd, right) == OK
    assert one.take_in(whole, StorageKind.MEMFD, fd, right) == RecordStatus.INVALID_PARAMETER, "it has it already"


@pytest.mark.parametrize("kind", [StorageKind.MEMFD, StorageKind.DMABUF])
def test_memory_that_could_shrink_is_refused(one: Peer, kind: StorageKind) -> None:
    made = resource(5, 64, 64)
    layout = linear_layout(made.format, 64, 64)
    assert one.take_in(made, kind, memory(layout.nbytes, seals=0), layout) == RecordStatus.INVALID_PARAMETER
    assert one.take_in(made, kind, memory(layout.nbytes, seals=fcntl.F_SEAL_GROW), layout) != OK
    assert one.take_in(made, kind, memory(layout.nbytes), layout) == OK


def test_contexts_in_one_worker_have_one_object() -> None:
    with launcher_with("newer", "--share-worker") as launcher:
        peer = Peer(launcher)
        assert peer.do(CreateContext(8, 2, "another")) == OK
        made = resource(5, 32, 32)
        fd, layout = picture_memory(made)
        assert peer.take_in(made, StorageKind.MEMFD, fd, layout) == OK
        peer.producer.ctx_id = 8
        assert peer.submit(clear(10, 5, B8G8R8A8, COLOR)) != OK, "this context has it not"
        peer.producer.ctx_id = 7
        assert peer.do(CreateContext(9, 2, "a third")) == OK
        peer.producer.ctx_id = 9
        assert peer.take_in(made, StorageKind.MEMFD, fd, layout) == OK
        assert peer.take_in(unknown(6), StorageKind.DMABUF, fd, Layout(layout.nbytes)) == OK
        peer.producer.ctx_id = 7
        assert peer.take_in(unknown(6), StorageKind.DMABUF, fd, Layout(layout.nbytes)) == OK
        assert peer.submit(set_type(resource(6, 32, 32), layout)) == OK
        assert peer.detach(5) == peer.detach(6) == OK
        peer.producer.ctx_id = 9
        assert peer.submit(clear(10, 6, B8G8R8A8, COLOR)) == OK
        assert peer.read(made)[:4] == bytes([51, 102, 204, 153])
        assert peer.submit(set_type(resource(6, 1, 1), layout)) == OK, "its type is known"


# ---- a resource of which a stream says what it is


def unknown(resource_id: int) -> AttachResource:
    return replace(resource(resource_id, 0), height=0, depth=0, array_size=0, format=0, bind=0)


def test_a_type_that_comes_later(one: Peer, other: Peer) -> None:
    made = resource(5, 32, 32)
    fd, layout = picture_memory(made)
    assert one.take_in(made, StorageKind.MEMFD, fd, layout) == OK
    before = len(open_files(other.worker.pid))
    assert other.take_in(unknown(5), StorageKind.DMABUF, fd, Layout(layout.nbytes)) == OK
    assert len(open_files(other.worker.pid)) == before + 1
    drawing = clear(10, 5, B8G8R8A8, COLOR)
    assert other.submit(bytes(NOTHING) + bytes(set_type(made, layout)) + bytes(drawing)) == OK
    assert rows(fd, layout, 32, 128) == one.read(made) == other.read(made)
    assert one.read(made)[:4] == bytes([51, 102, 204, 153])
    assert len(open_files(other.worker.pid)) <= before + 1, "the driver's instead of ours"
    assert other.submit(set_type(made, replace(layout, stride=1 << 30))) == OK, "it has a type"
    assert other.submit(clear(10, 5, B8G8R8A8, (0, 0, 0, 0))) == OK
    assert set(one.read(made)) == {0}


def test_an_unknown_resource_can_go_before_it_is_known(one: Peer) -> None:
    before = open_files(one.worker.pid)
    for _ in range(3):
        assert one.take_in(unknown(5), StorageKind.DMABUF, memory(PAGE), Layout(PAGE)) == OK
        assert one.detach(5) == OK
    assert open_files(one.worker.pid) == before


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(set_type(resource(99, 32, 32), Layout(0, 0, 128)), id="no such resource"),
        pytest.param(set_type(resource(5, 32, 32), Layout(0, 0, 64)), id="rows that overlap"),
        pytest.param(set_type(resource(5, 32, 32), Layout(0, 0, 0)), id="no stride"),
        pytest.param(set_type(resource(5, 32, 32), Layout(0, 1, 128)), id="beyond the end"),
        pytest.param(set_type(resource(5, 32, 32), Layout(0, 0xFFFFFFFF, 128)), id="far beyond the end"),
        pytest.param(set_type(resource(5, 0, 32), Layout(0, 0, 128)), id="no width"),
        pytest.param(set_type(resource(5, 1 << 31, 32), Layout(0, 0, 128)), id="no such width"),
        pytest.param(set_type(resource(5, 32, 32, format=166), Layout(0, 0, 128)), id="planar"),
        pytest.param(set_type(resource(5, 32, 32, format=1 << 31), Layout(0, 0, 128)), id="no such format"),
        pytest.param(set_type(resource(5, 32, 32), Layout(0, 0, 128), planes=0), id="no plane"),
        pytest.param(set_type(resource(5, 32, 32), Layout(0, 0, 128), planes=5), id="too many planes"),
        pytest.param(CommandStream().emit(Command.PIPE_RESOURCE_SET_TYPE, [5]), id="too short"),
    ],
)
def test_a_wrong_type_is_an_error_of_the_context(one: Peer, wrong: CommandStream) -> None:
    """As virglrenderer has it: nothing of the stream behind it is done, and nothing is drawn after."""
    made = resource(6, 16, 16)
    fd, layout = picture_memory(made)
    assert one.take_in(made, StorageKind.MEMFD, fd, layout) == OK
    assert one.submit(clear(11, 6, B8G8R8A8, COLOR)) == OK
    before = rows(fd, layout, 16, 64)
    assert one.take_in(unknown(5), StorageKind.DMABUF, memory(PAGE), Layout(PAGE)) == OK
    clear_again = clear(11, 6, B8G8R8A8, (0, 0, 0, 0))
    assert one.submit(bytes(wrong) + bytes(clear_again)) != OK
    assert isinstance(one.worker.recv(), Fault)
    one.submit(clear_again)
    assert rows(fd, layout, 16, 64) == before
