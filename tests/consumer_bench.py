"""A consumer of the null engine in this process, and the producer of its ring."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from ipc.channel import channel_pair
from ipc.ring import RecordFlag, RecordStatus, RecordType, WorkerMemory
from native._engines import lib
from native.engines import Consumer, Control, EngineFault, NullEngine, Status
from tests.ring_producer import Box, RingProducer

FILL, COPY, CHECK, BLOB = (getattr(lib, f"ISO_NULL_{name}") for name in ("FILL", "COPY", "CHECK", "BLOB"))


def words(*numbers: int) -> bytes:
    """A command of the null engine, or several."""
    return struct.pack(f"<{len(numbers)}I", *numbers)


class ConsumerBench:
    """The consumer runs when it is told to, in the thread that tells it. faults: what the engine complained of."""

    def __init__(self, engine: NullEngine | None = None, staging_bytes: int = 8192) -> None:
        self.memory = WorkerMemory.create(staging_bytes)
        self.producer = RingProducer(self.memory)
        self.ours, self.theirs = channel_pair()
        self.engine = engine or NullEngine()
        self.consumer = self.open(self.memory)
        self.faults: list[str] = []

    def open(self, memory: WorkerMemory) -> Consumer:
        """A consumer of `memory`."""
        return Consumer(
            ring_fd=memory.ring.fd,
            staging_fd=memory.staging.fd,
            worker_doorbell_fd=memory.worker_doorbell.fd,
            master_doorbell_fd=memory.master_doorbell.fd,
            channel_fd=self.theirs.fileno(),
            engine=self.engine,
        )

    def run(self, seq: int) -> RecordStatus:
        """Run until record `seq`, which has to be the last, is executed; its status."""
        end = self.producer.put(RecordType.CONTROL, b"", RecordFlag.COMPLETE)
        while not isinstance(wake := self.consumer.run(), Control):
            assert isinstance(wake, EngineFault), wake
            self.faults.append(wake.text)
        assert wake.seq == end
        self.consumer.finish(Status.OK)
        self.producer.wait(end)
        return RecordStatus(self.producer.wait(seq))

    def submit(self, *numbers: int, ctx_id: int = 0) -> RecordStatus:
        """A stream of a context's."""
        self.producer.ctx_id = ctx_id
        return self.run(self.producer.submit(words(*numbers), RecordFlag.COMPLETE))

    def copy(self, kind: RecordType, resource_id: int) -> RecordStatus:
        """COPY_OUT or COPY_IN."""
        return self.run(self.producer.copy(kind, resource_id))

    def write(self, resource_id: int, box: Box, stride: int, data: bytes, level: int = 0) -> RecordStatus:
        """TRANSFER_WRITE of data, whose rows are `stride` bytes apart."""
        self.producer.staging[: len(data)] = data
        return self._transfer(RecordType.TRANSFER_WRITE, resource_id, box, stride, len(data), level)

    def read(self, resource_id: int, box: Box, stride: int, length: int, level: int = 0) -> bytes | RecordStatus:
        """TRANSFER_READ: what came, or why not."""
        self.producer.staging[:length] = b"\xee" * length
        status = self._transfer(RecordType.TRANSFER_READ, resource_id, box, stride, length, level)
        return self.producer.staging[:length] if status is RecordStatus.OK else status

    def _transfer(
        self, kind: RecordType, resource_id: int, box: Box, stride: int, length: int, level: int
    ) -> RecordStatus:
        return self.run(self.producer.transfer(kind, resource_id, box, stride=stride, length=length, level=level))

    def close(self) -> None:
        """Everything, twice where that is allowed."""
        for _ in range(2):
            self.engine.close()
            self.consumer.close()
        self.ours.close()
        self.theirs.close()
        self.producer.close()


@contextmanager
def consumer_bench(engine: NullEngine | None = None) -> Iterator[ConsumerBench]:
    """A ConsumerBench that is closed, with its engine."""
    bench = ConsumerBench(engine)
    try:
        yield bench
    finally:
        bench.close()
