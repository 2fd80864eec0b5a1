"""Buffers that lie in memory which several workers have: pinned there, without a copy."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipc.messages import Capability
from ipc.ring import RecordStatus
from native.storage import Layout, StorageKind
from tests.fake_vmm.virgl.encoder import CommandStream
from tests.fake_vmm.virgl.protocol import Bind, Command
from tests.ring_producer import Launcher
from tests.virgl_lab import MESAS, OK, PAGE, Peer, buffer, launcher_with, memory

SHADER_BUFFER, STREAM_OUTPUT, COMMAND_ARGS = 1 << 14, 1 << 11, 1 << 8
BINDS = {
    "vertices": Bind.VERTEX_BUFFER,
    "indices": Bind.INDEX_BUFFER,
    "constants": Bind.CONSTANT_BUFFER,
    "texels": Bind.SAMPLER_VIEW,
    "stream output": STREAM_OUTPUT,
    "commands": COMMAND_ARGS,
    "shader storage": SHADER_BUFFER,
    "nothing in particular": 0,
    "staging": Bind.STAGING,
    "query results": Bind.CUSTOM,
}


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


def storages(peer: Peer) -> int:
    """How many mappings of storage a worker has."""
    return Path(f"/proc/{peer.worker.pid}/maps").read_text().count("memfd:storage")


def test_the_driver_can(one: Peer) -> None:
    assert one.capabilities & Capability.PINNED_BUFFERS


@pytest.mark.parametrize("name", BINDS)
def test_a_buffer_is_one_memory(one: Peer, other: Peer, name: str) -> None:
    """Its contents are what they were; writes of each worker are there at once for the other and for who maps it."""
    made = buffer(5, 3 * PAGE + 10, BINDS[name])
    fd = memory(4 * PAGE)
    with mmap.mmap(fd.fd, 4 * PAGE) as mapped:
        mapped[:] = os.urandom(4 * PAGE)
        before = mapped[:]
        for peer in (one, other):
            assert peer.take_in(made, StorageKind.MEMFD, fd, Layout(4 * PAGE)) == OK
            assert peer.read(made) == before[: made.width]
        data = os.urandom(made.width)
        one.write(made, data)
        assert mapped[:] == data + before[made.width :]
        assert other.read(made) == data
        mapped[100:200] = b"m" * 100
        assert one.read(made) == other.read(made) == data[:100] + b"m" * 100 + data[200:]
        for peer in (one, other):
            assert peer.detach(5) == OK
            assert storages(peer) == 0
        assert mapped[:100] == data[:100]


def test_streams_write_to_it(one: Peer, other: Peer) -> None:
    made = buffer(5, 1024)
    fd = memory(PAGE)
    for peer in (one, other):
        assert peer.take_in(made, StorageKind.MEMFD, fd, Layout(PAGE)) == OK
    assert one.do(buffer(6, 1024)) == OK
    words = [5, 0, 0, 0, 0, 16, 0, 0, 8, 1, 1, 0x64636261, 0x68676665]
    assert one.submit(CommandStream().emit(Command.RESOURCE_INLINE_WRITE, words)) == OK
    assert other.read(made)[16:24] == b"abcdefgh"
    assert other.do(buffer(7, 1024)) == OK
    assert other.submit(CommandStream().emit(17, [7, 0, 0, 0, 0, 5, 0, 16, 0, 0, 8, 1, 1])) == OK
    assert other.read(buffer(7, 1024))[:8] == b"abcdefgh"
    assert other.submit(CommandStream().emit(17, [5, 0, 512, 0, 0, 7, 0, 0, 0, 0, 8, 1, 1])) == OK
    assert one.read(made)[512:520] == b"abcdefgh"


def test_an_offset_is_in_pages(one: Peer) -> None:
    made = buffer(5, PAGE)
    fd = memory(4 * PAGE)
    assert one.take_in(made, StorageKind.MEMFD, fd, Layout(4 * PAGE, offset=2 * PAGE)) == OK
    one.write(made, b"x" * PAGE)
    assert os.pread(fd.fd, 4 * PAGE, 0) == bytes(2 * PAGE) + b"x" * PAGE + bytes(PAGE)


@pytest.mark.parametrize(
    ("nbytes", "layout", "seals"),
    [
        pytest.param(PAGE, Layout(PAGE), fcntl.F_SEAL_SHRINK, id="too small"),
        pytest.param(2 * PAGE, Layout(3 * PAGE), fcntl.F_SEAL_SHRINK, id="smaller than it is said to be"),
        pytest.param(4 * PAGE, Layout(4 * PAGE), 0, id="could shrink"),
        pytest.param(4 * PAGE, Layout(4 * PAGE, offset=3 * PAGE), fcntl.F_SEAL_SHRINK, id="offset"),
        pytest.param(4 * PAGE, Layout(4 * PAGE, offset=64), fcntl.F_SEAL_SHRINK, id="offset within a page"),
        pytest.param(4 * PAGE, Layout(4 * PAGE, offset=(1 << 64) - PAGE), fcntl.F_SEAL_SHRINK, id="overflow"),
    ],
)
def test_what_does_not_fit_is_refused(one: Peer, nbytes: int, layout: Layout, seals: int) -> None:
    made = buffer(5, 2 * PAGE)
    status = one.take_in(made, StorageKind.MEMFD, memory(nbytes, seals), layout)
    assert status == RecordStatus.INVALID_PARAMETER
    assert storages(one) == 0
    assert one.detach(5) == RecordStatus.INVALID_RESOURCE
    assert one.take_in(made, StorageKind.MEMFD, memory(2 * PAGE), Layout(2 * PAGE)) == OK


def test_no_descriptor_is_kept(one: Peer) -> None:
    before = sorted(os.listdir(f"/proc/{one.worker.pid}/fd"))
    assert one.take_in(buffer(5, PAGE), StorageKind.MEMFD, memory(PAGE), Layout(PAGE)) == OK
    assert sorted(os.listdir(f"/proc/{one.worker.pid}/fd")) == before


def test_a_buffer_that_is_still_bound_does_no_harm(one: Peer) -> None:
    """A guest lets go of a resource that its context has bound for shaders, and goes on."""
    made = buffer(5, PAGE, Bind.CONSTANT_BUFFER)
    assert one.take_in(made, StorageKind.MEMFD, memory(PAGE), Layout(PAGE)) == OK
    bind = CommandStream().emit(Command.SET_UNIFORM_BUFFER, [1, 1, 0, 256, 5])
    assert one.submit(bind) == OK
    assert one.detach(5) == OK
    assert storages(one) == 0
    again = buffer(6, PAGE, Bind.CONSTANT_BUFFER)
    fd = memory(PAGE)
    assert one.take_in(again, StorageKind.MEMFD, fd, Layout(PAGE)) == OK
    one.write(again, b"6" * PAGE)
    assert os.pread(fd.fd, PAGE, 0) == b"6" * PAGE


def test_buffers_come_and_go_without_end(one: Peer) -> None:
    """Places are used again: mappings do not grow in number."""
    maps = Path(f"/proc/{one.worker.pid}/maps")
    counts = []
    for turn in range(60):
        for resource_id in range(5, 10):
            made = buffer(resource_id, PAGE * (resource_id + turn % 7))
            assert one.take_in(made, StorageKind.MEMFD, memory(16 * PAGE), Layout(16 * PAGE)) == OK
            one.write(made, b"z" * made.width)
        for resource_id in range(5, 10):
            assert one.detach(resource_id) == OK
        counts.append(len(maps.read_text().splitlines()))
    assert counts[-1] <= counts[20] + 4
