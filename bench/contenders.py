"""The sides of a comparison: a back end that runs, and a fake VMM on it. Both sides get the same VM."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.limits import end_child
from bench.native import load
from bench.processes import wait_until
from bench.ring_driver import RingDriver
from bench.workload import WorkloadUnavailable
from tests.fake_vmm import BackEndProcess, FakeVmm, GpuCommand
from tests.fake_vmm.back_end_process import QEMU_BACK_END_PACKAGE, find_qemu_back_end

QEMU_NAME = "QEMU's C vhost-user-gpu"
QUEUE_SIZE = 256
_SOURCES = Path(__file__).resolve().parent.parent
_UNPACKED_QEMU = _SOURCES / "build" / "peer" / "usr" / "lib" / "qemu" / "vhost-user-gpu"
_START_TIMEOUT_S = 120.0
_QUIET_S = 0.4  # longer than the service waits until it starts spares again


@dataclass(frozen=True, slots=True)
class Contender:
    """A running back end and a booted VM on it."""

    back_end: BackEndProcess
    vmm: FakeVmm

    def processes(self) -> Iterator[psutil.Process]:
        """The back end and all below it."""
        process = psutil.Process(self.back_end.pid)
        yield process
        yield from process.children(recursive=True)

    def cpu_seconds(self) -> float:
        """CPU time that its processes have used so far (user and system)."""
        total = 0.0
        for process in self.processes():
            try:
                total += sum(process.cpu_times()[:2])
            except psutil.NoSuchProcess:
                continue
        return total

    def settle(self) -> None:
        """Wait until it does nothing, not even start spare workers, which it does some time after it gave one away."""
        before = -1.0

        def idle() -> bool:
            nonlocal before
            last, before = before, self.cpu_seconds()
            return before == last

        wait_until(idle, f"process {self.back_end.pid} and its workers to be idle", every=_QUIET_S)

    def driver(self, commands: Sequence[GpuCommand], *, fenced: bool, eager: bool = False) -> RingDriver:
        """Sends these commands over and over; to be closed."""
        return RingDriver(self.vmm.gpu.control, commands, fenced=fenced, eager=eager)

    def sink_display(self, stack: ExitStack) -> None:
        """From now on somebody else takes what the back end shows, as fast as it comes, and forgets it."""
        if self.vmm.display is None:
            raise RuntimeError("the VM has no display")
        socket = self.vmm.display.hand_over()
        try:
            stack.callback(end_child, load().lib.bench_sink_start(socket))
        finally:
            os.close(socket)


def isorend_command(command: str, *arguments: str) -> list[str]:
    """`isorend COMMAND` from beside this Python, else from the sources."""
    beside = Path(sys.executable).parent / "isorend"
    in_this_python = [sys.executable, "-c", "import sys; from master.cli import main; sys.exit(main())"]
    return [*([str(beside)] if os.access(beside, os.X_OK) else in_this_python), command, *arguments]


def start_isorend(
    stack: ExitStack,
    *arguments: str,
    ram: int = 256 << 20,
    queue_size: int = QUEUE_SIZE,
    features: int | None = None,
    env: Mapping[str, str] | None = None,
) -> Contender:
    """The service with these arguments; ends with `stack`. features: of virtio-gpu that the guest takes, where not as
    in QEMU. env: added to the service's environment."""
    return _start(stack, isorend_command("serve", *arguments), ram, queue_size, features, env)


def start_qemu(stack: ExitStack, *, ram: int = 256 << 20, queue_size: int = QUEUE_SIZE) -> Contender:
    """QEMU's C back end, in 2D; ends with `stack`. Raises WorkloadUnavailable."""
    if _UNPACKED_QEMU.exists():
        os.environ.setdefault("QEMU_VHOST_USER_GPU", str(_UNPACKED_QEMU))
    program = find_qemu_back_end()
    if program is None:
        raise WorkloadUnavailable(
            f"no QEMU vhost-user-gpu: install Debian's {QEMU_BACK_END_PACKAGE} or set QEMU_VHOST_USER_GPU"
        )
    return _start(stack, [program], ram, queue_size)


def _start(
    stack: ExitStack,
    command: Sequence[str | Path],
    ram: int,
    queue_size: int,
    features: int | None = None,
    env: Mapping[str, str] | None = None,
) -> Contender:
    back_end = stack.enter_context(BackEndProcess(command, cwd=_SOURCES, env=env))
    vmm = FakeVmm.connect(
        back_end.socket_path, wait=_START_TIMEOUT_S, timeout=_START_TIMEOUT_S, ram=ram,
        control_size=queue_size, features=features,
    )  # fmt: skip
    return Contender(back_end, stack.enter_context(vmm))
