"""The driver's side of a split virtqueue in guest memory (virtio 1.3, 2.7 "Split Virtqueues").

Buffers go in by `add` (direct descriptors, or one indirect descriptor when the caller gives room for a table), are
published together by `publish` or `kick`, and come back by `pop_used`. Ring indices are written and read as aligned
native 16-bit words, each one store or load, since the device looks at them at the same time.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Sequence
from typing import NamedTuple

from tests.fake_vmm.errors import ProtocolViolation
from tests.fake_vmm.memory import GuestMemory

DESCRIPTOR = struct.Struct("<QIHH")  # address, length, flags, next
USED_ELEMENT = struct.Struct("<II")  # head, length written
F_NEXT = 1
F_WRITE = 2
F_INDIRECT = 4
_NO_NOTIFY = 1  # used.flags: do not kick
_NO_INTERRUPT = 1  # avail.flags: do not call

# The driver must see the device's event index as it is *after* its own index was published (2.7.13.4.1); the device has
# the same duty. CPUs reorder a store with a later load, but not around the atomic read-modify-write of taking a lock.
_barrier_lock = threading.Lock()


def _full_barrier() -> None:
    _barrier_lock.acquire()
    _barrier_lock.release()


class Segment(NamedTuple):
    """One buffer of a chain: guest address, bytes, and whether the device writes it."""

    gpa: int
    length: int
    writable: bool = False


class Descriptor(NamedTuple):
    """A descriptor as it lies in memory, for chains that are wrong on purpose."""

    gpa: int
    length: int
    flags: int = 0
    next: int = 0


class QueueFull(Exception):
    """Not enough free descriptors; take back used buffers first."""


class DriverQueue:
    """A split virtqueue of `size` (a power of two) entries, laid out in three fresh areas of guest memory.

    kick_fd: eventfd the driver signals; call_fd: eventfd the device signals; err_fd: eventfd for a broken ring.
    Counters: kicks, kicks_suppressed, interrupts (calls seen by `clear_interrupt`).
    Not thread-safe: one thread drives a queue.
    """

    def __init__(self, memory: GuestMemory, index: int, size: int, *, event_idx: bool) -> None:
        if size & (size - 1) or not 0 < size <= 32768:
            raise ValueError(f"a split virtqueue of {size} entries")
        self.memory = memory
        self.index = index
        self.size = size
        self.event_idx = event_idx
        self._sizes = (16 * size, 6 + 2 * size, 6 + 8 * size)
        self.desc_gpa, self.avail_gpa, self.used_gpa = (memory.allocate(n) for n in self._sizes)
        self._desc = memory.view(self.desc_gpa, self._sizes[0])
        self._avail = memory.view(self.avail_gpa, self._sizes[1]).cast("H")  # flags, idx, ring[size], used_event
        self._used = memory.view(self.used_gpa, self._sizes[2])
        self._used_words = self._used.cast("H")  # flags, idx, elements, ..., avail_event as last word
        self.kick_fd, self.call_fd, self.err_fd = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(3))
        self.kicks = self.kicks_suppressed = self.interrupts = 0
        self._closed = False
        self.reset()

    def reset(self) -> None:
        """Empty rings, all descriptors free: what a driver sets up before it starts the device."""
        self._desc[:] = bytes(len(self._desc))
        self._avail[:] = memoryview(bytes(self._sizes[1])).cast("H")
        self._used[:] = bytes(len(self._used))
        self._next_avail = 0  # index published by the next `publish`
        self._published = 0
        self._last_used = 0
        self._free = list(range(self.size - 1, -1, -1))
        self._chains: dict[int, tuple[int, ...]] = {}  # head -> all its descriptors
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            _drain(fd)

    def close(self) -> None:
        """Close the eventfds and give the rings' memory back."""
        if self._closed:
            return
        self._closed = True
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            os.close(fd)
        for view in (self._desc, self._avail, self._used_words, self._used):
            view.release()
        for gpa, size in zip((self.desc_gpa, self.avail_gpa, self.used_gpa), self._sizes, strict=True):
            self.memory.free(gpa, size)

    @property
    def outstanding(self) -> int:
        """Chains that the device has not given back."""
        return len(self._chains)

    def is_outstanding(self, head: int) -> bool:
        return head in self._chains

    @property
    def free_descriptors(self) -> int:
        return len(self._free)

    # --- driver to device ---------------------------------------------------------------------------------------

    def add(self, segments: Sequence[Segment], table_gpa: int | None = None) -> int:
        """Put a chain into the ring, unpublished; returns its head.

        table_gpa: room for 16 * len(segments) bytes; then the chain is one indirect descriptor. QueueFull.
        """
        if table_gpa is not None:
            return self._add_indirect(segments, table_gpa)
        numbers = self.take_descriptors(len(segments))
        for number, descriptor in zip(numbers, _chain(segments, numbers), strict=True):
            self.write_descriptor(number, descriptor)
        self.push(numbers[0], tuple(numbers))
        return numbers[0]

    def _add_indirect(self, segments: Sequence[Segment], table_gpa: int) -> int:
        """As `add` with a table; written out, for this is the way every command of a bench goes."""
        if not self._free:
            raise QueueFull(f"queue {self.index}: no free descriptor")
        head = self._free.pop()
        size = 16 * len(segments)
        table = self.memory.view(table_gpa, size)
        offset = 0
        for gpa, length, writable in segments:
            flags = F_WRITE if writable else 0
            if offset + 16 < size:
                DESCRIPTOR.pack_into(table, offset, gpa, length, flags | F_NEXT, offset // 16 + 1)
            else:
                DESCRIPTOR.pack_into(table, offset, gpa, length, flags, 0)
            offset += 16
        DESCRIPTOR.pack_into(self._desc, 16 * head, table_gpa, size, F_INDIRECT, 0)
        self.push(head, (head,))
        return head

    def take_descriptors(self, count: int) -> list[int]:
        """Numbers of `count` free descriptors, now the caller's; QueueFull."""
        if count > len(self._free):
            raise QueueFull(f"queue {self.index}: {count} descriptors wanted, {len(self._free)} free")
        return [self._free.pop() for _ in range(count)]

    def give_descriptors(self, numbers: Sequence[int]) -> None:
        """Free again what `take_descriptors` gave."""
        self._free.extend(numbers)

    def write_descriptor(self, number: int, descriptor: Descriptor) -> None:
        DESCRIPTOR.pack_into(self._desc, 16 * number, *descriptor)

    def push(self, head: int, descriptors: tuple[int, ...]) -> None:
        """Make `head` the next available entry; `descriptors` become free when the device gives it back."""
        self._chains[head] = descriptors
        self.push_available(head)

    def push_available(self, head: int) -> None:
        """The bare ring entry, without book-keeping: any 16-bit number goes."""
        self._avail[2 + (self._next_avail & (self.size - 1))] = head
        self._next_avail = (self._next_avail + 1) & 0xFFFF

    def publish(self) -> None:
        """Show the device all chains added so far."""
        self._avail[1] = self._next_avail

    def publish_index(self, index: int) -> None:
        """Write any avail.idx, true or not; later `publish` calls go on from it."""
        self._next_avail = index & 0xFFFF
        self.publish()

    def kick(self, *, force: bool = False) -> bool:
        """Publish, and signal the device unless it asked not to be; whether it was signalled."""
        old, self._published = self._published, self._next_avail
        self.publish()
        _full_barrier()
        if force or self._wants_kick(old, self._next_avail):
            os.eventfd_write(self.kick_fd, 1)
            self.kicks += 1
            return True
        self.kicks_suppressed += 1
        return False

    def _wants_kick(self, old: int, new: int) -> bool:
        if not self.event_idx:
            return not self._used_words[0] & _NO_NOTIFY
        event = self._used_words[2 + 4 * self.size]
        return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF

    # --- device to driver ---------------------------------------------------------------------------------------

    @property
    def has_used(self) -> bool:
        return self._used_words[1] != self._last_used

    @property
    def published(self) -> int:
        """Free-running avail.idx as the device sees it after the last kick."""
        return self._published

    @property
    def last_used(self) -> int:
        """Free-running index of the next used element to take."""
        return self._last_used

    def pop_used(self) -> tuple[int, int] | None:
        """(head, bytes written) of the next chain given back, or None; ProtocolViolation when it is not out."""
        if self._used_words[1] == self._last_used:
            return None
        ahead = (self._used_words[1] - self._last_used) & 0xFFFF
        if ahead > len(self._chains):
            raise ProtocolViolation(
                f"queue {self.index}: used.idx is {ahead} ahead with {len(self._chains)} chains outstanding"
            )
        head, length = USED_ELEMENT.unpack_from(self._used, 4 + 8 * (self._last_used & (self.size - 1)))
        descriptors = self._chains.pop(head, None)
        if descriptors is None:
            raise ProtocolViolation(f"queue {self.index}: descriptor {head} was given back but is not outstanding")
        self._free.extend(descriptors)
        self._last_used = (self._last_used + 1) & 0xFFFF
        return head, length

    def enable_interrupt(self, after: int = 0) -> bool:
        """Ask for a call once more than `after` further chains are used; False when that is already so."""
        if self.event_idx:
            self._avail[2 + self.size] = (self._last_used + after) & 0xFFFF
        else:
            self._avail[0] = 0
        _full_barrier()
        return (self._used_words[1] - self._last_used) & 0xFFFF <= after

    def disable_interrupt(self) -> None:
        """A hint only, without effect under event-idx."""
        if not self.event_idx:
            self._avail[0] = _NO_INTERRUPT

    def clear_interrupt(self) -> None:
        """Take the calls made so far off the call eventfd."""
        self.interrupts += _drain(self.call_fd)

    # --- somebody else's turn -----------------------------------------------------------------------------------

    def lend(self) -> tuple[int, int]:
        """(avail.idx, next used element), for another driver of the same rings; RuntimeError unless they are empty.

        It may submit chains of descriptors from `take_descriptors`, and gives the rings back, empty, by `take_back`.
        """
        if self._chains or self._next_avail != self._published:
            raise RuntimeError(f"queue {self.index}: {len(self._chains)} chains are outstanding")
        return self._next_avail, self._last_used

    def take_back(self, next_avail: int, last_used: int) -> None:
        """The indices after another driver's turn."""
        self._next_avail = self._published = next_avail
        self._last_used = last_used

    @property
    def broken(self) -> bool:
        """Whether the device has signalled the error eventfd (this takes the signal)."""
        return _drain(self.err_fd) > 0


def write_table(memory: GuestMemory, gpa: int, descriptors: Sequence[Descriptor]) -> None:
    """An indirect table at `gpa`."""
    memory.write(gpa, b"".join(DESCRIPTOR.pack(*descriptor) for descriptor in descriptors))


def _chain(segments: Sequence[Segment], numbers: Sequence[int]) -> list[Descriptor]:
    """Segments as descriptors linked in the order of `numbers`."""
    last = len(segments) - 1
    return [
        Descriptor(
            segment.gpa,
            segment.length,
            (F_WRITE if segment.writable else 0) | (F_NEXT if i < last else 0),
            numbers[i + 1] if i < last else 0,
        )
        for i, segment in enumerate(segments)
    ]


def _drain(eventfd: int) -> int:
    try:
        return os.eventfd_read(eventfd)
    except BlockingIOError:
        return 0
