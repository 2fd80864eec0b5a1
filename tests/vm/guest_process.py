"""Programs in the guest, started through its agent: each leads a session of its own and writes to a log file."""

from __future__ import annotations

import base64
from typing import Any, NamedTuple

from tests.vm.json_socket import CommandError, GuestAgent
from tests.vm.waiting import WaitTimeout, wait_until

# A program's stdin is a pipe nobody writes to: some (kmscube) take end of file there for a key press and quit.
_WRAPPER = """
mkfifo "$1.stdin" && exec 0<>"$1.stdin" 1>"$1.log" 2>&1 && exec setsid /usr/bin/bash -c "$2"
"""

ENVIRONMENT = [
    "PATH=/usr/sbin:/usr/bin",
    "HOME=/root",
    "TERM=linux",
    "LANG=C.UTF-8",
    "XDG_RUNTIME_DIR=/run/user/0",
    "LIBSEAT_BACKEND=noop",
]

_STATUS_POLL_S = 0.1
_WRITE_BYTES = 1 << 20  # the agent takes larger ones, but answers in one go


class Completed(NamedTuple):
    """How a guest program ended: exit code (128 + number of a signal that ended it), stdout and stderr together."""

    code: int
    output: str


class GuestTimeout(Exception):
    """A guest program did not end within its limit; the message holds what it had written."""


class GuestProcess:
    """One running guest program."""

    def __init__(self, agent: GuestAgent, script: str, number: int) -> None:
        self._agent = agent
        self._script = script
        self._base = f"/run/jobs/{number}"
        self._code: int | None = None
        answer = agent.execute(
            "guest-exec",
            path="/usr/bin/bash",
            arg=["-c", _WRAPPER, "vm-lab", self._base, script],
            env=ENVIRONMENT,
        )
        self.pid: int = answer["pid"]

    def poll(self) -> int | None:
        """Exit code, None while it runs."""
        if self._code is None:
            # The agent forgets a process once its end has been told, so it is kept here.
            status = self._agent.execute("guest-exec-status", pid=self.pid)
            if status["exited"]:
                self._code = status["exitcode"] if "exitcode" in status else 128 + int(status["signal"])
        return self._code

    def output(self) -> str:
        """All it has written so far; programs that buffer their stdout want `stdbuf -oL`."""
        return read_guest_file(self._agent, self._base + ".log")

    def wait(self, timeout: float) -> Completed:
        """Waits for its end. Raises GuestTimeout, and kills it, after timeout seconds."""
        try:
            wait_until(lambda: self.poll() is not None, self._script, timeout, _STATUS_POLL_S)
        except WaitTimeout as error:
            self.kill()
            raise GuestTimeout(f"{error}\n{self.output()}") from None
        assert self._code is not None
        return Completed(self._code, self.output())

    def kill(self, signal: int = 9) -> None:
        """Sends a signal to it and all it started."""
        if self.poll() is None:
            self._agent.execute("guest-exec", path="/usr/bin/kill", arg=[f"-{signal}", "--", f"-{self.pid}"])
            wait_until(
                lambda: self.poll() is not None, f"end of {self._script!r} by signal {signal}", 60, _STATUS_POLL_S
            )


def read_guest_file(agent: GuestAgent, path: str) -> str:
    """Text of a guest file, empty when it does not exist (yet)."""
    try:
        handle = agent.execute("guest-file-open", path=path, mode="r")
    except CommandError:
        return ""
    try:
        parts = []
        while True:
            chunk = agent.execute("guest-file-read", handle=handle, count=1 << 20)
            parts.append(base64.b64decode(chunk["buf-b64"]))
            if chunk["eof"]:
                return b"".join(parts).decode(errors="replace")
    finally:
        agent.execute("guest-file-close", handle=handle)


def write_guest_file(agent: GuestAgent, path: str, data: bytes) -> None:
    """Puts bytes into a guest file, which then holds nothing else. Raises CommandError."""
    handle = agent.execute("guest-file-open", path=path, mode="w")
    try:
        for start in range(0, len(data), _WRITE_BYTES):
            part: dict[str, Any] = {"buf-b64": base64.b64encode(data[start : start + _WRITE_BYTES]).decode()}
            agent.execute("guest-file-write", handle=handle, **part)
    finally:
        agent.execute("guest-file-close", handle=handle)
