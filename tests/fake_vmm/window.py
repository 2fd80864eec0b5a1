"""The host-visible region: what the back end has mapped into the guest's address space, and the driver's use of it.

`Window` is the VMM's side: it does what SHMEM_MAP and SHMEM_UNMAP ask, as QEMU 11's generic vhost-user device does, and
shows the bytes as the guest sees them. `WindowSpace` is the driver's: who may map where.
"""

from __future__ import annotations

import mmap
import os
import threading
from dataclasses import dataclass

from tests.fake_vmm.errors import OutOfGuestMemory, ProtocolViolation
from tests.fake_vmm.memory import PAGE_SIZE, Slot
from tests.fake_vmm.protocol import SHMEM_HOST_VISIBLE, SHMEM_MAP, BackEndRequest, Message

_GPA = 0xFC_0000_0000  # where QEMU puts a large region; above any RAM here
_UVA = 0x7D00_0000_0000
_WRITABLE = 1
REFUSED, DONE = 1, 0


@dataclass(frozen=True)
class Mapping:
    """`size` bytes at `offset` of the region: those at `file_offset` of `fd`, which the window owns."""

    offset: int
    size: int
    fd: int
    file_offset: int
    writable: bool
    memory: mmap.mmap

    @property
    def end(self) -> int:
        return self.offset + self.size

    @property
    def file(self) -> tuple[int, int]:
        """Device and inode of what is mapped."""
        status = os.fstat(self.fd)
        return status.st_dev, status.st_ino


class Window:
    """A region of `size` bytes. What the channel's thread maps, the test's thread reads and writes.

    refuse: whether the VMM is one that maps nothing.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.refuse = False
        self._mappings: dict[int, Mapping] = {}
        self._dropped: set[tuple[int, int]] = set()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Drop all mappings."""
        with self._lock:
            for mapping in self._mappings.values():
                _drop(mapping)
            self._mappings.clear()

    # --- as the guest has it ------------------------------------------------------------------------------------

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """What is mapped now, by offset."""
        with self._lock:
            return tuple(sorted(self._mappings.values(), key=lambda mapping: mapping.offset))

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of one mapping; ValueError where nothing is mapped."""
        mapping = self._at(offset, length)
        start = offset - mapping.offset
        return mapping.memory[start : start + length]

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write to one mapping; ValueError where nothing is mapped, TypeError where it is read-only."""
        source = memoryview(data).cast("B")
        mapping = self._at(offset, len(source))
        start = offset - mapping.offset
        mapping.memory[start : start + len(source)] = bytes(source)

    def _at(self, offset: int, length: int) -> Mapping:
        for mapping in self.mappings:
            if mapping.offset <= offset and offset + length <= mapping.end:
                return mapping
        raise ValueError(f"[{offset:#x}, +{length:#x}) of the host-visible region is not one mapping")

    # --- as the VMM has it --------------------------------------------------------------------------------------

    def serve(self, message: Message) -> int:
        """Do SHMEM_MAP or SHMEM_UNMAP: the status to answer. ProtocolViolation for what would be QEMU's end."""
        shmid, file_offset, offset, size, flags = SHMEM_MAP.unpack(message.payload)
        if shmid != SHMEM_HOST_VISIBLE or size == 0 or offset + size > self.size or self.refuse:
            return REFUSED
        with self._lock:
            if message.request == BackEndRequest.SHMEM_MAP:
                return self._map(offset, size, file_offset, bool(flags & _WRITABLE), message.fds)
            return self._unmap(offset, size)

    def _map(self, offset: int, size: int, file_offset: int, writable: bool, fds: tuple[int, ...]) -> int:
        overlaps = any(m.offset < offset + size and offset < m.end for m in self._mappings.values())
        if len(fds) != 1 or overlaps or offset % PAGE_SIZE:
            return REFUSED
        if file_offset + size > os.fstat(fds[0]).st_size or size % PAGE_SIZE:
            raise ProtocolViolation(f"SHMEM_MAP of {size:#x} bytes past the end of its file, or of no whole pages")
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        memory = mmap.mmap(fds[0], size, flags=mmap.MAP_SHARED, prot=protection, offset=file_offset)
        self._mappings[offset] = Mapping(offset, size, os.dup(fds[0]), file_offset, writable, memory)
        self._dropped.discard((offset, size))
        return DONE

    def _unmap(self, offset: int, size: int) -> int:
        mapping = self._mappings.get(offset)
        if mapping is None or mapping.size != size:
            if (offset, size) in self._dropped:
                raise ProtocolViolation(f"SHMEM_UNMAP at {offset:#x} of what a reset has dropped: QEMU dies of it")
            return REFUSED
        _drop(self._mappings.pop(offset))
        return DONE

    def reset(self) -> None:
        """A virtio reset: all mappings go, and nobody is told."""
        with self._lock:
            self._dropped |= {(mapping.offset, mapping.size) for mapping in self._mappings.values()}
        self.close()

    def slots(self) -> list[Slot]:
        """The mappings as lines of the memory table: QEMU takes them for memory like RAM."""
        return [Slot(_GPA + m.offset, m.size, _UVA + m.offset, m.fd, m.file_offset) for m in self.mappings]


def _drop(mapping: Mapping) -> None:
    mapping.memory.close()
    os.close(mapping.fd)


class WindowSpace:
    """The driver's allocator: the lowest room that is large enough, as Linux has it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._taken: dict[int, int] = {}

    def allocate(self, size: int) -> int:
        """Offset of `size` bytes (whole pages); OutOfGuestMemory."""
        offset = 0
        for start, length in sorted(self._taken.items()):
            if start - offset >= size:
                break
            offset = start + length
        if offset + size > self.size:
            raise OutOfGuestMemory(f"no room for {size} bytes in the host-visible region")
        self._taken[offset] = size
        return offset

    def free(self, offset: int) -> None:
        """Give back what `allocate` gave."""
        del self._taken[offset]
