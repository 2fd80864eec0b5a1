"""Workers of a VM's guest contexts: each has a lane of the data plane."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ipc.channel import Channel
from ipc.errors import ProtocolError
from ipc.messages import FROM_LANE_WORKER, BlobObject, EngineName, Exported, Message, SpawnWorker
from ipc.ring import STAGING_BYTES, WorkerMemory
from master.blame import Cause, CauseKind
from master.handle_post import HandlePost
from master.history import History
from master.hostile_socket import accept_descriptors, closer
from master.supervisor import Ask
from master.worker import Worker
from native.dataplane import Lane, LaneProgress, Plane
from native.owned_fd import OwnedFd

Answered: TypeAlias = Callable[["LaneWorker", Message, Sequence[OwnedFd]], None]


@dataclass(eq=False, kw_only=True)
class LaneWorker(Worker):
    """A worker with a lane, which takes work from the start."""

    plane: Plane
    lane: Lane
    loop: asyncio.AbstractEventLoop
    on_answer: Answered | None = None
    """Who hears what it says of objects and takes the descriptors over; it may raise ProtocolError."""
    expected: Counter[type[Message]] = field(default_factory=Counter)
    """What it was asked to say of objects."""

    def __post_init__(self) -> None:
        self.post = HandlePost(self.loop, self.channel, self._unreachable)
        """Descriptors on their way to it."""

    def _unreachable(self, why: str) -> None:
        self.kill(Cause(kind=CauseKind.STARTUP, text=f"could not be sent a descriptor: {why}"))

    def hear(self, message: Message, fds: Sequence[OwnedFd] = ()) -> None:
        if not isinstance(message, Exported | BlobObject):
            super().hear(message, fds)
        elif self.on_answer is not None and self.expected[type(message)]:
            self.on_answer(self, message, fds)
        else:
            for fd in fds:
                closer.discard(fd)
            raise ProtocolError(f"{type(message).__name__} and nobody asked")

    def expect(self, answer: type[Message]) -> None:
        """It is being asked for one. While descriptors are expected, they are accepted."""
        self.expected[answer] += 1
        if answer.FDS:
            accept_descriptors(self.channel.sock)
            self.channel.take_fds(True, closer.discard)

    def expects_no_more(self, answer: type[Message]) -> None:
        """One that was asked for has come, or will not come."""
        self.expected[answer] -= 1
        if answer.FDS and not self.expected[answer]:
            self.channel.take_fds(False)

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
        self.post.close()
        self.plane.free_lane(self.lane)
        super().close()


class LaneWorkers:
    """A WorkerKind (master.supervisor): workers with a command ring, staging memory and doorbells."""

    accepts = FROM_LANE_WORKER

    def __init__(self, plane: Plane, engine: EngineName, loop: asyncio.AbstractEventLoop) -> None:
        self._plane = plane
        self._loop = loop
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
        return LaneWorker(worker_id, channel, plane=self._plane, lane=lane, loop=self._loop)
