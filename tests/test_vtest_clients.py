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
from master import vtest_clients, vtest_service
from master.blame import Cause, CauseKind
from master.events import ContextCreated, ContextEnded, Event, EventSource, Quarantined
from master.hostile_socket import closer
from master.incidents import IncidentLog
from master.limits import Rate
from master.listener import Listener
from master.options import VtestOptions
from master.peer import Admission, Peer
from master.user_strikes import UserStrikes
from master.vtest_clients import Refused, VtestClients, VtestWorkers
from master.vtest_service import REFUSAL_INTERVAL, Refusals, clients_of_one_user
from master.worker import Worker
from native.owned_fd import OwnedFd
from tests.event_loop import LoopDriver, loop_driver
from tests.test_hostile_socket import lingering, send_fd
from tests.vm.waiting import wait_until

PEER = Peer(4711, 1000, 100, "glxgears")
OTHER_USER = Peer(4712, 1001, 100, "glxgears")
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
        self.sealed = True

    def take(self) -> Worker:
        if self.exhausted:
            raise OSError("there is no launcher")
        ours, theirs = channel_pair()
        worker = Worker(len(self.workers) + 1, Channel(ours, messages.FROM_WORKER), pid=100 + len(self.workers))
        worker.sealed = self.sealed
        self.workers.append(worker)
        self.ends.append(Channel(theirs, messages.TO_VTEST_WORKER))
        return worker

    def close(self) -> None:
        for worker, end in zip(self.workers, self.ends, strict=True):
            worker.close()
            end.close()


class Scene:
    """Clients of a played supervisor, at most two. Two strikes are enough."""

    def __init__(self, driver: LoopDriver) -> None:
        self.driver = driver
        self.supervisor = PlayedSupervisor()
        self.told: list[Event] = []
        self.events = EventSource("test")
        self.events.publish = self.told.append
        self.incidents = IncidentLog(self.events)
        self.strikes = UserStrikes(self.events, Rate(2, 1000.0))
        self.clients = VtestClients(
            driver.loop, cast(Any, self.supervisor), 2, self.events, self.incidents, self.strikes
        )
        self.programs: list[socket.socket] = []

    def connect(self, peer: Peer = PEER) -> Worker:
        """The worker that got a new client; the client's end is the latest of `programs`."""
        ours, theirs = socket.socketpair()
        self.programs.append(theirs)
        with ours:
            return self.clients.add(ours, peer).worker

    def end(self, worker: Worker, wait_status: int | None, doom: Cause | None = None) -> None:
        worker.dead, worker.wait_status, worker.doom = True, wait_status, doom
        self.clients.worker_gone(worker)
        self.clients.worker_reaped(worker)


@pytest.fixture
def scene(caplog: pytest.LogCaptureFixture) -> Iterator[Scene]:
    caplog.set_level(logging.DEBUG)
    with loop_driver() as driver:
        scene = Scene(driver)
        yield scene
        scene.clients.close()
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


def test_a_connection_that_takes_long_to_close_holds_nobody_up(scene: Scene) -> None:
    """Descriptors that its client has sent are under way in it, as older kernels let them be."""
    worker = scene.connect()
    with lingering() as (sent, other):
        send_fd(scene.programs[-1], sent.fileno())
        sent.close()
        assert scene.supervisor.ends[-1].recv()[1]  # the worker's copy, dropped: ours is the last
        scene.end(worker, 0)  # and does not wait
        wait_until(lambda: closer.waiting == 1, "the end of all that can be closed", 30.0)
        other.close()
        wait_until(lambda: closer.waiting == 0, "the end of the connection", 30.0)


def test_the_worker_gets_the_connection_and_the_client_is_free_once_it_ends(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    worker = scene.connect()
    message, (connection,) = scene.supervisor.ends[0].recv()
    assert message == ServeVtest(1, "glxgears") and worker.serves == "vtest 1 glxgears"
    scene.programs[0].send(b"hello")
    assert os.read(connection.fd, 100) == b"hello"
    connection.close()
    scene.clients.worker_gone(worker)
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
        (
            None,
            Cause(kind=CauseKind.LAUNCHER, text="the launcher ended"),
            [("ERROR", f"client lost: {ONE}: the launcher ended")],
        ),
        (
            KILLED,
            Cause(kind=CauseKind.PROTOCOL, text="broke the channel"),
            [("ERROR", f"client lost: {ONE}: broke the channel")],
        ),
        (
            0,
            Cause(kind=CauseKind.PROTOCOL, text="broke the channel"),
            [("ERROR", f"client lost: {ONE}: broke the channel (exited with code 0 (as if told to))")],
        ),
    ],
)
def test_an_end_is_one_line(
    scene: Scene,
    caplog: pytest.LogCaptureFixture,
    wait_status: int | None,
    doom: Cause | None,
    lines: list[tuple[str, str]],
) -> None:
    worker = scene.connect()
    said(caplog)
    scene.end(worker, wait_status, doom)
    assert said(caplog) == lines
    lost = lines[0][0] == "ERROR"
    assert len(scene.incidents) == lost
    assert isinstance(scene.told[0], ContextCreated) and isinstance(scene.told[1], ContextEnded) != lost


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


def test_floods_of_complaints_are_a_few_lines(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    worker, other = scene.connect(), scene.connect()
    said(caplog)
    for number in range(1000):
        scene.clients.worker_faulted(worker, Fault(1, f"complaint {number}"))
    scene.clients.worker_faulted(other, Fault(1, "one of another"))
    lines = said(caplog)
    assert len(lines) < 50 and lines[-1] == ("WARNING", "vtest 2 glxgears: one of another")


# --- who may have how many, and who none -----------------------------------------------------------------------------


def test_one_user_cannot_keep_others_out(scene: Scene) -> None:
    scene.clients.max_of_one_user = 1
    scene.connect()
    with pytest.raises(Refused, match="1 clients of this user"):
        scene.connect()
    scene.connect(OTHER_USER)


def test_half_of_all_where_others_may_connect() -> None:
    open_to_all, ours = Admission(frozenset(), anybody=True), Admission(frozenset({1}), anybody=False)
    assert [clients_of_one_user(count, open_to_all) for count in (1, 2, 3, 64)] == [1, 1, 1, 32]
    assert clients_of_one_user(64, ours) == 64


def test_a_client_meets_no_worker_that_is_not_sealed(scene: Scene) -> None:
    scene.supervisor.sealed = False
    first, second = scene.connect(), scene.connect(OTHER_USER)
    assert [end.recv_nowait() for end in scene.supervisor.ends] == [None, None]
    first.was_sealed()
    received = scene.supervisor.ends[0].recv_nowait()
    assert received is not None and received[0] == ServeVtest(1, "glxgears")
    received[1][0].close()
    scene.end(second, KILLED)
    second.was_sealed()  # what its launcher said last
    assert scene.supervisor.ends[1].recv_nowait() is None


def test_strikes_are_of_a_user_and_a_name(scene: Scene) -> None:
    for _ in range(2):
        worker = scene.connect()
        worker.serving = True
        scene.end(worker, KILLED)
    assert isinstance(scene.told[-1], Quarantined) and scene.told[-1].program == "glxgears (uid 1000)"
    with pytest.raises(Refused, match="in quarantine"):
        scene.connect()
    scene.connect(OTHER_USER)
    scene.connect(Peer(4711, 1000, 100, "another"))
    assert scene.strikes.release("glxgears") == ["glxgears (uid 1000)"]
    scene.end(scene.supervisor.workers[-1], 0)
    scene.connect()


def test_what_is_not_the_programs_fault_is_no_strike(scene: Scene) -> None:
    for _ in range(2):
        scene.end(scene.connect(), KILLED)  # before it served anybody
        worker = scene.connect()
        worker.serving = True
        assert scene.clients.kill(scene.clients.status()[0].ctx_id)
        assert not scene.clients.kill(4711)
        scene.end(worker, KILLED, worker.doom)
    assert [incident.cause.kind for incident in scene.incidents.latest()] == [
        CauseKind.SIGNAL, CauseKind.OPERATOR, CauseKind.SIGNAL, CauseKind.OPERATOR,
    ]  # fmt: skip
    scene.connect()


def test_a_worker_without_a_client_has_to_end(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vtest_clients, "ORPHAN_GRACE", 0.0)
    stays, leaves = scene.connect(), scene.connect()
    scene.programs[0].send(b"still here")
    scene.programs[1].close()
    scene.driver.until(lambda: leaves.doom, "that it has to go")
    assert leaves.doom is not None and leaves.doom.kind is CauseKind.HANG and stays.doom is None


def test_status_of_clients(scene: Scene) -> None:
    worker = scene.connect()
    (status,) = scene.clients.status()
    assert (status.ctx_id, status.program, status.pid, status.state) == (1, "glxgears", 100, "starting")
    worker.serving = True
    assert scene.clients.status()[0].state == "running"


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
