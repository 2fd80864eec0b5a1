"""QEMU's two JSON protocols over Unix sockets: QMP (the machine monitor) and the guest agent's.

Both send one JSON object per line, {"execute": ..., "arguments": ...} answered by {"return": ...} or {"error": ...}.
QMP adds a greeting and events (QEMU docs, interop/qmp-spec), the guest agent a way back into step after a reboot,
guest-sync-delimited (interop/qemu-ga-ref).
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.vm.waiting import WaitTimeout

Alive = Callable[[], None]
"""Called while waiting; raises when waiting further is pointless (QEMU has exited)."""

SYNC_RETRY_S = 5.0
_SLICE_S = 0.5


class CommandError(Exception):
    """The other side answered with an error."""


class JsonSocket:
    """A line-oriented JSON connection; not for use by several threads at once."""

    def __init__(self, path: Path, alive: Alive) -> None:
        self._alive = alive
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))
        self._socket.settimeout(_SLICE_S)

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()

    def send(self, command: str, arguments: dict[str, Any]) -> None:
        """Sends a command without waiting for its answer."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")

    def receive(self, timeout: float) -> dict[str, Any]:
        """The next object. Raises WaitTimeout after timeout seconds and whatever the alive callback raises."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            self._fill(deadline)
        line, _, self._buffer = self._buffer.partition(b"\n")
        message = json.loads(line)
        assert isinstance(message, dict)
        return message

    def answer(self, timeout: float) -> Any:
        """The value of the next answer; events before it are dropped. Raises CommandError, WaitTimeout."""
        while True:
            message = self.receive(timeout)
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise CommandError(message["error"]["desc"])

    def skip_to(self, marker: bytes, timeout: float) -> None:
        """Drops what was received up to and including marker."""
        deadline = time.monotonic() + timeout
        while marker not in self._buffer:
            self._fill(deadline)
        self._buffer = self._buffer.rpartition(marker)[2]

    def send_raw(self, data: bytes) -> None:
        """Sends bytes as they are."""
        self._socket.sendall(data)

    def _fill(self, deadline: float) -> None:
        self._alive()
        try:
            data = self._socket.recv(1 << 16)
        except TimeoutError:
            if time.monotonic() > deadline:
                raise WaitTimeout("no answer on a QEMU socket") from None
            return
        if not data:
            self._alive()
            raise ConnectionError("QEMU closed a control socket")
        self._buffer += data


class Qmp:
    """The machine monitor."""

    def __init__(self, path: Path, alive: Alive) -> None:
        self._connection = JsonSocket(path, alive)
        self._connection.receive(timeout=60)
        self.execute("qmp_capabilities")

    def execute(self, command: str, *, timeout: float = 60, **arguments: Any) -> Any:
        """Runs one command. Raises CommandError, WaitTimeout."""
        self._connection.send(command, arguments)
        return self._connection.answer(timeout)

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()


class GuestAgent:
    """The agent that runs in the guest."""

    def __init__(self, path: Path, alive: Alive) -> None:
        self._connection = JsonSocket(path, alive)

    def synchronize(self, timeout: float) -> None:
        """Waits until this boot's agent answers; late answers to earlier questions are dropped. Raises WaitTimeout."""
        deadline = time.monotonic() + timeout
        while True:
            token = int.from_bytes(os.urandom(6), "little")
            self._connection.send_raw(b"\xff")
            self._connection.send("guest-sync-delimited", {"id": token})
            try:
                while True:
                    self._connection.skip_to(b"\xff", SYNC_RETRY_S)
                    if self._connection.answer(SYNC_RETRY_S) == token:
                        return
            except WaitTimeout:
                if time.monotonic() > deadline:
                    raise

    def execute(self, command: str, *, timeout: float = 120, **arguments: Any) -> Any:
        """Runs one agent command. Raises CommandError, WaitTimeout."""
        self._connection.send(command, arguments)
        return self._connection.answer(timeout)

    def send(self, command: str, **arguments: Any) -> None:
        """Sends a command whose answer may never come (a reboot); synchronize() afterwards."""
        self._connection.send(command, arguments)

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()
