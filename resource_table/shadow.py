"""Our copy of a 2D resource's pixels.

What the guest's pages hold between two transfers is nobody's business, so TRANSFER_TO_HOST_2D copies the rows it names
into a shadow: the plane does so for small rectangles, fill() for large ones. What is shown is what the guest had there
at its transfers; a transfer that comes while the display is being told may be seen in part, and its own flush brings
the rest.

Once a context has the resource the shadow lies in a mirror (native/src/mirror.h), which it shares with that context.
"""

import mmap
import struct

from native.guest_memory import Backing, GuestMemory, Rows
from native.owned_fd import OwnedFd
from native.texture import MIRROR_HEADER_BYTES, Rect, convert_to_xrgb

_VERSION = struct.Struct("=Q")  # struct iso_mirror_header
_HIGHEST = (1 << 64) - 1
_SMALL = 64 << 10
"""Bytes up to which memory of the interpreter's is cheaper than a mapping of its own."""


class Shadow:
    """Rows of four-byte pixels, tightly packed. The memory is anonymous and private to this process, or a mirror's."""

    def __init__(self, width: int, height: int) -> None:
        """All zero. Raises OSError (ENOMEM)."""
        self.width = width
        self.height = height
        self.stride = 4 * width
        self.nbytes = self.stride * height
        self._memory: bytearray | mmap.mmap = (
            bytearray(self.nbytes)
            if self.nbytes <= _SMALL
            else mmap.mmap(-1, self.nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        )
        self._start = 0

    @property
    def mirrored(self) -> bool:
        """Whether it lies in a mirror."""
        return self._start > 0

    def move_to(self, mirror: OwnedFd) -> None:
        """The pixels lie in this mirror's memory from now on, behind its header. Views of them are to be taken anew.
        Raises OSError."""
        memory = mmap.mmap(mirror.fd, MIRROR_HEADER_BYTES + self.nbytes)
        with self.view() as pixels:
            memory[MIRROR_HEADER_BYTES:] = pixels
        self.close()
        self._memory, self._start = memory, MIRROR_HEADER_BYTES
        self.raise_version()  # there is something in it that no object has seen

    def raise_version(self) -> None:
        """The mirror has been written. To be called while no worker copies to it: they raise it, too."""
        (version,) = _VERSION.unpack_from(self._memory)
        _VERSION.pack_into(self._memory, 0, version + 1 & _HIGHEST)

    def header(self) -> memoryview:
        """The mirror's header; to be released before close(). ValueError unless mirrored."""
        if not self.mirrored:
            raise ValueError("the shadow is no mirror")
        return memoryview(self._memory)[: self._start]

    def fill(self, memory: GuestMemory, backing: Backing, rect: Rect, offset: int) -> bool:
        """Copies a rectangle out of guest memory.

        `offset` is where the rectangle's first pixel lies in the backing, whose rows are as long as the resource's
        (virtio 1.3, 5.7.6.8). The rectangle must lie inside. False if it reaches past the backing or RAM.
        """
        rows = Rows(offset=offset, stride=self.stride, row_bytes=4 * rect.width, rows=rect.height)
        with self.view() as pixels:
            target = pixels[rect.y * self.stride + 4 * rect.x :]
            try:
                return backing.read_rows(memory, rows, target, self.stride)
            finally:
                target.release()

    def view(self) -> memoryview:
        """The pixels themselves; to be released before close()."""
        return memoryview(self._memory)[self._start :]

    def to_xrgb(self, format: int, rect: Rect) -> bytearray:
        """The rectangle as packed x8r8g8b8. Raises ValueError outside of the picture or for an unknown format."""
        with self.view() as pixels:
            return convert_to_xrgb(format, pixels, self.stride, rect)

    def close(self) -> None:
        """Gives the memory back."""
        if isinstance(self._memory, mmap.mmap):
            self._memory.close()
        self._memory = bytearray()
        self._start = 0
