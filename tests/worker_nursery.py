"""A supervisor with a real launcher, real workers and a real plane, in a loop that moves only when told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ipc.messages import EngineName
from master.lane_worker import LaneWorker, LaneWorkers
from master.launch import LaunchSettings
from master.supervisor import Supervisor
from native.dataplane import LaneBroken, Plane, QueueBroken, WorkDone
from tests.event_loop import LoopDriver

TURN_S = 0.005


class WorkerNursery:
    """A supervisor, its loop and its plane; no process is started yet.

    on_work_done: called with what the plane says of finished work, while the loop is turned. fatal: what the supervisor
    gave up for.
    """

    def __init__(
        self,
        spares: int,
        engine: EngineName = EngineName.NULL,
        render_node: Path | None = None,
        settings: LaunchSettings | None = None,
    ) -> None:
        self.driver = LoopDriver()
        self.plane = Plane()
        self.plane.start()
        self.fatal: list[str] = []
        self.on_work_done: Callable[[WorkDone], object] = lambda _done: None
        settings = settings or LaunchSettings(render_node=render_node, log_level="ERROR")
        self.supervisor = Supervisor(
            self.driver.loop, LaneWorkers(self.plane, engine, self.driver.loop), spares, settings, self.fatal.append
        )
        self.driver.loop.add_reader(self.plane, self.pump)

    def pump(self) -> None:
        """Takes what the plane has; the loop does so whenever it is turned."""
        while (event := self.plane.take()) is not None:
            if isinstance(event, WorkDone):
                self.on_work_done(event)
            elif isinstance(event, LaneBroken | QueueBroken):
                raise AssertionError(event)

    def start(self) -> asyncio.Task[LaneWorker]:
        """The launcher and the first workers exist, and nothing has been heard of them."""
        task = self.driver.loop.create_task(self.supervisor.start())
        self.driver.turn()
        return task

    def started(self) -> LaneWorker:
        """The first worker, serving."""
        task = self.start()
        self.until(lambda: task.done() and (task.exception() or task.result().pid), "the first worker")
        return task.result()

    def until(self, condition: Callable[[], object], awaited: str) -> None:
        """As LoopDriver.until(), leaving the processor to the workers while nothing happens."""

        def look() -> object:
            if condition():
                return True
            self.driver.loop.call_later(TURN_S, self.driver.loop.stop)
            self.driver.loop.run_forever()
            return condition()

        self.driver.until(look, awaited)

    def until_spares_serve(self, count: int, *in_use: LaneWorker) -> list[LaneWorker]:
        """That many workers besides those in use, once they serve."""

        def spares() -> list[LaneWorker]:
            return [worker for worker in self.supervisor.workers() if worker not in in_use]

        self.until(lambda: len(spares()) == count and all(w.serving and w.pid for w in spares()), f"{count} spares")
        return spares()

    def close(self) -> None:
        self.supervisor.close()
        self.driver.loop.remove_reader(self.plane)
        self.plane.close()
        self.driver.close()


@contextmanager
def worker_nursery(
    spares: int, engine: EngineName = EngineName.NULL, render_node: Path | None = None
) -> Iterator[WorkerNursery]:
    """A WorkerNursery that is closed."""
    nursery = WorkerNursery(spares, engine, render_node)
    try:
        yield nursery
    finally:
        nursery.close()
