"""A worker with the null engine: the protocol of the command ring, as ring.h and consumer.h tell it."""

import os
import signal
import struct
from collections.abc import Callable, Iterator

import pytest

from context_worker.exit_code import ExitCode
from ipc import ring
from ipc.errors import ChannelClosed
from ipc.messages import (
    AttachResource,
    CreateContext,
    DestroyContext,
    DetachResource,
    EngineName,
    Fault,
    Message,
)
from ipc.ring import RecordFlag, RecordStatus, RecordType
from native._engines import lib
from tests import ring_producer
from tests.ring_producer import Box, Launcher, RingProducer, Worker, running_launcher, wait_until

NOP, BUSY, ABORT, HANG, FAIL, DELAY = (
    getattr(lib, f"ISO_NULL_{name}") for name in ("NOP", "BUSY", "ABORT", "HANG", "FAIL", "DELAY")
)
RESOURCE = AttachResource(5, 2, 1, 2, 64, 64, 1, 1, 0, 0, 0)
BUFFER = AttachResource(5, 0, 64, 1 << 4, 1 << 20, 1, 1, 1, 0, 0, 0)


def command(opcode: int, argument: int = 0) -> bytes:
    """A command stream for the null engine."""
    return struct.pack("<II", opcode, argument)


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with running_launcher() as running:
        yield running


@pytest.fixture
def worker(launcher: Launcher) -> Worker:
    return launcher.start(EngineName.NULL)


@pytest.fixture
def producer(worker: Worker) -> RingProducer:
    return worker.producer


def exit_code(launcher: Launcher, worker: Worker) -> int:
    """The exit code a worker ended with."""
    return os.waitstatus_to_exitcode(launcher.wait_exited(worker))


def seqs(producer: RingProducer) -> list[int]:
    """Sequence numbers of the completions so far, in their order."""
    return [completion.seq for completion in producer.completions]


def test_a_record_is_completed_as_its_flags_say(producer: RingProducer) -> None:
    silent = producer.submit(command(NOP), RecordFlag(0))
    now = producer.submit(command(NOP), RecordFlag.COMPLETE)
    fenced = producer.submit(command(NOP), RecordFlag.FENCE)
    bare = producer.put(RecordType.FENCE, flags=RecordFlag.FENCE, ring_idx=3)
    assert producer.wait_all([now, fenced, bare]) == [RecordStatus.OK] * 3
    assert silent not in seqs(producer)
    assert producer.word64(ring_producer.BEGUN) == bare
    wait_until(lambda: producer.word64(ring_producer.CMD_TAIL) == producer.head, "the ring to run empty")


def test_a_fence_completes_later_and_holds_nobody_up(producer: RingProducer) -> None:
    producer.submit(command(DELAY, 300), RecordFlag(0))
    fenced = producer.submit(command(NOP), RecordFlag.FENCE)
    later = producer.submit(command(NOP), RecordFlag.COMPLETE)
    producer.wait_all([fenced, later])
    assert seqs(producer) == [later, fenced]


def test_a_fence_holds_up_no_other_ring(producer: RingProducer) -> None:
    producer.submit(command(DELAY, 300), RecordFlag(0))
    slow = producer.put(RecordType.FENCE, flags=RecordFlag.FENCE, ring_idx=1)
    behind = producer.put(RecordType.FENCE, flags=RecordFlag.FENCE, ring_idx=1)
    quick = [producer.put(RecordType.FENCE, flags=RecordFlag.FENCE, ring_idx=ring_idx) for ring_idx in (0, 2, 63)]
    producer.wait_all([slow, behind, *quick])
    assert seqs(producer)[-2:] == [slow, behind]
    assert sorted(seqs(producer)[:-2]) == quick


def test_a_failed_record_s_fence_keeps_its_place(producer: RingProducer) -> None:
    producer.submit(command(DELAY, 200), RecordFlag(0))
    first = producer.submit(command(NOP), RecordFlag.FENCE)
    failed = producer.submit(command(FAIL), RecordFlag.FENCE)
    last = producer.submit(command(NOP), RecordFlag.FENCE)
    assert producer.wait_all([first, failed, last]) == [RecordStatus.OK, RecordStatus.FAILED, RecordStatus.OK]
    assert seqs(producer) == [first, failed, last]


def test_faults_are_told_but_not_each(worker: Worker) -> None:
    failed = [worker.producer.submit(command(FAIL), RecordFlag.COMPLETE) for _ in range(200)]
    assert set(worker.producer.wait_all(failed)) == {RecordStatus.FAILED}
    message = worker.recv()
    assert isinstance(message, Fault)
    assert message.text == "told to fail"
    assert message.count == 1
    told = 1
    while (received := worker.channel.recv_nowait()) is not None:
        assert isinstance(received[0], Fault)
        told += 1
    assert told < 20  # at most one a second


def test_records_of_all_sizes_wrap_around_the_ring_many_times(producer: RingProducer) -> None:
    sizes = [0, 4, 31, 32, 33, 1000, 65536, 300_000, ring.RING_MAX_PAYLOAD]
    flags = [RecordFlag.COMPLETE, RecordFlag.FENCE, RecordFlag(0)]
    wanted = []
    for n in range(900):
        payload = command(NOP).ljust(sizes[n % len(sizes)], b"\xaa")[: sizes[n % len(sizes)]]
        seq = producer.submit(payload, flags[n % len(flags)])
        if flags[n % len(flags)]:
            wanted.append(seq)
    assert producer.head > 20 * ring.RING_CMD_BYTES
    assert set(producer.wait_all(wanted)) == {RecordStatus.OK}
    assert sorted(seqs(producer)) == wanted


def test_thousands_of_records_published_at_once(producer: RingProducer) -> None:
    wanted = [producer.put(RecordType.FENCE, flags=RecordFlag.FENCE, publish=False) for _ in range(4000)]
    producer.publish()
    producer.wait(wanted[-1])
    assert seqs(producer) == wanted


def test_more_completions_than_fit_wait_for_the_master(producer: RingProducer) -> None:
    wanted = [producer.put(RecordType.FENCE, flags=RecordFlag.COMPLETE, publish=False) for _ in range(6000)]
    producer.publish()
    full = ring.RING_CPL_ENTRIES
    wait_until(lambda: producer.word64(ring_producer.CPL_HEAD) == full, "the completion ring to be full")
    producer.wait(wanted[-1])
    assert seqs(producer) == wanted


def test_a_master_that_wants_room_is_rung_when_half_is_free(producer: RingProducer) -> None:
    busy = producer.submit(command(BUSY, 200), RecordFlag(0))
    producer.wait_begun(busy)
    while producer.room() > 200_000:
        producer.put(RecordType.SUBMIT, bytes(100_000), publish=False)
    producer.set32(ring_producer.WANT_ROOM, 1)
    producer.publish()
    ring_producer.wait_readable(producer.memory.master_doorbell.fd, "the doorbell")
    assert producer.word32(ring_producer.WANT_ROOM) == 0
    assert producer.room() >= ring.RING_CMD_BYTES // 2


def test_an_idle_worker_rings_at_once_for_room(producer: RingProducer) -> None:
    wait_until(lambda: producer.word32(ring_producer.WORKER_SLEEPING) == 1, "the worker to sleep")
    producer.set32(ring_producer.WANT_ROOM, 1)
    producer.ring_doorbell()
    ring_producer.wait_readable(producer.memory.master_doorbell.fd, "the doorbell")
    assert producer.word32(ring_producer.WANT_ROOM) == 0


def test_a_master_that_does_not_sleep_is_not_rung(producer: RingProducer) -> None:
    seq = producer.submit(command(NOP), RecordFlag.COMPLETE)
    wait_until(lambda: producer.word64(ring_producer.CPL_HEAD) == 1, "the completion")
    with pytest.raises(BlockingIOError):
        os.eventfd_read(producer.memory.master_doorbell.fd)
    assert producer.wait(seq) == RecordStatus.OK


@pytest.mark.parametrize(
    ("offset", "length", "status"),
    [
        (0, 1 << 20, RecordStatus.OK),
        ((1 << 20) - 1, 1, RecordStatus.OK),
        ((1 << 20) - 1, 0, RecordStatus.INVALID_PARAMETER),
        (0, (1 << 20) + 1, RecordStatus.INVALID_PARAMETER),
        ((1 << 20) + 1, 0, RecordStatus.INVALID_PARAMETER),
        ((1 << 64) - 16, 32, RecordStatus.INVALID_PARAMETER),
        (16, (1 << 64) - 8, RecordStatus.INVALID_PARAMETER),
    ],
)
@pytest.mark.parametrize("kind", [RecordType.TRANSFER_READ, RecordType.TRANSFER_WRITE])
def test_transfers_stay_in_the_staging_memory(
    producer: RingProducer, kind: RecordType, offset: int, length: int, status: RecordStatus
) -> None:
    made = [producer.control(CreateContext(7, 0, "x")), producer.control(BUFFER)]
    assert producer.wait_all(made) == [RecordStatus.OK] * 2
    box = Box(0, 0, 0, 1, 1, 1)
    assert producer.wait(producer.transfer(kind, 5, box, stride=1, offset=offset, length=length)) == status


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        *((kind, (0, 55, 57)) for kind in (RecordType.TRANSFER_READ, RecordType.TRANSFER_WRITE)),
        *((kind, (0, 4, 7, 9, 56)) for kind in (RecordType.COPY_OUT, RecordType.COPY_IN)),
    ],
)
def test_a_record_with_another_payload_than_its_own_is_refused(
    producer: RingProducer, kind: RecordType, sizes: tuple[int, ...]
) -> None:
    for size in sizes:
        seq = producer.put(kind, bytes(size), RecordFlag.COMPLETE)
        assert producer.wait(seq) == RecordStatus.INVALID_PARAMETER


def test_a_resource_that_is_not_there_has_nothing_to_copy(producer: RingProducer) -> None:
    made = [producer.control(CreateContext(7, 0, "x")), producer.control(BUFFER)]
    assert producer.wait_all(made) == [RecordStatus.OK] * 2
    box = Box(0, 0, 0, 1, 1, 1)
    for resource_id in (0, 6):
        transfer = producer.transfer(RecordType.TRANSFER_READ, resource_id, box, stride=1, length=1)
        assert producer.wait(transfer) == RecordStatus.INVALID_RESOURCE
    for resource_id in (0, 5, 6):  # 5 has no mirror
        for kind in (RecordType.COPY_OUT, RecordType.COPY_IN):
            assert producer.wait(producer.copy(kind, resource_id)) == RecordStatus.INVALID_RESOURCE


def test_control_records_are_answered(producer: RingProducer) -> None:
    def status(message: Message) -> int:
        return producer.wait(producer.control(message))

    assert status(RESOURCE) == RecordStatus.INVALID_PARAMETER  # there is no context yet
    assert status(CreateContext(7, 0, "x")) == RecordStatus.OK
    assert status(CreateContext(8, 0, "x")) == RecordStatus.INVALID_PARAMETER
    assert status(RESOURCE) == RecordStatus.OK
    assert status(DetachResource(5)) == RecordStatus.OK
    assert status(DetachResource(5)) == RecordStatus.INVALID_RESOURCE
    fenced = producer.control(RESOURCE, RecordFlag.FENCE)
    assert producer.wait(fenced) == RecordStatus.OK


def test_destroy_finishes_what_precedes_and_ends_the_process(launcher: Launcher, worker: Worker) -> None:
    producer = worker.producer
    producer.submit(command(DELAY, 300), RecordFlag(0))
    fenced = producer.submit(command(NOP), RecordFlag.FENCE)
    destroyed = producer.control(DestroyContext())
    assert producer.wait_all([fenced, destroyed]) == [RecordStatus.OK] * 2
    assert seqs(producer) == [fenced, destroyed]
    assert exit_code(launcher, worker) == ExitCode.OK


RECORD = struct.Struct("<IIQIIII")


def record(size: int = 32, kind: int = RecordType.FENCE, seq: int = 1, flags: int = 0, payload_len: int = 0) -> bytes:
    """A record header, right or wrong."""
    return RECORD.pack(size, kind, seq, flags, 0, payload_len, 0)


def write(header: bytes, produced: int) -> Callable[[RingProducer], None]:
    """Puts a header at the head of the ring and says that `produced` bytes are there."""

    def change(producer: RingProducer) -> None:
        producer.write_raw(header)
        producer.head += produced

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(write(record(size=0), 32), id="size 0"),
        pytest.param(write(record(size=40), 64), id="size unaligned"),
        pytest.param(write(record(size=64), 32), id="size beyond what was produced"),
        pytest.param(write(record(size=ring.RING_CMD_BYTES + 32), 32), id="size beyond the ring"),
        pytest.param(write(record(size=ring.RING_CMD_BYTES), ring.RING_CMD_BYTES), id="size beyond the largest"),
        pytest.param(write(record(payload_len=1), 32), id="payload beyond the record"),
        pytest.param(write(record(payload_len=0xFFFFFFFF), 32), id="payload huge"),
        pytest.param(write(record(kind=99), 32), id="type unknown"),
        pytest.param(write(record(flags=0x80), 32), id="flags unknown"),
        pytest.param(write(record(seq=0), 32), id="sequence number 0"),
        pytest.param(write(record(kind=RecordType.PAD), 32), id="padding in the middle"),
        pytest.param(write(record(), 33), id="index unaligned"),
        pytest.param(write(record(), ring.RING_CMD_BYTES + 32), id="index too far"),
        pytest.param(write(record(), -32), id="index backwards"),
        pytest.param(write(record(size=36, kind=RecordType.CONTROL, payload_len=4), 64), id="control unaligned"),
        pytest.param(
            write(record(size=64, kind=RecordType.CONTROL, payload_len=4) + b"\xff" * 4, 64), id="control unknown"
        ),
        pytest.param(write(record(kind=RecordType.CONTROL), 32), id="control empty"),
    ],
)
def test_a_broken_ring_ends_the_worker_with_its_reason(
    launcher: Launcher, change: Callable[[RingProducer], None]
) -> None:
    worker = launcher.start(EngineName.NULL)
    change(worker.producer)
    worker.producer.set64(ring_producer.CMD_HEAD, worker.producer.head % (1 << 64))
    worker.producer.ring_doorbell()
    message = worker.recv()
    assert isinstance(message, Fault)
    assert message.text
    assert exit_code(launcher, worker) == ExitCode.PROTOCOL
    with pytest.raises(ChannelClosed):
        worker.recv()


def test_a_sequence_number_that_does_not_ascend_ends_the_worker(launcher: Launcher, worker: Worker) -> None:
    producer = worker.producer
    producer.wait(producer.submit(command(NOP)))
    producer.next_seq = 1
    producer.submit(command(NOP))
    assert exit_code(launcher, worker) == ExitCode.PROTOCOL


def test_impossible_completion_indices_end_the_worker(launcher: Launcher, worker: Worker) -> None:
    worker.producer.set64(ring_producer.CPL_TAIL, 5)
    worker.producer.submit(command(NOP), RecordFlag.COMPLETE)
    assert exit_code(launcher, worker) == ExitCode.PROTOCOL


def test_a_hanging_submit_shows_where_it_is_and_can_be_killed(launcher: Launcher, worker: Worker) -> None:
    hanging = worker.producer.submit(command(HANG))
    behind = worker.producer.submit(command(NOP))
    worker.producer.wait_begun(hanging)
    assert worker.producer.word64(ring_producer.BEGUN) == hanging
    signal.pidfd_send_signal(worker.pidfd.fd, signal.SIGKILL)
    assert exit_code(launcher, worker) == -signal.SIGKILL
    worker.producer.collect()
    assert not {hanging, behind} & set(seqs(worker.producer))


def test_an_aborting_submit_is_reported(launcher: Launcher, worker: Worker) -> None:
    worker.producer.submit(command(ABORT))
    assert exit_code(launcher, worker) == ExitCode.ABORTED


def test_a_worker_without_master_ends_also_while_it_works(launcher: Launcher, worker: Worker) -> None:
    for _ in range(2000):
        worker.producer.submit(command(BUSY, 1), RecordFlag(0))
    worker.channel.close()
    assert exit_code(launcher, worker) == ExitCode.OK
    assert worker.producer.word64(ring_producer.CMD_TAIL) < worker.producer.head


def test_a_worker_whose_completions_nobody_takes_ends_with_its_master(launcher: Launcher, worker: Worker) -> None:
    for _ in range(5000):
        worker.producer.put(RecordType.FENCE, flags=RecordFlag.COMPLETE, publish=False)
    worker.producer.publish()
    full = ring.RING_CPL_ENTRIES
    wait_until(lambda: worker.producer.word64(ring_producer.CPL_HEAD) == full, "the completion ring to be full")
    worker.channel.close()
    assert exit_code(launcher, worker) == ExitCode.OK
