"""What commands print: safe for the terminal, and the same wherever it goes if that is none.

Much of it is a guest's own words. They are shown as they are if they can be printed, and spelled out otherwise, so that
no escape sequence, and no change of the writing direction either, reaches the terminal; nor are they read as markup.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import pairwise
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

_WIDE: Final = 10_000  # columns of what is not a terminal: nothing is folded
_STEPS: Final = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
MIB: Final = 1 << 20


def printable(text: str) -> str:
    """The text with everything spelled out that a terminal would not show as a character."""
    return "".join(letter if letter.isprintable() else _spelled(letter) for letter in text)


def _spelled(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def console() -> Console:
    """Standard output. Nothing is interpreted in what is printed to it."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # LC_ALL=C has no word for much of the world
    width = None if sys.stdout.isatty() else _WIDE
    return Console(markup=False, emoji=False, highlight=False, width=width)


def show(page: RenderableType) -> None:
    """Prints something to standard output."""
    to = console()
    if to.is_terminal:
        to.print(page)
    else:
        with to.capture() as captured:
            to.print(page)
        print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def cell(text: object, style: str = "") -> Text:
    """Text for a table or a line, in a style where there are colours."""
    return Text(printable(str(text)), style)


def table(*columns: str) -> Table:
    """A table of these columns without lines; a name that starts with '>' is one of numbers."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        numbers = name.startswith(">")
        made.add_column(name.lstrip(">"), justify="right" if numbers else "left", overflow="fold", no_wrap=numbers)
    return made


def print_json(value: Any) -> None:
    """One document, in ASCII: JSON spells out what could harm a terminal."""
    print(json.dumps(value, indent=2))


def print_json_line(value: Any) -> None:
    """One document in a line, at once."""
    print(json.dumps(value), flush=True)


def duration(seconds: float) -> str:
    """A time span in at most two units: 45s, 3m12s, 2h05m, 3d4h."""
    left = max(0, int(seconds))
    for (unit, size), (small_unit, small) in pairwise(_STEPS):
        if left >= size:
            return f"{left // size}{unit}{left % size // small:02}{small_unit}"
    return f"{left}s"


def memory(size: int) -> str:
    """Bytes for a person; '-' if unknown."""
    return f"{size / MIB:.0f} MiB" if size else "-"


def moment(unix_time: float) -> str:
    """A point in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_time))


@contextmanager
def until_reader_leaves() -> Iterator[None]:
    """For output that goes on: ends quietly when nobody reads it any more, as in `isorend events | head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # what Python has kept to print at its end
        os.close(nowhere)
