"""The workers: asking the launcher for them, keeping warm spares, noticing their end.

A worker goes through: spawn() (what it is given exists, work can be placed) -> Spawned (a pid and a pidfd) -> Sealed,
by the launcher, and Ready with its capability sets, by itself: it serves -> spare or in use -> its pidfd is readable
(gone: it is lost at once, so that nobody waits for it) -> Exited from the launcher, which alone can say how it ended ->
forgotten.

What workers are for is not known here: a WorkerKind asks for them and knows what else they are given.
"""

import asyncio
import logging
import os
import resource
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from typing import Generic, Protocol, TypeVar

from ipc import messages
from ipc.channel import Channel, channel_pair
from ipc.errors import ChannelClosed, ChannelError, ProtocolError
from ipc.messages import Denied, Exited, Fault, Message, NoSandbox, Sealed, Spawned, SpawnFailed
from master.blame import Cause, CauseKind
from master.hostile_socket import refuse_descriptors
from master.launch import LaunchSettings
from master.logging_setup import printable_line
from master.worker import START_LIMIT, Worker
from master.worker_log import WorkerLog, limit_of_all
from native.owned_fd import OwnedFd
from native.pidfd import pid_of

log = logging.getLogger(__name__)

CHANNEL_GRACE = 5.0  # seconds that a worker may live on after it has closed its channel
MESSAGES_AT_ONCE = 16
MESSAGES_PENDING = 1 << 16  # more than a socket holds
LAUNCHER_GRACE = 5.0  # seconds that a new launcher has to live before its end is no reason to give up
MAX_ERRNO = 4096  # as the kernel has it
REFILL_DELAY = 0.5  # seconds that spares wait to be started; see Supervisor._refill_soon

W = TypeVar("W", bound=Worker)
W_co = TypeVar("W_co", bound=Worker, covariant=True)
W_contra = TypeVar("W_contra", bound=Worker, contravariant=True)

Ask = Callable[[Message, list[OwnedFd]], None]


class NoWorkers(Exception):
    """No worker can be brought up here; the text is for the user."""


class WorkerKind(Protocol[W_co]):
    """What a service's workers are for: how one is asked for, and what it is given besides its channel.

    accepts: what they may say.
    """

    @property
    def accepts(self) -> tuple[type[Message], ...]: ...

    def order(self, worker_id: int, channel: Channel, ask: Ask) -> W_co:
        """Makes a worker with our end of its channel, and asks the launcher for its process by ask(message, fds).

        The worker's own ends of the channel and of its log go before the `fds`, which are lent. Raises OSError, with
        nothing left but the channel.
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
        self._lines_of_workers = limit_of_all()
        self._launcher: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._launched_at = 0.0
        self._refusal: str | None = None
        self._closing = False

    # ---- life

    def launch(self) -> None:
        """Starts the launcher. Raises OSError."""
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

    async def start(self) -> W:
        """Starts the first worker, and the launcher if launch() has not been called. Returns the worker once it serves,
        for its capability sets.

        Raises NoWorkers if none comes up.
        """
        self._first = self._loop.create_future()
        if self._launcher is None:
            self.launch()
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

    def spares(self) -> int:
        """How many are kept ready, or are being started to be."""
        return len(self._spares)

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
        output = WorkerLog(self._loop, self._lines_of_workers)
        with ExitStack() as undo:
            undo.callback(output.close)
            ours, theirs = channel_pair()
            refuse_descriptors(ours)
            channel = undo.enter_context(Channel(ours, self._kind.accepts))
            channel.take_fds(False)
            with theirs, output.worker_end:
                lent: list[OwnedFd | int] = [theirs.fileno(), output.worker_end]
                worker = self._kind.order(
                    worker_id, channel, lambda message, fds: self._ask(message, [*lent, *fds])
                )
            undo.pop_all()
        worker.output = output
        worker.memory_limit = self._settings.memory_limit
        self._workers[worker_id] = worker
        self._loop.add_reader(worker.channel, self._hear_worker, worker)
        self._loop.call_later(START_LIMIT, self._has_to_serve, worker)
        return worker

    @staticmethod
    def _has_to_serve(worker: W) -> None:
        """A driver that hangs while it is loaded hangs for good, and a spare like that would be given to a context."""
        if not worker.serving:
            worker.kill(Cause(kind=CauseKind.STARTUP, text=f"did not start within {START_LIMIT:g} s"))

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
            for _ in range(MESSAGES_AT_ONCE):
                received = self._channel.recv_nowait()
                if received is None:
                    break
                self._on_launcher(*received)
        except ProtocolError as error:
            assert self._launcher is not None
            self._launcher.kill()  # it lies, or is not itself any more
            self._launcher_lost(str(error))
        except ChannelError as error:
            self._launcher_lost(str(error))

    def _on_launcher(self, message: Message, fds: list[OwnedFd]) -> None:
        if isinstance(message, NoSandbox):
            self._refusal = (
                f"workers cannot be locked in here: {printable_line(message.missing)}; `isorend doctor` says more, "
                "--sandbox=off does without"
            )
            raise ChannelClosed("it cannot lock workers in")
        worker = self._workers.get(getattr(message, "worker_id", 0))
        if worker is None:
            for fd in fds:
                fd.close()
        elif isinstance(message, Spawned):
            self._spawned(worker, fds[0])
        elif isinstance(message, SpawnFailed):
            self._spawn_failed(worker, message)
        elif isinstance(message, Sealed):
            self._sealed(worker, message)
        elif isinstance(message, Denied):
            self._denied(worker, message)
        elif isinstance(message, Exited):
            if not worker.has_ended():
                raise ProtocolError("Exited of a worker that lives")
            worker.wait_status, worker.out_of_memory = message.wait_status, message.out_of_memory
            self._gone(worker)
            self._reaped(worker)

    def _spawned(self, worker: W, pidfd: OwnedFd) -> None:
        if worker.pidfd is not None:
            pidfd.close()
            raise ProtocolError("Spawned twice")
        try:
            worker.pid = pid_of(pidfd)
        except ValueError as error:
            pidfd.close()
            raise ProtocolError(f"Spawned with what is no pidfd: {error}") from error
        worker.pidfd = pidfd
        if worker.output is not None:
            worker.output.listen(worker.name)
        self._loop.add_reader(worker.pidfd, self._gone, worker)
        if worker.doom or worker.dismissed:
            worker.end()

    def _spawn_failed(self, worker: W, message: SpawnFailed) -> None:
        if worker.pidfd is not None:
            raise ProtocolError("SpawnFailed of a worker that was spawned")
        reason = os.strerror(message.errno) if message.errno < MAX_ERRNO else f"error {message.errno}"
        log.error("a worker cannot be started: %s", reason)
        worker.doom = Cause(kind=CauseKind.STARTUP, text=f"could not be started: {reason}")
        self._gone(worker)
        self._reaped(worker)

    def _sealed(self, worker: W, message: Sealed) -> None:
        if worker.pidfd is None or worker.sealed:
            raise ProtocolError("Sealed at the wrong time")
        if message.sealed:
            worker.was_sealed()
            self._perhaps_first(worker)
        else:
            worker.never_sealed = True

    def _perhaps_first(self, worker: W) -> None:
        if worker.serving and self._first is not None and not self._first.done():
            self._first.set_result(worker)

    @staticmethod
    def _denied(worker: W, message: Denied) -> None:
        name = printable_line(message.name)
        if message.audit:
            log.warning("audit: %s made a system call that the sandbox would forbid: %s", worker, name)
        else:
            worker.denied = worker.denied or name

    def listen(self, worker: W) -> None:
        """Takes in all that a worker has said so far: what it says of a record, it says before the record is done."""
        if not worker.dead:
            self._hear_worker(worker, MESSAGES_PENDING)

    def _hear_worker(self, worker: W, at_once: int = MESSAGES_AT_ONCE) -> None:
        try:
            for _ in range(at_once):  # a worker that never stops talking must not keep us from the others
                received = worker.channel.recv_nowait()
                if received is None:
                    break
                message, fds = received
                worker.hear(message, fds)
                if isinstance(message, Fault) and self.owner is not None:
                    self.owner.worker_faulted(worker, message)
        except ChannelClosed:
            # It is ending: a process closes its files before anybody can see that it is over.
            self._loop.remove_reader(worker.channel)
            self._loop.call_later(
                CHANNEL_GRACE, worker.kill, Cause(kind=CauseKind.PROTOCOL, text="closed its channel")
            )
        except ChannelError as error:
            self._loop.remove_reader(worker.channel)
            worker.kill(Cause(kind=CauseKind.PROTOCOL, text=f"broke the channel: {error}"))
        self._perhaps_first(worker)

    def _gone(self, worker: W) -> None:
        """Its process has ended. First of all nobody may wait for it any longer."""
        if worker.dead:
            return
        worker.dead = True
        worker.lost()
        self._hear_worker(worker, MESSAGES_PENDING)  # its last words may have come together with its end
        if worker.pidfd is not None:
            self._loop.remove_reader(worker.pidfd)
        if worker in self._spares:
            self._spares.remove(worker)
        elif self.owner is not None:
            self.owner.worker_gone(worker)

    def _reaped(self, worker: W) -> None:
        if worker.output is not None:
            worker.output.finish()
        if not worker.serves and self._refusal is None:
            log.warning("a worker that served nobody ended: %s: %s", worker, worker.cause().text)
        if self.owner is not None:
            self.owner.worker_reaped(worker)
        self._forget(worker)
        if self._first is not None and not self._first.done():
            why = f"the first worker ended before it could serve; its log says why: {worker.cause().text}"
            self._first.set_exception(NoWorkers(self._refusal or why))
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
        starting = self._first is not None and not self._first.done()
        if self._refusal is None:
            log.error("the launcher ended (%s, exit code %d): every worker is lost", why, code)
        for worker in list(self._workers.values()):
            worker.doom = worker.doom or Cause(kind=CauseKind.LAUNCHER, text="the launcher ended")
            self._gone(worker)
            self._reaped(worker)
        if self._refusal is not None:
            if not starting:  # else NoWorkers says it
                self._on_fatal(self._refusal)
            return
        if self._loop.time() - self._launched_at < LAUNCHER_GRACE:
            self._on_fatal("the launcher cannot be kept running")
            return
        try:
            self.launch()
        except OSError as error:
            self._on_fatal(f"no new launcher can be started: {error}")
            return
        self._fill_spares()


def ensure_fd_limit() -> None:
    """Raises the soft limit of open files to the hard one: every worker costs several."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
