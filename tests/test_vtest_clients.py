"""master.vtest_clients with workers that the test plays; how the service refuses, and accepts when it cannot."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from ipc import messages
from ipc.channel import Channel, channel_pair
from ipc.messages import EngineName, Fault, Message, ServeVtest, SpawnVtestWorker
from master import vtest_service
from master.listener import Listener
from master.options import VtestOptions
from master.peer import Admission, Peer
from master.vtest_clients import Refused, VtestClients, VtestWorkers
from master.vtest_service import REFUSAL_INTERVAL, Refusals
from master.worker import Worker
from native.owned_fd import OwnedFd
from tests.event_loop import loop_driver

PEER = Peer(4711, 1000, 100, "glxgears")
KILLED = int(signal.SIGKILL)
REFUSED = 4 << 8
ONE = "vtest 1 glxgears (worker 100)"


class PlayedSupervisor:
    """Gives out workers whose ends of their channels the test has."""

    def __init__(self) -> None:
        self.owner: VtestClients | None = None
        self.workers: list[Worker] = []
        self.ends: list[Channel] = []
        self.exhausted = False

    def take(self) -> Worker:
        if self.exhausted:
            raise OSError("there is no launcher")
        ours, theirs = channel_pair()
        worker = Worker(len(self.workers) + 1, Channel(ours, messages.FROM_WORKER), pid=100 + len(self.workers))
        self.workers.append(worker)
        self.ends.append(Channel(theirs, messages.TO_VTEST_WORKER))
        return worker

    def close(self) -> None:
        for worker, end in zip(self.workers, self.ends, strict=True):
            worker.close()
            end.close()


class Scene:
    """Clients of a played supervisor, at most two."""

    def __init__(self) -> None:
        self.supervisor = PlayedSupervisor()
        self.clients = VtestClients(cast(Any, self.supervisor), 2)
        self.programs: list[socket.socket] = []

    def connect(self) -> Worker:
        """The worker that got a new client; the client's end is the latest of `programs`."""
        ours, theirs = socket.socketpair()
        self.programs.append(theirs)
        with ours:
            return self.clients.add(ours, PEER).worker

    def end(self, worker: Worker, wait_status: int | None, doom: str | None = None) -> None:
        worker.dead, worker.wait_status, worker.doom = True, wait_status, doom
        self.clients.worker_gone(worker)
        self.clients.worker_reaped(worker)


@pytest.fixture
def scene(caplog: pytest.LogCaptureFixture) -> Iterator[Scene]:
    caplog.set_level(logging.DEBUG)
    scene = Scene()
    yield scene
    scene.supervisor.close()
    for program in scene.programs:
        program.close()


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Level and text of the lines since it was last asked."""
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    caplog.clear()
    return lines


def test_a_worker_is_ordered_with_its_channel_alone() -> None:
    ours, theirs = channel_pair()
    asked: list[tuple[Message, list[OwnedFd]]] = []
    with theirs:
        channel = Channel(ours, messages.FROM_WORKER)
        worker = VtestWorkers(EngineName.VIRGL).order(7, channel, lambda message, fds: asked.append((message, fds)))
        assert asked == [(SpawnVtestWorker(7, EngineName.VIRGL), [])]
        assert worker.worker_id == 7 and worker.channel is channel
        worker.close()


def test_the_worker_gets_the_connection_and_the_master_keeps_none(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.connect()
    message, (connection,) = scene.supervisor.ends[0].recv()
    assert message == ServeVtest(1, "glxgears")
    scene.programs[0].send(b"hello")
    assert os.read(connection.fd, 100) == b"hello"
    connection.close()
    assert scene.programs[0].recv(1) == b""
    assert said(caplog) == [("INFO", "vtest 1 glxgears: connected (glxgears (pid 4711, uid 1000), worker 100)")]


def test_clients_have_numbers_of_their_own_and_room_comes_back(scene: Scene) -> None:
    first, _second = scene.connect(), scene.connect()
    with pytest.raises(Refused, match="2 clients are being served"):
        scene.connect()
    assert scene.programs[2].recv(1) == b""
    scene.end(first, 0)
    scene.connect()
    sent = [end.recv() for end in scene.supervisor.ends]
    assert [message for message, _ in sent] == [ServeVtest(number, "glxgears") for number in (1, 2, 3)]
    for _, (connection,) in sent:
        connection.close()


def test_without_workers_clients_are_refused(scene: Scene) -> None:
    scene.supervisor.exhausted = True
    with pytest.raises(Refused, match="no worker: there is no launcher"):
        scene.connect()
    assert len(scene.clients) == 0


def test_a_worker_that_has_just_gone_takes_nobody_along(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    real_take = scene.supervisor.take

    def take() -> Worker:
        worker = real_take()
        scene.supervisor.ends[-1].close()
        return worker

    scene.supervisor.take = take  # type: ignore[method-assign]
    with pytest.raises(Refused, match="has just ended"):
        scene.connect()
    (worker,) = scene.supervisor.workers
    assert worker.doom is not None and len(scene.clients) == 0
    scene.end(worker, KILLED)
    assert said(caplog) == []


@pytest.mark.parametrize(
    ("wait_status", "doom", "lines"),
    [
        (0, None, [("INFO", "vtest 1 glxgears: gone")]),
        (KILLED, None, [("ERROR", f"client lost: {ONE}: killed by SIGKILL")]),
        (REFUSED, None, [("INFO", "vtest 1 glxgears: gone (exit code 4)")]),
        (None, "the launcher ended", [("ERROR", f"client lost: {ONE}: the launcher ended (ended)")]),
        (
            KILLED,
            "broke the channel",
            [("ERROR", f"client lost: {ONE}: broke the channel (killed by SIGKILL)")],
        ),
    ],
)
def test_an_end_is_one_line(
    scene: Scene,
    caplog: pytest.LogCaptureFixture,
    wait_status: int | None,
    doom: str | None,
    lines: list[tuple[str, str]],
) -> None:
    worker = scene.connect()
    said(caplog)
    scene.end(worker, wait_status, doom)
    assert said(caplog) == lines


def test_complaints_are_told(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    worker = scene.connect()
    said(caplog)
    for fault in (Fault(3, "illegal resource"), Fault(1, "a command of 5 words")):
        worker.hear(fault)
        scene.clients.worker_faulted(worker, fault)
    scene.end(worker, KILLED)
    assert said(caplog) == [
        ("WARNING", "vtest 1 glxgears: illegal resource (and 2 more)"),
        ("WARNING", "vtest 1 glxgears: a command of 5 words"),
        ("ERROR", f"client lost: {ONE}: killed by SIGKILL; its last complaint: a command of 5 words"),
    ]


def test_a_flood_of_refusals_is_a_line_a_second(caplog: pytest.LogCaptureFixture) -> None:
    class Clock:
        now = 100.0

        def time(self) -> float:
            return self.now

    clock = Clock()
    refusals = Refusals(cast(asyncio.AbstractEventLoop, clock))
    for number in range(1000):
        refusals.note(f"client {number}")
    assert said(caplog) == [("WARNING", "refused client 0")]
    clock.now += REFUSAL_INTERVAL
    refusals.note("another")
    clock.now += REFUSAL_INTERVAL
    refusals.note("one more")
    assert said(caplog) == [("WARNING", "refused another (999 others before)"), ("WARNING", "refused one more")]


def test_accepting_pauses_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vtest_service, "ACCEPT_PAUSE", 0.0)
    path = tmp_path / "vtest.sock"
    with loop_driver() as driver, Listener.at(path) as listener, socket.socket(socket.AF_UNIX) as client:
        failures = [OSError(24, "Too many open files")]

        def accept() -> socket.socket:
            if failures:
                raise failures.pop()
            return Listener.accept(listener)

        monkeypatch.setattr(listener, "accept", accept)
        service = vtest_service.VtestService(VtestOptions(socket_path=path), driver.loop)
        driver.loop.add_reader(listener, service._accept, listener, Admission.by(listener.socket))
        client.connect(str(path))
        driver.until(lambda: "no launcher" in caplog.text, "that it is accepted after the pause, and refused")
        driver.loop.remove_reader(listener)
        assert client.recv(1) == b""
    assert said(caplog)[0] == ("ERROR", "clients cannot be accepted for 0 s: Too many open files")
