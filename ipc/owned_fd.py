"""A file descriptor that is closed exactly once."""

import os
from types import TracebackType
from typing import Self


class OwnedFd:
    """Owns one file descriptor.

    `fd` lends it: the number stays valid as long as this object is neither closed nor taken from. `take()` moves the
    ownership to the caller. An owner that is dropped without either closes its descriptor, so that none leaks when an
    exception passes by; code does not rely on that.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        """Take over `fd`. Raises ValueError for a number that is no descriptor."""
        self._fd = -1
        if fd < 0:
            raise ValueError(f"not a file descriptor: {fd}")
        self._fd = fd

    @classmethod
    def duplicate(cls, fd: "int | OwnedFd") -> Self:
        """Own a duplicate (close-on-exec) of `fd`, which stays its owner's. Raises OSError."""
        return cls(os.dup(fd if isinstance(fd, int) else fd.fd))

    @property
    def fd(self) -> int:
        """The descriptor, lent. Raises ValueError when closed or taken."""
        if self._fd < 0:
            raise ValueError("the file descriptor is closed or was taken")
        return self._fd

    @property
    def closed(self) -> bool:
        """True once closed or taken."""
        return self._fd < 0

    def fileno(self) -> int:
        """As `fd`, so that select and os functions take this object."""
        return self.fd

    def take(self) -> int:
        """Give up the descriptor to the caller, who closes it. Raises ValueError when closed or taken."""
        fd = self.fd
        self._fd = -1
        return fd

    def close(self) -> None:
        """Close the descriptor; nothing happens when it is closed or taken already."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"OwnedFd({self._fd})" if self._fd >= 0 else "OwnedFd(closed)"
