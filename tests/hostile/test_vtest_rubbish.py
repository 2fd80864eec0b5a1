"""Vtest clients that send rubbish: each loses its session, by an explanation, and nobody else notices."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from context_worker.exit_code import ExitCode
from ipc.messages import EngineName, Fault
from native import vtest
from native.vtest import ClientRefused
from tests.fake_vtest import Batch, Box, Command, SyncPoint, Texture
from tests.fake_vtest.protocol import pack_batches, pack_words
from tests.vtest_session import Null, connected, session_thread
from tests.vtest_worker import VtestLauncher, running_vtest_launcher

BUFFER = Texture(target=0, format=64, bind=1 << 17, width=64)
MANY = 0xFFFFFFFF
NOP = Null.NOP.stream()


def words(number: int, *arguments: int, length: int | None = None) -> bytes:
    """A command of words."""
    return pack_words(len(arguments) if length is None else length, number, *arguments)


def batch_words(*changes: tuple[int, int]) -> bytes:
    """A SUBMIT_CMD2 with one good batch, of which words are changed."""
    body = bytearray(pack_batches([Batch(NOP, [SyncPoint(1, 1)], timeline=0)]))
    for index, value in changes:
        struct.pack_into("<I", body, 4 * index, value)
    return pack_words(len(body) // 4, Command.SUBMIT_CMD2) + bytes(body)


RUBBISH = {
    "number 0": words(0),
    "number 25": words(25),
    "number with high bits": words(1 << 31 | Command.GET_CAPS),
    "a second CREATE_RENDERER": words(Command.CREATE_RENDERER),
    "a stream without end": words(Command.SUBMIT_CMD, length=MANY),
    "a stream above the limit": words(Command.SUBMIT_CMD, length=vtest.MAX_SUBMIT_BYTES // 4 + 1),
    "a client's id in version 3": words(Command.RESOURCE_CREATE, 7, *BUFFER.words()),
    "memory above the limit": b"".join(
        words(Command.RESOURCE_CREATE2, 0, *BUFFER.words(), MANY) for _ in range(9)  # 4 GiB each
    ),
    "a transfer without a resource": words(Command.TRANSFER_GET2, 4711, 0, *Box(0, 0, 0, 1, 1, 1), 0, 0),
    "a transfer behind the memory": words(Command.TRANSFER_PUT2, 1, 0, *Box(0, 0, 0, 1, 1, 1), 0, 4096),
    "a transfer far behind the memory": words(Command.TRANSFER_PUT2, 1, 0, *Box(0, 0, 0, 1, 1, 1), 0, MANY),
    "a transfer of 4 GiB": words(Command.TRANSFER_GET, 1, 0, 0, 0, *Box(0, 0, 0, 1, 1, 1), MANY),
    "a put of 4 GiB": words(Command.TRANSFER_PUT, 1, 0, 0, 0, *Box(0, 0, 0, 1, 1, 1), MANY),
    "capability set 0": words(Command.CONTEXT_INIT, 0),
    "another capability set": words(Command.CONTEXT_INIT, 1) + words(Command.CONTEXT_INIT, 2),
    "an unknown capability set": words(Command.CONTEXT_INIT, 4),
    "a blob of no kind": words(Command.RESOURCE_CREATE_BLOB, 9, 1, 4096, 0, 0, 0),
    "a blob of no size": words(Command.RESOURCE_CREATE_BLOB, 1, 1, 0, 0, 0, 0),
    "a blob of all memory": words(Command.RESOURCE_CREATE_BLOB, 1, 1, MANY, MANY, 0, 0),
    "a blob of half of all memory": words(Command.RESOURCE_CREATE_BLOB, 1, 1, 1, 1 << 31, 0, 0),
    "an unknown sync read": words(Command.SYNC_READ, 4711),
    "an unknown sync written": words(Command.SYNC_WRITE, 0, 1, 0),
    "an unknown sync waited for": words(Command.SYNC_WAIT, 0, 0, 1, 0, 0, 4711, 0, 0),
    "a wait without arguments": words(Command.SYNC_WAIT),
    "a wait with half a point": words(Command.SYNC_WAIT, 0, 0, 1, 0),
    "a wait for everything": words(Command.SYNC_WAIT, length=MANY),
    "a wait for too many": words(Command.SYNC_WAIT, length=2 + 3 * 1025),
    "no batches at all": words(Command.SUBMIT_CMD2),
    "batches without end": words(Command.SUBMIT_CMD2, MANY),
    "as many batches as wrap": words(Command.SUBMIT_CMD2, (1 << 29) + 1, *[0] * 8),
    "a batch's stream outside": batch_words((2, MANY)),
    "a batch's stream too long": batch_words((3, MANY)),
    "a batch's stream that wraps": batch_words((2, 0x80000000), (3, 0x80000000)),
    "a batch's syncs outside": batch_words((4, MANY)),
    "a batch's syncs that wrap": batch_words((5, 0x55555556)),
    "a batch's timeline": batch_words((6, 64)),
    "a batch's unknown sync": batch_words((11, 4711)),
}
"""What a client sends after a handshake for version 3, resource 1 with 4096 bytes of memory, and sync 1."""


@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=RUBBISH.keys())
def test_rubbish_ends_the_session_with_a_reason(rubbish: bytes) -> None:
    with session_thread() as session:
        client = connected(session, 3)
        client.mapped_resource(0, BUFFER, 4096)[1].close()
        assert client.sync_create() == 1
        client.send(rubbish)
        end = session.end()
        assert isinstance(end, ClientRefused)
        assert end.text
        assert end.text.isprintable()
        assert client.is_lost()


@pytest.mark.parametrize(
    "first",
    [
        words(Command.GET_CAPS),
        words(Command.CREATE_RENDERER, length=4097),
        words(Command.CREATE_RENDERER, length=MANY),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 8,
    ],
)
def test_who_does_not_begin_with_a_name_is_refused(first: bytes) -> None:
    with session_thread() as session:
        session.client.send(first)
        assert isinstance(session.end(), ClientRefused)


def test_an_id_that_is_taken_is_refused() -> None:
    with session_thread() as session:
        client = connected(session, 2)
        for _ in range(2):
            client.resource_create(5, BUFFER)
        assert isinstance(session.end(), ClientRefused)


@pytest.mark.parametrize("resource_id", [0, 1 << 31, MANY])
def test_ids_have_31_bits(resource_id: int) -> None:
    with session_thread() as session:
        connected(session, 2).resource_create(resource_id, BUFFER)
        assert isinstance(session.end(), ClientRefused)


def test_syncs_and_waits_are_limited() -> None:
    with session_thread() as session:
        client = connected(session, 3)
        sync = client.sync_create()
        client.send(words(Command.SYNC_WAIT, 0, MANY, sync, 1, 0) * 448)
        for _ in range(448):
            assert client.reply(Command.SYNC_WAIT) == ()
            client.receive_fd().close()
        client.send(words(Command.SYNC_WAIT, 0, MANY, sync, 1, 0))
        assert isinstance(session.end(), ClientRefused)


@pytest.fixture(scope="module")
def launcher() -> Iterator[VtestLauncher]:
    with running_vtest_launcher() as running:
        yield running


def test_the_master_is_told_once_why_and_the_neighbour_goes_on(launcher: VtestLauncher) -> None:
    worker, other = (launcher.start_vtest(EngineName.NULL) for _ in range(2))
    with worker.connect() as rude, other.connect() as second:
        neighbour = second.begin(3)
        rude.begin().command(99)
        assert rude.is_lost()
        assert worker.recv() == Fault(1, "unknown command 99")
        assert launcher.exit_code(worker) == ExitCode.CLIENT
        assert neighbour.sync_read(neighbour.sync_create(7)) == 7
