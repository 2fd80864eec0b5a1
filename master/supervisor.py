"""The workers: asking the launcher for them, keeping warm spares, noticing their end.

A worker goes through: spawn() (what it is given exists, work can be placed) -> Spawned (a pid and a pidfd) -> Ready and
its capability sets -> spare or in use -> its pidfd is readable (gone: it is lost at once, so that nobody waits for it)
-> Exited from the launcher, which alone can say how it ended -> forgotten.

What workers are for is not known here: a WorkerKind asks for them and knows what else they are given.
"""

import asyncio
import logging
import os
import resource
import subprocess
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from ipc import messages
from ipc.channel import Channel, channel_pair
from ipc.errors import ChannelClosed, ChannelError
from ipc.messages import Exited, Fault, Message, Spawned, SpawnFailed
from master.launch import LaunchSettings
from master.worker import Worker
from native.owned_fd import OwnedFd

log = logging.getLogger(__name__)

CHANNEL_GRACE = 5.0  # seconds that a worker may live on after it has closed its channel
MESSAGES_AT_ONCE = 16
LAUNCHER_GRACE = 5.0  # seconds that a new launcher has to live before its end is no reason to give up
REFILL_DELAY = 0.5  # seconds that spares wait to be started; see Supervisor._refill_soon

W = TypeVar("W", bound=Worker)
W_co = TypeVar("W_co", bound=Worker, covariant=True)
W_contra = TypeVar("W_contra", bound=Worker, contravariant=True)

Ask = Callable[[Message, list[OwnedFd]], None]


class NoWorkers(Exception):
    """No worker can be brought up here; the text is for the user."""


class WorkerKind(Protocol[W_co]):
    """What a service's workers are for: how one is asked for, and what it is given besides its channel."""

    def order(self, worker_id: int, channel: Channel, ask: Ask) -> W_co:
        """Makes a worker with our end of its channel, and asks the launcher for its process by ask(message, fds).

        The worker's own end of the channel goes before the `fds`, which are lent. Raises OSError, with nothing left but
        the channel.
        """


class WorkerOwner(Protocol[W_contra]):
    """Who is told of workers in use."""

    def worker_faulted(self, worker: W_contra, fault: Fault) -> None:
        """Its engine complains of what it was sent."""

    def worker_gone(self, worker: W_contra) -> None:
        """Its process has ended; worker.lost() was called."""

    def worker_reaped(self, worker: W_contra) -> None:
        """worker.wait_status is known. The worker is forgotten after this."""


class Supervisor(Generic[W]):
    """Starts, keeps and buries workers."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        kind: WorkerKind[W],
        spares: int,
        settings: LaunchSettings,
        on_fatal: Callable[[str], None],
    ) -> None:
        self.owner: WorkerOwner[W] | None = None
        self._loop = loop
        self._kind = kind
        self._wanted_spares = spares
        self._settings = settings
        self._on_fatal = on_fatal
        self._next_id = 1
        self._workers: dict[int, W] = {}
        self._spares: list[W] = []
        self._refill: asyncio.TimerHandle | None = None
        self._first: asyncio.Future[W] | None = None
        self._launcher: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._launched_at = 0.0
        self._closing = False

    # ---- life

    async def start(self) -> W:
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
        if self._refill is not None:
            self._refill.cancel()
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
        with theirs:
            self._launcher = subprocess.Popen(
                self._settings.command(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                env=self._settings.environment(),
                stdin=subprocess.DEVNULL,
            )
        self._launched_at = self._loop.time()
        self._channel = Channel(ours, messages.FROM_LAUNCHER)
        self._loop.add_reader(self._channel, self._hear_launcher)

    # ---- giving workers out

    def take(self) -> W:
        """A worker to use: a warm spare, or a cold one that is being started. It can be given work already.

        Raises OSError if there is none to be had.
        """
        fit = [worker for worker in self._spares if worker.doom is None and not worker.has_ended()]
        warm = [worker for worker in fit if worker.serving]
        if fit:
            worker = (warm or fit)[0]
            self._spares.remove(worker)
        else:
            worker = self._spawn()
        self._refill_soon()
        return worker

    def workers(self) -> list[W]:
        """All of them, spares too."""
        return list(self._workers.values())

    def _refill_soon(self) -> None:
        """Not at once: the start of a driver keeps a core busy, and whoever has just been given a worker wants to start
        too. When workers cannot start, the pause also keeps us from spinning."""
        if self._refill is None and not self._closing:
            self._refill = self._loop.call_later(REFILL_DELAY, self._fill_spares)

    def _fill_spares(self, at_least: int = 0) -> None:
        self._refill = None
        if self._closing or self._channel is None:
            return
        try:
            while len(self._spares) < max(self._wanted_spares, at_least):
                self._spares.append(self._spawn())
        except OSError as error:
            log.error("no spare worker: %s", error)

    def _spawn(self) -> W:
        worker_id, self._next_id = self._next_id, self._next_id + 1
        ours, theirs = channel_pair()
        channel = Channel(ours, messages.FROM_WORKER)
        with theirs:
            try:
                worker = self._kind.order(
                    worker_id, channel, lambda message, fds: self._ask(message, [theirs.fileno(), *fds])
                )
            except BaseException:
                channel.close()
                raise
        self._workers[worker_id] = worker
        self._loop.add_reader(worker.channel, self._hear_worker, worker)
        return worker

    def _ask(self, message: Message, fds: list[OwnedFd | int]) -> None:
        if self._channel is None:
            raise OSError("there is no launcher")
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

    def _hear_worker(self, worker: W) -> None:
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

    def _gone(self, worker: W) -> None:
        """Its process has ended. First of all nobody may wait for it any longer."""
        if worker.dead:
            return
        worker.dead = True
        worker.lost()
        self._hear_worker(worker)  # its last words may have come together with its end
        if worker.pidfd is not None:
            self._loop.remove_reader(worker.pidfd)
        if worker in self._spares:
            self._spares.remove(worker)
        elif self.owner is not None:
            self.owner.worker_gone(worker)

    def _reaped(self, worker: W) -> None:
        if self.owner is not None:
            self.owner.worker_reaped(worker)
        self._forget(worker)
        if self._first is not None and not self._first.done():
            self._first.set_exception(NoWorkers("the first worker ended before it could serve; its log says why"))
        else:
            self._refill_soon()

    def _forget(self, worker: W) -> None:
        self._workers.pop(worker.worker_id, None)
        if worker in self._spares:
            self._spares.remove(worker)
        self._loop.remove_reader(worker.channel)
        if worker.pidfd is not None:
            self._loop.remove_reader(worker.pidfd)
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
        log.error("the launcher ended (%s, exit code %d): every worker is lost", why, code)
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
