"""The isorend service as a child process of a test: the command people use, its socket, its log."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from tests.vm.waiting import wait_until

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0


class ServiceExited(Exception):
    """The service ended while it was wanted; the message holds its exit code and the end of its log."""


def service_command() -> list[str]:
    """The service's executable: ISOREND_SERVICE (shell words) or the one installed beside this Python."""
    override = os.environ.get("ISOREND_SERVICE")
    return shlex.split(override) if override else [str(Path(sys.executable).parent / "isorend-vhost-user-gpu")]


class Service:
    """A running service that listens at socket_path and writes its log to log_path; a context manager."""

    def __init__(self, socket_path: Path, log_path: Path) -> None:
        self.socket_path = socket_path
        self.log_path = log_path

    def __enter__(self) -> Service:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        arguments = [f"--socket-path={self.socket_path}", "--keep-listening", "--log-level=debug"]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *service_command(), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_until(self._listening, f"service socket {self.socket_path}", START_TIMEOUT_S)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            code = self.stop()
            if error is None and code != 0:
                raise ServiceExited(f"the service ended with {code} after SIGTERM\n{self.log()[-4000:]}")
        elif error is None:
            self.check_alive()

    @property
    def pid(self) -> int:
        """The service's (master's) process id."""
        return self._process.pid

    def log(self) -> str:
        """All it has logged."""
        return self.log_path.read_text(errors="replace")

    def check_alive(self) -> None:
        """Raises ServiceExited if it has ended."""
        code = self._process.poll()
        if code is not None:
            raise ServiceExited(f"the service exited with {code}\n{self.log()[-4000:]}")

    def stop(self) -> int:
        """Ends it by SIGTERM (SIGKILL when it does not listen) and returns its exit code."""
        self._process.terminate()
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _listening(self) -> bool:
        self.check_alive()
        return self.socket_path.is_socket()
