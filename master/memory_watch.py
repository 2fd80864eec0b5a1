"""The memory of workers: looking at what they use, ending those that use too much, and giving back what idle ones do
not.

The looks are for blame, which comes too late to look, and for what no limit of a process bounds: buffers shared with a
client, page tables. Between two looks hostile code can take what the machine has, and buffers that it does not map are
not seen at all: only a cgroup bounds those. Staging memory is given back in pieces, since the plane stands still
meanwhile; a lane's next large transfer has to get its pages again.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from master.blame import Cause, CauseKind
from master.lane_worker import LaneWorker
from master.worker import MIB, Worker

INTERVAL: Final = 1.0  # seconds between looks
IDLE_LOOKS: Final = 5  # without a transfer, after which staging memory is given back


class MemoryWatch:
    """Looks at all workers once a second."""

    def __init__(self, loop: asyncio.AbstractEventLoop, workers: Callable[[], Iterable[Worker]]) -> None:
        """workers: those there are, spares too."""
        self._loop = loop
        self._workers = workers
        self._timer: asyncio.TimerHandle | None = None
        self._transfers: dict[int, tuple[int, int]] = {}
        """By worker: how many there have been, and at how many looks in a row that was so."""

    def start(self) -> None:
        """Looks from now on."""
        self._timer = self._loop.call_later(INTERVAL, self._look)

    def stop(self) -> None:
        """Looks no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self.start()
        before, self._transfers = self._transfers, {}
        for worker in self._workers():
            worker.sample_memory()
            if worker.uses_too_much():
                worker.kill(Cause(kind=CauseKind.MEMORY, text=_too_much(worker)))
            if isinstance(worker, LaneWorker) and not worker.dead:
                self._transfers[worker.worker_id] = _give_back(worker, before.get(worker.worker_id))


def _too_much(worker: Worker) -> str:
    return f"out of memory: it used {worker.memory.used() // MIB} of {(worker.memory_limit or 0) // MIB} MiB"


def _give_back(worker: LaneWorker, last: tuple[int, int] | None) -> tuple[int, int]:
    transfers = worker.plane.progress(worker.lane).transfers
    looks = last[1] + 1 if last is not None and last[0] == transfers else 0
    if looks >= IDLE_LOOKS:
        worker.plane.trim(worker.lane)
    return transfers, looks
