"""The workers: asking the launcher for them, keeping warm spares, noticing their end.

A worker goes through: spawn() (its memory exists, work can be placed) -> Spawned (a pid and a pidfd) -> Ready and its
capability sets -> spare or in use -> its pidfd is readable (gone: its lane is lost at once, so that fences retire) ->
Exited from the launcher, which alone can say how it ended -> forgotten.
"""

import asyncio
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

from context_worker.lockdown import WORKER_ENVIRONMENT
from ipc import messages
from ipc.channel import Channel, channel_pair
from ipc.errors import ChannelClosed, ChannelError
from ipc.messages import EngineName, Exited, Fault, Message, Spawned, SpawnFailed, SpawnWorker
from ipc.ring import STAGING_BYTES, WorkerMemory
from master.worker import Worker
from native.dataplane import Lane, Plane
from native.owned_fd import OwnedFd

log = logging.getLogger(__name__)

CHANNEL_GRACE = 5.0  # seconds that a worker may live on after it has closed its channel
MESSAGES_AT_ONCE = 16
LAUNCHER_GRACE = 5.0  # seconds that a new launcher has to live before its end is no reason to give up


class NoWorkers(Exception):
    """No worker can be brought up here; the text is for the user."""


class WorkerOwner(Protocol):
    """Who is told of workers in use."""

    def worker_faulted(self, worker: Worker, fault: Fault) -> None:
        """Its engine complains of what the guest sent."""

    def worker_gone(self, worker: Worker) -> None:
        """Its process has ended; its lane is lost."""

    def worker_reaped(self, worker: Worker) -> None:
        """worker.wait_status is known. The worker is forgotten after this."""


class Supervisor:
    """Starts, keeps and buries workers."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        plane: Plane,
        engine: EngineName,
        spares: int,
        render_node: str | None,
        on_fatal: Callable[[str], None],
        log_level: str = "INFO",
    ) -> None:
        self.owner: WorkerOwner | None = None
        self._loop = loop
        self._plane = plane
        self._engine = engine
        self._wanted_spares = spares
        self._render_node = render_node
        self._on_fatal = on_fatal
        self._log_level = log_level
        self._next_id = 1
        self._workers: dict[int, Worker] = {}
        self._spares: list[Worker] = []
        self._first: asyncio.Future[Worker] | None = None
        self._launcher: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._launched_at = 0.0
        self._closing = False

    # ---- life

    async def start(self) -> Worker:
        """Starts the launcher and the first worker. Returns it once it serves, for its capability sets.

        Raises NoWorkers if none comes up.
        """
        self._first = self._loop.create_future()
        self._launch()
        self._fill_spares(at_least=1)
        return await self._first

    def close(self) -> None:
        """Ends everything. The launcher kills and reaps its workers when its channel closes."""
        self._closing = True
        for worker in list(self._workers.values()):
            self._forget(worker)
        if self._channel is not None:
            self._loop.remove_reader(self._channel)
            self._channel.close()
            self._channel = None
        if self._launcher is not None:
            try:
                self._launcher.wait(timeout=10)
            except subprocess.TimeoutExpired:
                log.error("the launcher does not end; killing it")
                self._launcher.kill()
                self._launcher.wait()

    def _launch(self) -> None:
        ours, theirs = channel_pair()
        command = [sys.executable, "-m", "context_worker.launcher", f"--channel-fd={theirs.fileno()}"]
        command.append(f"--log-level={self._log_level}")
        if self._render_node:
            command.append(f"--render-node={self._render_node}")
        with theirs:
            environment = {**os.environ, **WORKER_ENVIRONMENT}
            self._launcher = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL
            )
        self._launched_at = self._loop.time()
        self._channel = Channel(ours, messages.FROM_LAUNCHER)
        self._loop.add_reader(self._channel, self._hear_launcher)

    # ---- giving workers out

    def take(self) -> Worker:
        """A worker for a new context: a warm spare, or a cold one that is being started. Its lane takes work already.

        Raises OSError if there is none to be had.
        """
        fit = [worker for worker in self._spares if worker.doom is None and not worker.has_ended()]
        warm = [worker for worker in fit if worker.serving]
        if fit:
            worker = (warm or fit)[0]
            self._spares.remove(worker)
        else:
            worker = self._spawn()
        self._loop.call_soon(self._fill_spares)
        return worker

    def workers(self) -> list[Worker]:
        """All of them, spares too."""
        return list(self._workers.values())

    def _fill_spares(self, at_least: int = 0) -> None:
        if self._closing or self._channel is None:
            return
        try:
            while len(self._spares) < max(self._wanted_spares, at_least):
                self._spares.append(self._spawn())
        except OSError as error:
            log.error("no spare worker: %s", error)

    def _spawn(self) -> Worker:
        if self._channel is None:
            raise OSError("there is no launcher")
        worker_id, self._next_id = self._next_id, self._next_id + 1
        with ExitStack() as given:
            memory = WorkerMemory.create()
            given.callback(memory.close)
            ours, theirs = channel_pair()
            given.callback(theirs.close)
            with ExitStack() as undo:
                undo.callback(ours.close)
                lane = Lane(
                    worker_id,
                    memory.ring.fd,
                    memory.staging.fd,
                    STAGING_BYTES,
                    memory.ring_worker.fd,
                    memory.master_doorbell.fd,
                )
                undo.callback(self._plane.free_lane, lane)
                self._plane.add_lane(lane)
                self._ask(SpawnWorker(worker_id, self._engine), [theirs.fileno(), *memory.fds()])
                undo.pop_all()
        worker = self._workers[worker_id] = Worker(worker_id, lane, Channel(ours, messages.FROM_WORKER))
        self._loop.add_reader(worker.channel, self._hear_worker, worker)
        return worker

    def _ask(self, message: Message, fds: list[OwnedFd | int]) -> None:
        assert self._channel is not None
        try:
            self._channel.send(message, fds)
        except ChannelError as error:
            raise OSError(f"the launcher is gone: {error}") from error

    # ---- hearing of them

    def _hear_launcher(self) -> None:
        assert self._channel is not None
        try:
            while (received := self._channel.recv_nowait()) is not None:
                self._on_launcher(*received)
        except ChannelError as error:
            self._launcher_lost(str(error))

    def _on_launcher(self, message: Message, fds: list[OwnedFd]) -> None:
        worker = self._workers.get(getattr(message, "worker_id", 0))
        if worker is None:
            for fd in fds:
                fd.close()
        elif isinstance(message, Spawned):
            worker.pid, worker.pidfd = message.pid, fds[0]
            self._loop.add_reader(worker.pidfd, self._gone, worker)
            if worker.doom:
                worker.kill(worker.doom)
        elif isinstance(message, SpawnFailed):
            log.error("a worker cannot be started: %s", os.strerror(message.errno))
            worker.doom = f"could not be started: {os.strerror(message.errno)}"
            self._gone(worker)
            self._reaped(worker)
        elif isinstance(message, Exited):
            worker.wait_status = message.wait_status
            self._gone(worker)
            self._reaped(worker)

    def _hear_worker(self, worker: Worker) -> None:
        try:
            for _ in range(MESSAGES_AT_ONCE):  # a worker that never stops talking must not keep us from the others
                received = worker.channel.recv_nowait()
                if received is None:
                    break
                worker.hear(received[0])
                if isinstance(received[0], Fault) and self.owner is not None:
                    self.owner.worker_faulted(worker, received[0])
        except ChannelClosed:
            # It is ending: a process closes its files before anybody can see that it is over.
            self._loop.remove_reader(worker.channel)
            self._loop.call_later(CHANNEL_GRACE, worker.kill, "closed its channel")
        except ChannelError as error:
            self._loop.remove_reader(worker.channel)
            worker.kill(f"broke the channel: {error}")
        if worker.serving and self._first is not None and not self._first.done():
            self._first.set_result(worker)

    def _gone(self, worker: Worker) -> None:
        """Its process has ended. First of all nobody may wait for it any longer."""
        if worker.dead:
            return
        worker.dead = True
        self._plane.lose_lane(worker.lane)
        self._hear_worker(worker)  # its last words may have come together with its end
        if worker.pidfd is not None:
            self._loop.remove_reader(worker.pidfd)
        if worker in self._spares:
            self._spares.remove(worker)
        elif self.owner is not None:
            self.owner.worker_gone(worker)

    def _reaped(self, worker: Worker) -> None:
        if self.owner is not None:
            self.owner.worker_reaped(worker)
        never_served = not worker.serving
        self._forget(worker)
        if self._first is not None and not self._first.done():
            self._first.set_exception(NoWorkers("the first worker ended before it could serve; its log says why"))
        elif never_served:
            self._loop.call_later(1.0, self._fill_spares)  # do not spin when workers cannot start
        else:
            self._fill_spares()

    def _forget(self, worker: Worker) -> None:
        self._workers.pop(worker.worker_id, None)
        if worker in self._spares:
            self._spares.remove(worker)
        self._loop.remove_reader(worker.channel)
        if worker.pidfd is not None:
            self._loop.remove_reader(worker.pidfd)
        self._plane.free_lane(worker.lane)
        worker.close()

    def _launcher_lost(self, why: str) -> None:
        """The kernel kills its workers with it. A new one is started, unless launchers die young."""
        assert self._channel is not None and self._launcher is not None
        self._loop.remove_reader(self._channel)
        self._channel.close()
        self._channel = None
        try:
            code = self._launcher.wait(timeout=LAUNCHER_GRACE)
        except subprocess.TimeoutExpired:
            self._launcher.kill()
            code = self._launcher.wait()
        log.error("the launcher ended (%s, exit code %d): every context is lost", why, code)
        for worker in list(self._workers.values()):
            worker.doom = worker.doom or "the launcher ended"
            self._gone(worker)
            self._reaped(worker)
        if self._loop.time() - self._launched_at < LAUNCHER_GRACE:
            self._on_fatal("the launcher cannot be kept running")
            return
        try:
            self._launch()
        except OSError as error:
            self._on_fatal(f"no new launcher can be started: {error}")
            return
        self._fill_spares()


def ensure_fd_limit() -> None:
    """Raises the soft limit of open files to the hard one: every worker costs several."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
