"""Command streams for the service's null engine, which draws nothing: words that fill, copy and check bytes.

Source: native/src/null_engine.h. A resource's contents are bytes there, whatever its shape.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Self

from tests.fake_vmm.guest_objects import GuestResource


class NullOpcode(IntEnum):
    """enum iso_null_opcode."""

    NOP = 0
    BUSY = 1
    ABORT = 2
    HANG = 3
    FAIL = 4
    DELAY = 5
    FILL = 6
    COPY = 7
    CHECK = 8
    BLOB = 9


class NullStream:
    """A growing command stream; every method returns it. `bytes(stream)` is what goes into SUBMIT_3D.

    Resources may be given as GuestResource or by id; offsets and lengths are in bytes of their contents.
    """

    def __init__(self) -> None:
        self._words: list[int] = []

    def __bytes__(self) -> bytes:
        return struct.pack(f"<{len(self._words)}I", *self._words)

    def emit(self, opcode: int, *arguments: int) -> Self:
        """Any word with any arguments."""
        self._words += [opcode, *arguments]
        return self

    def busy(self, milliseconds: int) -> Self:
        """Keep the processor busy."""
        return self.emit(NullOpcode.BUSY, milliseconds)

    def abort(self) -> Self:
        """End the worker by a signal."""
        return self.emit(NullOpcode.ABORT)

    def hang(self) -> Self:
        """Never return."""
        return self.emit(NullOpcode.HANG)

    def fail(self) -> Self:
        """Fail, and report a fault."""
        return self.emit(NullOpcode.FAIL)

    def delay(self, milliseconds: int) -> Self:
        """The next fence takes so long."""
        return self.emit(NullOpcode.DELAY, milliseconds)

    def fill(self, resource: GuestResource | int, byte: int, length: int, offset: int = 0) -> Self:
        """Write one byte's value all over a piece of a resource."""
        return self.emit(NullOpcode.FILL, _id(resource), offset, length, byte)

    def copy(self, source: GuestResource | int, destination: GuestResource | int) -> Self:
        """All contents of one resource to another."""
        return self.emit(NullOpcode.COPY, _id(source), _id(destination))

    def check(self, resource: GuestResource | int, byte: int, length: int, offset: int = 0) -> Self:
        """Fail as `fail` does unless all bytes of the piece have that value."""
        return self.emit(NullOpcode.CHECK, _id(resource), offset, length, byte)

    def blob(self, blob_id: int, size: int) -> Self:
        """Make an object of `size` bytes, for RESOURCE_CREATE_BLOB to find."""
        return self.emit(NullOpcode.BLOB, blob_id, size)


def _id(resource: GuestResource | int) -> int:
    return resource if isinstance(resource, int) else resource.resource_id
