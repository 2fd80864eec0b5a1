"""A virtqueue with preallocated room for virtio-gpu commands: submit, wait, batch.

Every command gets a slot, two pages of guest memory made at start:

    0x0000  indirect table, up to 32 descriptors
    0x0200  request, up to 512 bytes
    0x0400  response, up to 3 KiB
    0x1000  payload, up to 4 KiB
Larger payloads, responses and tables get guest memory of their own, given back when the command completes.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from tests.fake_vmm.commands import GpuCommand
from tests.fake_vmm.errors import Disconnected, ProtocolViolation, QueueBroken
from tests.fake_vmm.memory import GuestBuffer, GuestMemory
from tests.fake_vmm.virtqueue import DriverQueue, QueueFull, Segment
from tests.fake_vmm.wire import FLAG_FENCE, FLAG_RING_IDX, HEADER, Response, decode_response

_SLOT_SIZE = 0x2000
_TABLE_ENTRIES = 32
_REQUEST, _REQUEST_ROOM = 0x200, 0x200
_RESPONSE, _RESPONSE_ROOM = 0x400, 0xC00
_PAYLOAD, _PAYLOAD_ROOM = 0x1000, 0x1000


class Pending:
    """A submitted command.

    done: given back by the device. raw: the bytes it wrote to the response. used_length: the length it reported.
    submitted_at, completed_at: time.perf_counter_ns() at submission and when the driver saw the completion.
    cancelled: the device was reset or the connection ended with the command outstanding; it will never complete.
    """

    __slots__ = (
        "_buffers", "_response", "_slot", "_where", "cancelled", "completed_at", "ctx_id", "done", "fence_id", "head",
        "name", "raw", "response_size", "ring_idx", "submitted_at", "used_length",
    )  # fmt: skip

    def __init__(
        self, name: str, ctx_id: int, fence_id: int | None, response_size: int, ring_idx: int | None = None
    ) -> None:
        self.name = name
        self.ctx_id = ctx_id
        self.fence_id = fence_id
        self.ring_idx = ring_idx
        self.response_size = response_size
        self.head = -1
        self.done = False
        self.cancelled = False
        self.raw = b""
        self.used_length = 0
        self.submitted_at = 0
        self.completed_at = 0
        self._slot = -1
        self._where = 0
        self._buffers: list[GuestBuffer] = []
        self._response: Response | None = None

    @property
    def response(self) -> Response:
        """The decoded response; ProtocolViolation when it is malformed, RuntimeError when there is none yet."""
        if not self.done:
            raise RuntimeError(f"{self} has no response")
        if self._response is None:
            self._response = decode_response(self.raw)
        return self._response

    def __repr__(self) -> str:
        fence = "" if self.fence_id is None else f", fence {self.fence_id}"
        fence += "" if self.ring_idx is None else f" on ring {self.ring_idx}"
        state = "done" if self.done else "cancelled" if self.cancelled else "outstanding"
        return f"<{self.name}, ctx {self.ctx_id}{fence}, {state}>"


class CommandQueue:
    """Commands over one DriverQueue; not thread-safe.

    connection: the vhost-user socket's fileno, watched while waiting so that a dead back end is noticed at once.
    timeout: default for waits, in seconds.
    """

    def __init__(
        self, queue: DriverQueue, *, indirect: bool, timeout: float, connection: int, name: str = "control"
    ) -> None:
        self.queue = queue
        self.memory: GuestMemory = queue.memory
        self.indirect = indirect
        self.timeout = timeout
        self.name = name
        self.connection = connection
        self._batch_depth = 0
        self._pending: dict[int, Pending] = {}
        self._slots_gpa = self.memory.allocate(_SLOT_SIZE * queue.size)
        self._slots = self.memory.view(self._slots_gpa, _SLOT_SIZE * queue.size)
        self._free_slots = list(range(queue.size - 1, -1, -1))
        self._poll = select.poll()
        self._poll.register(queue.call_fd, select.POLLIN)
        self._poll.register(queue.err_fd, select.POLLIN)
        self._poll.register(connection, select.POLLRDHUP)

    def reset(self) -> None:
        """Forget what is outstanding (cancelled) and empty the rings: the driver's side of a device reset."""
        for pending in self._pending.values():
            self._release(pending)
            pending.cancelled = True
        self._pending.clear()
        self.queue.reset()

    def close(self) -> None:
        self.reset()
        self._slots.release()
        self.memory.free(self._slots_gpa, _SLOT_SIZE * self.queue.size)
        self.queue.close()

    @property
    def outstanding(self) -> tuple[Pending, ...]:
        return tuple(self._pending.values())

    # --- submitting ---------------------------------------------------------------------------------------------

    def submit(self, command: GpuCommand, *, fence_id: int | None = None, ring_idx: int | None = None) -> Pending:
        """Queue a command, kicking unless inside `batch()`. When the queue is full, first waits for a completion."""
        flags = (0 if fence_id is None else FLAG_FENCE) | (0 if ring_idx is None else FLAG_RING_IDX)
        slot = self._take_slot()
        base = slot * _SLOT_SIZE
        HEADER.pack_into(
            self._slots, base + _REQUEST, command.type, flags, fence_id or 0, command.ctx_id, ring_idx or 0
        )
        length = HEADER.size + len(command.body)
        if length > _REQUEST_ROOM:
            raise ValueError(f"{command.name}: a request of {length} bytes; use a payload")
        start = base + _REQUEST + HEADER.size
        self._slots[start : start + len(command.body)] = command.body
        pending = Pending(command.name, command.ctx_id, fence_id, command.response_size, ring_idx)
        segments = [Segment(self._slots_gpa + base + _REQUEST, length)]
        if command.payload is not None:
            segments += self._place_payload(pending, base, command.payload)
        return self._send(pending, slot, segments)

    def submit_bytes(
        self,
        request: bytes,
        response_size: int,
        *,
        request_split: Sequence[int] = (),
        response_split: Sequence[int] = (),
        name: str = "raw bytes",
    ) -> Pending:
        """Any bytes as request, with room for `response_size` bytes (0: no writable descriptor).

        request_split, response_split: sizes of the descriptors; the rest goes into a last one.
        """
        slot = self._take_slot()
        pending = Pending(name, 0, None, response_size)
        segments: list[Segment] = []
        if request:
            buffer = self._buffer(pending, len(request))
            buffer.write(request)
            segments += _split(buffer.extents[0][0], len(request), request_split, False)
        return self._send(pending, slot, segments, response_split)

    def _send(
        self, pending: Pending, slot: int, segments: list[Segment], response_split: Sequence[int] = ()
    ) -> Pending:
        base = slot * _SLOT_SIZE
        if pending.response_size:
            pending._where = self._place_response(pending, base)
            segments += _split(pending._where, pending.response_size, response_split, True)
        table = self._place_table(pending, base, len(segments)) if self.indirect else None
        pending._slot = slot
        while True:
            try:
                pending.head = self.queue.add(segments, table)
                break
            except QueueFull:
                if len(segments) > self.queue.size or not self._pending:
                    self._release(pending)
                    raise
                self._wait_for_any(f"room for {pending.name}")
        self._pending[pending.head] = pending
        pending.submitted_at = time.perf_counter_ns()
        if not self._batch_depth:
            self.queue.kick()
        return pending

    def _take_slot(self) -> int:
        while not self._free_slots:
            self._wait_for_any("a free slot")
        return self._free_slots.pop()

    def _place_payload(self, pending: Pending, base: int, payload: bytes | memoryview | GuestBuffer) -> list[Segment]:
        if isinstance(payload, GuestBuffer):
            return [Segment(gpa, length) for gpa, length in payload.segments()]
        if len(payload) <= _PAYLOAD_ROOM:
            self._slots[base + _PAYLOAD : base + _PAYLOAD + len(payload)] = payload
            return [Segment(self._slots_gpa + base + _PAYLOAD, len(payload))]
        buffer = self._buffer(pending, len(payload))
        buffer.write(payload)
        return [Segment(gpa, length) for gpa, length in buffer.segments()]

    def _place_response(self, pending: Pending, base: int) -> int:
        if pending.response_size <= _RESPONSE_ROOM:
            self._slots[base + _RESPONSE : base + _RESPONSE + 4] = b"\0\0\0\0"
            return self._slots_gpa + base + _RESPONSE
        return self._buffer(pending, pending.response_size).extents[0][0]

    def _place_table(self, pending: Pending, base: int, entries: int) -> int:
        if entries <= _TABLE_ENTRIES:
            return self._slots_gpa + base
        return self._buffer(pending, 16 * entries).extents[0][0]

    def _buffer(self, pending: Pending, size: int) -> GuestBuffer:
        buffer = GuestBuffer(self.memory, size, [(self.memory.allocate(size), size)])
        pending._buffers.append(buffer)
        return buffer

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Commands submitted inside are published and kicked once, at the end."""
        self._batch_depth += 1
        try:
            yield
        finally:
            self._batch_depth -= 1
            if not self._batch_depth:
                self.queue.kick()

    # --- completing ---------------------------------------------------------------------------------------------

    def reap(self) -> list[Pending]:
        """Take back all completed commands without waiting, in the order the device gave them back."""
        completed = []
        while (used := self.queue.pop_used()) is not None:
            head, length = used
            pending = self._pending.pop(head, None)
            if pending is None:
                continue  # a hand-made chain of DriverQueue.push
            if length > pending.response_size:
                raise ProtocolViolation(f"{pending}: {length} bytes written into {pending.response_size}")
            pending.completed_at = time.perf_counter_ns()
            pending.used_length = length
            if length:
                pending.raw = self._read_response(pending, length)
            pending.done = True
            self._release(pending)
            completed.append(pending)
        return completed

    def _read_response(self, pending: Pending, length: int) -> bytes:
        if pending._buffers and pending.response_size > _RESPONSE_ROOM:
            return self.memory.read(pending._where, length)
        start = pending._where - self._slots_gpa
        return bytes(self._slots[start : start + length])

    def _release(self, pending: Pending) -> None:
        if pending._slot >= 0:
            self._free_slots.append(pending._slot)
            pending._slot = -1
        for buffer in pending._buffers:
            buffer.free()
        pending._buffers.clear()

    def wait(self, pending: Pending, timeout: float | None = None) -> Pending:
        """Until `pending` is done; TimeoutError, Disconnected or QueueBroken name it."""
        self.wait_until(lambda: pending.done or pending.cancelled, repr(pending), timeout)
        if pending.cancelled:
            raise Disconnected(f"{pending} will never complete")
        return pending

    def wait_all(self, pending: Iterable[Pending], timeout: float | None = None) -> list[Pending]:
        """Until all are done, with few interrupts where the device does event-idx."""
        wanted = list(pending)
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while missing := [p for p in wanted if not p.done]:
            if not self.reap():
                self._sleep(f"{len(missing)} commands, first {missing[0]}", deadline, after=len(missing) - 1)
        return wanted

    def wait_until(self, condition: Callable[[], bool], awaited: str, timeout: float | None = None) -> None:
        """Reap completions until `condition()`; looked at after every completion."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while not condition():
            if not self.reap() and not condition():  # hand-made chains come back without being listed
                self._sleep(awaited, deadline)

    def wait_used(self, head: int, timeout: float | None = None) -> None:
        """Until a hand-made chain (DriverQueue.push) with this head came back."""
        self.wait_until(lambda: not self.queue.is_outstanding(head), f"chain {head}", timeout)

    def _wait_for_any(self, awaited: str) -> None:
        self.queue.kick()
        before = len(self._pending)
        self.wait_until(lambda: len(self._pending) < before, f"{awaited} in the {self.name} queue")

    def _sleep(self, awaited: str, deadline: float, after: int = 0) -> None:
        """Wait for an interrupt (asking for it first), or raise what prevents one."""
        if self._batch_depth:  # what is waited for may not have been published yet
            self.queue.kick()
        if not self.queue.enable_interrupt(after):
            return
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError(
                f"no completion in time on the {self.name} queue: {awaited} ({len(self._pending)} outstanding)"
            )
        for fd, events in self._poll.poll(min(remaining, 1.0) * 1000):
            if fd == self.queue.call_fd:
                self.queue.clear_interrupt()
            elif fd == self.queue.err_fd and self.queue.broken:
                raise QueueBroken(f"the back end gave up the {self.name} queue; awaited was {awaited}")
            elif fd == self.connection and events and not self.queue.has_used:
                raise Disconnected(f"the back end closed the vhost-user socket; awaited was {awaited}")


def _split(gpa: int, length: int, sizes: Sequence[int], writable: bool) -> list[Segment]:
    segments = []
    for size in sizes:
        piece = min(size, length)
        segments.append(Segment(gpa, piece, writable))
        gpa, length = gpa + piece, length - piece
    return [*segments, Segment(gpa, length, writable)] if length else segments
