"""Guest programs draw at a steady pace, and one's worker gets SIGKILL in the middle of a submit, as in the demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from rich.console import Console

from bench.demo.accident import Accident
from bench.demo.performance import Performance
from bench.demo.program import Program
from bench.demo.progress import Progress
from bench.demo.service import DemoService
from bench.workload import Better, Settings, Step
from tests.fake_vmm import FakeVmm
from tests.fake_vmm.virgl.many_draws import ManyDrawsScene

_PROGRAMS = 4
_DRAWS = 50
_SIZE = (256, 256)
_SECONDS, _QUICK_SECONDS = 4.0, 1.0
_BEFORE_NS = 500_000_000


class Crash:
    """Each sample is a service of its own, with a crash in the middle."""

    name = "crash"
    summary = f"{_PROGRAMS} contexts draw, one worker is killed: the others' frames, the dead one's last fence"
    unit = "ms"
    better: Better = "lower"

    def open(self, settings: Settings, stack: ExitStack) -> Sequence[Step]:
        self._seconds = _QUICK_SECONDS if settings.quick else _SECONDS
        self._frames: Mapping[str, float] = {}
        return [
            Step("the kill", self._crash),
            Step("frames of that run", lambda: self._frames, unit="frames"),
        ]

    def _crash(self) -> Mapping[str, float]:
        with DemoService() as service, FakeVmm.connect(service.socket_path) as vmm:
            scenes = [ManyDrawsScene(_DRAWS, f"bench-{number}", _SIZE) for number in range(_PROGRAMS)]
            programs = [Program(vmm.gpu, scene) for scene in scenes]
            for program in programs:
                program.pid = service.worker(program.ctx_id).pid
            victim, *others = programs
            accident = Accident(service, vmm.gpu, victim, lambda _: None)
            with Progress(Console(quiet=True), programs, self._seconds) as progress:
                performance = Performance(vmm, programs, accident, self._seconds, progress)
                performance.run()
        killed_at = accident.killed_at_ns
        lost = sum(program.submitted - program.frames for program in others)
        self._frames = {f"frames lost by {len(others)} others": lost}
        return {
            "fence of the killed worker's submit, after the kill": performance.killed.fence_retired_ms,
            "the others' longest gap between frames around the kill": performance.others_longest_pause_ms(),
            "the others' longest gap between frames before it": max(
                program.longest_pause_ms(killed_at - 2 * _BEFORE_NS, killed_at - _BEFORE_NS) for program in others
            ),
        }


WORKLOAD = Crash()
