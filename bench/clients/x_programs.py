"""Real programs of others under Xvfb: glmark2 and glxgears, and the frames a second that they print."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from bench.clients.programs import Program, ProgramFailed
from bench.vtest_servers import Renderer, end_process
from bench.workload import WorkloadUnavailable

_PACKAGES = {"Xvfb": "xvfb", "glmark2-es2": "glmark2-es2-x11", "glxgears": "mesa-utils"}
_LIMIT_S = 120.0
_SIZE = "300x300"
_GLMARK2_FPS = re.compile(r"FPS: (\d+)")
_GLXGEARS_FPS = re.compile(r"= (\d+\.\d+) FPS")


def check_installed() -> None:
    """Raises WorkloadUnavailable if one of them is missing."""
    missing = [package for program, package in _PACKAGES.items() if shutil.which(program) is None]
    if missing:
        raise WorkloadUnavailable(f"programs to measure are missing: apt-get install {' '.join(missing)}")


@dataclass(frozen=True, slots=True)
class XDisplay:
    """An X server for the programs of one renderer, which is their /tmp and so has its socket. name: as in DISPLAY."""

    renderer: Renderer
    name: str

    @classmethod
    def start(cls, stack: ExitStack, renderer: Renderer) -> Self:
        """It ends with `stack`. Raises WorkloadUnavailable."""
        reading, writing = os.pipe()
        options = ["-noreset", "-nolisten", "tcp", "-nolisten", "local", "-screen", "0", "800x600x24"]
        with os.fdopen(reading) as number:
            try:
                server = subprocess.Popen(
                    renderer.command(["Xvfb", "-displayfd", str(writing), *options]),
                    pass_fds=[writing],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            finally:
                os.close(writing)
            stack.callback(end_process, server)
            ready, _, _ = select.select([number], [], [], _LIMIT_S)
            line = number.readline().strip() if ready else ""
        if not line.isdigit():
            raise WorkloadUnavailable("Xvfb does not start")
        return cls(renderer, f":{line}")

    def program(self, *argv: str) -> Program:
        """To be entered and ended."""
        return Program(self.renderer, argv, {"DISPLAY": self.name})


def glmark2_rate(display: XDisplay, scene: str, seconds: float, count: int = 1) -> float:
    """Frames a second of `count` glmark2 that start at once and draw `scene` for `seconds`, all added up.

    Off screen; a frame ends when a pixel of it was read back. Raises ProgramFailed.
    """
    benchmark = f"{scene}:duration={seconds}"
    argv = ["glmark2-es2", "--off-screen", "--size", _SIZE, "--frame-end", "readpixels", "--benchmark", benchmark]
    with ExitStack() as stack:
        programs = [stack.enter_context(display.program(*argv)) for _ in range(count)]
        return sum(_found(_GLMARK2_FPS, program.finish(seconds + _LIMIT_S)) for program in programs)


def glxgears_rate(display: XDisplay) -> float:
    """Frames a second of glxgears, of its first five seconds: it says so every five. Raises ProgramFailed."""
    with display.program("glxgears") as program:
        while not (match := _GLXGEARS_FPS.search(program.read_line())):
            continue
        return float(match[1])


def _found(pattern: re.Pattern[str], output: str) -> float:
    match = pattern.search(output)
    if match is None:
        raise ProgramFailed(f"no {pattern.pattern!r} in what it printed: {output[-500:]}")
    return float(match[1])
