"""A worker with the virgl engine: hand-made command streams, real drawing, pixels read back."""

import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from context_worker.exit_code import ExitCode
from ipc.messages import (
    AttachResource,
    Capability,
    CreateContext,
    DestroyContext,
    DetachResource,
    EngineName,
    Fault,
)
from ipc.ring import RecordFlag, RecordStatus, RecordType
from tests.ring_producer import Box, Launcher, Worker, running_launcher

# virgl_protocol.h and gallium's enumerations, as the wire has them.
CREATE_OBJECT, SET_FRAMEBUFFER_STATE, CLEAR, BEGIN_QUERY, END_QUERY, GET_QUERY_RESULT = 1, 5, 7, 19, 20, 21
OBJECT_SURFACE, OBJECT_QUERY = 8, 9
TARGET_BUFFER, TARGET_2D = 0, 2
FORMAT_B8G8R8A8_UNORM, FORMAT_R8G8B8A8_UNORM, FORMAT_R8_UNORM = 1, 67, 64
BIND_RENDER_TARGET, BIND_VERTEX_BUFFER, BIND_CUSTOM = 1 << 1, 1 << 4, 1 << 17
CLEAR_COLOR0 = 4
QUERY_OCCLUSION_COUNTER = 0
QUERY_STATE_DONE = 1

SIZE = 64
BOX = Box(0, 0, 0, SIZE, SIZE, 1)


def command(number: int, kind: int, *words: int) -> bytes:
    """One command: header and words."""
    return struct.pack(f"<{len(words) + 1}I", number | kind << 8 | len(words) << 16, *words)


def clear_stream(surface: int, resource_id: int, format_: int, color: tuple[float, float, float, float]) -> bytes:
    """Make a surface of a resource the framebuffer and clear it."""
    bits = struct.unpack("<4I", struct.pack("<4f", *color))
    return (
        command(CREATE_OBJECT, OBJECT_SURFACE, surface, resource_id, format_, 0, 0)
        + command(SET_FRAMEBUFFER_STATE, 0, 1, 0, surface)
        + command(CLEAR, 0, CLEAR_COLOR0, *bits, 0, 0, 0)
    )


def texture(resource_id: int, format_: int = FORMAT_B8G8R8A8_UNORM) -> AttachResource:
    """A 2D render target of SIZE * SIZE."""
    return AttachResource(resource_id, TARGET_2D, format_, BIND_RENDER_TARGET, SIZE, SIZE, 1, 1, 0, 0, 0)


def buffer(resource_id: int, bind: int, size: int) -> AttachResource:
    """A buffer of `size` bytes."""
    return AttachResource(resource_id, TARGET_BUFFER, FORMAT_R8_UNORM, bind, size, 1, 1, 1, 0, 0, 0)


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with running_launcher() as running:
        yield running


@pytest.fixture
def worker(launcher: Launcher) -> Worker:
    """A worker with a context and texture 5."""
    worker = launcher.start(EngineName.VIRGL)
    producer = worker.producer
    assert producer.wait(producer.control(CreateContext(7, 2, "kmscube"))) == RecordStatus.OK
    assert producer.wait(producer.control(texture(5))) == RecordStatus.OK
    return worker


def read_back(worker: Worker, resource_id: int, offset: int = 0) -> bytes:
    """The texture's bytes, by TRANSFER_READ."""
    producer = worker.producer
    length = SIZE * SIZE * 4
    seq = producer.transfer(
        RecordType.TRANSFER_READ,
        resource_id,
        BOX,
        stride=SIZE * 4,
        length=length,
        offset=offset,
        flags=RecordFlag.FENCE,
    )
    assert producer.wait(seq) == RecordStatus.OK
    return producer.staging[offset : offset + length]


def test_ready_names_the_driver_and_its_capability_sets(launcher: Launcher) -> None:
    worker = launcher.start(EngineName.VIRGL)
    assert worker.ready
    assert worker.ready.renderer
    assert worker.ready.version
    assert not worker.ready.capabilities & Capability.RENDER_NODE
    if "llvmpipe" in worker.ready.renderer and worker.ready.capabilities & Capability.DMABUF_IMPORT:
        assert worker.ready.capabilities & Capability.MEMFD_IMPORT
    sets = {capset.capset_id: capset for capset in worker.capsets}
    assert set(sets) == {1, 2}
    assert (sets[1].version, len(sets[1].data)) == (1, 308)
    assert sets[2].version >= 2
    assert len(sets[2].data) >= 1376
    (glsl_level,) = struct.unpack_from("<I", sets[2].data, 264)
    assert glsl_level >= 130


def test_a_clear_is_drawn(worker: Worker) -> None:
    seq = worker.producer.submit(clear_stream(10, 5, FORMAT_B8G8R8A8_UNORM, (1.0, 0.5, 0.0, 1.0)))
    assert worker.producer.wait(seq) == RecordStatus.OK
    assert read_back(worker, 5) == b"\x00\x80\xff\xff" * (SIZE * SIZE)


def test_a_transfer_goes_both_ways_at_any_offset_and_stride(worker: Worker) -> None:
    producer = worker.producer
    pixels = os.urandom(16 * 8 * 4)
    stride, offset = 16 * 4 + 12, 4096 + 4
    for row in range(8):
        start = offset + row * stride
        producer.staging[start : start + 64] = pixels[row * 64 : row * 64 + 64]
    box = Box(3, 5, 0, 16, 8, 1)
    written = producer.transfer(
        RecordType.TRANSFER_WRITE, 5, box, stride=stride, offset=offset, length=8 * stride
    )
    assert producer.wait(written) == RecordStatus.OK
    image = read_back(worker, 5, offset=1 << 16)
    for row in range(8):
        start = ((5 + row) * SIZE + 3) * 4
        assert image[start : start + 64] == pixels[row * 64 : row * 64 + 64], row


def test_a_transfer_does_not_write_outside_its_range(worker: Worker) -> None:
    producer = worker.producer
    producer.staging[:] = b"\xee" * len(producer.staging)
    read_back(worker, 5, offset=8192)
    length = SIZE * SIZE * 4
    assert producer.staging[:8192] == b"\xee" * 8192
    assert set(producer.staging[8192 + length :]) == {0xEE}


@pytest.mark.parametrize(
    ("resource_id", "box", "length"),
    [
        pytest.param(99, BOX, SIZE * SIZE * 4, id="no such resource"),
        pytest.param(5, BOX, SIZE * SIZE * 4 - 4, id="staging too short"),
        pytest.param(5, Box(1, 0, 0, SIZE, SIZE, 1), SIZE * SIZE * 4, id="box beyond the texture"),
        pytest.param(5, Box(0, 0, 3, SIZE, SIZE, 1), SIZE * SIZE * 4, id="layer beyond the texture"),
        pytest.param(5, Box(0, 0xFFFFFFFF, 0, SIZE, 2, 1), SIZE * SIZE * 4, id="box that overflows"),
    ],
)
@pytest.mark.parametrize("kind", [RecordType.TRANSFER_READ, RecordType.TRANSFER_WRITE])
def test_wrong_transfers_are_refused_and_told(
    worker: Worker, kind: RecordType, resource_id: int, box: Box, length: int
) -> None:
    producer = worker.producer
    producer.staging[:] = b"\xee" * len(producer.staging)
    seq = producer.transfer(kind, resource_id, box, stride=SIZE * 4, length=length)
    assert producer.wait(seq) != RecordStatus.OK
    assert set(producer.staging[:]) == {0xEE}
    assert isinstance(worker.recv(), Fault)
    assert producer.wait(producer.submit(command(0, 0))) == RecordStatus.OK


def test_a_guest_cannot_flood_the_log() -> None:
    read, write = os.pipe()
    with os.fdopen(read) as stderr, running_launcher(stderr=write) as launcher:
        os.close(write)
        worker = launcher.start(EngineName.VIRGL)
        producer = worker.producer
        producer.wait(producer.control(CreateContext(7, 2, "flood")))
        producer.wait(producer.control(texture(5)))
        wrong = Box(1, 0, 0, SIZE, SIZE, 1)
        for _ in range(500):
            seq = producer.transfer(RecordType.TRANSFER_READ, 5, wrong, stride=SIZE * 4, length=SIZE * SIZE * 4)
        assert producer.wait(seq) != RecordStatus.OK
        launcher.close()
        lines = stderr.read().splitlines()
    assert 5 <= len(lines) < 100
    assert all(line.startswith(("isorend: launcher: ", "warning: ", "error: ")) for line in lines)
    assert any(line.startswith("warning: virgl: ") for line in lines)


def test_buffers_are_transferred(worker: Worker) -> None:
    producer = worker.producer
    assert producer.wait(producer.control(buffer(6, BIND_VERTEX_BUFFER, 4096))) == RecordStatus.OK
    data = os.urandom(1000)
    producer.staging[100:1100] = data
    box = Box(48, 0, 0, 1000, 1, 1)
    producer.transfer(RecordType.TRANSFER_WRITE, 6, box, stride=0, offset=100, length=1000)
    producer.wait(producer.transfer(RecordType.TRANSFER_READ, 6, box, stride=0, offset=5000, length=1000))
    assert producer.staging[5000:6000] == data


def test_many_fences_complete_in_order(worker: Worker) -> None:
    producer = worker.producer
    producer.wait(producer.submit(clear_stream(10, 5, FORMAT_B8G8R8A8_UNORM, (0.0, 0.0, 0.0, 1.0))))
    bits = struct.unpack("<4I", struct.pack("<4f", 0.0, 1.0, 0.0, 1.0))
    stream = command(CLEAR, 0, CLEAR_COLOR0, *bits, 0, 0, 0)
    seqs = [producer.submit(stream) for _ in range(2000)]
    assert set(producer.wait_all(seqs)) == {RecordStatus.OK}
    assert [c.seq for c in producer.completions if c.seq in set(seqs)] == seqs
    assert read_back(worker, 5)[:4] == b"\x00\xff\x00\xff"


def test_a_broken_stream_fails_alone_and_is_told(worker: Worker) -> None:
    producer = worker.producer
    before = producer.submit(clear_stream(10, 5, FORMAT_B8G8R8A8_UNORM, (0.0, 0.0, 1.0, 1.0)))
    broken = producer.submit(command(0xFF, 0, 1, 2, 3))
    unaligned = producer.submit(b"\0" * 5)
    after = producer.submit(command(0, 0))
    statuses = producer.wait_all([before, broken, unaligned, after])
    assert statuses == [RecordStatus.OK, RecordStatus.INVALID_PARAMETER, RecordStatus.INVALID_PARAMETER, 0]
    fault = worker.recv()
    assert isinstance(fault, Fault)
    assert "kmscube" in fault.text or "submit" in fault.text
    assert read_back(worker, 5)[:4] == b"\xff\x00\x00\xff"


def test_query_results_can_be_transferred_behind_the_fence(worker: Worker) -> None:
    """A worker has no guest pages to write a result into: it stays with the buffer, and the guest transfers it."""
    producer = worker.producer
    where = 12288
    assert producer.wait(producer.control(buffer(8, BIND_CUSTOM, 16))) == RecordStatus.OK
    producer.staging[where : where + 16] = b"\xaa" * 16
    stream = (
        clear_stream(10, 5, FORMAT_B8G8R8A8_UNORM, (0.0, 0.0, 0.0, 1.0))
        + command(CREATE_OBJECT, OBJECT_QUERY, 20, QUERY_OCCLUSION_COUNTER, 0, 8)
        + command(BEGIN_QUERY, 0, 20)
        + command(END_QUERY, 0, 20)
        + command(GET_QUERY_RESULT, 0, 20, 1)
    )
    assert producer.wait(producer.submit(stream)) == RecordStatus.OK
    box = Box(0, 0, 0, 16, 1, 1)
    read = producer.transfer(RecordType.TRANSFER_READ, 8, box, stride=16, offset=where, length=16)
    assert producer.wait(read) == RecordStatus.OK
    state, _, result = struct.unpack("<IIQ", producer.staging[where : where + 16])
    assert (state, result & 0xFFFFFFFF) == (QUERY_STATE_DONE, 0)
    assert producer.wait(producer.control(DetachResource(8))) == RecordStatus.OK


def test_resources_come_and_go(worker: Worker) -> None:
    producer = worker.producer
    for _ in range(3):
        assert producer.wait(producer.control(texture(40, FORMAT_R8G8B8A8_UNORM))) == RecordStatus.OK
        assert producer.wait(producer.control(texture(40))) != RecordStatus.OK  # the id is taken
        assert producer.wait(producer.control(DetachResource(40))) == RecordStatus.OK
        assert producer.wait(producer.control(DetachResource(40))) == RecordStatus.INVALID_RESOURCE
    impossible = AttachResource(41, TARGET_2D, 0xFFFF, BIND_RENDER_TARGET, SIZE, SIZE, 1, 1, 0, 0, 0)
    assert producer.wait(producer.control(impossible)) != RecordStatus.OK
    test_a_clear_is_drawn(worker)


def test_only_one_context_and_only_virgl_s_capability_sets(launcher: Launcher, worker: Worker) -> None:
    assert worker.producer.wait(worker.producer.control(CreateContext(8, 2, "other"))) != RecordStatus.OK
    spare = launcher.start(EngineName.VIRGL).producer
    assert spare.wait(spare.submit(command(0, 0))) == RecordStatus.INVALID_PARAMETER  # no context yet
    assert spare.wait(spare.control(CreateContext(8, 4, "venus"))) == RecordStatus.INVALID_PARAMETER
    assert spare.wait(spare.control(CreateContext(8, 0, "legacy"))) == RecordStatus.OK


def test_the_title_has_context_program_and_engine(worker: Worker) -> None:
    title = Path(f"/proc/{worker.pid}/cmdline").read_bytes().rstrip(b"\0").decode()
    assert title == "isorend: ctx 7 kmscube (virgl)"


def test_two_workers_draw_apart_and_one_survives_the_other(launcher: Launcher, worker: Worker) -> None:
    other = launcher.start(EngineName.VIRGL)
    producer = other.producer
    producer.wait(producer.control(CreateContext(9, 2, "glmark2")))
    producer.wait(producer.control(texture(5)))
    assert producer.wait(producer.submit(clear_stream(10, 5, FORMAT_B8G8R8A8_UNORM, (0, 1, 0, 1)))) == RecordStatus.OK
    test_a_clear_is_drawn(worker)
    assert read_back(other, 5)[:4] == b"\x00\xff\x00\xff"
    signal.pidfd_send_signal(other.pidfd.fd, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(launcher.wait_exited(other)) == -signal.SIGKILL
    test_a_clear_is_drawn(worker)


def test_destroy_ends_the_process(launcher: Launcher, worker: Worker) -> None:
    producer = worker.producer
    drawn = producer.submit(clear_stream(10, 5, FORMAT_B8G8R8A8_UNORM, (1, 1, 1, 1)))
    destroyed = producer.control(DestroyContext())
    assert producer.wait_all([drawn, destroyed]) == [RecordStatus.OK] * 2
    assert os.waitstatus_to_exitcode(launcher.wait_exited(worker)) == ExitCode.OK
