"""One virtual machine as tests want it: QEMU with a GPU device of the caller's choice, the lab's guest in it."""

from __future__ import annotations

import re
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal

from tests.vm.guest_process import Completed, GuestProcess, write_guest_file
from tests.vm.json_socket import GuestAgent, Qmp
from tests.vm.lab import BACKEND_MOUNT, GUEST_MOUNT, RUN_MOUNT, Lab
from tests.vm.qemu_process import QemuHost, QemuProcess
from tests.vm.waiting import wait_until

BOOT_TIMEOUT_S = 300.0

VHOST_USER_GPU = "vhost-user-gpu-pci"
VHOST_USER_GENERIC = "vhost-user-test-device-pci,virtio-id=16,num_vqs=2,vq_size=256,config_size=24"
"""QEMU's device that knows nothing of GPUs: it has no display, but passes on blobs, rings and host-visible memory."""

NO_GPU = "none"

READY_LINE = re.compile(r"^vm-lab: ready boot_id=(?P<boot_id>\S+) gpu=(?P<gpu>\S+) up=(?P<up>\S+)", re.MULTILINE)
FATAL_LINE = re.compile(r"^.*(Kernel panic - not syncing|vm-lab: no root file system).*$", re.MULTILINE)


class GuestPanic(Exception):
    """The guest cannot boot; the message is its line that says why and the end of its serial log."""


class Vm:
    """A running guest. A context manager: entering boots it and waits until it is ready, leaving ends QEMU.

    socket_path: the listening socket of a vhost-user GPU back end; None gives a GPU of QEMU's own. gpu: the device, by
    default VHOST_USER_GPU on a socket and else virtio-gpu-pci (2D only); NO_GPU for none. host: where QEMU runs, by
    default in the lab's own root and without a display. log_dir: directory that receives serial.log and
    qemu-stderr.log at the end.
    Every method raises QemuExited once QEMU is gone, and so does leaving the context if QEMU ended by itself.
    """

    def __init__(
        self,
        lab: Lab,
        socket_path: Path | None = None,
        *,
        gpu: str | None = None,
        host: QemuHost | None = None,
        cpus: int = 2,
        memory: str = "1G",
        log_dir: Path | None = None,
    ) -> None:
        self._lab = lab
        self._backend_socket = socket_path
        self._gpu = gpu or ("virtio-gpu-pci" if socket_path is None else VHOST_USER_GPU)
        self._host = host or QemuHost(lab.qemu_root)
        self._cpus = cpus
        self._memory = memory
        self._log_dir = log_dir
        self._boots = 0
        self._jobs = 0

    def __enter__(self) -> Vm:
        with ExitStack() as stack:
            self._run_dir = Path(tempfile.mkdtemp(prefix="vm-lab-"))
            stack.callback(shutil.rmtree, self._run_dir)
            backend_dir = self._backend_socket.parent.absolute() if self._backend_socket else self._run_dir
            self._qemu = QemuProcess(self._host, self._run_dir, backend_dir, self._lab.guest, self._arguments())
            stack.callback(self._save_logs)
            stack.callback(self._qemu.end)
            self.qmp = Qmp(self._qemu.socket("qmp.sock"), self._qemu.check_alive)
            stack.callback(self.qmp.close)
            self._agent = GuestAgent(self._qemu.socket("agent.sock"), self._qemu.check_alive)
            stack.callback(self._agent.close)
            self.wait_ready()
            self._ending = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._ending:
            if error is None:
                self._qemu.check_alive()

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._qemu.pid

    @property
    def console_socket(self) -> Path:
        """Unix socket of the root shell on hvc0."""
        return self._run_dir / "console.sock"

    def serial(self) -> str:
        """All the guest has printed on its serial port since QEMU started, every boot."""
        path = self._run_dir / "serial.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stderr(self) -> str:
        """Beginning and end of QEMU's stderr."""
        return self._qemu.stderr()

    def gpu_driver(self) -> str:
        """Name of the guest driver behind /dev/dri/card0 as of the last boot, `none` without one."""
        return [line["gpu"] for line in READY_LINE.finditer(self.serial())][-1]

    def run(self, script: str, timeout: float = 120) -> Completed:
        """Runs a bash script in the guest and waits for its end. Raises GuestTimeout."""
        return self.spawn(script).wait(timeout)

    def spawn(self, script: str) -> GuestProcess:
        """Starts a bash script in the guest (`exec` its one program so that signals reach it directly)."""
        self._jobs += 1
        return GuestProcess(self._agent, script, self._jobs)

    def install(self, path: str, program: bytes) -> None:
        """Writes a program into the guest, where only /run, /tmp, /var and /root can be written."""
        write_guest_file(self._agent, path, program)
        self.run(f"chmod 0755 {path}")

    def screendump(self, path: Path) -> Path:
        """Saves what the first display shows as a PNG file, returns its path. Raises CommandError without a surface."""
        self.qmp.execute("screendump", filename=f"{RUN_MOUNT}/screen.png", format="png")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._run_dir / "screen.png", path)
        return path

    def reboot(self, how: Literal["reboot", "sysrq", "reset"] = "reboot", timeout: float = BOOT_TIMEOUT_S) -> None:
        """Restarts the guest and waits until it is ready: by reboot(2), sysrq-b (at once) or QMP system_reset."""
        if how == "reset":
            self.qmp.execute("system_reset")
        else:
            script = "echo b >/proc/sysrq-trigger" if how == "sysrq" else "busybox reboot -f"
            self._agent.send("guest-exec", path="/usr/bin/bash", arg=["-c", script])
        self.wait_ready(timeout)

    def wait_ready(self, timeout: float = BOOT_TIMEOUT_S) -> None:
        """Waits for the next boot's ready line and its agent. Raises WaitTimeout, QemuExited, GuestPanic."""
        wanted = self._boots + 1
        wait_until(lambda: self._ready_lines() >= wanted, f"ready line {wanted} on the serial port", timeout)
        self._boots = wanted
        self._agent.synchronize(timeout)

    def _arguments(self) -> list[str]:
        kernel_line = "console=tty0 console=ttyS0,115200 loglevel=6 panic=0 rdinit=/init"
        arguments = ["-nodefaults", "-no-user-config", "-display", self._host.display]
        arguments += [
            "-machine",
            "q35,accel=tcg,memory-backend=ram",
            "-cpu",
            "max",
            "-smp",
            str(self._cpus),
            "-m",
            self._memory,
        ]
        arguments += ["-object", f"memory-backend-memfd,id=ram,size={self._memory},share=on"]
        arguments += [
            "-kernel",
            f"{GUEST_MOUNT}/vmlinuz",
            "-initrd",
            f"{GUEST_MOUNT}/initramfs.cpio",
            "-append",
            kernel_line,
        ]
        arguments += ["-drive", f"if=none,id=root,format=raw,readonly=on,file={GUEST_MOUNT}/root.ext4"]
        arguments += ["-device", "virtio-blk-pci,drive=root", "-device", "virtio-rng-pci"]
        arguments += [
            "-serial",
            f"file:{RUN_MOUNT}/serial.log",
            "-qmp",
            f"unix:{RUN_MOUNT}/qmp.sock,server=on,wait=off",
        ]
        arguments += ["-device", "virtio-serial-pci"]
        arguments += ["-chardev", f"socket,id=agent,path={RUN_MOUNT}/agent.sock,server=on,wait=off"]
        arguments += ["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]
        arguments += ["-chardev", f"socket,id=console,path={RUN_MOUNT}/console.sock,server=on,wait=off"]
        arguments += ["-device", "virtconsole,chardev=console"]
        if self._backend_socket is None:
            return arguments if self._gpu == NO_GPU else [*arguments, "-device", self._gpu]
        arguments += ["-chardev", f"socket,id=gpu,path={BACKEND_MOUNT}/{self._backend_socket.name}"]
        return [*arguments, "-device", f"{self._gpu},chardev=gpu"]

    def _ready_lines(self) -> int:
        self._qemu.check_alive()
        log = self.serial()
        fatal = FATAL_LINE.search(log)
        if fatal:
            raise GuestPanic(f"{fatal.group()}\n{log[-4000:]}")
        return len(READY_LINE.findall(log))

    def _save_logs(self) -> None:
        if self._log_dir is not None:
            self._log_dir.mkdir(parents=True, exist_ok=True)
            (self._log_dir / "serial.log").write_text(self.serial())
            (self._log_dir / "qemu-stderr.log").write_text(self.stderr())
