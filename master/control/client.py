"""The side of those who watch a service."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import zmq

from master.control.directory import EVENTS_SOCKET, REQUEST_SOCKET
from master.control.errors import ControlError
from master.control.protocol import MAX_REPLY_BYTES, Hello

ANSWER_MS: Final = 10_000
NEVER_MS: Final = 2**31 - 1


class ControlClient:
    """Asks one service. `directory` is the service's."""

    def __init__(self, directory: Path) -> None:
        self.name = directory.name
        self._path = directory / REQUEST_SOCKET
        self._context = zmq.Context(io_threads=1)

    def ask(self, command: str, timeout_ms: int = ANSWER_MS, **arguments: Any) -> Any:
        """The result of a request (master.control.protocol). Raises ControlError."""
        with self._context.socket(zmq.REQ) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_REPLY_BYTES)
            socket.connect(f"ipc://{self._path}")
            socket.send(json.dumps({"command": command, **arguments}).encode())
            if not socket.poll(timeout_ms):
                raise ControlError(f"{self.name} does not answer")
            return self._result(socket.recv())

    def _result(self, reply: bytes) -> Any:
        try:
            answer = json.loads(reply.decode())
            if not answer["ok"]:
                raise ControlError(f"{self.name}: {answer['error']}")
            return answer["result"]
        except (ValueError, LookupError, TypeError) as reason:
            raise ControlError(f"{self.name} gives an answer that is none") from reason

    def close(self) -> None:
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class EventStream:
    """What one service publishes, from now until it ends."""

    def __init__(self, directory: Path, timeout_ms: int = ANSWER_MS) -> None:
        """Returns when the service has taken the subscription. Raises ControlError."""
        self.name = directory.name
        self._context = zmq.Context(io_threads=1)
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_REPLY_BYTES)
        # A service that comes later is another one. (-1 makes libzmq 4.3.5 drop a message half read, and abort.)
        self._socket.setsockopt(zmq.RECONNECT_IVL, NEVER_MS)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._socket.connect(f"ipc://{directory / EVENTS_SOCKET}")
        ready = self._poller.poll(timeout_ms)  # for its Hello
        if not ready or ready[0][0] is self._monitor:
            self.close()
            raise ControlError(f"{self.name} {'has ended' if ready else 'does not answer'}")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Every event as an object of JSON, without the greetings. Ends with the service. Raises ControlError."""
        ended = False
        while not ended:
            ended = any(socket is self._monitor for socket, _ in self._poller.poll())
            yield from self._received()

    def _received(self) -> Iterator[dict[str, Any]]:
        while self._socket.poll(0):
            try:
                event = json.loads(self._socket.recv_multipart()[-1].decode())
            except ValueError as reason:
                raise ControlError(f"{self.name} tells what is not JSON") from reason
            if not isinstance(event, dict):
                raise ControlError(f"{self.name} tells what is no event")
            if event.get("kind") != Hello.KIND:
                yield event

    def close(self) -> None:
        self._socket.disable_monitor()
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
