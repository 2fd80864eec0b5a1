"""virgl's own blobs: announced in a stream, made a resource with the memory that the master has for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ipc.messages import AttachResource, Capability, Fault
from ipc.ring import RecordStatus
from native.shared_formats import SHARED_FORMATS
from native.storage import Layout, StorageKind
from tests.fake_vmm.virgl.encoder import CommandStream
from tests.fake_vmm.virgl.protocol import Command, ResourceFlag, Target
from tests.ring_producer import Launcher
from tests.virgl_lab import (
    B8G8R8A8,
    MESAS,
    OK,
    PAGE,
    Peer,
    announce,
    buffer,
    clear,
    launcher_with,
    memory,
    resource,
    rows,
)

MAPPED = ResourceFlag.MAP_PERSISTENT | ResourceFlag.MAP_COHERENT
COLOR = (0.8, 0.4, 0.2, 0.6)
PIXEL = bytes([51, 102, 204, 153])
MOST = 4096


@pytest.fixture(scope="module", params=MESAS)
def launcher(request: pytest.FixtureRequest) -> Iterator[Launcher]:
    with launcher_with(request.param) as running:
        yield running


@pytest.fixture
def one(launcher: Launcher) -> Peer:
    return Peer(launcher)


@pytest.fixture
def other(launcher: Launcher) -> Peer:
    return Peer(launcher)


def mapped_buffer(resource_id: int, nbytes: int) -> AttachResource:
    """What a guest's Mesa wants to have mapped while it is used."""
    return replace(buffer(resource_id, nbytes), flags=MAPPED)


def test_a_buffer_lies_in_the_memory_that_was_given(one: Peer, other: Peer) -> None:
    made, fd = mapped_buffer(5, 1000), memory(PAGE)
    assert one.submit(announce(made, 77)) == OK
    status, blob = one.create_blob(5, 77, PAGE, fd)
    assert status == OK and blob
    assert {name: getattr(blob, name) for name in vars(made)} == vars(made)
    assert (blob.offset, blob.stride, blob.fourcc) == (0, 0, 0)
    one.write(made, b"b" * 1000)
    assert os.pread(fd.fd, PAGE, 0) == b"b" * 1000 + bytes(PAGE - 1000)
    os.pwrite(fd.fd, b"guest", 10)
    assert one.read(made)[:20] == b"b" * 10 + b"guest" + b"b" * 5
    assert other.take_in(made, StorageKind.MEMFD, fd, Layout(PAGE)) == OK
    assert other.read(made)[:20] == b"b" * 10 + b"guest" + b"b" * 5


def test_a_texture_lies_there_if_the_driver_can(one: Peer, other: Peer) -> None:
    made, fd = resource(5, 32, 32), memory(PAGE)
    assert one.submit(announce(made, 77)) == OK
    status, blob = one.create_blob(5, 77, PAGE, fd)
    if not one.capabilities & Capability.MEMFD_IMPORT:
        assert status == RecordStatus.FAILED
        return
    assert status == OK and blob
    layout = Layout(PAGE, blob.offset, blob.stride, blob.fourcc, blob.modifier)
    assert (layout.offset, layout.stride) == (0, 128), "packed: the guest maps it and has to know"
    assert layout.fourcc == SHARED_FORMATS[B8G8R8A8].fourcc
    assert one.submit(clear(10, 5, B8G8R8A8, COLOR)) == OK
    assert rows(fd, layout, 32, 128) == PIXEL * (32 * 32)
    assert other.take_in(made, StorageKind.MEMFD, fd, layout) == OK
    assert other.read(made) == PIXEL * (32 * 32)


def test_without_memory_the_driver_has_it(one: Peer) -> None:
    made = resource(5, 32, 32, flags=MAPPED)
    assert one.submit(announce(made, 77)) == OK
    status, blob = one.create_blob(5, 77, PAGE, None)
    assert status == OK and blob
    assert (blob.width, blob.format) == (32, B8G8R8A8)
    assert one.submit(clear(10, 5, B8G8R8A8, COLOR)) == OK
    assert one.read(made)[:4] == PIXEL


def test_blobs_are_announced_within_other_work(one: Peer) -> None:
    """What is before, between and behind them is done, in that order."""
    target = resource(6, 32, 32)
    assert one.do(target) == OK
    stream = bytes(clear(10, 6, B8G8R8A8, COLOR)) + bytes(announce(mapped_buffer(0, 64), 1))
    stream += bytes(CommandStream().emit(Command.CLEAR, [4, 0, 0, 0, 0, 0, 0, 0]))
    stream += bytes(announce(mapped_buffer(0, 64), 2)) + bytes(announce(mapped_buffer(0, 64), 3))
    assert one.submit(stream) == OK
    assert set(one.read(target)) == {0}
    for blob_id in (3, 1, 2):
        assert one.create_blob(20 + blob_id, blob_id, PAGE, memory(PAGE))[0] == OK
        assert one.create_blob(30 + blob_id, blob_id, PAGE, memory(PAGE))[0] == RecordStatus.INVALID_PARAMETER


@pytest.mark.parametrize(
    ("nbytes", "width"), [pytest.param(PAGE, PAGE + 1, id="a byte"), pytest.param(PAGE, 1 << 31, id="much")]
)
def test_memory_that_is_too_small(one: Peer, nbytes: int, width: int) -> None:
    assert one.submit(announce(mapped_buffer(0, width), 1)) == OK
    for fd in (memory(nbytes), None):
        assert one.create_blob(5, 1, nbytes, fd)[0] == RecordStatus.INVALID_PARAMETER
    assert one.detach(5) == RecordStatus.INVALID_RESOURCE
    if width < 1 << 31:
        assert one.create_blob(5, 1, 2 * PAGE, memory(2 * PAGE))[0] == OK


def test_memory_that_is_smaller_than_it_is_said_to_be(one: Peer) -> None:
    assert one.submit(announce(mapped_buffer(0, 2 * PAGE), 1)) == OK
    assert one.create_blob(5, 1, 2 * PAGE, memory(PAGE))[0] == RecordStatus.INVALID_PARAMETER


def test_a_texture_needs_room_for_whole_blocks(one: Peer) -> None:
    if not one.capabilities & Capability.MEMFD_IMPORT:
        return
    assert one.submit(announce(resource(0, 32, 33), 1)) == OK
    assert one.create_blob(5, 1, 2 * PAGE, memory(2 * PAGE))[0] == OK
    assert one.submit(announce(resource(0, 32, 31), 2)) == OK
    assert one.create_blob(6, 2, 31 * 128, memory(PAGE))[0] == RecordStatus.INVALID_PARAMETER


def test_no_blob_without_announcement(one: Peer) -> None:
    for blob_id in (0, 1, 1 << 32, (1 << 64) - 1):
        assert one.create_blob(5, blob_id, PAGE, memory(PAGE))[0] == RecordStatus.INVALID_PARAMETER
    assert one.submit(announce(mapped_buffer(0, 64), 1)) == OK
    assert one.do(buffer(5, 64)) == OK
    assert one.create_blob(5, 1, PAGE, memory(PAGE))[0] == RecordStatus.INVALID_PARAMETER, "the id is taken"
    assert one.create_blob(6, 1, PAGE, memory(PAGE))[0] == OK


WRONG = {
    "no id": announce(mapped_buffer(0, 64), 0),
    "no such target": announce(replace(buffer(0, 64), target=9), 1),
    "no such format": announce(resource(0, 4, 4, format=0), 1),
    "no width": announce(buffer(0, 0), 1),
    "too wide": announce(resource(0, 1 << 20, 4), 1),
    "a buffer of two rows": announce(resource(0, 4, 2, target=Target.BUFFER), 1),
    "too short": CommandStream().emit(Command.PIPE_RESOURCE_CREATE, [0, 64, 16, 64, 1, 1, 1, 0, 0, 0]),
    "too long": CommandStream().emit(Command.PIPE_RESOURCE_CREATE, [0, 64, 16, 64, 1, 1, 1, 0, 0, 0, 1, 0]),
    "empty": CommandStream().emit(Command.PIPE_RESOURCE_CREATE, []),
    "twice": announce(buffer(0, 64), 7),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_announcement_is_an_error_of_the_context(one: Peer, name: str) -> None:
    target = resource(6, 32, 32)
    assert one.do(target) == OK
    assert one.submit(bytes(announce(buffer(0, 64), 7)) + bytes(clear(10, 6, B8G8R8A8, COLOR))) == OK
    assert one.submit(bytes(WRONG[name]) + bytes(clear(10, 6, B8G8R8A8, (0, 0, 0, 0)))) != OK
    fault = one.worker.recv()
    assert isinstance(fault, Fault) and "context error" in fault.text
    assert one.create_blob(5, 1, PAGE, memory(PAGE))[0] == RecordStatus.INVALID_PARAMETER
    assert one.create_blob(5, 7, PAGE, memory(PAGE))[0] == OK, "what was announced before stays"


def test_a_guest_cannot_announce_without_end(one: Peer) -> None:
    for start in range(1, MOST + 1, 512):
        stream = b"".join(bytes(announce(buffer(0, 64), start + i)) for i in range(512))
        assert one.submit(stream) == OK
    assert one.submit(announce(buffer(0, 64), MOST + 1)) == RecordStatus.FAILED


def test_a_blob_of_another_context_is_not_there(one: Peer, other: Peer) -> None:
    assert one.submit(announce(buffer(0, 64), 1)) == OK
    assert other.create_blob(5, 1, PAGE, memory(PAGE))[0] == RecordStatus.INVALID_PARAMETER
