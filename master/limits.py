"""What a guest, or one of its contexts, may use at most."""

from dataclasses import dataclass
from typing import Final, Self

MIB: Final = 1 << 20
GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Rate:
    """So many of something within so many seconds."""

    count: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.count}/{self.seconds:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Over any of them a guest gets ERR_OUT_OF_MEMORY for that command, and the log a line.

    context_memory: bytes that one context's worker may use, its resources included. contexts: contexts at a time.
    context_resources: resources that one context may be attached to. spawns: contexts made in a time. shader_bytes: the
    text of one shader.
    """

    context_memory: int = 4 * GIB
    contexts: int = 256
    context_resources: int = 16384
    spawns: Rate = Rate(256, 10.0)
    shader_bytes: int = 4 * MIB

    @classmethod
    def default(cls) -> Self:
        return cls()
