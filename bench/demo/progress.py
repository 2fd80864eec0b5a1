"""What a person sees meanwhile: a live table on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bench.demo.program import Program

_REFRESH_S = 0.25
_LINE_S = 2.0
_LONGEST_STATE = len("lost: killed by SIGKILL")


def table(programs: Sequence[Program], title: str, *, rates: bool) -> Table:
    """A row for each program; with the frames of the last second if `rates`."""
    out = Table(
        title=f"{title} (p50, p99: from submit to fence)",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    out.add_column("program", style="bold")
    for heading in ("worker", "frames", *(["fps"] if rates else []), "p50 µs", "p99 µs"):
        out.add_column(heading, justify="right")
    out.add_column("state", no_wrap=True, min_width=_LONGEST_STATE)
    for program in programs:
        rate = [f"{program.fps():.0f}"] if rates else []
        fence = [f"{us:,.0f}" for us in program.fence_us() or ()] or ["", ""]
        out.add_row(program.name, str(program.pid), str(program.frames), *rate, *fence, _state(program.state))
    return out


def _state(state: str) -> Text:
    bad = state.startswith(("lost", "killed", "frames are missing"))
    style = "red" if bad else "green" if state in ("rendering", "every frame rendered") else "yellow"
    return Text(state, style=style)


class Progress:
    """A context manager; `update` as often as one likes, `say` for what happens once."""

    def __init__(self, console: Console, programs: Sequence[Program], seconds: float) -> None:
        self._console = console
        self._programs = programs
        self._seconds = seconds
        self._next = 0.0
        self._now = 0.0
        self._live = (
            Live(console=console, auto_refresh=False, transient=True, get_renderable=self._table)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, now: float, *, force: bool = False) -> None:
        """Show how far things are, if it is time to. now: seconds since the start."""
        self._now = now
        moment = time.monotonic()
        if moment < self._next and not force:
            return
        if self._live is not None:
            self._next = moment + _REFRESH_S
            self._live.refresh()
        else:
            self._next = moment + _LINE_S
            line = " | ".join(map(_brief, self._programs))
            self._console.print(f"{now:5.1f} s  {line}", soft_wrap=True, markup=False)

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(f"{self._now:5.1f} s  {text}", soft_wrap=True, markup=False)

    def _table(self) -> Table:
        return table(self._programs, f"{min(self._now, self._seconds):.1f} of {self._seconds:g} s", rates=True)


def _brief(program: Program) -> str:
    return f"{program.name}: {program.frames} frames, {program.fps():.0f} fps, {program.state}"
