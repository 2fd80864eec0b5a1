"""The device's side of a split virtqueue, strict: for testing the driver side without any back end.

Reads the rings out of guest memory with nothing but the addresses of the queue, and refuses every chain that
virtio 1.3, 2.7, forbids or that leaves guest RAM.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from tests.fake_vmm.virtqueue import DriverQueue

_MAX_CHAIN_BYTES = 1 << 32


class BadChain(ValueError):
    """The driver broke a rule; the text says which."""


@dataclass(frozen=True)
class Chain:
    """A popped chain: (gpa, length) of its device-readable and device-writable buffers."""

    head: int
    readable: tuple[tuple[int, int], ...]
    writable: tuple[tuple[int, int], ...]
    indirect: bool


class RingDevice:
    """Pops chains of `queue` and gives them back, looking at the eventfds as a device does."""

    def __init__(self, queue: DriverQueue) -> None:
        self.queue = queue
        self.memory = queue.memory
        self.size = queue.size
        self.next_available = 0
        self.used_index = 0

    def _word(self, gpa: int) -> int:
        return int(struct.unpack("<H", self.memory.read(gpa, 2))[0])

    @property
    def available_index(self) -> int:
        return self._word(self.queue.avail_gpa + 2)

    def kicked(self) -> bool:
        """Whether the driver signalled since last asked."""
        try:
            return os.eventfd_read(self.queue.kick_fd) > 0
        except BlockingIOError:
            return False

    def ask_for_kick(self, index: int) -> None:
        """event-idx: kick once avail.idx has gone past `index`."""
        self.memory.write(self.queue.used_gpa + 4 + 8 * self.size, struct.pack("<H", index))

    def suppress_kicks(self, suppressed: bool) -> None:
        """Without event-idx: used.flags."""
        self.memory.write(self.queue.used_gpa, struct.pack("<H", suppressed))

    def pop(self) -> Chain | None:
        """The next chain, None when there is none; BadChain, after which the ring is not to be used."""
        available = self.available_index
        if available == self.next_available:
            return None
        if (available - self.next_available) & 0xFFFF > self.size:
            raise BadChain("avail.idx is further ahead than the ring is long")
        head = self._word(self.queue.avail_gpa + 4 + 2 * (self.next_available % self.size))
        self.next_available = (self.next_available + 1) & 0xFFFF
        if head >= self.size:
            raise BadChain("head out of range")
        return self._walk(head)

    def _walk(self, head: int) -> Chain:
        table, entries = self.queue.desc_gpa, self.size
        address, length, flags, _ = self._descriptor(table, head)
        indirect = bool(flags & 4)
        number = head
        if indirect:
            if flags & 1:
                raise BadChain("indirect descriptor with NEXT")
            if length == 0 or length % 16:
                raise BadChain("indirect table length")
            table, entries, number = address, length // 16, 0
            self._check_ram(table, length, "indirect table")
            if entries > self.size:
                raise BadChain("indirect table longer than the queue")
        return self._collect(head, table, entries, number, indirect)

    def _collect(self, head: int, table: int, entries: int, number: int, indirect: bool) -> Chain:
        readable: list[tuple[int, int]] = []
        writable: list[tuple[int, int]] = []
        for _ in range(entries):
            address, length, flags, following = self._descriptor(table, number)
            if flags & 4:
                raise BadChain("indirect descriptor inside a chain")
            self._check_ram(address, length, "buffer")
            if writable and not flags & 2:
                raise BadChain("readable after writable")
            (writable if flags & 2 else readable).append((address, length))
            if not flags & 1:
                break
            if following >= entries:
                raise BadChain("next out of range")
            number = following
        else:
            raise BadChain("loop")
        if sum(length for _, length in readable + writable) > _MAX_CHAIN_BYTES:
            raise BadChain("chain of more than 4 GiB")
        return Chain(head, tuple(readable), tuple(writable), indirect)

    def _descriptor(self, table: int, number: int) -> tuple[int, int, int, int]:
        address, length, flags, following = struct.unpack("<QIHH", self.memory.read(table + 16 * number, 16))
        return address, length, flags, following

    def _check_ram(self, gpa: int, length: int, what: str) -> None:
        end = gpa + length
        while gpa < end:
            region = next((r for r in self.memory.regions if r.gpa <= gpa < r.end), None)
            if region is None:
                raise BadChain(f"{what} outside RAM")
            gpa = region.end
        if length == 0:
            raise BadChain(f"{what} of length 0")

    def read_request(self, chain: Chain) -> bytes:
        return b"".join(self.memory.read(gpa, length) for gpa, length in chain.readable)

    def push(self, head: int, length: int) -> None:
        """A used element, without an interrupt."""
        slot = self.queue.used_gpa + 4 + 8 * (self.used_index % self.size)
        self.memory.write(slot, struct.pack("<II", head, length))
        self.used_index = (self.used_index + 1) & 0xFFFF
        self.memory.write(self.queue.used_gpa + 2, struct.pack("<H", self.used_index))

    def answer(self, chain: Chain, response: bytes) -> None:
        """Write `response` into the chain's writable part, push it, and interrupt."""
        rest = response
        for gpa, length in chain.writable:
            self.memory.write(gpa, rest[:length])
            rest = rest[length:]
        self.push(chain.head, len(response) - len(rest))
        self.interrupt()

    def interrupt(self) -> None:
        os.eventfd_write(self.queue.call_fd, 1)
