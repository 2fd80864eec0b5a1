"""Workers of a VM's guest contexts: each has a lane of the data plane."""

from dataclasses import dataclass

from ipc.channel import Channel
from ipc.messages import EngineName, SpawnWorker
from ipc.ring import STAGING_BYTES, WorkerMemory
from master.blame import Cause
from master.history import History
from master.supervisor import Ask
from master.worker import Worker
from native.dataplane import Lane, LaneProgress, Plane


@dataclass(eq=False, kw_only=True)
class LaneWorker(Worker):
    """A worker with a lane, which takes work from the start."""

    plane: Plane
    lane: Lane

    def lost(self) -> None:
        """Its fences retire."""
        self.plane.lose_lane(self.lane)

    def progress(self) -> LaneProgress | None:
        """How far it is; None once it is buried."""
        return self.plane.progress(self.lane) if self.lane.open else None

    def history(self) -> History:
        return History.of(self.plane.history(self.lane))

    def give_up(self, why: Cause) -> None:
        """Kills it and waits no longer: a process that is stuck in the kernel ends when it likes."""
        if not self.dead:
            self.kill(why)
            self.plane.lose_lane(self.lane)

    def close(self) -> None:
        self.plane.free_lane(self.lane)
        super().close()


class LaneWorkers:
    """A WorkerKind (master.supervisor): workers with a command ring, staging memory and doorbells."""

    def __init__(self, plane: Plane, engine: EngineName) -> None:
        self._plane = plane
        self._engine = engine

    def order(self, worker_id: int, channel: Channel, ask: Ask) -> LaneWorker:
        memory = WorkerMemory.create()
        try:
            lane = Lane(
                worker_id,
                memory.ring.fd,
                memory.staging.fd,
                STAGING_BYTES,
                memory.ring_worker.fd,
                memory.master_doorbell.fd,
            )
            try:
                self._plane.add_lane(lane)
                ask(SpawnWorker(worker_id, self._engine), memory.fds())
            except BaseException:
                self._plane.free_lane(lane)
                raise
        finally:
            memory.close()
        return LaneWorker(worker_id, channel, plane=self._plane, lane=lane)
