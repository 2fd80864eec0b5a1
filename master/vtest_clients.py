"""The clients of the vtest service: each connection is served by a worker of its own.

The master reads nothing of what a client sends: it hands the connected socket to the worker, once that is sealed, and
keeps a copy only to see the client leave. From then on a client is the worker that serves it, and ends when that does.

There is no hang watch for these workers. Nothing is shared that one of them could hold up: its client waits on a socket
of its own, and can leave, or be ended, when it has waited enough. Only a worker that goes on without a client is ended
here.
"""

import asyncio
import logging
import os
import socket
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from context_worker.exit_code import ExitCode
from ipc.channel import Channel
from ipc.errors import ChannelError
from ipc.messages import FROM_WORKER, EngineName, Fault, ServeVtest, SpawnVtestWorker
from master.blame import NOT_THE_PROGRAMS, Cause, CauseKind
from master.events import ContextCreated, ContextEnded, EventSource
from master.hangup_watch import HangupWatch
from master.hostile_socket import closer
from master.incidents import IncidentLog
from master.peer import Peer
from master.status import ContextStatus
from master.supervisor import Ask, Supervisor
from master.user_strikes import UserStrikes
from master.worker import Worker

log = logging.getLogger(__name__)

ORPHAN_GRACE = 10.0  # seconds that a worker has to end in after its client has left
_BY_ITSELF: Final = (ExitCode.OK, ExitCode.CLIENT)


class Refused(Exception):
    """A client cannot be served; the text says why."""


class VtestWorkers:
    """A WorkerKind (master.supervisor): workers with a channel and nothing else until their client comes."""

    accepts = FROM_WORKER

    def __init__(self, engine: EngineName) -> None:
        self._engine = engine

    def order(self, worker_id: int, channel: Channel, ask: Ask) -> Worker:
        ask(SpawnVtestWorker(worker_id, self._engine), [])
        return Worker(worker_id, channel)


@dataclass(frozen=True, slots=True)
class Client:
    """One connection, of which `connection` is our copy. client_id is ours, from 1."""

    client_id: int
    peer: Peer
    worker: Worker
    connection: socket.socket
    since: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        return f"vtest {self.client_id} {self.peer.program}".rstrip()

    def status(self) -> ContextStatus:
        """Now."""
        self.worker.sample_memory()
        return ContextStatus(
            ctx_id=self.client_id,
            program=self.peer.program,
            pid=self.worker.pid,
            state="lost" if self.worker.dead else "running" if self.worker.serving else "starting",
            memory_bytes=0 if self.worker.dead else self.worker.memory.resident,
            seconds=time.monotonic() - self.since,
        )


class VtestClients:
    """Hands connections to workers. Also the owner of workers in use: it is told when one ends."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        supervisor: Supervisor[Worker],
        max_clients: int,
        events: EventSource,
        incidents: IncidentLog,
        strikes: UserStrikes,
    ) -> None:
        self.max_of_one_user = max_clients
        """Of all of them, how many one user may have at a time."""
        self._loop = loop
        self._supervisor = supervisor
        self._max_clients = max_clients
        self._events = events
        self._incidents = incidents
        self._strikes = strikes
        self._by_worker: dict[int, Client] = {}
        self._next_id = 1
        self._hangups = HangupWatch(loop)
        supervisor.owner = self

    def __len__(self) -> int:
        return len(self._by_worker)

    def close(self) -> None:
        """Lets go of all connections."""
        self._hangups.close()
        for client in self._by_worker.values():
            closer.close(client.connection)
        self._by_worker.clear()

    def add(self, connection: socket.socket, peer: Peer) -> Client:
        """Has a worker serve the connection, which stays the caller's to close. Raises Refused."""
        self._check_room(peer)
        copy = self._copy(connection)
        try:
            worker = self._supervisor.take()
        except OSError as error:
            closer.close(copy)
            raise Refused(f"no worker: {error}") from error
        client = Client(self._next_id, peer, worker, copy)
        worker.serves = str(client)
        if worker.sealed:
            try:
                _hand_over(client)
            except (ChannelError, OSError) as error:
                closer.close(copy)
                raise Refused(f"its worker has just ended: {error}") from error
        else:
            worker.once_sealed(partial(_hand_over_late, client))
        self._next_id += 1
        self._by_worker[worker.worker_id] = client
        self._hangups.add(copy, partial(self._left, client))
        log.info("%s: connected (%s, worker %s)", client, peer, worker.pid or "starting")
        self._events.publish(
            ContextCreated(**self._events.stamp(), ctx_id=client.client_id, program=peer.program, pid=worker.pid)
        )
        return client

    @staticmethod
    def _copy(connection: socket.socket) -> socket.socket:
        try:
            return connection.dup()
        except OSError as error:
            raise Refused(f"no descriptor: {error}") from error

    def _check_room(self, peer: Peer) -> None:
        if len(self) >= self._max_clients:
            raise Refused(f"{self._max_clients} clients are being served")
        of_this_user = sum(client.peer.uid == peer.uid for client in self._by_worker.values())
        if of_this_user >= self.max_of_one_user:
            raise Refused(f"{of_this_user} clients of this user are being served")
        if self._strikes.refuses(peer):
            raise Refused("in quarantine")

    def _left(self, client: Client) -> None:
        """The worker will see it too, unless it hangs."""
        why = Cause(kind=CauseKind.HANG, text=f"did not end within {ORPHAN_GRACE:g} s of its client")
        self._loop.call_later(ORPHAN_GRACE, client.worker.kill, why)

    # ---- what the operator asks

    def status(self) -> list[ContextStatus]:
        """All clients."""
        return [client.status() for client in self._by_worker.values()]

    def kill(self, client_id: int) -> bool:
        """Ends a client's worker at the operator's word. False if there is none that lives."""
        for client in self._by_worker.values():
            if client.client_id == client_id and not client.worker.dead and client.worker.doom is None:
                client.worker.kill(Cause(kind=CauseKind.OPERATOR, text="killed by the operator"))
                return True
        return False

    # ---- what happens to workers

    def worker_faulted(self, worker: Worker, fault: Fault) -> None:
        """Something is wrong with what the client sent: a line for whoever debugs it."""
        if (before := worker.complaints.admit()) is None:
            return
        more = f" (and {fault.count - 1} more)" if fault.count > 1 else ""
        log.warning("%s: %s%s%s", worker.serves or "a worker without client", fault.text, more, before)

    def worker_gone(self, worker: Worker) -> None:
        """The client's connection is closed with it."""
        client = self._by_worker.get(worker.worker_id)
        if client is not None:
            self._hangups.remove(client.connection)
            closer.close(client.connection)

    def worker_reaped(self, worker: Worker) -> None:
        """Now it is known how it ended."""
        client = self._by_worker.pop(worker.worker_id, None)
        if client is None:
            return
        code = _exit_code(worker)
        if code in _BY_ITSELF and worker.doom is None and worker.denied is None:
            # If it had a reason, that has been logged: as a fault, or by itself.
            log.info("%s: gone%s", client, f" (exit code {code})" if code else "")
            self._events.publish(
                ContextEnded(
                    **self._events.stamp(), ctx_id=client.client_id, program=client.peer.program, pid=worker.pid
                )
            )
        else:
            self._blame(client)

    def _blame(self, client: Client) -> None:
        worker, cause = client.worker, client.worker.cause()
        self._incidents.report(client.client_id, client.peer.program, worker.pid, cause)
        log.error("client lost: %s (worker %s): %s", client, worker.pid, cause.text)
        if worker.serving and cause.kind not in NOT_THE_PROGRAMS:
            self._strikes.strike(client.peer)


def _hand_over(client: Client) -> None:
    """Raises ChannelError, OSError; its worker is ended then."""
    worker = client.worker
    try:
        message = ServeVtest(client.client_id, client.peer.program)
        worker.channel.send(message, [client.connection.fileno()])
    except (ChannelError, OSError) as error:
        worker.kill(Cause(kind=CauseKind.STARTUP, text=f"could not be given a client: {error}"))
        raise


def _hand_over_late(client: Client) -> None:
    """No client meets a worker that is not sealed; this one has waited for it."""
    if client.worker.dead:
        return
    try:
        _hand_over(client)
    except (ChannelError, OSError) as error:
        log.debug("%s: its worker has just ended: %s", client, error)  # which ends the client, too


def _exit_code(worker: Worker) -> int | None:
    status = worker.wait_status
    return os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None
