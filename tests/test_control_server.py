"""master.control.server on real ZeroMQ sockets: who asks, who listens, who is a nuisance."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq

from master.control.client import ControlClient, EventStream
from master.control.errors import ControlError
from master.control.protocol import MAX_REQUEST_BYTES
from tests.control_lab import LIMIT_S, FakeService, RunningControl, context, created, incident, running_control

LIMIT_MS = int(LIMIT_S * 1000)


@pytest.fixture
def control(tmp_path: Path) -> Iterator[RunningControl]:
    with running_control(tmp_path / "isorend", FakeService(contexts=[context()])) as running:
        yield running


@pytest.fixture
def zeromq() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as context:
        yield context
        context.destroy(linger=0)


def connect(zeromq: zmq.Context[zmq.Socket[bytes]], kind: int, path: Path) -> zmq.Socket[bytes]:
    peer = zeromq.socket(kind)
    peer.connect(f"ipc://{path}")
    return peer


def answers(control: RunningControl) -> bool:
    """Whether a well-behaved client is served."""
    with ControlClient(control.directory) as client:
        return bool(client.ask("status")["service"] == "vm-1")


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, what


# Those who behave


def test_it_answers(control: RunningControl) -> None:
    with ControlClient(control.directory) as client:
        for _ in range(20):
            assert client.ask("status")["contexts"][0]["ctx_id"] == 3
        client.ask("kill", ctx_id=3)
        with pytest.raises(ControlError, match="no context 5"):
            client.ask("kill", ctx_id=5)
    assert control.service.killed == [3, 5]


def test_everybody_is_told_everything(control: RunningControl) -> None:
    with EventStream(control.directory) as one, EventStream(control.directory) as other:
        control.publish(created("first"), incident(), created("last"))
        control.end()
        for stream in (one, other):
            assert [event["kind"] for event in stream] == ["context-created", "incident", "context-created"]


def test_topics_choose(control: RunningControl, zeromq: zmq.Context[zmq.Socket[bytes]]) -> None:
    subscriber = connect(zeromq, zmq.SUB, control.directory / "events.sock")
    subscriber.subscribe("hello")
    assert subscriber.poll(LIMIT_MS)
    assert subscriber.recv_multipart()[0] == b"hello"
    subscriber.subscribe("incident")
    assert subscriber.poll(LIMIT_MS)
    subscriber.recv_multipart()  # of the second subscription
    control.publish(created(), incident())
    assert subscriber.poll(LIMIT_MS)
    topic, body = subscriber.recv_multipart()
    assert topic == b"incident" and json.loads(body)["number"] == 1


def test_a_dealer_may_ask_too(control: RunningControl, zeromq: zmq.Context[zmq.Socket[bytes]]) -> None:
    dealer = connect(zeromq, zmq.DEALER, control.directory / "request.sock")
    for _ in range(3):
        dealer.send(b'{"command": "status"}')
    for _ in range(3):
        assert dealer.poll(LIMIT_MS)
        assert json.loads(dealer.recv())["ok"]


def test_sockets_are_their_owners(control: RunningControl) -> None:
    for name in ("request.sock", "events.sock"):
        status = (control.directory / name).lstat()
        assert stat.S_ISSOCK(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o600
        assert status.st_uid == os.geteuid()
    assert stat.S_IMODE(control.directory.stat().st_mode) == 0o700


def test_nothing_is_left(control: RunningControl) -> None:
    control.end()
    control.end()
    assert not control.directory.exists()
    control.publish(created())  # nobody is told, nothing happens


def test_no_descriptor_is_inherited(control: RunningControl) -> None:
    """The launcher of workers is executed while the sockets are open."""
    code = "from tests.test_control_server import open_files; print(open_files())"
    assert any("socket:" in name for name in open_files())
    told = subprocess.run([sys.executable, "-c", code], close_fds=False, capture_output=True, text=True, check=True)
    assert "socket:" not in told.stdout and "event" not in told.stdout


def open_files() -> list[str]:
    """What this process has open besides its standard files."""
    paths = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd") if int(fd) > 2]
    return [os.readlink(path) for path in paths if os.path.lexists(path)]


# Those who do not


@pytest.mark.parametrize("name", ["request.sock", "events.sock"])
def test_what_is_no_zeromq(control: RunningControl, name: str) -> None:
    strangers = []
    for noise in (b"", b"GET / HTTP/1.1\r\n\r\n" * 100, os.urandom(100_000), b"\xff" + bytes(8) + b"\x7f"):
        stranger = socket.socket(socket.AF_UNIX)
        stranger.connect(str(control.directory / name))
        stranger.setblocking(False)
        with suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            stranger.send(noise)
        strangers.append(stranger)
    assert answers(control)
    for stranger in strangers:
        stranger.close()
    assert answers(control)


def test_requests_that_are_rubbish(control: RunningControl, zeromq: zmq.Context[zmq.Socket[bytes]]) -> None:
    dealer = connect(zeromq, zmq.DEALER, control.directory / "request.sock")
    for frames in ([b""], [b"", b""], [b"", b"{}"], [b"\xff" * 100], [b"", b"[" * MAX_REQUEST_BYTES]):
        dealer.send_multipart(frames)
        assert dealer.poll(LIMIT_MS)
        assert json.loads(dealer.recv_multipart()[-1])["ok"] is False
    dealer.send_multipart([b"a", b"b", b"c"])  # in no envelope that we know: no answer
    dealer.send_multipart([b"x"] * 1000)
    dealer.send(b'{"command": "status"}')
    assert dealer.poll(LIMIT_MS)
    assert json.loads(dealer.recv())["ok"]


@pytest.mark.parametrize("name", ["request.sock", "events.sock"])
def test_a_huge_message_ends_its_connection(
    control: RunningControl, zeromq: zmq.Context[zmq.Socket[bytes]], name: str
) -> None:
    kind = zmq.DEALER if name == "request.sock" else zmq.XSUB
    peer = zeromq.socket(kind)
    peer.setsockopt(zmq.RECONNECT_IVL, LIMIT_MS)
    monitor: zmq.Socket[bytes] = peer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    peer.connect(f"ipc://{control.directory / name}")
    peer.send(b"x" * 50_000_000)
    assert monitor.poll(LIMIT_MS)
    peer.disable_monitor()
    assert answers(control)


@pytest.mark.parametrize("name", ["request.sock", "events.sock"])
def test_half_a_message_and_away(control: RunningControl, name: str) -> None:
    """ZMTP 3.1 by hand: greeting, READY, the first frame of two (the flag MORE), and the connection ends."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL".ljust(23, b"\0") + b"\0" + bytes(31)
    kind = b"DEALER" if name == "request.sock" else b"SUB"
    ready = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(control.directory / name))
            peer.sendall(greeting + bytes((4, len(ready))) + ready)
            peer.settimeout(LIMIT_S)
            received = b""
            while b"READY" not in received:
                received += (more := peer.recv(4096))
                assert more, "it hung up"
            peer.sendall(b"\x01\x05first")
        assert answers(control)


def test_a_flood_of_requests(control: RunningControl, zeromq: zmq.Context[zmq.Socket[bytes]]) -> None:
    """Ten thousand, and not one answer is read."""
    flood = [connect(zeromq, zmq.DEALER, control.directory / "request.sock") for _ in range(4)]
    for peer in flood:
        peer.set_hwm(10_000)
        peer.setsockopt(zmq.LINGER, 0)
    for _ in range(2500):
        for peer in flood:
            peer.send(b'{"command": "kill", "ctx_id": 9}', zmq.DONTWAIT)
    assert answers(control)
    turns: list[int] = []
    control.call(lambda _server: turns.append(1))  # the loop is not kept from others
    assert turns == [1]


def test_every_request_of_a_flood_is_taken(control: RunningControl, zeromq: zmq.Context[zmq.Socket[bytes]]) -> None:
    """However they come, none waits for another to wake the loop."""
    dealer = zeromq.socket(zmq.DEALER)
    dealer.set_hwm(0)
    dealer.connect(f"ipc://{control.directory / 'request.sock'}")
    for _ in range(3000):
        dealer.send(b'{"command": "kill", "ctx_id": 9}')
    until(lambda: len(control.service.killed) == 3000, f"{len(control.service.killed)} requests")


def test_requests_among_events(control: RunningControl) -> None:
    """Publishing uses a socket too, which may take the sign of a new subscriber away."""
    for _ in range(50):
        control.publish(*[created()] * 20)
        with EventStream(control.directory) as stream:  # has been greeted
            control.publish(created("seen"))
            assert any(event["program"] == "seen" for event in _first(stream))


def _first(stream: EventStream) -> Iterator[dict[str, object]]:
    for event in stream:
        yield event
        if event["program"] == "seen":
            return


def test_a_slow_subscriber_misses_events(control: RunningControl, zeromq: zmq.Context[zmq.Socket[bytes]]) -> None:
    slow = zeromq.socket(zmq.SUB)
    slow.setsockopt(zmq.RCVHWM, 1)
    slow.connect(f"ipc://{control.directory / 'events.sock'}")
    slow.subscribe("")
    assert slow.poll(LIMIT_MS)
    text = "x" * 6000
    with EventStream(control.directory) as attentive:
        events = iter(attentive)
        for _ in range(100):  # 60 MB in all
            control.publish(*[created(text)] * 100)
            for _ in range(100):
                next(events)
    seen = 0
    while slow.poll(500):
        slow.recv_multipart()
        seen += 1
    assert 0 < seen < 10_000
    assert answers(control)


def test_subscriptions_without_end(control: RunningControl, zeromq: zmq.Context[zmq.Socket[bytes]]) -> None:
    subscriber = connect(zeromq, zmq.XSUB, control.directory / "events.sock")
    for number in range(5000):
        subscriber.send(b"\x01" + str(number).encode())
    subscriber.send(b"neither")
    assert answers(control)
    with EventStream(control.directory) as stream:
        control.publish(created())
        assert next(iter(stream))["kind"] == "context-created"


def test_a_bug_behind_it_is_logged_and_ends_nothing(control: RunningControl, caplog: pytest.LogCaptureFixture) -> None:
    control.service.broken = True
    with ControlClient(control.directory) as client:
        with pytest.raises(ControlError, match="internal error"):
            client.ask("status")
        assert "RuntimeError: a bug" in caplog.text
        control.service.broken = False
        assert client.ask("status")["service"] == "vm-1"
