"""Contexts that make no progress.

Progress is the worker's: it took a record from its ring, began another, or finished something that somebody waits for.
A long draw that is still one record counts as standing still, so the limit has to be longer than any honest draw.
A context that waits for another one's work is not to blame; the other one is waited for, and looked at for itself.

What such a context holds of the control queue comes back when the limit is over, whatever its process does then: the
lane is given up with the kill, since a process that is stuck in the kernel ends when it likes.
"""

import asyncio
from dataclasses import dataclass

from master.blame import Cause, CauseKind
from master.context import Context
from master.contexts import Contexts
from master.worker import START_LIMIT
from native.dataplane import LaneProgress, Plane

LOOKS_PER_TIMEOUT = 10
DEBT_LIMIT = 10  # timeouts after which the oldest answer is overdue, whatever the worker says of its progress


@dataclass(slots=True)
class Sighting:
    """The farthest a worker got and when that was; what it owes longest and since when."""

    reached: tuple[int, ...]
    since: float
    debt: tuple[int, bool]
    owed_since: float


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
        ends = context.destroyed and not progress.blocked
        idle = not progress.at_work and not ends
        steps, debt = _steps(progress), (progress.oldest, ends)
        sighting = Sighting(steps, now, debt, now)
        if last is not None:
            sighting.reached = tuple(map(max, steps, last.reached))
            if not idle and sighting.reached == last.reached:
                sighting.since = last.since
            if any(debt) and debt == last.debt:
                sighting.owed_since = last.owed_since
        patience = self._timeout if worker.serving else max(self._timeout, START_LIMIT)
        if now - sighting.since >= patience:
            worker.give_up(_hang(f"made no progress for {patience:g} s"))
        elif now - sighting.owed_since >= DEBT_LIMIT * patience:
            worker.give_up(_hang(f"owed an answer for {DEBT_LIMIT * patience:g} s"))
        else:
            self._sightings[worker.worker_id] = sighting


def _hang(text: str) -> Cause:
    return Cause(kind=CauseKind.HANG, text=text)


def _steps(progress: LaneProgress) -> tuple[int, ...]:
    return progress.begun, progress.consumed, progress.completed
