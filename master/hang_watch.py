"""Contexts that make no progress.

Progress is the worker's: it took a record from its ring, began another, or finished something that somebody waits for.
A long draw that is still one record counts as standing still, so the limit has to be longer than any honest draw.
"""

import asyncio
from dataclasses import dataclass

from master.contexts import Context, Contexts
from native.dataplane import LaneProgress, Plane

LOOKS_PER_TIMEOUT = 10


@dataclass(slots=True)
class Sighting:
    """How far a worker was when it was last seen to move."""

    progress: LaneProgress
    since: float


class HangWatch:
    """Kills workers that others wait for and that do not move."""

    def __init__(self, loop: asyncio.AbstractEventLoop, plane: Plane, contexts: Contexts, timeout: float) -> None:
        """timeout: seconds."""
        self._loop = loop
        self._plane = plane
        self._contexts = contexts
        self._timeout = timeout
        self._sightings: dict[int, Sighting] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Looks from now on."""
        self._timer = self._loop.call_later(self._timeout / LOOKS_PER_TIMEOUT, self._look)

    def stop(self) -> None:
        """Looks no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self.start()
        now = self._loop.time()
        before, self._sightings = self._sightings, {}
        for context in self._contexts.in_use():
            if not context.worker.dead:
                self._judge(context, before.get(context.worker.worker_id), now)

    def _judge(self, context: Context, last: Sighting | None, now: float) -> None:
        worker = context.worker
        progress = self._plane.progress(worker.lane)
        idle = not progress.waiting and not progress.backlog and not context.destroyed
        moved = last is None or _steps(last.progress) != _steps(progress)
        if idle or moved or last is None or not worker.serving:
            self._sightings[worker.worker_id] = Sighting(progress, now)
        elif now - last.since >= self._timeout:
            worker.kill(f"made no progress for {self._timeout:g} s")
        else:
            self._sightings[worker.worker_id] = last


def _steps(progress: LaneProgress) -> tuple[int, int, int]:
    return progress.begun, progress.consumed, progress.completed
