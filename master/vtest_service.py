"""The vtest service: a GPU for programs of this machine and its containers, each rendered in a process of its own.

Clients speak the vtest protocol (Mesa's virpipe driver does) over a Unix socket. The master accepts, looks at who it is
and hands the connection over; see master.vtest_clients.
"""

import asyncio
import logging
import socket

from ipc.messages import EngineName
from master.lifetime import Lifetime, run_service
from master.listener import Listener
from master.options import VtestOptions
from master.peer import Admission, Peer
from master.supervisor import Supervisor
from master.vtest_clients import Refused, VtestClients, VtestWorkers
from master.worker import Worker

log = logging.getLogger(__name__)

ACCEPTS_AT_ONCE = 16  # then workers get their turn
ACCEPT_PAUSE = 1.0  # seconds without accepting after it has failed, for want of descriptors as a rule
REFUSAL_INTERVAL = 1.0  # seconds between two lines about refused clients


class VtestService:
    """Everything that lives as long as the process."""

    def __init__(self, options: VtestOptions, loop: asyncio.AbstractEventLoop) -> None:
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
        self._clients = VtestClients(self._supervisor, options.max_clients)
        self._refusals = Refusals(loop)

    async def run(self) -> int:
        """Serves until the end. Returns the exit code. Raises ListenError, NoWorkers."""
        self._lifetime.begin()
        # The socket exists before the first worker does: a client may connect at once, and is served when we are ready.
        with self._listen() as listener:
            try:
                first = await self._supervisor.start()
                log.info("rendering by %s", first.renderer())
                log.info("listening on %s", listener)
                self._accept_clients(listener, Admission.by(listener.socket))
                return await self._lifetime.ended
            finally:
                self._loop.remove_reader(listener)
                self._supervisor.close()

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
            try:
                connection = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                log.error("clients cannot be accepted for %g s: %s", ACCEPT_PAUSE, error.strerror)
                self._loop.remove_reader(listener)
                self._loop.call_later(ACCEPT_PAUSE, self._accept_clients, listener, admission)
                return
            with connection:
                self._serve(connection, admission)

    def _serve(self, connection: socket.socket, admission: Admission) -> None:
        peer = Peer.of(connection)
        if not admission.admits(peer):
            self._refusals.note(f"{peer}: not a user who may connect")
            return
        try:
            self._clients.add(connection, peer)
        except Refused as why:
            self._refusals.note(f"{peer}: {why}")


class Refusals:
    """The log lines about refused clients, which come as fast as anybody likes to connect."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._unsaid = 0
        self._said_at = -REFUSAL_INTERVAL

    def note(self, text: str) -> None:
        """Logs it, unless another was logged just now; the next line says how many were left out."""
        if self._loop.time() - self._said_at < REFUSAL_INTERVAL:
            self._unsaid += 1
            return
        before = f" ({self._unsaid} others before)" if self._unsaid else ""
        log.warning("refused %s%s", text, before)
        self._unsaid, self._said_at = 0, self._loop.time()


def serve_vtest(options: VtestOptions) -> int:
    """Runs the service. Returns the exit code. Raises ListenError when there is nothing to listen on."""
    return run_service(lambda loop: VtestService(options, loop).run())
