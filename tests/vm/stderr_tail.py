"""Keeping what a program writes to stderr within bounds.

QEMU 11 repeats "failed to read msg header" some 200000 times a second once a vhost-user-gpu back end is gone, so its
stderr is read to the end by a thread and only its beginning and its end are kept.
"""

from __future__ import annotations

import threading
from typing import IO

KEPT_BYTES = 32 * 1024


class BoundedStderr:
    """Reads a pipe until its end in a thread; text() is its first and last KEPT_BYTES."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._head = b""
        self._tail = b""
        self._dropped = 0
        self._thread = threading.Thread(target=self._read, name="vm-stderr", daemon=True)
        self._thread.start()

    def text(self) -> str:
        """What was written so far, the middle left out and counted when there was too much."""
        with self._lock:
            gap = f"\n[... {self._dropped} bytes left out ...]\n".encode() if self._dropped else b""
            return (self._head + gap + self._tail).decode(errors="replace")

    def join(self) -> None:
        """Waits for the end of the pipe and closes it."""
        self._thread.join()
        self._pipe.close()

    def _read(self) -> None:
        while data := self._pipe.read1(1 << 16):  # type: ignore[attr-defined]
            with self._lock:
                room = KEPT_BYTES - len(self._head)
                self._head += data[:room]
                tail = self._tail + data[room:]
                self._dropped += max(0, len(tail) - KEPT_BYTES)
                self._tail = tail[-KEPT_BYTES:]
