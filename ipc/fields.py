"""Fields of fixed size that messages are made of.

A field turns one value into a fixed number of bytes and back. Packing a value that does not fit is the sender's bug and
raises ValueError; unpacking bytes that do not decode is the other side's and raises ProtocolError.
"""

from dataclasses import dataclass
from enum import IntFlag, StrEnum
from typing import Protocol

from ipc.errors import ProtocolError


class Field(Protocol):
    """One field: its size in bytes, and both directions."""

    @property
    def size(self) -> int: ...

    def pack(self, value: object) -> bytes: ...

    def unpack(self, data: bytes) -> object: ...


@dataclass(frozen=True)
class Integer:
    """A little-endian integer of `size` bytes; with `minimum`, smaller values are refused."""

    size: int
    signed: bool = False
    minimum: int | None = None

    def pack(self, value: object) -> bytes:
        if not isinstance(value, int) or (self.minimum is not None and value < self.minimum):
            raise ValueError(f"{value!r} is not a number this field can hold")
        try:
            return int(value).to_bytes(self.size, "little", signed=self.signed)
        except OverflowError as error:
            raise ValueError(f"{value} does not fit {self.size} bytes") from error

    def unpack(self, data: bytes) -> object:
        value = int.from_bytes(data, "little", signed=self.signed)
        if self.minimum is not None and value < self.minimum:
            raise ProtocolError(f"{value} is less than {self.minimum}")
        return value


U32 = Integer(4)
U64 = Integer(8)
I32 = Integer(4, signed=True)
IDENT = Integer(4, minimum=1)
"""An id of which 0 means "none", and which must be there."""


@dataclass(frozen=True)
class Boolean:
    """True or False, as 1 or 0 in 4 bytes."""

    size: int = 4

    def pack(self, value: object) -> bytes:
        if not isinstance(value, bool):
            raise ValueError(f"{value!r} is no bool")
        return U32.pack(int(value))

    def unpack(self, data: bytes) -> object:
        value = int.from_bytes(data, "little")
        if value > 1:
            raise ProtocolError(f"{value} is neither true nor false")
        return value == 1


@dataclass(frozen=True)
class Text:
    """A string of at most `size` - 1 Latin-1 characters, NUL-terminated, NUL-filled.

    Latin-1 because such a string may be what a guest wrote: every byte has a character, and what is shown to people is
    made printable by the one who shows it.
    """

    size: int

    def pack(self, value: object) -> bytes:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not a string")
        data = value.encode("latin-1")
        if len(data) >= self.size or b"\0" in data:
            raise ValueError(f"{value!r} does not fit {self.size} bytes with its NUL")
        return data.ljust(self.size, b"\0")

    def unpack(self, data: bytes) -> object:
        text, terminator, rest = data.partition(b"\0")
        if not terminator:
            raise ProtocolError("a string without its NUL")
        if rest.strip(b"\0"):
            raise ProtocolError("bytes behind the NUL of a string")
        return text.decode("latin-1")

    def clip(self, value: str) -> str:
        """`value` with what does not fit left out, characters beyond Latin-1 as `?`."""
        return value.replace("\0", "").encode("latin-1", "replace")[: self.size - 1].decode("latin-1")


@dataclass(frozen=True)
class Choice:
    """One of the values of a StrEnum, as text of 16 bytes."""

    kind: type[StrEnum]
    size: int = 16

    def pack(self, value: object) -> bytes:
        return Text(self.size).pack(str(self.kind(str(value))))

    def unpack(self, data: bytes) -> object:
        text = Text(self.size).unpack(data)
        try:
            return self.kind(str(text))
        except ValueError as error:
            raise ProtocolError(f"{text!r} is no {self.kind.__name__}") from error


@dataclass(frozen=True)
class Flags:
    """A set of IntFlag bits, 4 bytes. Bits without a name are refused."""

    kind: type[IntFlag]
    size: int = 4

    def pack(self, value: object) -> bytes:
        if not isinstance(value, self.kind):
            raise ValueError(f"{value!r} is no {self.kind.__name__}")
        return U32.pack(int(value))

    def unpack(self, data: bytes) -> object:
        value = int.from_bytes(data, "little")
        known = 0
        for flag in self.kind:
            known |= flag.value
        if value & ~known:
            raise ProtocolError(f"unknown bits in {self.kind.__name__}: {value:#x}")
        return self.kind(value)


@dataclass(frozen=True)
class Blob:
    """Up to `capacity` bytes: their number (4 bytes), then the bytes, then zeros."""

    capacity: int

    @property
    def size(self) -> int:
        return 4 + self.capacity

    def pack(self, value: object) -> bytes:
        if not isinstance(value, bytes) or len(value) > self.capacity:
            raise ValueError(f"not at most {self.capacity} bytes")
        return U32.pack(len(value)) + value.ljust(self.capacity, b"\0")

    def unpack(self, data: bytes) -> object:
        length = int.from_bytes(data[:4], "little")
        if length > self.capacity:
            raise ProtocolError(f"{length} bytes where {self.capacity} fit")
        if data[4 + length :].strip(b"\0"):
            raise ProtocolError("bytes behind the end of a blob")
        return data[4 : 4 + length]
