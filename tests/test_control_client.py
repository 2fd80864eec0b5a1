"""master.control.client: what a client makes of services that do not do as they should."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
import zmq

from master.control.client import ControlClient, EventStream
from master.control.errors import ControlError
from tests.control_lab import FakeService, running_control


@contextmanager
def replying(directory: Path, reply: bytes) -> Iterator[None]:
    """A service that answers one request with these bytes."""
    with zmq.Context() as zeromq, zeromq.socket(zmq.REP) as service:
        service.bind(f"ipc://{directory / 'request.sock'}")

        def run() -> None:
            service.recv()
            service.send(reply)

        thread = Thread(target=run)
        thread.start()
        yield
        thread.join()


@pytest.mark.parametrize(
    "reply", [b"", b"\xff", b"{", b"[]", b"3", b"{}", b'{"ok": true}', b'{"ok": false}', b'{"ok": []}', b"null"]
)
def test_an_answer_that_is_none(tmp_path: Path, reply: bytes) -> None:
    with (
        replying(tmp_path, reply),
        ControlClient(tmp_path) as client,
        pytest.raises(ControlError, match="gives an answer that is none"),
    ):
        client.ask("status")


def test_a_service_that_stands_still(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as request, socket.socket(socket.AF_UNIX) as events:
        for listener, name in ((request, "request.sock"), (events, "events.sock")):
            listener.bind(os.fspath(tmp_path / name))
            listener.listen()
        with ControlClient(tmp_path) as client, pytest.raises(ControlError, match="does not answer"):
            client.ask("status", timeout_ms=50)
        with pytest.raises(ControlError, match="does not answer"):
            EventStream(tmp_path, timeout_ms=50)


def test_a_service_that_has_ended(tmp_path: Path) -> None:
    for bound in (False, True):
        if bound:
            with socket.socket(socket.AF_UNIX) as stale:
                stale.bind(os.fspath(tmp_path / "events.sock"))
        with pytest.raises(ControlError, match=r"has ended|does not answer"):
            EventStream(tmp_path, timeout_ms=500)


def test_a_stream_ends_with_its_service(tmp_path: Path) -> None:
    with running_control(tmp_path / "isorend", FakeService()) as control, EventStream(control.directory) as stream:
        control.end()
        assert list(stream) == []
