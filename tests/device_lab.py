"""A running service as seen from outside: its processes, their descriptors and memory, its log; and a guest program
whose picture is known.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import psutil

from tests.fake_vmm import FakeVmm
from tests.fake_vmm.gpu import Gpu
from tests.fake_vmm.scene_player import ScenePlayer
from tests.fake_vmm.virgl.triangle import Color, TriangleScene
from tests.service_process import ServiceProcess
from tests.vm.waiting import wait_until
from tests.vm.workers import WorkerProcess, context_workers

LIMIT = 30.0
"""Seconds after which something awaited is taken for never coming."""

SPARES = 1
LOOKS = 6  # at as many descriptors as before, one poll of wait_until apart
OPTIONS = [f"--spares={SPARES}"]
_SPARE = "isorend: spare"
_LAUNCHER = "isorend: launcher"


def until(condition: Callable[[], object], what: str) -> None:
    """Waits for a condition of another process."""
    wait_until(condition, what, LIMIT)


def gone(pid: int) -> bool:
    """Whether the process is over (a zombie is)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@dataclass(frozen=True)
class Footprint:
    """What the service holds when no guest is there: open descriptors of the master and of the launcher, and processes
    (master, launcher, spares)."""

    master_fds: int
    launcher_fds: int
    processes: int


class DeviceLab:
    """A service, seen from outside. It must have been started with OPTIONS among its arguments."""

    def __init__(self, service: ServiceProcess) -> None:
        self.service = service

    @property
    def pid(self) -> int:
        return self.service.pid

    @property
    def log(self) -> str:
        return self.service.log

    def check_running(self) -> None:
        """Raises ServiceEnded, which has the log, if it does not run."""
        self.service.check_running()

    @contextmanager
    def vmm(self, **arguments: object) -> Iterator[FakeVmm]:
        """A VM that is connected and booted; disconnected at the end. Arguments as FakeVmm.connect's."""
        with FakeVmm.connect(self.service.socket_path, **arguments) as vmm:  # type: ignore[arg-type]
            yield vmm

    # --- processes ----------------------------------------------------------------------------------------------

    def processes(self) -> list[psutil.Process]:
        """The master and all below it that still run."""
        try:
            master = psutil.Process(self.pid)
            return [master, *(p for p in master.children(recursive=True) if not gone(p.pid))]
        except psutil.NoSuchProcess:
            return []

    def _titled(self, title: str) -> list[int]:
        found = []
        for process in self.processes():
            try:
                if " ".join(process.cmdline()).startswith(title):
                    found.append(process.pid)
            except psutil.NoSuchProcess:
                continue
        return found

    def workers(self) -> list[WorkerProcess]:
        """Those that render for a context now."""
        return context_workers(self.pid)

    def worker_of(self, ctx_id: int) -> WorkerProcess:
        """The worker of a context, once it has taken its title."""

        def find() -> WorkerProcess | None:
            return next((worker for worker in self.workers() if worker.ctx_id == ctx_id), None)

        found = wait_until(find, f"a worker of context {ctx_id}", LIMIT)
        assert found is not None
        return found

    def spares(self) -> list[int]:
        """Process ids of workers without a guest."""
        return self._titled(_SPARE)

    def launcher(self) -> int:
        """The launcher's process id."""
        until(lambda: self._titled(_LAUNCHER), "a launcher")
        return self._titled(_LAUNCHER)[0]

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Ends one process of the service and waits until its parent has reaped it: a zombie may have threads that are
        still ending."""
        assert pid in {process.pid for process in self.processes()}
        os.kill(pid, number)
        until(lambda: not psutil.pid_exists(pid), f"the end of process {pid}")

    # --- what it holds ------------------------------------------------------------------------------------------

    def footprint(self) -> Footprint:
        """Now."""
        processes = self.processes()
        launcher = self.launcher()
        return Footprint(_fds(self.pid), _fds(launcher), len(processes))

    def wait_until_idle(self) -> Footprint:
        """Until no context is left, the spares are there again and nobody opens or closes any more; what is held then.

        A spare is there before its start has ended: descriptors of it are still on their way between three processes.
        """
        looks: list[Footprint] = []

        def settled() -> bool:
            if self.workers() or len(self.spares()) != SPARES or len(self.processes()) != 2 + SPARES:
                looks.clear()
                return False
            looks.append(self.footprint())
            return len(looks) >= LOOKS and len(set(looks[-LOOKS:])) == 1

        until(settled, "an idle service")
        return looks[-1]

    @contextmanager
    def guest(self) -> Iterator[FakeVmm]:
        """A VM; once it has left, the service goes on and holds what it held before."""
        before = self.wait_until_idle()
        with self.vmm() as vmm:
            yield vmm
        self.check_running()
        self.wait_for_footprint(before)

    def wait_for_footprint(self, wanted: Footprint) -> None:
        """Until nothing is held that was not before. AssertionError names what is."""
        try:
            until(lambda: self.footprint() == wanted, "the footprint of before")
        except Exception as error:
            raise AssertionError(f"{self.footprint()} instead of {wanted}: {_fd_targets(self.pid)}") from error

    def resident(self) -> int:
        """Bytes of the master's own memory: what it shares with guests and workers does not count."""
        info = psutil.Process(self.pid).memory_info()
        return int(info.rss - info.shared)


def _fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _fd_targets(pid: int) -> list[str]:
    return sorted(os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))


# --- a guest program whose picture is known -------------------------------------------------------------------------


def triangle(gpu: Gpu, name: str = "neighbour", color: Color = (1.0, 0.0, 0.0)) -> ScenePlayer:
    """A context with its objects made, which has drawn nothing yet."""
    return ScenePlayer(gpu, TriangleScene(name, color=color))


def rgb(color: Color) -> tuple[int, int, int]:
    """A colour as bytes."""
    red, green, blue = (round(255 * part) for part in color)
    return red, green, blue


def assert_is_triangle(picture: npt.NDArray[np.uint8], scene: TriangleScene, t_seconds: float = 0.0) -> None:
    """The picture of the scene at time 0 or 1, but for the pixels along the diagonal."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    inside = x + y < min(width, height) - 2 if t_seconds == 0.0 else np.zeros((height, width), bool)
    outside = x + y > max(width, height) if t_seconds == 0.0 else np.ones((height, width), bool)
    assert (picture[inside] == rgb(scene.color)).all()
    assert (picture[outside] == rgb(scene.background)).all()


def assert_draws(player: ScenePlayer) -> None:
    """The program still renders what it should."""
    scene = player.scene
    assert isinstance(scene, TriangleScene)
    for t_seconds in (1.0, 0.0):
        player.gpu.wait(player.frame(t_seconds, 0)).check(f"a frame of {scene.name}")
        assert_is_triangle(player.picture(), scene, t_seconds)
