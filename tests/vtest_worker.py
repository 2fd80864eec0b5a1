"""The master's side of vtest workers: a launcher that starts them, and one worker with its client."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ipc import messages
from ipc.channel import Channel, channel_pair
from ipc.messages import Capset, CapsetsDone, EngineName, Message, Ready, ServeVtest, Spawned, SpawnVtestWorker
from native.owned_fd import OwnedFd
from native.pidfd import pid_of
from tests.fake_vtest import VtestClient, client_pair
from tests.ring_producer import Launcher, wait_readable


@dataclass
class VtestWorker:
    """One vtest worker as the master sees it."""

    worker_id: int
    pid: int
    pidfd: OwnedFd
    channel: Channel
    capsets: list[Capset] = field(default_factory=list)

    def recv(self) -> Message:
        """The next message. Raises ChannelClosed, TimeoutError."""
        wait_readable(self.channel.fileno(), "a message of the worker")
        return self.channel.recv()[0]

    def wait_ready(self) -> None:
        """Wait for Ready and the capability sets."""
        message = self.recv()
        assert isinstance(message, Ready), message
        while not isinstance(message := self.recv(), CapsetsDone):
            assert isinstance(message, Capset), message
            self.capsets.append(message)

    def connect(self, client_id: int = 1, name: str = "accepted") -> VtestClient:
        """Hand it a client."""
        client, theirs = client_pair()
        with theirs:
            self.channel.send(ServeVtest(client_id, name), [theirs.fileno()])
        return client

    def close(self) -> None:
        """Close the master's ends, which ends the worker."""
        self.channel.close()
        self.pidfd.close()


class VtestLauncher(Launcher):
    """A launcher that is asked for vtest workers."""

    def __init__(self, *arguments: str, stderr: int | None = None) -> None:
        super().__init__(*arguments, stderr=stderr)
        self.vtest_workers: list[VtestWorker] = []

    def start_vtest(self, engine: EngineName) -> VtestWorker:
        """Start a vtest worker and wait until it is ready."""
        ours, theirs = channel_pair()
        worker_id = len(self.vtest_workers) + 1
        with theirs:
            self.channel.send(SpawnVtestWorker(worker_id, engine), [theirs.fileno(), self.output])
        while not isinstance((received := self._recv())[0], Spawned):
            self.note(received[0])
        spawned, fds = received
        assert isinstance(spawned, Spawned)
        worker = VtestWorker(worker_id, pid_of(fds[0]), fds[0], Channel(ours, messages.FROM_WORKER))
        self.vtest_workers.append(worker)
        worker.wait_ready()
        return worker

    def exit_code(self, worker: VtestWorker) -> int:
        """Wait for a worker's end; its exit code, or minus the signal that ended it."""
        while worker.worker_id not in self._exited:
            self.note(self._recv()[0])
        return os.waitstatus_to_exitcode(self._exited[worker.worker_id].wait_status)

    def close(self) -> None:
        """As Launcher.close()."""
        for worker in self.vtest_workers:
            worker.close()
        super().close()


@contextmanager
def running_vtest_launcher(*arguments: str, stderr: int | None = None) -> Iterator[VtestLauncher]:
    """A VtestLauncher that is closed."""
    launcher = VtestLauncher(*arguments, stderr=stderr)
    try:
        yield launcher
    finally:
        launcher.close()
