"""Typed face of guest memory and of the backings that lie in it (native/src/guestmem.h, native/src/backing.h).

Every object here owns its C counterpart and frees it once: close() or the garbage collector, whichever comes first.
Sizes, offsets and strides are in bytes.
"""

import errno
from dataclasses import dataclass
from typing import Any

from native._dataplane import ffi, lib
from native.result import check

MAX_BACKING_ENTRIES: int = lib.ISO_BACKING_MAX_ENTRIES


class GuestMemory:
    """Guest RAM, mapped (native/src/guestmem.h). Add the regions, then hand it to a plane; from then on it is
    read-only."""

    def __init__(self) -> None:
        handle = lib.iso_guestmem_new()
        if handle == ffi.NULL:
            raise MemoryError
        self.handle = ffi.gc(handle, lib.iso_guestmem_unref)

    def add(self, fd: int, gpa: int, size: int, uva: int, offset: int) -> None:
        """Maps one region of a vhost-user memory table. Raises OSError (EINVAL, ENOSPC, or what mmap says)."""
        check(lib.iso_guestmem_add(self.handle, fd, gpa, size, uva, offset), "memory region")

    def contains(self, gpa: int, length: int) -> bool:
        """Whether every byte of the range is RAM."""
        return bool(lib.iso_guestmem_contains(self.handle, gpa, length))

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of guest memory. Raises OSError (EFAULT) if a byte of it is not RAM."""
        buffer = ffi.new("uint8_t[]", length or 1)
        if not lib.iso_guestmem_read(self.handle, gpa, buffer, length):
            raise OSError(errno.EFAULT, "not guest memory")
        return bytes(ffi.buffer(buffer, length))

    def write(self, gpa: int, data: bytes) -> None:
        """Writes guest memory. Raises OSError (EFAULT) if a byte of the range is not RAM."""
        if not lib.iso_guestmem_write(self.handle, gpa, data, len(data)):
            raise OSError(errno.EFAULT, "not guest memory")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of bytes in a backing: byte (layer, row, i) lies at offset + layer * layer_stride + row * stride + i."""

    offset: int
    stride: int
    row_bytes: int
    rows: int
    layer_stride: int = 0
    layers: int = 1


class Backing:
    """The guest pages behind a resource as one byte range (native/src/backing.h): the iov of {fd, iov, v1}."""

    def __init__(self, memory: GuestMemory, entries: bytes | memoryview, count: int) -> None:
        """Parses `count` struct virtio_gpu_mem_entry.

        Raises OSError: EINVAL if there are none, too many, fewer bytes than that, or an entry is empty or not RAM;
        ENOMEM.
        """
        if len(entries) < 16 * count:
            raise OSError(errno.EINVAL, "fewer entries than announced")
        out: Any = ffi.new("struct iso_backing **")
        check(lib.iso_backing_new(memory.handle, ffi.from_buffer(entries), count, out), "backing")
        self.handle = ffi.gc(out[0], lib.iso_backing_unref)
        self.nbytes: int = lib.iso_backing_bytes(self.handle)
        self.pieces: int = lib.iso_backing_pieces(self.handle)

    def close(self) -> None:
        """Gives up this reference; the plane may hold another for work under way."""
        ffi.release(self.handle)

    def segments(self) -> list[tuple[int, int]]:
        """Its pieces in their order, each (guest-physical address, bytes); neighbours are one piece."""
        out = ffi.new("struct iso_segment[]", self.pieces)
        count = lib.iso_backing_segments(self.handle, out, self.pieces)
        return [(out[i].gpa, out[i].len) for i in range(count)]

    def read_rows(self, memory: GuestMemory, at: Rows, into: memoryview, stride: int) -> bool:
        """Copies rows out of guest memory, row i to into[i * stride:]. False if they reach past the backing or RAM."""
        self._fits(at, into, stride)
        rows = self._rows(at)
        return bool(
            lib.iso_backing_read_rows(memory.handle, self.handle, rows, ffi.from_buffer("uint8_t[]", into), stride, 0)
        )

    def write_rows(self, memory: GuestMemory, at: Rows, data: bytes | memoryview, stride: int) -> bool:
        """Copies rows into guest memory, row i from data[i * stride:]. False if they reach past the backing or RAM."""
        self._fits(at, data, stride)
        rows = self._rows(at)
        return bool(
            lib.iso_backing_write_rows(memory.handle, self.handle, rows, ffi.from_buffer("uint8_t[]", data), stride, 0)
        )

    @staticmethod
    def _fits(at: Rows, ours: bytes | memoryview, stride: int) -> None:
        if at.layers != 1 or at.rows < 1 or stride * (at.rows - 1) + at.row_bytes > len(ours):
            raise ValueError("rows do not fit the buffer")

    @staticmethod
    def _rows(at: Rows) -> Any:
        fields = (at.offset, at.stride, at.layer_stride, at.row_bytes, at.rows, at.layers)
        return ffi.new("struct iso_rows *", fields)
