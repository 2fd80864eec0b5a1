"""The demo with a real QEMU and a Debian guest: kmscube goes on while a second program's worker is killed.

The lab (tests.vm) is built on first use and needs root. The guest is emulated, so everything takes its time.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console

from bench.demo.errors import DemoFailed
from bench.demo.service import DemoService, LostContext, is_running
from tests.vm import picture
from tests.vm.debian_root import LabError
from tests.vm.guest_process import GuestProcess, GuestTimeout
from tests.vm.json_socket import CommandError
from tests.vm.lab import Lab
from tests.vm.qemu import GuestPanic, Vm
from tests.vm.qemu_process import QemuExited
from tests.vm.recipe import Recipe
from tests.vm.waiting import WaitTimeout, wait_until
from tests.vm.workers import WorkerProcess, context_workers

SUMMARY, SHEET, LOG = "summary.json", "demo.png", "service.log"
SURVIVOR, VICTIM = "kmscube", "weston"

_PATIENCE_S = 240.0
# A worker that has used this much more CPU time is rendering.
_AT_WORK_CPU_S = 0.2
# kmscube renders at least so many more frames after the kill, however long that takes.
_FRAMES_AFTER = 30
_FEWEST_COLOURS = 256

_KMSCUBE = "exec stdbuf -oL kmscube"
_RENDERED = re.compile(r"^Rendered (\d+) frames", re.MULTILINE)
# A compositor without a display needs no DRM master, so it runs beside kmscube; a client that draws into shared memory
# makes it compose by GL all the time.
_WESTON = """
weston --backend=headless --renderer=gl --width=320 --height=240 --idle-time=0 --no-config --socket=demo &
until [ -S "$XDG_RUNTIME_DIR/demo" ]; do sleep 0.2; done
WAYLAND_DISPLAY=demo exec weston-simple-shm
"""


@dataclass(frozen=True, slots=True)
class VmContext:
    """A guest program. pid: its worker's on the host. frames: as it counts them itself, None if it does not."""

    name: str
    pid: int
    frames: int | None
    lost: bool


@dataclass(frozen=True, slots=True)
class VmResults:
    """A run. frames_at_kill: what the survivor had rendered by then. seconds: from the first frame to the end."""

    ok: bool
    contexts: list[VmContext]
    killed: LostContext
    frames_at_kill: int
    service: dict[str, str]
    guest: dict[str, str]
    seconds: float


def show(out: Path, seconds: float, size: tuple[int, int]) -> int:
    """Boot, draw for at least `seconds`, kill halfway; leaves demo.png (the screen), summary.json and service.log.

    size: not used, the guest chooses. Returns the exit code.
    """
    console = Console(highlight=False)
    for name in (SUMMARY, SHEET):
        (out / name).unlink(missing_ok=True)
    try:
        lab = Lab.of(Recipe())
        if os.geteuid() != 0:
            raise LabError("the VM demo needs root (QEMU runs in a chroot): run this as root or with sudo")
        console.print("making sure that the VM lab is built ...")
        lab.build()
        results = _play(lab, console, out, seconds)
    except _EXPECTED as reason:
        print(f"isorend demo: failed: {(str(reason).splitlines() or ['no reason given'])[0]}", file=sys.stderr)
        return 1
    (out / SUMMARY).write_text(json.dumps(asdict(results), indent=2) + "\n")
    killed, (survivor, _) = results.killed, results.contexts
    console.print(f"the display and the figures: {out}/{SHEET}, {out}/{SUMMARY}", soft_wrap=True)
    console.print(
        f"[bold green]ok[/]: only {killed.name} was lost; {survivor.name} rendered {results.frames_at_kill} frames "
        f"before and {(survivor.frames or 0) - results.frames_at_kill} after",
        soft_wrap=True,
    )
    return 0


_EXPECTED = (
    CommandError, DemoFailed, GuestPanic, GuestTimeout, LabError, QemuExited, WaitTimeout, psutil.Error,
)  # fmt: skip


def _play(lab: Lab, console: Console, out: Path, seconds: float) -> VmResults:
    with ExitStack() as stack:
        service = stack.enter_context(DemoService())
        stack.callback(service.keep_log, out / LOG)
        wait_until(service.is_listening, "the service", _PATIENCE_S)
        qemu = lab.qemu_version()
        console.print(f"the service is process {service.pid}; booting Debian in {qemu} ...", soft_wrap=True)
        with Vm(lab, service.socket_path) as vm:
            kernel = vm.run("uname -r").output.strip()
            console.print(f"Linux {kernel} is up; starting {SURVIVOR} and {VICTIM} in it ...")
            return VmScene(vm, service, console, {"kernel": kernel, "qemu": qemu}).run(out / SHEET, seconds)


class VmScene:
    """Two programs in a running guest, and what happens to one."""

    def __init__(self, vm: Vm, service: DemoService, console: Console, guest: dict[str, str]) -> None:
        self._vm = vm
        self._service = service
        self._console = console
        self._guest = guest

    def run(self, screen: Path, seconds: float) -> VmResults:
        """Leaves the display's picture in `screen`. Raises DemoFailed and what the lab raises."""
        cube = self._vm.spawn(_KMSCUBE)
        survivor = self._worker(SURVIVOR)
        self._vm.spawn(_WESTON)
        victim = self._worker(VICTIM)
        wait_until(lambda: _frames(cube) > 0, f"first frames of {SURVIVOR}", _PATIENCE_S)
        start = time.monotonic()
        self._wait_until_at_work(victim)
        self._play_for(cube, seconds / 2)
        before = _frames(cube)
        self._say(f"{victim.name}: worker {victim.pid} gets SIGKILL while it renders")
        os.kill(victim.pid, signal.SIGKILL)
        wait_until(lambda: not is_running(victim.pid), f"the end of worker {victim.pid}", _PATIENCE_S)
        wait_until(lambda: self._service.lost_contexts(), "the service's word on the lost context", _PATIENCE_S)
        self._say(f"service: {self._service.lost_contexts()[0].line}")
        self._play_for(cube, seconds / 2)
        wait_until(lambda: _frames(cube) >= before + _FRAMES_AFTER, f"{SURVIVOR}'s frames after the kill", _PATIENCE_S)
        self._wait_until_at_work(survivor)
        self._vm.screendump(screen)
        after = _frames(cube)
        took = time.monotonic() - start
        engine, renderer = self._service.rendering()
        return VmResults(
            ok=True,
            contexts=[
                VmContext(survivor.name, survivor.pid, after, lost=False),
                VmContext(victim.name, victim.pid, None, lost=True),
            ],
            killed=self._check(victim, survivor, screen),
            frames_at_kill=before,
            service={"engine": engine, "renderer": renderer},
            guest=self._guest,
            seconds=round(took, 1),
        )

    def _check(self, victim: WorkerProcess, survivor: WorkerProcess, screen: Path) -> LostContext:
        """What was lost: exactly the victim. Raises DemoFailed."""
        losses = self._service.lost_contexts()
        if [(loss.ctx_id, loss.pid, loss.cause) for loss in losses] != [
            (victim.ctx_id, victim.pid, "killed by SIGKILL")
        ]:
            raise DemoFailed(f"the service reported {[loss.line for loss in losses]}")
        if not is_running(survivor.pid):
            raise DemoFailed(f"the worker of {survivor.name} (process {survivor.pid}) is gone")
        if len(picture.colours(picture.load(screen))) < _FEWEST_COLOURS:
            raise DemoFailed(f"{screen} does not show a lit cube")
        return losses[0]

    def _worker(self, name: str) -> WorkerProcess:
        """The worker of the newest context of a guest program, waited for."""

        def newest() -> WorkerProcess | None:
            self._service.check_running()
            workers = [worker for worker in context_workers(self._service.pid) if worker.name.startswith(name)]
            return workers[-1] if workers else None

        worker = wait_until(newest, f"a worker for {name}", _PATIENCE_S)
        assert worker is not None
        self._say(f"{name}: context {worker.ctx_id} is worker {worker.pid}")
        return worker

    def _wait_until_at_work(self, worker: WorkerProcess) -> None:
        before = worker.cpu_seconds()
        wait_until(lambda: worker.cpu_seconds() - before > _AT_WORK_CPU_S, f"work of {worker.name}", _PATIENCE_S)

    def _play_for(self, cube: GuestProcess, seconds: float) -> None:
        """Let the guest draw, telling when kmscube tells."""
        told = _frames(cube)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._service.check_running()
            frames = _frames(cube)
            if frames != told:
                self._say(f"{SURVIVOR}: {frames} frames")
                told = frames
            time.sleep(0.5)

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False)


def _frames(cube: GuestProcess) -> int:
    """How many frames kmscube has said it rendered. Raises DemoFailed when it has ended."""
    if cube.poll() is not None:
        raise DemoFailed(f"{SURVIVOR} ended: {' '.join(cube.output().split()[-20:])}")
    counts = _RENDERED.findall(cube.output())
    return int(counts[-1]) if counts else 0
