"""The data plane between a driver and workers that are both played by the test, in one process.

The driver's side is the fake VMM's (memory, virtqueues, commands); a PlayedWorker reads records from its ring and says
what a worker would, or would not.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ipc import ring
from ipc.ring import WorkerMemory
from native import guest_memory
from native.dataplane import Command, Event, Lane, Plane
from tests.fake_vmm import DriverQueue, GuestMemory
from tests.fake_vmm.command_queue import CommandQueue
from tests.fake_vmm.gpu import Gpu
from tests.ring_producer import CMD_HEAD, CMD_TAIL, CPL_HEAD, MASTER_SLEEPING, WORKER_SLEEPING

_RECORD = struct.Struct("<IIQIIII")
_COMPLETION = struct.Struct("<QII")
_TRANSFER = struct.Struct("<10I2Q")
_COPY = struct.Struct("<II")
MEBIBYTE = 1 << 20
OK_NODATA = 0x1100
LIMIT = 20.0
"""Seconds after which something awaited is taken for never coming."""


class Record(NamedTuple):
    """One record of a command ring."""

    type: int
    seq: int
    flags: int
    ring_idx: int
    payload: bytes
    ctx_id: int


class Transfer(NamedTuple):
    """struct iso_transfer."""

    resource_id: int
    level: int
    x: int
    y: int
    z: int
    w: int
    h: int
    d: int
    stride: int
    layer_stride: int
    offset: int
    length: int


class PlayedWorker:
    """A lane and the other end of it. It asks to be woken by each record."""

    def __init__(self, number: int, staging_bytes: int = MEBIBYTE) -> None:
        self.memory = WorkerMemory.create(staging_bytes)
        self.ring = mmap.mmap(self.memory.ring.fd, ring.RING_TOTAL_BYTES)
        self.staging = mmap.mmap(self.memory.staging.fd, staging_bytes)
        self.words = memoryview(self.ring).cast("Q")
        self.lane = Lane(
            number, self.memory.ring.fd, self.memory.staging.fd, staging_bytes, self.memory.ring_worker.fd,
            self.memory.master_doorbell.fd,
        )  # fmt: skip
        self.tail = 0
        self.completed = 0
        self.words[WORKER_SLEEPING // 8] = 1

    def word(self, offset: int, value: int) -> None:
        """Write a word of the ring's header, whatever it means."""
        self.words[offset // 8] = value

    def take(self, *, free: bool = True) -> Record | None:
        """The next record, or None. `free`: give its room back at once."""
        self.words[WORKER_SLEEPING // 8] = 1
        if self.words[CMD_HEAD // 8] == self.tail:
            return None
        at = ring.RING_CMD_OFFSET + self.tail % ring.RING_CMD_BYTES
        size, kind, seq, flags, ring_idx, length, ctx_id = _RECORD.unpack_from(self.ring, at)
        start = at + _RECORD.size
        record = Record(kind, seq, flags, ring_idx, bytes(self.ring[start : start + length]), ctx_id)
        self.tail += size
        if free:
            self.words[CMD_TAIL // 8] = self.tail
        return record if kind else self.take(free=free)

    def wait(self) -> Record:
        """The next record."""
        deadline = time.monotonic() + LIMIT
        while (record := self.take()) is None:
            if not select.select([self.memory.worker_doorbell.fd], [], [], deadline - time.monotonic())[0]:
                raise TimeoutError("no record came")
            os.read(self.memory.worker_doorbell.fd, 4096)
        return record

    def complete(self, seq: int, status: int = 0) -> None:
        """Say that a record is done."""
        slot = ring.RING_CPL_OFFSET + self.completed % ring.RING_CPL_ENTRIES * _COMPLETION.size
        _COMPLETION.pack_into(self.ring, slot, seq, status, 0)
        self.completed += 1
        self.words[CPL_HEAD // 8] = self.completed
        self.wake_master()

    def wake_master(self) -> None:
        """Ring, needed or not."""
        self.words[MASTER_SLEEPING // 8] = 0
        os.eventfd_write(self.memory.master_doorbell.fd, 1)

    @staticmethod
    def transfer(record: Record) -> Transfer:
        """A transfer's arguments."""
        return Transfer(*_TRANSFER.unpack(record.payload))

    @staticmethod
    def copied(record: Record) -> int:
        """The resource of a COPY_OUT or COPY_IN."""
        resource_id, padding = _COPY.unpack(record.payload)
        assert padding == 0
        return int(resource_id)

    def close(self) -> None:
        """The lane must have been freed."""
        self.words.release()
        self.memory.close()


class PlaneRig:
    """A running plane with a driver: gpu; events: what Python was handed."""

    def __init__(self, control_size: int = 64) -> None:
        self.memory = GuestMemory([(0, 16 * MEBIBYTE), (1 << 32, 4 * MEBIBYTE)])
        self.plane = Plane()
        self._ours, self._theirs = socket.socketpair()
        self._queues = [DriverQueue(self.memory, i, n, event_idx=True) for i, n in enumerate((control_size, 16))]
        self._commands = [
            CommandQueue(queue, indirect=True, timeout=LIMIT, connection=self._ours.fileno()) for queue in self._queues
        ]
        self.workers: list[PlayedWorker] = []
        self.events: list[Event] = []
        self.gpu = Gpu(self._commands[0], self._commands[1])
        self.native_memory = self.map_memory()
        self.plane.set_memory(self.native_memory)
        for queue in self._queues:
            self.set_up(queue, 0)
        self.plane.start()

    def map_memory(self) -> guest_memory.GuestMemory:
        """Guest memory as the plane's side sees it."""
        memory = guest_memory.GuestMemory()
        for region in self.memory.regions:
            memory.add(region.fd, region.gpa, region.size, region.uva, region.offset)
        return memory

    def set_up(self, queue: DriverQueue, base: int) -> None:
        """Describe, start and enable a queue."""
        descriptors, available, used = map(self.memory.to_uva, (queue.desc_gpa, queue.avail_gpa, queue.used_gpa))
        self.plane.queue_setup(queue.index, queue.size, descriptors, available, used, base, True)
        self.plane.queue_call(queue.index, queue.call_fd)
        self.plane.queue_err(queue.index, queue.err_fd)
        self.plane.queue_start(queue.index, queue.kick_fd)
        self.plane.queue_enable(queue.index, True)

    def worker(self, ctx_id: int, staging_bytes: int = MEBIBYTE) -> PlayedWorker:
        """A worker that serves a context."""
        worker = PlayedWorker(len(self.workers) + 1, staging_bytes)
        self.workers.append(worker)
        self.plane.add_lane(worker.lane)
        self.plane.bind_lane(worker.lane, ctx_id)
        return worker

    def pump(self) -> list[Event]:
        """Everything that Python is handed now."""
        events = []
        while (event := self.plane.take()) is not None:
            events.append(event)
        self.events += events
        return events

    def wait_for(self, condition: Callable[[list[Event]], object], what: str) -> None:
        """Pump until the events so far satisfy a condition."""
        deadline = time.monotonic() + LIMIT
        self.pump()
        while not condition(self.events):
            if not select.select([self.plane], [], [], deadline - time.monotonic())[0]:
                raise TimeoutError(what)
            self.pump()

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Pump and reap until the condition holds; for what the plane answers without Python."""
        deadline = time.monotonic() + LIMIT
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(what)
            select.select([self.plane], [], [], 0.01)
            self.pump()
            self.gpu.reap()

    def answer_commands(self, response: int = OK_NODATA) -> None:
        """What Python does with commands here: nothing, successfully."""
        for event in self.pump():
            if isinstance(event, Command):
                assert self.plane.complete(event.request, response)
        self.plane.flush()

    def entries(self, segments: Sequence[tuple[int, int]]) -> guest_memory.Backing:
        """A backing of these pieces."""
        data = b"".join(struct.pack("<QII", gpa, length, 0) for gpa, length in segments)
        return guest_memory.Backing(self.native_memory, data, len(segments))

    def close(self) -> None:
        for worker in self.workers:
            self.plane.free_lane(worker.lane)
            worker.close()
        self.plane.close()
        for commands in self._commands:
            commands.close()
        self._ours.close()
        self._theirs.close()
        self.memory.close()


@contextmanager
def plane_rig(control_size: int = 64) -> Iterator[PlaneRig]:
    """A PlaneRig that is closed."""
    rig = PlaneRig(control_size)
    try:
        yield rig
    finally:
        rig.close()
