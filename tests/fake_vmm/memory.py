"""Guest RAM: memfds mapped shared, seen through guest physical addresses.

A layout is a list of (guest physical address, size) pairs, gaps allowed. As in QEMU one memfd holds all of it, each
region at an offset of its own, or (`one_memfd=False`) each region has a memfd. The memfds are sealed against shrinking
and growing as QEMU's memory-backend-memfd does, which /dev/udmabuf asks for.

User addresses ("uva") are made up, far from both the guest addresses and each other: a back end that takes one for the
other does not get away with it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from tests.fake_vmm.errors import OutOfGuestMemory

PAGE_SIZE = 4096
_UVA_BASE = 0x7E00_0000_0000
_UVA_STEP = 0x0010_0000_0000  # 64 GiB: regions that touch in guest space never do in user space
_MFD_FLAGS = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
_F_ADD_SEALS = 1033
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW = 1, 2, 4


@dataclass(frozen=True)
class Slot:
    """A line of the memory table. `offset`: where the memory starts in the file `fd`; `size` and addresses in bytes."""

    gpa: int
    size: int
    uva: int
    fd: int
    offset: int

    @property
    def end(self) -> int:
        return self.gpa + self.size


@dataclass(frozen=True)
class Region(Slot):
    """One mapped piece of guest RAM."""

    mapping: mmap.mmap
    view: memoryview


class GuestMemory:
    """Guest RAM with a page allocator; a context manager that unmaps and closes everything.

    layout: (gpa, size) pairs, both multiples of the page size, in ascending order without overlap.
    seed: order in which scattered pages are picked.
    """

    def __init__(self, layout: Sequence[tuple[int, int]], *, one_memfd: bool = True, seed: int = 1) -> None:
        _check_layout(layout)
        self._random = random.Random(seed)
        self._files: list[int] = []
        self.regions = self._map(layout, one_memfd)
        self._free = [np.ones(region.size // PAGE_SIZE, dtype=np.bool_) for region in self.regions]
        self._recycled: dict[int, list[int]] = {}  # contiguous blocks given back, by page count
        if layout[0][0] == 0:
            self._free[0][0] = False  # no guest uses the page at address 0 for buffers

    def _map(self, layout: Sequence[tuple[int, int]], one_memfd: bool) -> tuple[Region, ...]:
        regions = []
        offset = 0
        if one_memfd:
            self._files.append(_sealed_memfd("guest-ram", sum(size for _, size in layout)))
        for number, (gpa, size) in enumerate(layout):
            if not one_memfd:
                self._files.append(_sealed_memfd(f"guest-ram-{number}", size))
                offset = 0
            mapping = mmap.mmap(self._files[-1], size, offset=offset)
            uva = _UVA_BASE + number * _UVA_STEP
            regions.append(Region(gpa, size, uva, self._files[-1], offset, mapping, memoryview(mapping)))
            offset += size
        return tuple(regions)

    def __enter__(self) -> GuestMemory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap and close; views handed out earlier keep their mapping alive until they go."""
        for region in self.regions:
            try:
                region.view.release()
                region.mapping.close()
            except BufferError:  # a slice of the view is still held somewhere; the mapping goes with it
                continue
        for fd in self._files:
            os.close(fd)
        self._files.clear()

    # --- access by guest physical address -----------------------------------------------------------------------

    def region_at(self, gpa: int) -> Region:
        """The region that holds `gpa`; ValueError when none does."""
        for region in self.regions:
            if region.gpa <= gpa < region.end:
                return region
        raise ValueError(f"{gpa:#x} is not guest RAM")

    def to_uva(self, gpa: int) -> int:
        region = self.region_at(gpa)
        return region.uva + gpa - region.gpa

    def _pieces(self, gpa: int, length: int) -> Iterator[memoryview]:
        while length > 0:
            region = self.region_at(gpa)
            start = gpa - region.gpa
            piece = region.view[start : min(start + length, region.size)]
            yield piece
            gpa += len(piece)
            length -= len(piece)

    def view(self, gpa: int, length: int) -> memoryview:
        """A writable view of `length` bytes that lie in one region; ValueError when they do not."""
        region = self.region_at(gpa)
        start = gpa - region.gpa
        if start + length > region.size:
            raise ValueError(f"{length} bytes at {gpa:#x} leave their region")
        return region.view[start : start + length]

    def read(self, gpa: int, length: int) -> bytes:
        """Bytes at `gpa`, across regions that touch; ValueError where there is no RAM."""
        return b"".join(self._pieces(gpa, length))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        source = memoryview(data).cast("B")
        done = 0
        for piece in self._pieces(gpa, len(source)):
            piece[:] = source[done : done + len(piece)]
            done += len(piece)

    # --- page allocator -----------------------------------------------------------------------------------------

    def allocate(self, size: int) -> int:
        """Page-aligned address of `size` contiguous bytes inside one region (not cleared); OutOfGuestMemory."""
        pages = _pages(size)
        recycled = self._recycled.get(pages)
        if recycled:
            return recycled.pop()
        for attempt in range(2):
            for region, free in zip(self.regions, self._free, strict=True):
                start = _first_run(free, pages)
                if start is not None:
                    free[start : start + pages] = False
                    return region.gpa + start * PAGE_SIZE
            if attempt == 0:
                self._flush_recycled()
        raise OutOfGuestMemory(f"no {pages} contiguous guest pages")

    def free(self, gpa: int, size: int) -> None:
        """Give back what `allocate(size)` gave."""
        self._recycled.setdefault(_pages(size), []).append(gpa)

    def reserve(self, gpa: int, size: int) -> None:
        """Take the pages of [gpa, gpa+size), across regions that touch; OutOfGuestMemory when one is taken."""
        self._flush_recycled()
        pages = range(gpa - gpa % PAGE_SIZE, gpa + size, PAGE_SIZE)
        if not all(self._is_free(page) for page in pages):
            raise OutOfGuestMemory(f"{size:#x} bytes at {gpa:#x} are not free")
        for page in pages:
            self._mark(page, free=False)

    def allocate_scattered(self, size: int) -> list[int]:
        """Addresses of pages for `size` bytes, all over RAM and never two adjacent ones in a row."""
        self._flush_recycled()
        count = _pages(size)
        free = np.concatenate(
            [region.gpa + np.flatnonzero(f) * PAGE_SIZE for region, f in zip(self.regions, self._free, strict=True)]
        )
        if len(free) < count:
            raise OutOfGuestMemory(f"no {count} free guest pages")
        pages = _without_neighbours([int(page) for page in self._random.sample(list(free), count)])
        for page in pages:
            self._mark(page, free=False)
        return pages

    def free_pages(self, pages: Sequence[int]) -> None:
        """Give back single pages from `allocate_scattered` or `reserve`."""
        for page in pages:
            self._mark(page, free=True)

    def buffer(self, size: int, *, scattered: bool = False) -> GuestBuffer:
        """A zeroed buffer of whole pages, contiguous or scattered."""
        if scattered:
            result = GuestBuffer(self, size, [(page, PAGE_SIZE) for page in self.allocate_scattered(size)])
        else:
            result = GuestBuffer(self, size, [(self.allocate(size), _pages(size) * PAGE_SIZE)])
        result.clear()
        return result

    def _is_free(self, page: int) -> bool:
        region = self.region_at(page)
        return bool(self._free[self.regions.index(region)][(page - region.gpa) // PAGE_SIZE])

    def _mark(self, page: int, *, free: bool) -> None:
        region = self.region_at(page)
        self._free[self.regions.index(region)][(page - region.gpa) // PAGE_SIZE] = free

    def _flush_recycled(self) -> None:
        for pages, blocks in self._recycled.items():
            for gpa in blocks:
                region = self.region_at(gpa)
                start = (gpa - region.gpa) // PAGE_SIZE
                self._free[self.regions.index(region)][start : start + pages] = True
        self._recycled.clear()


class GuestBuffer:
    """`size` bytes of guest RAM made of extents (gpa, length) in order: a resource's backing, a large payload."""

    def __init__(self, memory: GuestMemory, size: int, extents: Sequence[tuple[int, int]]) -> None:
        self.memory = memory
        self.size = size
        self.extents = tuple(extents)

    @property
    def contiguous(self) -> bool:
        return len(self.extents) == 1

    def segments(self) -> list[tuple[int, int]]:
        """The extents cut to `size` bytes: what descriptors and backing entries are made of."""
        return [(gpa, length) for gpa, length, _ in self._runs(0, self.size)]

    def _runs(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(gpa, length, position in the request) for each piece of [offset, offset+length)."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"[{offset}, +{length}) is outside a buffer of {self.size} bytes")
        position = 0
        start = 0
        for gpa, extent in self.extents:
            low, high = max(offset, start), min(offset + length, start + extent)
            if low < high:
                yield gpa + low - start, high - low, position
                position += high - low
            start += extent

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        wanted = self.size - offset if length is None else length
        return b"".join(self.memory.read(gpa, n) for gpa, n, _ in self._runs(offset, wanted))

    def write(self, data: bytes | bytearray | memoryview, offset: int = 0) -> None:
        source = memoryview(data).cast("B")
        for gpa, length, position in self._runs(offset, len(source)):
            self.memory.write(gpa, source[position : position + length])

    def clear(self) -> None:
        for gpa, length, _ in self._runs(0, self.size):
            self.memory.write(gpa, bytes(length))

    def free(self) -> None:
        """Give the pages back to the allocator; the buffer must not be used again."""
        if self.contiguous:
            self.memory.free(self.extents[0][0], self.size)
        else:
            self.memory.free_pages([gpa for gpa, _ in self.extents])
        self.extents = ()
        self.size = 0


def _pages(size: int) -> int:
    if size <= 0:
        raise ValueError(f"{size} bytes of guest memory")
    return -(-size // PAGE_SIZE)


def _check_layout(layout: Sequence[tuple[int, int]]) -> None:
    end = 0
    for gpa, size in layout:
        if gpa % PAGE_SIZE or size % PAGE_SIZE or size <= 0 or gpa < end:
            raise ValueError(f"guest RAM region ({gpa:#x}, {size:#x}) is unaligned, empty or out of order")
        end = gpa + size
    if not layout:
        raise ValueError("guest RAM needs a region")


def _sealed_memfd(name: str, size: int) -> int:
    fd = os.memfd_create(name, _MFD_FLAGS)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_SEAL | _F_SEAL_SHRINK | _F_SEAL_GROW)
    return fd


def _first_run(free: npt.NDArray[np.bool_], pages: int) -> int | None:
    """Index of the first `pages` free pages in a row."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], free, [False])).astype(np.int8)))
    starts, ends = edges[0::2], edges[1::2]
    fitting = np.flatnonzero(ends - starts >= pages)
    return int(starts[fitting[0]]) if len(fitting) else None


def _without_neighbours(pages: list[int]) -> list[int]:
    """Reorder so that no page directly follows its neighbour in guest space (as far as swapping can do it)."""
    for i in range(1, len(pages)):
        if pages[i] == pages[i - 1] + PAGE_SIZE:
            j = (i + 1) % len(pages)
            pages[i], pages[j] = pages[j], pages[i]
    return pages
