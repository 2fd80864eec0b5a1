"""A vhost-user back-end program as a child process: QEMU's C one, or the service itself."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

QEMU_BACK_END = "/usr/lib/qemu/vhost-user-gpu"
QEMU_BACK_END_PACKAGE = "qemu-system-gui"
_LOG_TAIL = 4000


def find_qemu_back_end() -> Path | None:
    """QEMU's C back end: $QEMU_VHOST_USER_GPU, or where Debian's qemu-system-gui puts it; None when absent."""
    candidate = Path(os.environ.get("QEMU_VHOST_USER_GPU", QEMU_BACK_END))
    return candidate if os.access(candidate, os.X_OK) else None


class BackEndProcess:
    """Runs `argv` + ["--socket-path=..."] in a directory of its own; a context manager that ends it.

    socket_path: where it will listen (FakeVmm.connect waits for that). log: its stdout and stderr so far.
    """

    def __init__(
        self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: str | Path | None = None
    ) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="back-end-"))
        self.socket_path = self._directory / "vhost-user.sock"
        self.log_path = self._directory / "log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*map(str, argv), f"--socket-path={self.socket_path}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd, env={**os.environ, **(env or {})},
            )  # fmt: skip

    def __enter__(self) -> BackEndProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(f"back end's log:\n{self.log[-_LOG_TAIL:]}")
        self.end()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def wait(self, timeout: float = 30.0) -> int:
        """The exit code (negative for a signal); TimeoutError."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the back end (pid {self.pid}) did not exit within {timeout} s") from None

    def end(self, timeout: float = 15.0) -> int:
        """SIGTERM, after `timeout` seconds SIGKILL; the exit code. Removes its directory."""
        if self.running:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)
        return code
