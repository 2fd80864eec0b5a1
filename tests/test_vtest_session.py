"""The vtest protocol, command by command, on the null engine: what is answered, and what memory and descriptors do."""

import errno
import fcntl
import mmap
import os
import select
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipc.channel import channel_pair
from native.engines import NullEngine
from native.owned_fd import OwnedFd
from native.vtest import ClientLeft, ClientRefused, EngineFault, MasterGone, MasterSpoke, Named, VtestSession
from tests.fake_vtest import Batch, BlobMemory, Box, Command, SyncPoint, Texture, VtestClient, client_pair
from tests.fake_vtest.client import LIMIT
from tests.fake_vtest.protocol import pack_words
from tests.ring_producer import wait_readable, wait_until
from tests.vtest_session import Null, SessionThread, connected, session_thread

BUFFER = Texture(target=0, format=64, bind=1 << 17, width=64)


@pytest.fixture
def session() -> Iterator[SessionThread]:
    with session_thread() as running:
        yield running


@pytest.fixture
def client(session: SessionThread) -> VtestClient:
    """A client of protocol version 2."""
    return connected(session, 2)


@pytest.fixture
def client3(session: SessionThread) -> VtestClient:
    """A client of protocol version 3."""
    return connected(session, 3)


def is_readable(fd: OwnedFd, timeout_s: float = LIMIT) -> bool:
    """Whether an eventfd turns readable in time."""
    return bool(select.select([fd.fd], [], [], timeout_s)[0])


# The beginning.


@pytest.mark.parametrize(("asked", "spoken"), [(0, 0), (1, 0), (2, 2), (3, 3), (4, 3), (0xFFFFFFFF, 3)])
def test_versions(session: SessionThread, asked: int, spoken: int) -> None:
    client = session.client
    client.create_renderer()
    assert client.ping()
    assert client.negotiate(asked) == spoken


def test_a_version_can_be_negotiated_again(session: SessionThread) -> None:
    client = connected(session, 3)
    client.caps(Command.GET_CAPS2)
    assert client.negotiate(2) == 2
    assert client.resource_create(7, BUFFER) == 7


def test_a_client_that_never_pings_speaks_version_0(session: SessionThread) -> None:
    session.client.create_renderer(b"old")
    assert session.client.resource_create(1, BUFFER) == 1
    assert not session.client.busy_wait(1, wait=True)


@pytest.mark.parametrize(
    ("sent", "name"), [(b"glxgears\0", "glxgears"), (b"x\0hidden", "x"), (b"", ""), (b"n" * 100, "n" * 63)]
)
def test_the_name_is_told_first(session: SessionThread, sent: bytes, name: str) -> None:
    session.client.create_renderer(sent)
    assert session.client.ping()
    assert session.events == [Named(name)]


def test_the_pieces_in_which_bytes_arrive_do_not_matter(session: SessionThread) -> None:
    whole = (
        pack_words(5, Command.CREATE_RENDERER)
        + b"gears"  # leaves everything behind it unaligned
        + pack_words(0, Command.PING_PROTOCOL_VERSION)
        + pack_words(2, Command.RESOURCE_BUSY_WAIT, 0, 0)
        + pack_words(1, Command.PROTOCOL_VERSION, 2)
        + pack_words(2, Command.SUBMIT_CMD)
        + Null.NOP.stream()
        + pack_words(2, Command.RESOURCE_BUSY_WAIT, 1, 1)
    )
    for byte in whole:
        session.client.send(bytes([byte]))
    expected = struct.pack(
        "<11I", 0, Command.PING_PROTOCOL_VERSION, 1, Command.RESOURCE_BUSY_WAIT, 0, 1, Command.PROTOCOL_VERSION, 2,
        1, Command.RESOURCE_BUSY_WAIT, 0,
    )  # fmt: skip
    assert session.client.receive(len(expected)) == expected


def test_commands_that_arrive_together_cost_one_call_each_way(session: SessionThread, client: VtestClient) -> None:
    client.busy_wait(0, wait=True)
    client.send(pack_words(2, Command.RESOURCE_BUSY_WAIT, 0, 1) * 100)
    for _ in range(100):
        assert client.reply(Command.RESOURCE_BUSY_WAIT) == (0,)
    client.hang_up()
    assert session.end() == ClientLeft()
    told = session.statistics()
    assert told.commands == 105
    assert told.receives + told.sends < 40


# Capabilities.


def test_capability_sets(client: VtestClient) -> None:
    assert client.caps(Command.GET_CAPS) == (1, bytes(308))
    number, caps2 = client.caps(Command.GET_CAPS2)
    assert number == 2
    assert client.capset(2, 2) == client.capset(2, 1) == caps2
    assert client.capset(2, 3) is None
    assert client.capset(4, 0) is None


def test_parameters(client3: VtestClient) -> None:
    assert client3.ask(Command.GET_PARAM, 1) == (1, 64)
    assert client3.ask(Command.GET_PARAM, 2) == (0, 0)


# Resources.


def test_resource_memory_is_the_client_s_too_and_keeps_its_size(client: VtestClient) -> None:
    _, fd = client.resource_create2(5, BUFFER, 10_000)
    assert fd
    with fd:
        assert os.fstat(fd.fd).st_size == 12288
        for size in (0, 4096, 1 << 20):
            with pytest.raises(OSError, match=os.strerror(errno.EPERM)):
                os.ftruncate(fd.fd, size)
        assert fcntl.fcntl(fd.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL
        with mmap.mmap(fd.fd, 10_000) as memory:
            assert memory[:] == bytes(10_000)
            memory[:5] = b"hello"


def test_no_memory_is_sent_when_none_is_asked_for(client: VtestClient) -> None:
    assert client.resource_create2(5, BUFFER, 0) == (5, None)
    assert not client.busy_wait(5, wait=False)


def test_the_server_chooses_ids_since_version_3(client3: VtestClient) -> None:
    first = client3.resource_create(0, BUFFER)
    second, memory = client3.mapped_resource(0, BUFFER, 4096)
    memory.close()
    client3.unref(first)
    third, _ = client3.create_blob(BlobMemory.GUEST, 4096)
    assert len({first, second, third}) == 3
    assert 0 not in {first, second, third}


def test_small_memory_comes_back_clean(session: SessionThread, client: VtestClient) -> None:
    """Mesa makes a resource of eight bytes for every fence: its memory is not made anew each time."""
    inodes = set()
    for number in range(1, 200):
        _, fd = client.resource_create2(number, BUFFER, 8)
        assert fd
        with fd, mmap.mmap(fd.fd, 8) as memory:
            assert memory[:] == bytes(8)
            memory[:] = b"\xff" * 8
            inodes.add(os.fstat(fd.fd).st_ino)
        client.unref(number)
    assert len(inodes) < 20
    client.hang_up()
    assert session.end() == ClientLeft()


def test_many_resources_do_not_cost_descriptors(client: VtestClient) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1, 2001):
        _, fd = client.resource_create2(number, BUFFER, 8)
        assert fd
        fd.close()
    client.busy_wait(1, wait=True)
    assert len(os.listdir("/proc/self/fd")) <= before + 460
    for number in range(1, 2001):
        client.unref(number)
    client.busy_wait(1, wait=True)
    assert len(os.listdir("/proc/self/fd")) <= before + 460


def test_everything_is_let_go_of_at_the_end() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with session_thread() as session:
        client = connected(session, 3)
        for size in (8, 1 << 20, 1 << 24):
            client.mapped_resource(0, BUFFER, size)[1].close()
        point = SyncPoint(client.sync_create(), 1)
        for _ in range(3):
            client.sync_wait([point]).close()
        client.submit2(Batch(Null.DELAY.stream(60_000)), Batch(Null.NOP.stream(), [point], timeline=0))
        assert client.sync_read(point.sync) == 0
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("memory", [BlobMemory.GUEST, BlobMemory.HOST3D_GUEST])
def test_blobs_with_memory_of_ours(client3: VtestClient, memory: BlobMemory) -> None:
    resource_id, fd = client3.create_blob(memory, 5000)
    with fd:
        assert resource_id
        assert os.fstat(fd.fd).st_size == 8192
    client3.unref(resource_id)


# Transfers.


def test_a_transfer_in_the_stream_has_exactly_its_bytes(client: VtestClient) -> None:
    client.resource_create(5, BUFFER)
    for size in (0, 1, 3, 64, 100_001, 3 << 20):
        box = Box(0, 0, 0, 1, 1, 1)
        client.transfer_put(5, box, os.urandom(size))
        assert client.transfer_get(5, box, size) == bytes(
            size
        )  # the null engine writes nothing, nor does old memory show
    assert not client.busy_wait(5, wait=True)


def anonymous_mib() -> int:
    """Of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) >> 10


def test_memory_for_a_huge_transfer_is_not_kept(client: VtestClient) -> None:
    client.resource_create(5, BUFFER)
    piece, count = bytes(1 << 20), 200
    assert client.ping()
    before = anonymous_mib()
    arguments = pack_words(5, 0, 0, 0, *Box(0, 0, 0, 1, 1, 1), count * len(piece))
    client.command(Command.TRANSFER_PUT, arguments, 11)
    for _ in range(count):
        client.send(piece)
    assert client.ping()
    wait_until(lambda: anonymous_mib() < before + count // 2, "the memory to go")


def test_a_transfer_through_memory_has_no_data_whatever_its_length_says(client: VtestClient) -> None:
    client.mapped_resource(5, BUFFER, 64)[1].close()
    box = Box(0, 0, 0, 64, 1, 1)
    client.transfer2(Command.TRANSFER_PUT2, 5, box)
    client.command(Command.TRANSFER_PUT2, pack_words(5, 0, *box, 64, 0), length=10 + 16)  # as Mesa counts
    client.transfer2(Command.TRANSFER_GET2, 5, box, offset=63)
    assert not client.busy_wait(5, wait=True)


# Work.


def test_a_wait_ends_when_the_work_is_done(client: VtestClient) -> None:
    client.submit(Null.DELAY.stream(200))
    assert client.busy_wait(0, wait=False)
    assert not client.busy_wait(0, wait=True)
    assert not client.busy_wait(0, wait=False)


def test_one_fence_for_many_submits(session: SessionThread, client: VtestClient) -> None:
    for _ in range(50):
        client.submit(Null.NOP.stream())
    assert not client.busy_wait(0, wait=True)
    assert not client.busy_wait(0, wait=True)
    client.hang_up()
    session.end()
    assert (session.statistics().submits, session.statistics().fences) == (50, 1)


@pytest.mark.parametrize("words", [0, 1, 2, 65_536, 131_072, 131_073, 1_000_000])
def test_streams_of_any_length(client: VtestClient, words: int) -> None:
    client.submit(bytes(4 * words))
    assert not client.busy_wait(0, wait=True)


def test_a_client_that_does_not_read_is_waited_for(client: VtestClient) -> None:
    """More replies than the socket holds, while nobody takes them."""
    count = 40_000
    sender = threading.Thread(target=client.send, args=[pack_words(2, Command.RESOURCE_BUSY_WAIT, 0, 1) * count])
    sender.start()
    assert client.receive(12 * count) == pack_words(1, Command.RESOURCE_BUSY_WAIT, 0) * count
    sender.join()


# Syncs.


def test_syncs(client3: VtestClient) -> None:
    sync = client3.sync_create((7 << 32) + 5)
    assert client3.sync_read(sync) == (7 << 32) + 5
    client3.sync_write(sync, 1 << 63)
    assert client3.sync_read(sync) == 1 << 63
    client3.sync_write(sync, 3)  # backwards too
    assert client3.sync_read(sync) == 3
    client3.sync_unref(sync)
    client3.sync_unref(sync)
    assert client3.sync_create() != sync


def test_waits_for_all_and_for_any(client3: VtestClient) -> None:
    one, two = client3.sync_create(), client3.sync_create(4)
    with (
        client3.sync_wait([SyncPoint(one, 5), SyncPoint(two, 5)]) as both,
        client3.sync_wait([SyncPoint(one, 5), SyncPoint(two, 5)], any_of=True) as either,
        client3.sync_wait([SyncPoint(one, 6), SyncPoint(two, 4)], any_of=True) as reached,
        client3.sync_wait([]) as nothing,
    ):
        assert is_readable(reached)
        assert is_readable(nothing)
        client3.sync_write(one, 4)
        client3.sync_read(one)
        assert not is_readable(either, 0)
        client3.sync_write(one, 5)
        assert is_readable(either)
        assert not is_readable(both, 0)
        client3.sync_unref(two)
        client3.sync_write(one, 100)
        client3.sync_read(one)
        assert not is_readable(both, 0)


def test_a_wait_outlives_the_id_of_its_sync(client3: VtestClient) -> None:
    sync = client3.sync_create()
    with client3.sync_wait([SyncPoint(sync, 1)]) as wait:
        client3.submit2(Batch(Null.DELAY.stream(100)), Batch(Null.NOP.stream(), [SyncPoint(sync, 1)], timeline=3))
        client3.sync_unref(sync)
        assert is_readable(wait)


def test_a_wait_without_patience_is_forgotten(client3: VtestClient) -> None:
    sync = client3.sync_create()
    with client3.sync_wait([SyncPoint(sync, 1)], timeout_ms=0) as wait:
        client3.sync_write(sync, 1)
        assert client3.sync_read(sync) == 1
        assert not is_readable(wait, 0)


def test_batches_signal_in_their_order(client3: VtestClient) -> None:
    sync = client3.sync_create()
    with client3.sync_wait([SyncPoint(sync, 3)]) as wait:
        client3.submit2(
            Batch(Null.DELAY.stream(50)),
            Batch(Null.NOP.stream(), [SyncPoint(sync, 1)], timeline=0),
            Batch(Null.DELAY.stream(50)),
            Batch(Null.NOP.stream(), [SyncPoint(sync, 3)], timeline=63),
        )
        assert is_readable(wait)
        assert client3.sync_read(sync) == 3


def test_a_batch_without_a_timeline_signals_at_once(client3: VtestClient) -> None:
    sync = client3.sync_create()
    client3.submit2(Batch(points=[SyncPoint(sync, 9)]), Batch(Null.NOP.stream()))
    assert client3.sync_read(sync) == 9


def test_commands_are_served_while_a_batch_is_pending(client3: VtestClient) -> None:
    sync = client3.sync_create()
    client3.submit2(Batch(Null.DELAY.stream(60_000)), Batch(Null.NOP.stream(), [SyncPoint(sync, 1)], timeline=0))
    for _ in range(20):
        assert client3.sync_read(sync) == 0


# The end.


def test_a_client_that_leaves(session: SessionThread) -> None:
    session.client.hang_up()
    assert session.end() == ClientLeft()


def test_a_client_that_leaves_in_the_middle_of_a_command(session: SessionThread, client: VtestClient) -> None:
    client.send(pack_words(1000, Command.SUBMIT_CMD) + bytes(100))
    client.hang_up()
    assert session.end() == ClientLeft()
    assert session.statistics().submits == 0


def test_a_master_that_hangs_up_ends_an_idle_session(session: SessionThread, client: VtestClient) -> None:
    session.master.close()
    assert session.end() == MasterGone()
    assert client.is_lost()


def test_a_master_that_hangs_up_ends_a_wait(session: SessionThread, client: VtestClient) -> None:
    client.submit(Null.DELAY.stream(3_600_000))
    client.command(Command.RESOURCE_BUSY_WAIT, pack_words(0, 1))
    session.master.close()
    assert session.end() == MasterGone()


def test_a_master_that_hangs_up_ends_a_reply_that_nobody_reads(session: SessionThread, client: VtestClient) -> None:
    client.resource_create(1, BUFFER)
    client.command(Command.TRANSFER_GET, pack_words(1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 64 << 20))
    wait_readable(client.socket.fileno(), "the beginning of the reply")
    session.master.close()
    assert session.end() == MasterGone()


def test_a_master_that_speaks_ends_the_session(session: SessionThread, client: VtestClient) -> None:
    session.master.send(b"anything")
    assert session.end() == MasterSpoke()
    assert client.is_lost()


def test_an_end_stays_the_end() -> None:
    client, theirs = client_pair()
    master, channel = channel_pair()
    engine = NullEngine()
    with client, theirs, master, channel:
        session = VtestSession(theirs.fileno(), channel.fileno(), engine)
        client.command(99)
        first = session.run()
        assert isinstance(first, ClientRefused)
        assert session.run() == first
        session.close()
        session.close()
    engine.close()


def test_the_engine_s_faults_are_told_and_the_session_ends_when_it_refuses_a_stream(session: SessionThread) -> None:
    client = connected(session)
    client.submit(Null.FAIL.stream())
    end = session.end()
    assert isinstance(end, ClientRefused)
    assert "told to fail" in end.text
    assert not [event for event in session.events if isinstance(event, EngineFault)]


def test_a_descriptor_that_is_no_socket_is_refused() -> None:
    master, channel = channel_pair()
    engine = NullEngine()
    with master, channel, pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        VtestSession(-1, channel.fileno(), engine)
    engine.close()
