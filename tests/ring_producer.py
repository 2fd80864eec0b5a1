"""The master's side of one worker, in plain Python: a launcher, its workers, and the producer of a command ring.

It shares no code with the product's data plane, so that tests of workers show what the ring's protocol says and not
what the other implementation happens to do.
"""

import mmap
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from context_worker.environment import WORKER_ENVIRONMENT
from ipc import messages, ring
from ipc.channel import Channel, channel_pair
from ipc.errors import ChannelClosed
from ipc.messages import (
    Capset,
    CapsetsDone,
    CreateContext,
    EngineName,
    Exited,
    Handle,
    Message,
    Ready,
    Sealed,
    Spawned,
    SpawnWorker,
)
from ipc.ring import RecordFlag, RecordType, WorkerMemory
from native.owned_fd import OwnedFd
from native.pidfd import pid_of

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 60.0
"""Seconds after which something awaited is taken for never coming."""

# Offsets in struct iso_ring_header: one cache line each.
CMD_HEAD, CMD_TAIL, WORKER_SLEEPING, CPL_HEAD = (64 * n for n in range(1, 5))
CPL_TAIL, MASTER_SLEEPING, WANT_ROOM, BEGUN = (64 * n for n in range(5, 9))

_RECORD = struct.Struct("<IIQIIII")
_COMPLETION = struct.Struct("<QII")
_TRANSFER = struct.Struct("<10IQQ")


class Completion(NamedTuple):
    """One completion: the record's sequence number and its status."""

    seq: int
    status: int


class Box(NamedTuple):
    """A box of a resource, in texels."""

    x: int
    y: int
    z: int
    w: int
    h: int
    d: int


class RingProducer:
    """Writes records and reads completions."""

    def __init__(self, memory: WorkerMemory) -> None:
        self.memory = memory
        self.map = mmap.mmap(memory.ring.fd, ring.RING_TOTAL_BYTES)
        self.staging = mmap.mmap(memory.staging.fd, 0)
        # Stores through these are one instruction; struct.pack_into writes byte by byte, which the worker would see.
        self._words64 = memoryview(self.map).cast("Q")
        self._words32 = memoryview(self.map).cast("I")
        self.head = 0
        self.next_seq = 1
        self.ctx_id = 0
        self.completions: list[Completion] = []
        self._cpl_tail = 0

    def word64(self, offset: int) -> int:
        """A 64-bit word of the header."""
        return self._words64[offset // 8]

    def word32(self, offset: int) -> int:
        """A 32-bit word of the header."""
        return self._words32[offset // 4]

    def set64(self, offset: int, value: int) -> None:
        """Write a 64-bit word of the header."""
        self._words64[offset // 8] = value

    def set32(self, offset: int, value: int) -> None:
        """Write a 32-bit word of the header."""
        self._words32[offset // 4] = value

    def ring_doorbell(self) -> None:
        """Wake the worker, asleep or not."""
        os.write(self.memory.ring_worker.fd, bytes(8))

    def room(self) -> int:
        """Free bytes of the command ring."""
        return ring.RING_CMD_BYTES - (self.head - self.word64(CMD_TAIL))

    def put(
        self,
        kind: RecordType,
        payload: bytes = b"",
        flags: int = 0,
        ring_idx: int = 0,
        *,
        publish: bool = True,
    ) -> int:
        """Write one record, behind a padding record where it would wrap; its sequence number."""
        size = ring.RING_RECORD_BYTES + len(payload)
        size += -size % ring.RING_RECORD_ALIGN
        self._wait_for_room(2 * size)
        at = self.head % ring.RING_CMD_BYTES
        if at + size > ring.RING_CMD_BYTES:
            self.write_raw(_RECORD.pack(ring.RING_CMD_BYTES - at, RecordType.PAD, 0, 0, 0, 0, 0))
            self.head += ring.RING_CMD_BYTES - at
        seq = self.next_seq
        self.next_seq += 1
        self.write_raw(_RECORD.pack(size, kind, seq, flags, ring_idx, len(payload), self.ctx_id) + payload)
        self.head += size
        if publish:
            self.publish()
        return seq

    def write_raw(self, data: bytes) -> None:
        """Write bytes at the head without stepping past them."""
        start = ring.RING_CMD_OFFSET + self.head % ring.RING_CMD_BYTES
        self.map[start : start + len(data)] = data

    def publish(self) -> None:
        """Let the worker see what was written."""
        self.set64(CMD_HEAD, self.head)
        self.ring_doorbell()

    def control(self, message: Message, flags: RecordFlag = RecordFlag.COMPLETE) -> int:
        """A control record. The first CreateContext also says of which context the records are from now on."""
        if isinstance(message, CreateContext):
            self.ctx_id = self.ctx_id or message.ctx_id
        return self.put(RecordType.CONTROL, message.encode(), flags)

    def submit(self, payload: bytes, flags: RecordFlag = RecordFlag.FENCE) -> int:
        """A command stream."""
        return self.put(RecordType.SUBMIT, payload, flags)

    def copy(self, kind: RecordType, resource_id: int, flags: RecordFlag = RecordFlag.COMPLETE) -> int:
        """A copy between a resource's object and its mirror."""
        return self.put(kind, struct.pack("<II", resource_id, 0), flags)

    def transfer(
        self,
        kind: RecordType,
        resource_id: int,
        box: Box,
        *,
        stride: int,
        length: int,
        offset: int = 0,
        level: int = 0,
        flags: RecordFlag = RecordFlag.COMPLETE,
    ) -> int:
        """A transfer through the staging memory."""
        payload = _TRANSFER.pack(resource_id, level, *box, stride, stride * box.h, offset, length)
        return self.put(kind, payload, flags)

    def collect(self) -> None:
        """Take what completions there are."""
        head = self.word64(CPL_HEAD)
        while self._cpl_tail < head:
            at = ring.RING_CPL_OFFSET + self._cpl_tail % ring.RING_CPL_ENTRIES * ring.RING_COMPLETION_BYTES
            seq, status, _ = _COMPLETION.unpack_from(self.map, at)
            self.completions.append(Completion(seq, status))
            self._cpl_tail += 1
        self.set64(CPL_TAIL, self._cpl_tail)

    def wait(self, seq: int) -> int:
        """Wait for the completion of record `seq`; its status."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            self.collect()
            for completion in self.completions:
                if completion.seq == seq:
                    return completion.status
            self._sleep()
        raise TimeoutError(f"record {seq} was not completed; the worker is at {self.word64(BEGUN)}")

    def wait_all(self, seqs: list[int]) -> list[int]:
        """Wait for the completions of all of `seqs`; their statuses."""
        return [self.wait(seq) for seq in seqs]

    def wait_begun(self, seq: int) -> None:
        """Wait until the worker says that it is at record `seq`."""
        wait_until(lambda: self.word64(BEGUN) >= seq, f"record {seq} to begin")

    def _sleep(self) -> None:
        self.set32(MASTER_SLEEPING, 1)
        if self.word64(CPL_HEAD) == self._cpl_tail:
            select.select([self.memory.master_doorbell.fd], [], [], 0.05)
        self._drain_doorbell()

    def _drain_doorbell(self) -> None:
        if select.select([self.memory.master_doorbell.fd], [], [], 0)[0]:
            os.eventfd_read(self.memory.master_doorbell.fd)

    def _wait_for_room(self, size: int) -> None:
        deadline = time.monotonic() + LIMIT
        while self.room() < size:
            if time.monotonic() > deadline:
                raise TimeoutError("the command ring stays full")
            self.collect()
            self.set32(WANT_ROOM, 1)
            if self.room() < size:
                select.select([self.memory.master_doorbell.fd], [], [], 0.05)
            self._drain_doorbell()

    def close(self) -> None:
        """Unmap; the descriptors are closed too."""
        self._words64.release()
        self._words32.release()
        self.map.close()
        self.staging.close()
        self.memory.close()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait until `condition()` is true. Raises TimeoutError."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.002)


def wait_readable(fd: int, what: str) -> None:
    """Wait until a descriptor is readable (a pidfd: until the process ended). Raises TimeoutError."""
    if not select.select([fd], [], [], LIMIT)[0]:
        raise TimeoutError(f"waited in vain for {what}")


@dataclass
class Worker:
    """One worker as the master sees it."""

    worker_id: int
    pid: int
    pidfd: OwnedFd
    channel: Channel
    producer: RingProducer
    ready: Ready | None = None
    capsets: list[Capset] = field(default_factory=list)

    def recv(self) -> Message:
        """The next message. Raises ChannelClosed, TimeoutError."""
        wait_readable(self.channel.fileno(), "a message of the worker")
        return self.channel.recv()[0]

    def hand(self, ticket: int, fd: OwnedFd) -> None:
        """Send the descriptor that a control record with this ticket speaks of."""
        self.channel.send(Handle(ticket), [fd])

    def answer(self) -> tuple[Message, list[OwnedFd]]:
        """The next message, which has to be there, and its descriptors."""
        received = self.channel.recv_nowait()
        assert received is not None
        return received

    def wait_ready(self) -> Ready:
        """Wait for Ready and the capability sets."""
        message = self.recv()
        assert isinstance(message, Ready), message
        self.ready = message
        while not isinstance(message := self.recv(), CapsetsDone):
            assert isinstance(message, Capset), message
            self.capsets.append(message)
        return self.ready

    def close(self) -> None:
        """Close the master's ends, which ends the worker."""
        self.channel.close()
        self.producer.close()
        self.pidfd.close()


class Launcher:
    """A launcher process and the workers it started for us. stderr: its own, and its workers'; None for ours."""

    def __init__(self, *arguments: str, stderr: int | None = None) -> None:
        self.output = OwnedFd.duplicate(2 if stderr is None else stderr)
        ours, theirs = channel_pair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "context_worker.launcher", f"--channel-fd={theirs.fileno()}", *arguments],
                cwd=ROOT,
                env=os.environ | WORKER_ENVIRONMENT,
                pass_fds=[theirs.fileno()],
                stderr=stderr,
            )
        self._unboxed = "--sandbox=off" in arguments
        self.channel = Channel(ours, messages.FROM_LAUNCHER)
        self.workers: list[Worker] = []
        self._exited: dict[int, Exited] = {}
        self.sealed: dict[int, bool] = {}
        """What it says of workers."""

    def pid(self) -> int:
        """That of the process which forks workers: with a sandbox the child of the one that we started, once it is."""
        if self._unboxed:
            return self.process.pid
        wait_until(lambda: bool(psutil.Process(self.process.pid).children()), "the launcher in its namespaces")
        return int(psutil.Process(self.process.pid).children()[0].pid)

    def _recv(self) -> tuple[Message, list[OwnedFd]]:
        wait_readable(self.channel.fileno(), "a message of the launcher")
        return self.channel.recv()

    def spawn(self, engine: EngineName, staging_bytes: int = 1 << 20) -> Worker:
        """Start a worker; it is not waited for beyond its process."""
        memory = WorkerMemory.create(staging_bytes)
        ours, theirs = channel_pair()
        worker_id = len(self.workers) + 1
        with theirs:
            self.channel.send(SpawnWorker(worker_id, engine), [theirs.fileno(), self.output, *memory.fds()])
        while True:
            message, fds = self._recv()
            if isinstance(message, Spawned):
                break
            self.note(message)
        assert message.worker_id == worker_id
        channel = Channel(ours, messages.FROM_LANE_WORKER)
        worker = Worker(worker_id, pid_of(fds[0]), fds[0], channel, RingProducer(memory))
        self.workers.append(worker)
        return worker

    def start(self, engine: EngineName, staging_bytes: int = 1 << 20) -> Worker:
        """Start a worker and wait until it is ready."""
        worker = self.spawn(engine, staging_bytes)
        worker.wait_ready()
        return worker

    def wait_exited(self, worker: Worker) -> int:
        """Wait until the launcher says that a worker has ended; its wait status."""
        while worker.worker_id not in self._exited:
            self.note(self._recv()[0])
        return self._exited[worker.worker_id].wait_status

    def note(self, message: Message) -> None:
        """What may come at any time: which workers are sealed, and which have ended."""
        if isinstance(message, Sealed):
            self.sealed[message.worker_id] = message.sealed
        else:
            assert isinstance(message, Exited), message
            self._exited[message.worker_id] = message

    def close(self) -> None:
        """Hang up, as a master does that ends, and wait for the launcher's end."""
        for worker in self.workers:
            worker.close()
        self.channel.close()
        self.output.close()
        self.process.wait(timeout=LIMIT)


@contextmanager
def running_launcher(*arguments: str, stderr: int | None = None) -> Iterator[Launcher]:
    """A launcher for the time of a with statement."""
    launcher = Launcher(*arguments, stderr=stderr)
    try:
        yield launcher
    finally:
        try:
            launcher.close()
        except ChannelClosed:
            launcher.process.wait(timeout=LIMIT)
