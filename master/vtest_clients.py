"""The clients of the vtest service: each connection is served by a worker of its own.

The master reads nothing of what a client sends: it hands the connected socket to the worker and closes its own copy.
From then on a client is the worker that serves it, and ends when that does.
"""

import logging
import os
import socket
from dataclasses import dataclass

from ipc.channel import Channel
from ipc.errors import ChannelError
from ipc.messages import EngineName, Fault, ServeVtest, SpawnVtestWorker
from master.peer import Peer
from master.supervisor import Ask, Supervisor
from master.worker import Worker

log = logging.getLogger(__name__)


class Refused(Exception):
    """A client cannot be served; the text says why."""


class VtestWorkers:
    """A WorkerKind (master.supervisor): workers with a channel and nothing else until their client comes."""

    def __init__(self, engine: EngineName) -> None:
        self._engine = engine

    def order(self, worker_id: int, channel: Channel, ask: Ask) -> Worker:
        ask(SpawnVtestWorker(worker_id, self._engine), [])
        return Worker(worker_id, channel)


@dataclass(frozen=True, slots=True)
class Client:
    """One connection. client_id is ours, from 1."""

    client_id: int
    peer: Peer
    worker: Worker

    def __str__(self) -> str:
        return f"vtest {self.client_id} {self.peer.program}".rstrip()


class VtestClients:
    """Hands connections to workers. Also the owner of workers in use: it is told when one ends."""

    def __init__(self, supervisor: Supervisor[Worker], max_clients: int) -> None:
        self._supervisor = supervisor
        self._max_clients = max_clients
        self._by_worker: dict[int, Client] = {}
        self._next_id = 1
        supervisor.owner = self

    def __len__(self) -> int:
        return len(self._by_worker)

    def add(self, connection: socket.socket, peer: Peer) -> Client:
        """Has a worker serve the connection, which stays the caller's to close. Raises Refused."""
        if len(self) >= self._max_clients:
            raise Refused(f"{self._max_clients} clients are being served")
        try:
            worker = self._supervisor.take()
        except OSError as error:
            raise Refused(f"no worker: {error}") from error
        client = Client(self._next_id, peer, worker)
        try:
            # It need not have started: what it is sent waits for it, and is closed if it never comes.
            worker.channel.send(ServeVtest(client.client_id, peer.program), [connection.fileno()])
        except (ChannelError, OSError) as error:
            worker.kill(f"could not be given a client: {error}")
            raise Refused(f"its worker has just ended: {error}") from error
        self._next_id += 1
        self._by_worker[worker.worker_id] = client
        log.info("%s: connected (%s, worker %s)", client, peer, worker.pid or "starting")
        return client

    # ---- what happens to workers

    def worker_faulted(self, worker: Worker, fault: Fault) -> None:
        """Something is wrong with what the client sent: a line for whoever debugs it."""
        more = f" (and {fault.count - 1} more)" if fault.count > 1 else ""
        log.warning("%s: %s%s", self._by_worker.get(worker.worker_id, "a worker without client"), fault.text, more)

    def worker_gone(self, worker: Worker) -> None:
        """The kernel has closed the client's connection with it."""

    def worker_reaped(self, worker: Worker) -> None:
        """Now it is known how it ended."""
        client = self._by_worker.pop(worker.worker_id, None)
        if client is None:
            return
        if worker.wait_status is not None and os.WIFEXITED(worker.wait_status) and worker.doom is None:
            # If it had a reason, that has been logged: as a fault, or by itself.
            code = os.WEXITSTATUS(worker.wait_status)
            log.info("%s: gone%s", client, f" (exit code {code})" if code else "")
        else:
            log.error("client lost: %s (worker %s): %s", client, worker.pid, worker.cause())
