"""A vtest worker: the real launcher, real processes, virglrenderer behind the protocol, pixels looked at."""

import mmap
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from context_worker.exit_code import ExitCode
from ipc.channel import channel_pair
from ipc.errors import ChannelClosed
from ipc.messages import EngineName, Fault, ServeVtest
from native.engines import virgl_version
from tests.fake_vtest import Batch, BlobMemory, Box, Command, SyncPoint, Texture, VtestClient
from tests.fake_vtest.protocol import pack_words
from tests.ring_producer import wait_readable, wait_until
from tests.test_context_worker_virgl import (
    BEGIN_QUERY,
    BIND_CUSTOM,
    BIND_RENDER_TARGET,
    BIND_VERTEX_BUFFER,
    CREATE_OBJECT,
    END_QUERY,
    FORMAT_B8G8R8A8_UNORM,
    FORMAT_R8_UNORM,
    GET_QUERY_RESULT,
    OBJECT_QUERY,
    QUERY_OCCLUSION_COUNTER,
    QUERY_STATE_DONE,
    TARGET_2D,
    TARGET_BUFFER,
    clear_stream,
    command,
)
from tests.vtest_worker import VtestLauncher, VtestWorker, running_vtest_launcher

SIZE = 32
BOX = Box(0, 0, 0, SIZE, SIZE, 1)
BYTES = 4 * SIZE * SIZE
TEXTURE = Texture(TARGET_2D, FORMAT_B8G8R8A8_UNORM, BIND_RENDER_TARGET, SIZE, SIZE)
# What Mesa puts first into its stream: objects live in a sub-context.
SET_SUB_CTX, CREATE_SUB_CTX = 28, 29
BEGIN = command(CREATE_SUB_CTX, 0, 1) + command(SET_SUB_CTX, 0, 1)
ORANGE = b"\x00\x80\xff\xff"

# struct virgl_caps_v2 (virgl_hw.h), capability_bits
CAPABILITY_BITS = 392
CAP_TRANSFER, CAP_COPY_TRANSFER, CAP_ARB_BUFFER_STORAGE = 1 << 17, 1 << 26, 1 << 31


def orange(resource_id: int) -> bytes:
    """A stream that clears a texture."""
    return clear_stream(10, resource_id, FORMAT_B8G8R8A8_UNORM, (1.0, 0.5, 0.0, 1.0))


def title(worker: VtestWorker) -> str:
    """A worker's process title."""
    return Path(f"/proc/{worker.pid}/cmdline").read_bytes().rstrip(b"\0").decode()


@pytest.fixture(scope="module")
def launcher() -> Iterator[VtestLauncher]:
    with running_vtest_launcher() as running:
        yield running


@pytest.fixture
def worker(launcher: VtestLauncher) -> VtestWorker:
    return launcher.start_vtest(EngineName.VIRGL)


def drawn(client: VtestClient, memory: mmap.mmap, resource_id: int) -> bytes:
    """A texture's pixels, through its memory."""
    client.transfer2(Command.TRANSFER_GET2, resource_id, BOX)
    assert not client.busy_wait(resource_id, wait=True)
    return memory[:BYTES]


@pytest.mark.parametrize("version", [2, 3])
def test_a_clear_is_drawn_and_read_through_memory(worker: VtestWorker, version: int) -> None:
    with worker.connect() as connection:
        client = connection.begin(version)
        texture, memory = client.mapped_resource(0 if version == 3 else 41, TEXTURE, BYTES)
        client.submit(BEGIN + orange(texture))
        assert drawn(client, memory, texture) == ORANGE * SIZE * SIZE


def test_version_0_has_everything_in_the_stream(worker: VtestWorker) -> None:
    with worker.connect() as client:
        client.create_renderer()
        texture = client.resource_create(41, TEXTURE)
        client.submit(BEGIN + orange(texture))
        assert client.transfer_get(texture, BOX, BYTES) == ORANGE * SIZE * SIZE
        pixels = os.urandom(4 * 4 * 8)
        client.transfer_put(texture, Box(3, 5, 0, 4, 8, 1), pixels, stride=16)
        image = client.transfer_get(texture, BOX, BYTES)
        for row in range(8):
            at = ((5 + row) * SIZE + 3) * 4
            assert image[at : at + 16] == pixels[16 * row : 16 * row + 16]


def test_puts_are_read_from_memory_at_their_offset(worker: VtestWorker) -> None:
    with worker.connect() as connection:
        client = connection.begin()
        texture, memory = client.mapped_resource(1, TEXTURE, BYTES)
        box = Box(3, 5, 0, 4, 8, 1)
        offset = (5 * SIZE + 3) * 4
        memory[:] = pixels = os.urandom(BYTES)
        client.transfer2(Command.TRANSFER_PUT2, texture, box, offset)
        client.busy_wait(texture, wait=True)
        memory[:] = bytes(BYTES)
        image = drawn(client, memory, texture)
        for row in range(SIZE):
            for column in range(SIZE):
                at = (row * SIZE + column) * 4
                inside = 3 <= column < 7 and 5 <= row < 13
                if inside:
                    assert image[at : at + 4] == pixels[at : at + 4]


def test_transfers_within_a_stream_reach_the_memory(worker: VtestWorker) -> None:
    """VIRGL_CCMD_TRANSFER3D: what a VM's guest is not offered, as a worker has none of its pages."""
    transfer3d, to_host = 43, 1
    with worker.connect() as connection:
        client = connection.begin()
        _, caps = client.caps(Command.GET_CAPS2)
        (bits,) = struct.unpack_from("<I", caps, CAPABILITY_BITS)
        assert bits & CAP_TRANSFER
        assert bits & CAP_COPY_TRANSFER
        assert not bits & CAP_ARB_BUFFER_STORAGE  # it would need blobs that have a descriptor
        buffer = Texture(TARGET_BUFFER, FORMAT_R8_UNORM, BIND_VERTEX_BUFFER, 4096)
        resource_id, memory = client.mapped_resource(9, buffer, 4096)
        memory[:] = data = os.urandom(4096)
        # Resource, level, usage, strides, box, offset, direction (virgl_protocol.h).
        client.submit(BEGIN + command(transfer3d, 0, resource_id, 0, 0, 0, 0, 100, 0, 0, 50, 1, 1, 100, to_host))
        client.busy_wait(resource_id, wait=True)
        memory[:] = bytes(4096)
        client.transfer2(Command.TRANSFER_GET2, resource_id, Box(100, 0, 0, 50, 1, 1), 100)
        client.busy_wait(resource_id, wait=True)
        assert memory[100:150] == data[100:150]


def test_a_query_s_result_is_there_after_the_wait(worker: VtestWorker) -> None:
    with worker.connect() as connection:
        client = connection.begin()
        texture, _ = client.mapped_resource(1, TEXTURE, BYTES)
        result, memory = client.mapped_resource(2, Texture(TARGET_BUFFER, FORMAT_R8_UNORM, BIND_CUSTOM, 16), 16)
        client.submit(
            BEGIN
            + command(CREATE_OBJECT, OBJECT_QUERY, 20, QUERY_OCCLUSION_COUNTER, 0, result)
            + command(BEGIN_QUERY, 0, 20)
            + orange(texture)
            + command(END_QUERY, 0, 20)
            + command(GET_QUERY_RESULT, 0, 20, 1)
        )
        assert not client.busy_wait(result, wait=True)
        assert struct.unpack_from("<I", memory, 0) == (QUERY_STATE_DONE,)


def test_a_query_does_not_write_to_memory_that_is_no_longer_its_buffer_s(worker: VtestWorker) -> None:
    size = 1 << 20  # so much is not kept for the next resource
    buffer = Texture(TARGET_BUFFER, FORMAT_R8_UNORM, BIND_CUSTOM, 16)
    with worker.connect() as connection:
        client = connection.begin()
        texture, _ = client.mapped_resource(1, TEXTURE, BYTES)
        result, memory = client.mapped_resource(2, buffer, size)
        query = command(CREATE_OBJECT, OBJECT_QUERY, 20, QUERY_OCCLUSION_COUNTER, 0, result)
        client.submit(BEGIN + query + command(BEGIN_QUERY, 0, 20) + orange(texture) + command(END_QUERY, 0, 20))
        client.unref(result)
        client.submit(command(GET_QUERY_RESULT, 0, 20, 1))
        assert not client.busy_wait(texture, wait=True)
        assert memory[:16] == bytes(16)


def test_busy_becomes_idle_without_waiting(worker: VtestWorker) -> None:
    with worker.connect() as connection:
        client = connection.begin()
        texture, memory = client.mapped_resource(1, TEXTURE, BYTES)
        client.submit(BEGIN + orange(texture))
        wait_until(lambda: not client.busy_wait(texture, wait=False), "the clear")
        assert drawn(client, memory, texture) == ORANGE * SIZE * SIZE


def test_syncs_follow_the_renderer(worker: VtestWorker) -> None:
    with worker.connect() as connection:
        client = connection.begin(3)
        client.context_init(2)
        texture, memory = client.mapped_resource(0, TEXTURE, BYTES)
        sync = client.sync_create()
        with client.sync_wait([SyncPoint(sync, 1)]) as wait:
            client.submit2(Batch(BEGIN + orange(texture), [SyncPoint(sync, 1)], timeline=0))
            wait_readable(wait.fd, "the fence")
        assert drawn(client, memory, texture) == ORANGE * SIZE * SIZE


def test_guest_blobs_are_memory(worker: VtestWorker) -> None:
    with worker.connect() as connection:
        client = connection.begin(3)
        resource_id, fd = client.create_blob(BlobMemory.GUEST, 1 << 20)
        with fd:
            assert os.fstat(fd.fd).st_size == 1 << 20
        client.unref(resource_id)
        assert not client.busy_wait(resource_id, wait=True)


def test_a_host_blob_that_cannot_be_mapped_ends_the_session(launcher: VtestLauncher, worker: VtestWorker) -> None:
    with worker.connect() as connection:
        client = connection.begin(3)
        client.command(Command.RESOURCE_CREATE_BLOB, struct.pack("<IIQQ", BlobMemory.HOST3D, 1, 4096, 77))
        assert client.is_lost()
    assert launcher.exit_code(worker) == ExitCode.CLIENT


def test_a_transfer_that_does_not_fit_is_told_and_not_fatal(worker: VtestWorker) -> None:
    with worker.connect() as connection:
        client = connection.begin()
        texture, memory = client.mapped_resource(1, TEXTURE, BYTES)
        client.transfer2(Command.TRANSFER_GET2, texture, Box(0, 0, 0, SIZE + 1, SIZE, 1))
        client.transfer2(Command.TRANSFER_GET2, texture, BOX, offset=4)
        client.transfer2(Command.TRANSFER_GET2, texture, Box(0, 0xFFFFFFFF, 0, SIZE, 2, 1))
        assert not client.busy_wait(texture, wait=True)
        assert memory[:] == bytes(BYTES)
        assert isinstance(worker.recv(), Fault)


def test_version_0_transfers_that_do_not_fit_answer_zeros(worker: VtestWorker) -> None:
    with worker.connect() as client:
        client.create_renderer()
        texture = client.resource_create(1, TEXTURE)
        client.transfer_put(texture, BOX, b"\xff" * BYTES)
        assert client.transfer_get(texture, BOX, BYTES - 4) == bytes(BYTES - 4)
        assert client.transfer_get(texture, BOX, BYTES) == b"\xff" * BYTES


@pytest.mark.skipif(virgl_version() >= (1, 0, 0), reason="newer versions take such a resource")
def test_a_resource_there_cannot_be_ends_the_session(launcher: VtestLauncher, worker: VtestWorker) -> None:
    with worker.connect() as connection:
        client = connection.begin()
        client.resource_create(1, Texture(TARGET_2D, 0xFFFF, BIND_RENDER_TARGET, SIZE, SIZE))
        assert client.is_lost()
        fault = worker.recv()
        assert isinstance(fault, Fault)
        assert "format 65535" in fault.text
    assert launcher.exit_code(worker) == ExitCode.CLIENT


def test_a_broken_stream_ends_its_session_and_no_other(launcher: VtestLauncher, worker: VtestWorker) -> None:
    other = launcher.start_vtest(EngineName.VIRGL)
    with worker.connect() as first, other.connect() as second:
        client, neighbour = first.begin(), second.begin()
        texture, memory = neighbour.mapped_resource(1, TEXTURE, BYTES)
        client.submit(command(0xFF, 0, 1, 2, 3))
        assert client.is_lost()
        neighbour.submit(BEGIN + orange(texture))
        assert drawn(neighbour, memory, texture) == ORANGE * SIZE * SIZE
    assert isinstance(worker.recv(), Fault)
    assert launcher.exit_code(worker) == ExitCode.CLIENT
    assert launcher.exit_code(other) == ExitCode.OK


# The process.


def test_titles(launcher: VtestLauncher) -> None:
    worker = launcher.start_vtest(EngineName.NULL)
    assert title(worker) == "isorend: vtest spare (null)"
    with worker.connect(7, "bash\x1b") as client:
        wait_until(lambda: title(worker) == "isorend: vtest 7 bash? (null)", "the accepted client's name")
        client.begin(name=b"gl\xe9gears\x1b[2J\0")
        assert title(worker) == "isorend: vtest 7 gl?gears?[2J (null)"


def test_a_client_that_leaves_ends_the_worker(launcher: VtestLauncher) -> None:
    worker = launcher.start_vtest(EngineName.NULL)
    worker.connect().hang_up()
    assert launcher.exit_code(worker) == ExitCode.OK
    with pytest.raises(ChannelClosed):
        worker.recv()


def test_a_client_that_leaves_work_without_end_ends_the_worker_too(launcher: VtestLauncher) -> None:
    worker = launcher.start_vtest(EngineName.NULL)
    hang = 3
    with worker.connect() as connection:
        connection.begin().submit(pack_words(hang, 0))
    fault = worker.recv()
    assert isinstance(fault, Fault)
    assert "did not end" in fault.text
    assert launcher.exit_code(worker) == ExitCode.CLIENT


def test_a_client_that_only_says_no_more_is_served_on(launcher: VtestLauncher) -> None:
    worker = launcher.start_vtest(EngineName.NULL)
    with worker.connect() as connection:
        client = connection.begin()
        client.command(Command.RESOURCE_BUSY_WAIT, pack_words(0, 1))
        client.socket.shutdown(socket.SHUT_WR)
        assert client.reply(Command.RESOURCE_BUSY_WAIT) == (0,)
        assert client.is_lost()
    assert launcher.exit_code(worker) == ExitCode.OK


def test_a_client_that_is_gone_before_it_is_served(launcher: VtestLauncher) -> None:
    worker = launcher.start_vtest(EngineName.NULL)
    ours, theirs = channel_pair()  # any connected socket
    ours.close()
    worker.channel.send(ServeVtest(1, "x"), [theirs.fileno()])
    theirs.close()
    assert launcher.exit_code(worker) == ExitCode.OK


def test_a_master_that_hangs_up_ends_a_spare_and_a_session(launcher: VtestLauncher) -> None:
    spare, serving = launcher.start_vtest(EngineName.NULL), launcher.start_vtest(EngineName.VIRGL)
    with serving.connect() as connection:
        client = connection.begin()
        for worker in (spare, serving):
            worker.channel.close()
            assert launcher.exit_code(worker) == ExitCode.OK
        assert client.is_lost()


def test_a_second_client_is_the_master_s_mistake(launcher: VtestLauncher) -> None:
    worker = launcher.start_vtest(EngineName.NULL)
    with worker.connect() as connection:
        client = connection.begin()
        worker.connect().hang_up()
        assert client.is_lost()
    assert launcher.exit_code(worker) == ExitCode.PROTOCOL


def test_a_worker_that_is_killed_takes_its_client_along(launcher: VtestLauncher, worker: VtestWorker) -> None:
    with worker.connect() as connection:
        client = connection.begin()
        os.kill(worker.pid, 9)
        assert client.is_lost()
    assert launcher.exit_code(worker) == -9


def test_a_stream_that_never_ends_is_the_master_s_to_kill(launcher: VtestLauncher) -> None:
    worker = launcher.start_vtest(EngineName.NULL)
    hang = 3
    with worker.connect() as connection:
        client = connection.begin()
        client.submit(pack_words(hang, 0))
        client.command(Command.RESOURCE_BUSY_WAIT, pack_words(0, 1))
        os.kill(worker.pid, 9)
        assert client.is_lost()
    assert launcher.exit_code(worker) == -9
