"""native.engines: what the typed face refuses, without a worker around it."""

import errno
import fcntl
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ipc.ring import RING_TOTAL_BYTES, RecordFlag, RecordStatus, RecordType, create_staging
from native import engines
from native.engines import Broken, Control, HungUp, Status
from native.owned_fd import OwnedFd
from tests.consumer_bench import ConsumerBench, consumer_bench


@pytest.fixture
def bench() -> Iterator[ConsumerBench]:
    with consumer_bench() as bench:
        yield bench


def test_control_records_come_to_python_and_are_finished_once(bench: ConsumerBench) -> None:
    seq = bench.producer.put(RecordType.CONTROL, b"message", RecordFlag.COMPLETE)
    assert bench.consumer.run() == Control(seq=seq, ctx_id=0, payload=b"message")
    assert isinstance(bench.consumer.run(), Broken)  # it is still open
    bench.consumer.finish(Status.INVALID_RESOURCE)
    with pytest.raises(RuntimeError):
        bench.consumer.finish(Status.OK)
    assert bench.producer.wait(seq) == RecordStatus.INVALID_RESOURCE


def test_statistics_count(bench: ConsumerBench) -> None:
    bench.producer.submit(b"")
    bench.producer.put(RecordType.TRANSFER_READ, b"short")
    bench.producer.copy(RecordType.COPY_OUT, 1, RecordFlag(0))
    bench.producer.copy(RecordType.COPY_IN, 1)
    fence = bench.producer.put(RecordType.FENCE, flags=RecordFlag.FENCE)
    bench.producer.put(RecordType.CONTROL, b"", RecordFlag.COMPLETE)
    assert isinstance(bench.consumer.run(), Control)
    bench.consumer.finish(Status.OK)
    bench.producer.wait(fence)
    assert bench.consumer.drain(10_000)
    bench.ours.close()
    assert isinstance(bench.consumer.run(), HungUp)
    counts = bench.consumer.statistics()
    assert (counts.records, counts.submits, counts.transfers, counts.copies) == (6, 1, 1, 2)
    assert (counts.fences, counts.completions) == (2, 4)


def test_drain_gives_up(bench: ConsumerBench) -> None:
    bench.producer.submit(b"\x05\0\0\0\xf4\x01\0\0", RecordFlag(0))  # the next fence takes 500 ms
    bench.producer.put(RecordType.FENCE, flags=RecordFlag.FENCE)
    bench.producer.put(RecordType.CONTROL, b"")
    assert isinstance(bench.consumer.run(), Control)
    assert not bench.consumer.drain(1)
    assert bench.consumer.drain(60_000)


def test_staging_ranges(bench: ConsumerBench) -> None:
    start = bench.consumer.staging(0, 8192)
    assert start
    assert bench.consumer.staging(100, 1) == start + 100
    assert bench.consumer.staging(8192, 0) == start + 8192
    for offset, length in ((0, 8193), (8193, 0), (2**64 - 1, 2), (1, 2**64 - 1)):
        assert bench.consumer.staging(offset, length) is None


def refused(bench: ConsumerBench, ring: OwnedFd, staging: OwnedFd) -> int | None:
    """The errno with which a consumer of this memory is refused."""
    memory = replace(bench.memory, ring=ring, staging=staging)
    with pytest.raises(OSError) as caught:
        bench.open(memory)
    return caught.value.errno


def test_memory_that_can_shrink_is_refused(bench: ConsumerBench) -> None:
    with OwnedFd(os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)) as unsealed:
        os.pwrite(unsealed.fd, os.pread(bench.memory.ring.fd, RING_TOTAL_BYTES, 0), 0)
        assert refused(bench, unsealed, bench.memory.staging) == errno.EPROTO
        assert refused(bench, bench.memory.ring, unsealed) == errno.EPROTO
        fcntl.fcntl(unsealed.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        copy = replace(bench.memory, ring=unsealed, staging=unsealed)
        bench.open(copy).close()


def test_memory_that_is_no_ring_is_refused(bench: ConsumerBench) -> None:
    with create_staging(4096) as small, create_staging(RING_TOTAL_BYTES) as blank:
        assert refused(bench, small, bench.memory.staging) == errno.EPROTO
        assert refused(bench, blank, bench.memory.staging) == errno.EPROTO


def test_what_is_no_memory_is_refused(bench: ConsumerBench) -> None:
    assert refused(bench, bench.memory.worker_doorbell, bench.memory.staging) == errno.EINVAL


def test_virgl_version_is_one_we_know_of() -> None:
    assert engines.virgl_version() >= (0, 10, 4)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (0, Status.OK),
        (errno.EINVAL, Status.INVALID_PARAMETER),
        (errno.ENOENT, Status.INVALID_RESOURCE),
        (errno.ENOMEM, Status.OUT_OF_MEMORY),
        (errno.EIO, Status.FAILED),
    ],
)
def test_errors_become_statuses(error: int, status: Status) -> None:
    assert engines.status_of(error) is status
