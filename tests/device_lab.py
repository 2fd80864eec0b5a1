"""A service for VMs as seen from outside; and a guest program whose picture is known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from tests.fake_vmm import FakeVmm
from tests.fake_vmm.gpu import Gpu
from tests.fake_vmm.scene_player import ScenePlayer
from tests.fake_vmm.virgl.triangle import Color, TriangleScene
from tests.service_lab import LIMIT, RunningService, ServiceLab, gone, until
from tests.vm.waiting import wait_until
from tests.vm.workers import WorkerProcess, context_workers

__all__ = ["LIMIT", "OPTIONS", "DeviceLab", "assert_draws", "assert_is_triangle", "gone", "rgb", "triangle", "until"]

SPARES = 1
OPTIONS = [f"--spares={SPARES}"]


class DeviceLab(ServiceLab):
    """A service for VMs, seen from outside. It must have been started with OPTIONS among its arguments."""

    def __init__(self, service: RunningService) -> None:
        super().__init__(service, SPARES)

    @contextmanager
    def vmm(self, **arguments: object) -> Iterator[FakeVmm]:
        """A VM that is connected and booted; disconnected at the end. Arguments as FakeVmm.connect's."""
        with FakeVmm.connect(self.service.socket_path, **arguments) as vmm:  # type: ignore[arg-type]
            yield vmm

    @contextmanager
    def guest(self) -> Iterator[FakeVmm]:
        """A VM; once it has left, the service goes on and holds what it held before."""
        before = self.wait_until_idle()
        with self.vmm() as vmm:
            yield vmm
        self.check_running()
        self.wait_for_footprint(before)

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
