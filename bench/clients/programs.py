"""Programs on a renderer: the C client and what it reports, several of them at once."""

from __future__ import annotations

import json
import select
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

from bench.vtest_servers import Renderer, end_process

WARM_UP_FRAMES = 4
_LIMIT_S = 120.0  # for anything but the measuring itself, on a busy machine
_ERROR_TAIL = 2000


class ProgramFailed(Exception):
    """A program that was measured ended badly, or not at all."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the client printed. Frame times (p50_us, p99_us, max_us) are microseconds; seconds is the measured time."""

    renderer: str
    first_frame_ms: float
    frames: int
    missed: int
    seconds: float
    p50_us: float
    p99_us: float
    max_us: float

    @classmethod
    def parse(cls, line: str) -> Report:
        """Raises ValueError or KeyError for anything but the client's line."""
        fields = json.loads(line)
        frame_us = fields["frame_us"]
        plain = {name: fields[name] for name in ("renderer", "first_frame_ms", "frames", "missed", "seconds")}
        return cls(**plain, p50_us=frame_us["p50"], p99_us=frame_us["p99"], max_us=frame_us["max"])

    @property
    def rate(self) -> float:
        """Frames a second."""
        return self.frames / self.seconds if self.seconds else 0.0


class Program:
    """A program on a renderer, from its start to its end; a context manager that ends it."""

    def __init__(self, renderer: Renderer, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._name = f"{' '.join(argv)} on {renderer.name}"
        # A file, since nobody reads while the program runs.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            renderer.command(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=renderer.environment(environment),
        )

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_process(self.process)
        self._errors.close()

    def read_line(self, timeout: float = _LIMIT_S) -> str:
        """The next line it prints. Raises ProgramFailed if none comes."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        line = self.process.stdout.readline() if ready else ""
        if not line.endswith("\n"):
            raise self._failed("printed nothing")
        return line.rstrip("\n")

    def say(self, text: str) -> None:
        """To its standard input. Raises ProgramFailed if it has ended."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(text)
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._failed("ended early") from None

    def finish(self, timeout: float = _LIMIT_S) -> str:
        """Waits for its end; what it printed and was not read. Raises ProgramFailed unless it exits with 0."""
        try:
            output, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise self._failed(f"did not end within {timeout:.0f} s") from None
        if self.process.returncode:
            raise self._failed(f"ended with {self.process.returncode}")
        return output

    def _failed(self, what: str) -> ProgramFailed:
        self._errors.seek(0)
        return ProgramFailed(f"{self._name} {what}: {self._errors.read()[-_ERROR_TAIL:].strip()}")


class Client(Program):
    """The C client (client.c), which waits for `go` after its first frame and its warm-up."""

    def __init__(
        self, renderer: Renderer, scene: str, seconds: float, *options: str, warm_up: int = WARM_UP_FRAMES
    ) -> None:
        self._seconds = seconds
        arguments = [f"--scene={scene}", f"--seconds={seconds}", f"--warm-up={warm_up}", "--wait", *options]
        super().__init__(renderer, [str(renderer.programs.client), *arguments])

    def __enter__(self) -> Client:
        return self

    def wait_ready(self) -> None:
        """Until it waits for `go`. Raises ProgramFailed."""
        line = self.read_line()
        if line != "ready":
            raise self._failed(f"printed {line!r} instead of being ready")

    def go(self) -> None:
        """Let it draw its measured frames."""
        self.say("g")

    def report(self) -> Report:
        """Waits for its end. Raises ProgramFailed."""
        return Report.parse(self.finish(self._seconds + _LIMIT_S))


def run_together(renderer: Renderer, scene: str, seconds: float, count: int) -> list[Report]:
    """`count` clients: all start at once, wait until all are ready, and draw for the same `seconds`.

    Raises ProgramFailed.
    """
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(renderer, scene, seconds)) for _ in range(count)]
        for client in clients:
            client.wait_ready()
        renderer.settle()  # what their start has left to do is no part of their rate
        for client in clients:
            client.go()
        return [client.report() for client in clients]


def first_frame_ms(renderer: Renderer, scene: str) -> float:
    """From the start of the client's process to its first finished frame, in milliseconds. Raises ProgramFailed."""
    argv = [str(renderer.programs.client), f"--scene={scene}", "--frames=0"]
    with Program(renderer, argv) as program:
        return Report.parse(program.finish()).first_frame_ms
