"""The vtest service: a GPU for programs of this machine and its containers, each rendered in a process of its own.

Clients speak the vtest protocol (Mesa's virpipe driver does) over a Unix socket. The master accepts, looks at who it is
and hands the connection over; see master.vtest_clients.
"""

import asyncio
import logging
import os
import socket

from ipc.messages import EngineName
from master import hardening
from master.blame import Incident
from master.control.plane import ControlPlane
from master.events import EventSource
from master.hostile_socket import closer
from master.incidents import IncidentLog
from master.lifetime import Lifetime, run_service
from master.line_limit import LineLimit
from master.listener import Listener
from master.memory_watch import MemoryWatch
from master.options import VtestOptions
from master.peer import Admission, Peer
from master.status import ServiceStatus
from master.supervisor import Supervisor
from master.user_strikes import UserStrikes
from master.version import service_version
from master.vtest_clients import Refused, VtestClients, VtestWorkers
from master.worker import Worker

log = logging.getLogger(__name__)

ACCEPTS_AT_ONCE = 16  # then workers get their turn
ACCEPT_PAUSE = 1.0  # seconds without accepting after it has failed, for want of descriptors as a rule
REFUSAL_INTERVAL = 1.0  # seconds between two lines about refused clients


class VtestService:
    """Everything that lives as long as the process. It is Controlled (master.control_target)."""

    def __init__(self, options: VtestOptions, loop: asyncio.AbstractEventLoop) -> None:
        self.events = EventSource(options.name or f"vtest-{os.getpid()}")
        self._incidents = IncidentLog(self.events)
        self._strikes = UserStrikes(self.events, options.strikes)
        self._started = loop.time()
        self._renderer = ""
        self._options = options
        self._loop = loop
        self._lifetime = Lifetime(loop)
        self._supervisor = Supervisor[Worker](
            loop,
            VtestWorkers(EngineName(options.engine)),
            options.spares,
            options.launch_settings(),
            self._lifetime.fatal,
        )
        self._clients = VtestClients(
            loop, self._supervisor, options.max_clients, self.events, self._incidents, self._strikes
        )
        self._memory_watch = MemoryWatch(loop, self._supervisor.workers)
        self._refusals = Refusals(loop)
        self._control: ControlPlane | None = None

    async def run(self) -> int:
        """Serves until the end. Returns the exit code. Raises ListenError, NoWorkers."""
        self._lifetime.begin()
        # The socket exists before the first worker does: a client may connect at once, and is served when we are ready.
        with self._listen() as listener:
            try:
                listener.refuse_descriptors()
                admission = Admission.by(listener.socket)
                self._clients.max_of_one_user = clients_of_one_user(self._options.max_clients, admission)
                self._start_control()
                self._supervisor.launch()
                hardening.drop_capabilities()
                first = await self._supervisor.start()
                self._renderer = first.renderer()
                log.info("rendering by %s", self._renderer)
                log.info("listening on %s", listener)
                self._memory_watch.start()
                self._accept_clients(listener, admission)
                return await self._lifetime.ended
            finally:
                if self._control is not None:
                    self._control.close()
                self._memory_watch.stop()
                self._loop.remove_reader(listener)
                self._clients.close()
                self._supervisor.close()

    def _start_control(self) -> None:
        named = self._options.name is not None
        wanted = self._options.control
        self._control = ControlPlane(self._loop, self.events.service, self, wanted=wanted, name_matters=named)
        self.events.publish = self._control.publish

    def _listen(self) -> Listener:
        if self._options.socket_path is not None:
            return Listener.at(self._options.socket_path, self._options.socket_mode, self._options.socket_owner)
        assert self._options.fd is not None
        return Listener.inherited(self._options.fd)

    def _accept_clients(self, listener: Listener, admission: Admission) -> None:
        if not self._lifetime.ended.done():
            self._loop.add_reader(listener, self._accept, listener, admission)

    def _accept(self, listener: Listener, admission: Admission) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            if closer.full:
                self._pause_accepting(listener, admission, "connections of others cannot be closed")
                return
            try:
                connection = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._pause_accepting(listener, admission, error.strerror)
                return
            if self._serve(connection, admission):
                connection.close()  # the client has a worker, and we a copy
            else:
                closer.close(connection)

    def _pause_accepting(self, listener: Listener, admission: Admission, why: str | None) -> None:
        log.error("clients cannot be accepted for %g s: %s", ACCEPT_PAUSE, why)
        self._loop.remove_reader(listener)
        self._loop.call_later(ACCEPT_PAUSE, self._accept_clients, listener, admission)

    def _serve(self, connection: socket.socket, admission: Admission) -> bool:
        """Whether it is served."""
        peer = Peer.of(connection)
        if not admission.admits(peer):
            self._refusals.note(f"{peer}: not a user who may connect")
            return False
        try:
            self._clients.add(connection, peer)
        except Refused as why:
            self._refusals.note(f"{peer}: {why}")
            return False
        return True

    # ---- Controlled

    def status(self) -> ServiceStatus:
        return ServiceStatus(
            service=self.events.service,
            kind="vtest",
            pid=os.getpid(),
            version=service_version(),
            renderer=self._renderer,
            sandbox=self._options.sandbox,
            seconds=self._loop.time() - self._started,
            connected=len(self._clients),
            spares=self._supervisor.spares(),
            resources=0,
            incidents=len(self._incidents),
            contexts=self._clients.status(),
            quarantined=self._strikes.quarantined(),
        )

    def incidents(self) -> list[Incident]:
        return self._incidents.latest()

    def release(self, program: str | None) -> list[str]:
        return self._strikes.release(program)

    def kill(self, ctx_id: int) -> bool:
        return self._clients.kill(ctx_id)


class Refusals:
    """The log lines about refused clients, which come as fast as anybody likes to connect."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._lines = LineLimit(REFUSAL_INTERVAL, loop.time)

    def note(self, text: str) -> None:
        """Logs it, unless another was logged just now; the next line says how many were left out."""
        if (before := self._lines.admit()) is not None:
            log.warning("refused %s%s", text, before)


def clients_of_one_user(max_clients: int, admission: Admission) -> int:
    """How many of all clients one user may have: where others may connect, half, so that nobody keeps them all out."""
    return max(1, max_clients // 2) if admission.anybody else max_clients


def serve_vtest(options: VtestOptions) -> int:
    """Runs the service. Returns the exit code. Raises ListenError when there is nothing to listen on."""
    return run_service(lambda loop: VtestService(options, loop).run())
