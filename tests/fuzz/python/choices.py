"""A fuzzer's input as a sequence of choices. Where it has ended there are zeros, so every input means something."""

import os
import struct
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
_EDGES = (0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0xFFFF_FFFE, 1 << 20, 65536, 65535, 4096)


class Choices:
    """Takes bytes from the front of the input."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def more(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        """The next bytes, filled up with zeros."""
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken.ljust(size, b"\0")

    def byte(self) -> int:
        return self.take(1)[0]

    def word(self) -> int:
        return int(struct.unpack("<I", self.take(4))[0])

    def quad(self) -> int:
        return int(struct.unpack("<Q", self.take(8))[0])

    def number(self) -> int:
        """A small number mostly, an edge sometimes, 32 bits of anything if one byte says so."""
        choice = self.byte()
        if choice < 240:
            return choice
        return _EDGES[choice - 240] if choice < 248 else self.word()

    def of(self, alternatives: Sequence[T]) -> T:
        return alternatives[self.byte() % len(alternatives)]


def open_fds() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))
