"""A stock QEMU as a child process, in a Debian root and a mount namespace of its own.

PR_SET_PDEATHSIG ends it when the thread that started it ends: start a VM from a thread that lives as long as the VM is
wanted.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.vm.lab import BACKEND_MOUNT, GUEST_MOUNT, RUN_MOUNT
from tests.vm.root_command import ENVIRONMENT, command_in_root
from tests.vm.stderr_tail import BoundedStderr
from tests.vm.waiting import wait_until

EXIT_TIMEOUT_S = 15.0
SOCKET_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class QemuHost:
    """The root QEMU runs in, the display it has there (-display's argument) and what that needs in the environment."""

    root: Path
    display: str = "none"
    environment: Mapping[str, str] = field(default_factory=dict)


class QemuExited(Exception):
    """QEMU ended while something was wanted from it; the message holds its exit code and stderr."""


class QemuProcess:
    """QEMU from start to end; pid is QEMU's own.

    run_dir appears in the chroot as RUN_MOUNT, backend_dir as BACKEND_MOUNT, guest (a lab's files) as GUEST_MOUNT.
    Raises LabError without root.
    """

    def __init__(self, host: QemuHost, run_dir: Path, backend_dir: Path, guest: Path, arguments: list[str]) -> None:
        self._run_dir = run_dir
        directories = {RUN_MOUNT: run_dir, BACKEND_MOUNT: backend_dir, GUEST_MOUNT: guest}
        self._process = subprocess.Popen(
            command_in_root(host.root, ["qemu-system-x86_64", *arguments], directories),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**ENVIRONMENT, **host.environment},
        )
        assert self._process.stderr is not None
        self._stderr = BoundedStderr(self._process.stderr)
        self.pid = self._process.pid

    def check_alive(self) -> None:
        """Raises QemuExited if QEMU has ended."""
        code = self._process.poll()
        if code is not None:
            self._stderr.join()
            raise QemuExited(f"QEMU exited with {code}\n{self._stderr.text()}")

    def stderr(self) -> str:
        """Beginning and end of what QEMU wrote to stderr."""
        return self._stderr.text()

    def socket(self, name: str) -> Path:
        """Path of one of QEMU's listening sockets in run_dir, once it is there. Raises QemuExited, WaitTimeout."""
        path = self._run_dir / name

        def listening() -> bool:
            self.check_alive()
            return path.exists()

        wait_until(listening, f"QEMU's socket {name}", SOCKET_TIMEOUT_S)
        return path

    def end(self) -> None:
        """Asks QEMU to end, kills it if it does not, and reaps it."""
        self._process.terminate()
        try:
            self._process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            # Its main loop may be spinning on a dead back end.
            self._process.kill()
            self._process.wait()
        self._stderr.join()
