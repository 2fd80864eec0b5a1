"""A stock QEMU as a child process, in a chroot and a mount namespace of its own.

The mounts the chroot needs are made after `unshare --mount` in the process that becomes QEMU, so the kernel drops
them with it, and PR_SET_PDEATHSIG ends it when the thread that started it ends: start a VM from a thread that lives
as long as the VM is wanted.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.vm.debian_root import LabError
from tests.vm.lab import BACKEND_MOUNT, GUEST_MOUNT, RUN_MOUNT, Lab
from tests.vm.stderr_tail import BoundedStderr
from tests.vm.waiting import wait_until

EXIT_TIMEOUT_S = 15.0
SOCKET_TIMEOUT_S = 60.0

# $1 chroot, $2 run directory, $3 back end's socket directory, $4 guest files; the rest is QEMU's command line.
_ENTER_ROOT = f"""
set -e
root=$1
mount --bind /dev "$root/dev"
mount --bind /proc "$root/proc"
mount --bind "$2" "$root{RUN_MOUNT}"
mount --bind "$3" "$root{BACKEND_MOUNT}"
mount --bind "$4" "$root{GUEST_MOUNT}"
shift 4
exec chroot "$root" "$@"
"""


class QemuExited(Exception):
    """QEMU ended while something was wanted from it; the message holds its exit code and stderr."""


class QemuProcess:
    """QEMU from start to end; pid is QEMU's own.

    run_dir appears in the chroot as RUN_MOUNT, backend_dir as BACKEND_MOUNT, the lab's guest files as GUEST_MOUNT.
    Raises LabError without root.
    """

    def __init__(self, lab: Lab, run_dir: Path, backend_dir: Path, arguments: list[str]) -> None:
        if os.geteuid() != 0:
            raise LabError("a VM of the lab needs root (QEMU runs in a chroot): run this as root or with sudo")
        self._run_dir = run_dir
        enter = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            _ENTER_ROOT,
            "sh",
        ]
        places = [str(lab.qemu_root), str(run_dir), str(backend_dir), str(lab.guest)]
        self._process = subprocess.Popen(
            [*enter, *places, "qemu-system-x86_64", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
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
