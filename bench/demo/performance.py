"""The programs play at once; halfway the accident happens to one of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from bench.demo.accident import Accident, Killed
from bench.demo.errors import DemoFailed
from bench.demo.program import Program
from bench.demo.progress import Progress
from tests.fake_vmm import FakeVmm

# The guest looks at processes and the clock at least so often.
_TICK_S = 0.01
# The others play on for so long at least after the accident.
_AFTERWARDS_S = 1.0
_DRAIN_S = 30.0
# Where the others' pauses are looked for, around the kill.
_AROUND_KILL_NS = 500_000_000


class Performance:
    """One run. seconds: how long it lasts, at least."""

    def __init__(
        self, vmm: FakeVmm, programs: Sequence[Program], accident: Accident, seconds: float, progress: Progress
    ) -> None:
        self._gpu = vmm.gpu
        self._programs = programs
        self._accident = accident
        self._seconds = seconds
        self._progress = progress
        self._start = time.monotonic()

    def clock(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def run(self) -> float:
        """Play to the end, until every program's last frame is done and its picture read; the seconds it took.

        Raises DemoFailed, and what the fake VMM raises when the service is silent or gone.
        """
        self._start = time.monotonic()
        for program in self._programs:
            program.play()
        self._play_until(self._seconds / 2)
        for _ in self._accident.steps(self.clock):
            self._turn()
        self._play_until(max(self._seconds, self.clock() + _AFTERWARDS_S))
        for program in self._survivors():
            program.pause()
        self._drain()
        took = self.clock()
        for program in self._survivors():
            program.read_back()
        self._drain()
        for program in self._survivors():
            program.state = "every frame rendered" if program.frames == program.submitted else "frames are missing"
        self._progress.update(took, force=True)
        return took

    def others_longest_pause_ms(self) -> float:
        """The longest time around the kill in which another program finished no frame."""
        killed = self._accident.killed_at_ns
        around = (killed - _AROUND_KILL_NS, killed + _AROUND_KILL_NS)
        return max(program.longest_pause_ms(*around) for program in self._survivors())

    @property
    def killed(self) -> Killed:
        """What the accident came to; RuntimeError before that."""
        if self._accident.killed is None:
            raise RuntimeError("nothing was killed yet")
        return self._accident.killed

    def _survivors(self) -> Iterator[Program]:
        return (program for program in self._programs if program is not self._accident.victim)

    def _play_until(self, end: float) -> None:
        while self.clock() < end:
            self._turn()

    def _drain(self) -> None:
        deadline = time.monotonic() + _DRAIN_S
        while not all(program.idle for program in self._programs):
            if time.monotonic() > deadline:
                waiting = [program.name for program in self._programs if not program.idle]
                raise DemoFailed(f"the last frames of {' and '.join(waiting)} did not finish within {_DRAIN_S:g} s")
            self._turn()

    def _turn(self) -> None:
        """Submit what is due, then sleep until something completes or is due."""
        now = self.clock()
        for program in self._programs:
            program.step(now)
        self._progress.update(now)
        wakes = [wake for program in self._programs if (wake := program.wakes_at(now)) is not None]
        self._wait_for_completion(min([*wakes, now + _TICK_S]) - self.clock())
        for program in self._programs:
            program.step(self.clock())

    def _wait_for_completion(self, timeout: float) -> None:
        control = self._gpu.control
        before = len(control.outstanding)
        with suppress(TimeoutError):  # then something else is due
            control.wait_until(lambda: len(control.outstanding) < before, "a frame", max(timeout, 0.0))
