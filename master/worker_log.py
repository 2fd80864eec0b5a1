"""What a worker writes to its standard output and error: the lines of its log, and what drivers say.

Each worker has a pipe of its own for that. A worker that was taken over may write there what it likes, as fast as it
likes; so the log of the service has it in printable lines of bounded length, never more than a trickle of them, each
behind the worker's name as the master knows it. A worker whose pipe is full loses what it writes and never waits.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from master.line_limit import LineLimit
from master.logging_setup import printable_line
from native.owned_fd import OwnedFd

log = logging.getLogger(__name__)

LINE_CHARACTERS: Final = 512
READ_BYTES: Final = 8192
READ_PAUSE: Final = 0.05  # seconds after each read in which what comes can wait: nobody keeps the loop busy by writing
LINE_INTERVAL: Final = 1.0  # seconds between two lines of one worker, after the first few
LINE_BURST: Final = 40
ALL_INTERVAL: Final = 0.1  # of all workers together
ALL_BURST: Final = 200
LAST_BYTES: Final = 128 << 10  # more than a pipe holds that nobody has enlarged
LAST_LINES: Final = 40  # a traceback has about as many
_LEVELS: Final = {
    b"debug": logging.DEBUG,
    b"info": logging.INFO,
    b"warning": logging.WARNING,
    b"error": logging.ERROR,
    b"critical": logging.ERROR,
}


def limit_of_all() -> LineLimit:
    """For the lines of all workers of a service together."""
    return LineLimit(ALL_INTERVAL, time.monotonic, ALL_BURST)


class WorkerLog:
    """One worker's pipe. `worker_end`, non-blocking, is for whoever starts the worker to lend and to close."""

    def __init__(self, loop: asyncio.AbstractEventLoop, of_all: LineLimit) -> None:
        """Raises OSError."""
        ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.worker_end = OwnedFd(theirs)
        self._ours = OwnedFd(ours)
        self._loop = loop
        self._lines = LineLimit(LINE_INTERVAL, time.monotonic, LINE_BURST)
        self._of_all = of_all
        self._name: Callable[[], str] = lambda: "a worker"
        self._begun = b""
        self._overlong = False
        self._paused: asyncio.TimerHandle | None = None

    def listen(self, name: Callable[[], str]) -> None:
        """Logs from now on what comes. `name`: whose it is, for a person, when a line is logged."""
        self._name = name
        self._resume()

    def finish(self) -> None:
        """The worker is over: logs its last words and closes the pipe."""
        if self._ours.closed:
            return
        data = b""
        while len(data) < LAST_BYTES and (more := self._read()):
            data += more
        lines = self._take(data + b"\n")
        self.close()
        for line in lines[:-LAST_LINES]:
            self._log(line)
        left_out = self._lines.rest()
        for line in lines[-LAST_LINES:]:
            self._write(line, left_out)
            left_out = ""
        if left_out:
            self._write(b"info: its last lines were left out", left_out)

    def close(self) -> None:
        """What was not read is lost. May be called again."""
        self._pause()
        self._ours.close()
        self.worker_end.close()

    def _resume(self) -> None:
        self._paused = None
        self._loop.add_reader(self._ours, self._hear)

    def _pause(self) -> None:
        if self._paused is not None:
            self._paused.cancel()
            self._paused = None
        if not self._ours.closed:
            self._loop.remove_reader(self._ours)

    def _hear(self) -> None:
        data = self._read()
        for line in self._take(data):
            self._log(line)
        self._pause()
        if data:
            self._paused = self._loop.call_later(READ_PAUSE, self._resume)

    def _read(self) -> bytes:
        """b"" if there is nothing, or nothing any more."""
        with suppress(BlockingIOError):
            return os.read(self._ours.fd, READ_BYTES)
        return b""

    def _take(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, each cut off where it gets too long."""
        lines = []
        *complete, begun = data.split(b"\n")
        for end in complete:
            line, self._begun = self._begun + end, b""
            if line and not self._overlong:
                lines.append(line[:LINE_CHARACTERS])
            self._overlong = False
        self._begun += begun
        if len(self._begun) > LINE_CHARACTERS:
            if not self._overlong:
                lines.append(self._begun[:LINE_CHARACTERS])
            self._begun, self._overlong = b"", True
        return lines

    def _log(self, line: bytes) -> None:
        if (before := self._lines.admit()) is not None:
            self._write(line, before)

    def _write(self, line: bytes, before: str) -> None:
        if (others := self._of_all.admit()) is None:
            return
        mark, separator, rest = line.partition(b": ")
        level = _LEVELS.get(mark) if separator else None
        if level is None:
            level, rest = logging.WARNING, line  # a driver's or the C library's words
        text = printable_line(rest.decode("ascii", "backslashreplace"))[:LINE_CHARACTERS]
        log.log(level, "%s: %s%s%s", self._name(), text, before, others and f"{others[:-1]}, of all workers)")
