"""Our copy of a 2D resource's pixels.

Without udmabuf the guest's scattered pages cannot become one piece of memory, so TRANSFER_TO_HOST_2D copies the rows it
names into a shadow: the plane does so for small rectangles, fill() for large ones. What is shown is what the guest had
there at its transfers; a transfer that comes while the display is being told may be seen in part, and its own flush
brings the rest.
"""

import mmap

from native.guest_memory import Backing, GuestMemory, Rows
from native.texture import Rect, convert_to_xrgb

_SMALL = 64 << 10
"""Bytes up to which memory of the interpreter's is cheaper than a mapping of its own."""


class Shadow:
    """Rows of four-byte pixels, tightly packed. The memory is anonymous and private to this process."""

    def __init__(self, width: int, height: int) -> None:
        """All zero. Raises OSError (ENOMEM)."""
        self.width = width
        self.height = height
        self.stride = 4 * width
        nbytes = self.stride * height
        self._pixels: bytearray | mmap.mmap = (
            bytearray(nbytes) if nbytes <= _SMALL else mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        )

    def fill(self, memory: GuestMemory, backing: Backing, rect: Rect, offset: int) -> bool:
        """Copies a rectangle out of guest memory.

        `offset` is where the rectangle's first pixel lies in the backing, whose rows are as long as the resource's
        (virtio 1.3, 5.7.6.8). The rectangle must lie inside. False if it reaches past the backing or RAM.
        """
        rows = Rows(offset=offset, stride=self.stride, row_bytes=4 * rect.width, rows=rect.height)
        with memoryview(self._pixels) as pixels:
            target = pixels[rect.y * self.stride + 4 * rect.x :]
            try:
                return backing.read_rows(memory, rows, target, self.stride)
            finally:
                target.release()

    def view(self) -> memoryview:
        """The pixels themselves; to be released before close()."""
        return memoryview(self._pixels)

    def to_xrgb(self, format: int, rect: Rect) -> bytearray:
        """The rectangle as packed x8r8g8b8. Raises ValueError outside of the picture or for an unknown format."""
        with memoryview(self._pixels) as pixels:
            return convert_to_xrgb(format, pixels, self.stride, rect)

    def close(self) -> None:
        """Gives the memory back."""
        if isinstance(self._pixels, mmap.mmap):
            self._pixels.close()
        self._pixels = bytearray()
