"""Drives a virtqueue of the fake VMM without Python per command: commands are laid out once and sent over and over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bench.native import load
from tests.fake_vmm import Descriptor, GpuCommand, GuestBuffer
from tests.fake_vmm.command_queue import CommandQueue
from tests.fake_vmm.errors import CommandFailed, ProtocolViolation
from tests.fake_vmm.virtqueue import F_INDIRECT, F_NEXT, F_WRITE, DriverQueue, Segment, write_table
from tests.fake_vmm.wire import FLAG_FENCE, HEADER, Resp

# A command's own guest memory: an indirect table, the request, the response.
_REQUEST, _RESPONSE, _ROOM = 0x400, 0x800, 0x1000
_MAX_TABLE = _REQUEST // 16
_MAX_LATENCIES = 1 << 20
_FIRST_FENCE = 1 << 32  # beyond those that the fake VMM's driver counts


@dataclass(frozen=True, slots=True)
class Run:
    """commands done in `seconds`; latencies_us: of each batch, if they were asked for."""

    commands: int
    seconds: float
    latencies_us: Sequence[float] = ()

    @property
    def rate(self) -> float:
        """Commands a second."""
        return self.commands / self.seconds


@dataclass(slots=True)
class _Laid:
    """A command in guest memory."""

    name: str
    head: int
    gpa: int
    buffers: list[GuestBuffer] = field(default_factory=list)


class RingDriver:
    """Cycles through `commands`, each with a descriptor and guest memory of its own.

    fenced: whether each gets a new fence id whenever it is sent. eager: ask for a call at the first completion, as
    Linux does, where otherwise the last one that is waited for brings it. The queue's other commands must be done
    whenever `batches` or `window` is called, and until they return. Raises ValueError for more commands than the queue
    has room.
    """

    def __init__(
        self, control: CommandQueue, commands: Sequence[GpuCommand], *, fenced: bool, eager: bool = False
    ) -> None:
        module = load()
        self._ffi: Any = module.ffi
        self._lib: Any = module.lib
        self._queue: DriverQueue = control.queue
        if len(commands) > self._queue.free_descriptors:
            raise ValueError(f"{len(commands)} commands for a queue with room for {self._queue.free_descriptors}")
        self._memory = control.memory
        self._fenced = fenced
        self._eager = eager
        self._laid = [self._lay(command) for command in commands]
        self._driver = self._make_driver()

    def _lay(self, command: GpuCommand) -> _Laid:
        gpa = self._memory.allocate(_ROOM)
        laid = _Laid(command.name, self._queue.take_descriptors(1)[0], gpa)
        flags = FLAG_FENCE if self._fenced else 0
        request = HEADER.pack(command.type, flags, 0, command.ctx_id, 0) + command.body
        self._memory.write(gpa + _REQUEST, request)
        segments = [Segment(gpa + _REQUEST, len(request)), *self._payload(laid, command)]
        segments.append(Segment(gpa + _RESPONSE, command.response_size, writable=True))
        too_long = len(request) > _RESPONSE - _REQUEST or command.response_size > _ROOM - _RESPONSE
        if too_long or len(segments) > _MAX_TABLE:
            raise ValueError(f"{command.name} is too long to be laid out")
        write_table(self._memory, gpa, _table(segments))
        self._queue.write_descriptor(laid.head, Descriptor(gpa, 16 * len(segments), F_INDIRECT))
        return laid

    def _payload(self, laid: _Laid, command: GpuCommand) -> list[Segment]:
        if command.payload is None:
            return []
        if not isinstance(command.payload, GuestBuffer):
            buffer = self._memory.buffer(len(command.payload))
            buffer.write(command.payload)
            laid.buffers.append(buffer)
            return [Segment(gpa, length) for gpa, length in buffer.segments()]
        return [Segment(gpa, length) for gpa, length in command.payload.segments()]

    def _make_driver(self) -> Any:
        (region,) = self._memory.regions
        base = self._ffi.from_buffer("uint8_t[]", region.mapping, require_writable=True)
        queue, count = self._queue, len(self._laid)
        self._chains = self._ffi.new("struct bench_chain[]", count)
        self._chain_of_head = self._ffi.new("uint16_t[]", [0xFFFF] * queue.size)
        for index, laid in enumerate(self._laid):
            place = laid.gpa - region.gpa
            self._chains[index] = (laid.head, self._fenced, base + place + _REQUEST, base + place + _RESPONSE)
            self._chain_of_head[laid.head] = index
        driver = self._ffi.new("struct bench_driver *")
        driver.avail = self._ffi.cast("uint16_t *", base + queue.avail_gpa - region.gpa)
        driver.used = self._ffi.cast("uint16_t *", base + queue.used_gpa - region.gpa)
        driver.size, driver.event_idx, driver.eager = queue.size, queue.event_idx, self._eager
        driver.kick_fd, driver.call_fd = queue.kick_fd, queue.call_fd
        driver.chains, driver.count, driver.chain_of_head = self._chains, count, self._chain_of_head
        driver.next_fence = _FIRST_FENCE
        self._base = base
        return driver

    def batches(self, batch: int, seconds: float, *, latencies: bool = False) -> Run:
        """`batch` commands with one kick, all waited for, again and again for `seconds`.

        Raises CommandFailed for a response that is no success, TimeoutError, ProtocolViolation.
        """
        if not 0 < batch <= len(self._laid):
            raise ValueError(f"a batch of {batch} of {len(self._laid)} commands")
        run = self._ffi.new("struct bench_run *")
        capacity = _MAX_LATENCIES if latencies else 0
        times = self._ffi.new("uint64_t[]", capacity) if latencies else self._ffi.NULL
        with self._turn():
            self._check(self._lib.bench_drive_batches(self._driver, batch, int(seconds * 1e9), times, capacity, run))
        measured = [time / 1000 for time in self._ffi.unpack(times, run.latency_count)] if latencies else ()
        return Run(run.commands, run.elapsed_ns / 1e9, measured)

    def window(self, depth: int, seconds: float) -> Run:
        """Keep `depth` commands outstanding for `seconds`, each sent again when it came back; errors as `batches`."""
        if not 0 < depth <= len(self._laid):
            raise ValueError(f"{depth} of {len(self._laid)} commands outstanding")
        run = self._ffi.new("struct bench_run *")
        with self._turn():
            self._check(self._lib.bench_drive_window(self._driver, depth, int(seconds * 1e9), run))
        return Run(run.commands, run.elapsed_ns / 1e9)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        self._driver.next_avail, self._driver.last_used = self._queue.lend()
        try:
            yield
        finally:
            self._queue.take_back(self._driver.next_avail, self._driver.last_used)

    def _check(self, end: int) -> None:
        if end == self._lib.BENCH_FAILED_COMMAND:
            code = self._driver.failed_type
            name = Resp(code).name if code in Resp._value2member_map_ else "no response"
            raise CommandFailed(self._laid[self._driver.failed_chain].name, code, name)
        if end == self._lib.BENCH_TIMEOUT:
            raise TimeoutError(f"no completion in time of {self._laid[self._driver.position].name} and its neighbours")
        if end != self._lib.BENCH_OK:
            raise ProtocolViolation("the device gave back a chain that it was not given")

    def close(self) -> None:
        """Give descriptors and memory back."""
        self._queue.give_descriptors([laid.head for laid in self._laid])
        for laid in self._laid:
            self._memory.free(laid.gpa, _ROOM)
            for buffer in laid.buffers:
                buffer.free()
        self._laid.clear()
        self._ffi.release(self._base)


def _table(segments: Sequence[Segment]) -> list[Descriptor]:
    last = len(segments) - 1
    return [
        Descriptor(gpa, length, (F_WRITE if writable else 0) | (F_NEXT if i < last else 0), i + 1 if i < last else 0)
        for i, (gpa, length, writable) in enumerate(segments)
    ]
