"""Log lines on stderr: one line each, safe to print, and never more than a bounded stream of them.

Much of what is logged was caused by a guest, so no message can break out of its line or fill a disk.
"""

import logging
import sys
import time
from collections.abc import Callable
from typing import Final, TextIO

LEVELS: Final = ("debug", "info", "warning", "error")
BURST_LINES: Final = 200
LINES_PER_SECOND: Final = 20.0
_CONTROL_CHARACTERS: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F, *range(0x80, 0xA0))}


def printable_line(text: str) -> str:
    """The text with control characters spelled out; line breaks too."""
    return text.translate(_CONTROL_CHARACTERS)


class LineFormatter(logging.Formatter):
    """`title: level: message`. An exception's traceback follows, each of its lines behind the title."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        lines = [f"{self.title}: {level}{printable_line(record.getMessage())}"]
        if record.exc_info:
            traceback = self.formatException(record.exc_info)
            lines += [f"{self.title}: {printable_line(line)}" for line in traceback.splitlines()]
        return "\n".join(lines)


class RateLimit(logging.Filter):
    """Lets a burst pass, then a steady trickle; the first line after a gap says how many were left out.

    Errors and what is worse always pass: they are ours to bound where they are made.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._tokens = float(BURST_LINES)
        self._refilled = now()
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._now()
        self._tokens = min(BURST_LINES, self._tokens + (now - self._refilled) * LINES_PER_SECOND)
        self._refilled = now
        if self._tokens < 1 and record.levelno < logging.ERROR:
            self._left_out += 1
            return False
        self._tokens = max(0.0, self._tokens - 1)
        if self._left_out:
            record.msg = f"({self._left_out} lines were left out) {record.getMessage()}"
            record.args = None
            self._left_out = 0
        return True


def set_up_logging(level: str, title: str = "isorend", stream: TextIO | None = None) -> None:
    """Send all logging to stderr (or `stream`). level: one of LEVELS in either case. title: starts every line.

    Replaces what was set up before, so that a process may take another title.
    """
    if level.lower() not in LEVELS:
        raise ValueError(f"log level {level!r} is none of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(LineFormatter(title))
    handler.addFilter(RateLimit())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
