"""The resource models: (C), a process for every context, against (A), one process for all of them (`--share-worker`).

(A) is there for this comparison. Both are the same service and engine, draw the same, and keep one spare worker.
"""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing

from bench.contenders import Contender, isorend_command, start_isorend
from bench.processes import MIB, total_pss, wait_until
from bench.workload import Better, Measure, Settings, Step, WorkloadUnavailable
from bench.workloads.contexts import time_first_fence
from bench.workloads.submit import contexts_named
from tests.fake_vmm import commands
from tests.fake_vmm.scene_player import ScenePlayer
from tests.fake_vmm.virgl.many_draws import ManyDrawsScene
from tests.fake_vmm.virgl.scene import Scene
from tests.fake_vmm.virgl.triangle import TriangleScene

_SHARED = "(A) one process for all contexts (--share-worker)"
_OPTION = "--share-worker"
_CONTEXTS = (1, 2, 4, 8)
_FRAMES_IN_FLIGHT = 2
_CREATIONS, _QUICK_CREATIONS = 5, 1
_SETTLED = 0.01
_SETTLE_S = 0.2

_SCENES: dict[str, Callable[[str], Scene]] = {
    "200 small draws": lambda name: ManyDrawsScene(200, name, (256, 256)),
    "one triangle of 640x480": lambda name: TriangleScene(name, (640, 480)),
}


class _Side:
    """One model's service, and the contexts that draw on it."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self._players: list[ScenePlayer] = []
        self._scene = ""

    def play(self, scene: str, count: int) -> list[ScenePlayer]:
        """Exactly `count` contexts, all of this scene, and nothing else at work."""
        if (scene, count) == (self._scene, len(self._players)):
            return self._players
        keep = count if scene == self._scene else 0
        while len(self._players) > keep:
            self._players.pop().destroy()
        self._scene = scene
        while len(self._players) < count:
            player = ScenePlayer(self.contender.vmm.gpu, _SCENES[scene](f"bench-{len(self._players)}"))
            self.contender.vmm.gpu.wait(player.frame(0.0, 0)).check("the first frame")
            self._players.append(player)
        self.contender.settle()
        return self._players

    def frames_a_second(self, scene: str, count: int, seconds: float) -> float:
        """All contexts together."""
        players = self.play(scene, count)
        frames = [
            commands.submit_3d(player.context.ctx_id, player.scene.frame(0.0, number))
            for number in range(_FRAMES_IN_FLIGHT)
            for player in players
        ]
        with closing(self.contender.driver(frames, fenced=True)) as driver:
            driver.window(len(frames), seconds / 5)
            return driver.window(len(frames), seconds).rate

    def memory(self, scene: str, count: int) -> float:
        """PSS of all of the service's processes, in MiB, once it changes no more."""
        self.play(scene, count)
        before = 0

        def settled() -> bool:
            nonlocal before
            last, before = before, total_pss(self.contender.back_end.pid)
            return abs(before - last) < _SETTLED * before

        wait_until(settled, "memory use to settle", every=_SETTLE_S)
        return before / MIB


class Models:
    """Frames a second of all contexts together, their creation, and memory."""

    name = "models"
    summary = "a process for every context (C) against one process for all (A): 1 to 8 contexts draw"
    unit = "frames/s"
    better: Better = "higher"

    def open(self, settings: Settings, stack: ExitStack) -> Sequence[Step]:
        _check_option()
        self._seconds = settings.sample_seconds
        self._creations = _QUICK_CREATIONS if settings.quick else _CREATIONS
        sides = [_Side(start_isorend(stack, "--spares=1", *more)) for more in ([], [_OPTION])]
        steps = [self._creation_step(sides)]
        for scene in _SCENES:
            for count in _CONTEXTS:
                steps.append(self._frames_step(f"{contexts_named(count)}, {scene}", scene, count, sides))
                if scene == next(iter(_SCENES)):
                    steps.append(
                        self._memory_step(f"{contexts_named(count)}: memory of all processes", scene, count, sides)
                    )
        return steps

    def _creation_step(self, sides: Sequence[_Side]) -> Step:
        """Of a second context: a process that all share is there already."""
        case = "CTX_CREATE to first fence, beside a context that is there"

        def creation(side: _Side) -> Measure:
            def measure() -> Mapping[str, float]:
                side.play(next(iter(_SCENES)), 1)
                times = []
                for _ in range(self._creations):
                    times.append(time_first_fence(side.contender.vmm.gpu))
                    side.contender.settle()
                return {case: statistics.median(times) * 1000}

            return measure

        ours, shared = map(creation, sides)
        return Step(case, ours, shared, _SHARED, unit="ms", better="lower")

    def _frames_step(self, case: str, scene: str, count: int, sides: Sequence[_Side]) -> Step:
        def frames(side: _Side) -> Measure:
            return lambda: {case: side.frames_a_second(scene, count, self._seconds)}

        ours, shared = map(frames, sides)
        return Step(case, ours, shared, _SHARED)

    def _memory_step(self, case: str, scene: str, count: int, sides: Sequence[_Side]) -> Step:
        def memory(side: _Side) -> Measure:
            return lambda: {case: side.memory(scene, count)}

        ours, shared = map(memory, sides)
        return Step(case, ours, shared, _SHARED, unit="MiB", better="lower")


def _check_option() -> None:
    """Raises WorkloadUnavailable if the service has no shared worker."""
    told = subprocess.run(isorend_command("serve", "--help"), capture_output=True, text=True, check=True).stdout
    if _OPTION not in told:
        raise WorkloadUnavailable(f"this isorend has no {_OPTION}: there is no model (A) to compare with")


WORKLOAD = Models()
