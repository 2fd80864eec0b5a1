"""From CTX_CREATE to a context's first fence, on a warm spare worker and on one that is only then started; and memory.

The ratio of the first rows is warm over cold: the peer is the same service with `--spares 0`. Real clients' starts are
measured over vtest (first_frame.py). All memory is what the
kernel counts as PSS (a page that several processes share is divided among them), unless the case says otherwise.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from bench.contenders import Contender, start_isorend
from bench.processes import MIB, Memory, spares, wait_for_spare
from bench.workload import Better, Measure, Settings, Step
from bench.workloads.first_frame import WORKLOAD as FIRST_FRAME
from bench.workloads.submit import nop_stream
from tests.fake_vmm import Gpu, commands
from tests.fake_vmm.scene_player import ScenePlayer
from tests.fake_vmm.virgl.triangle import TriangleScene
from tests.vm.workers import context_workers

_COLD = "a cold worker (--spares 0)"
_ENGINES = ("virgl", "null")
_CREATIONS, _QUICK_CREATIONS = 5, 1
_STREAM_BYTES = 64


def time_first_fence(gpu: Gpu) -> float:
    """Seconds from the kick of CTX_CREATE and a fenced SUBMIT_3D behind it to the fence. Destroys the context."""
    ctx_id = gpu.new_context_id()
    started = time.perf_counter_ns()
    with gpu.batch():
        created = gpu.submit(commands.ctx_create(ctx_id, "bench"))
        drawn = gpu.submit(commands.submit_3d(ctx_id, nop_stream(_STREAM_BYTES)), fenced=True)
    gpu.wait(drawn).check("SUBMIT_3D")
    gpu.wait(created).check("CTX_CREATE")
    gpu.ctx_destroy(ctx_id).check("CTX_DESTROY")
    return (drawn.completed_at - started) / 1e9


class Contexts:
    """Creation, warm and cold, and what a worker costs."""

    name = "contexts"
    summary = "CTX_CREATE to first fence, warm and cold; a worker's memory; a GL program's start to first frame"
    unit = "ms"
    better: Better = "lower"

    def open(self, settings: Settings, stack: ExitStack) -> Sequence[Step]:
        self._creations = _QUICK_CREATIONS if settings.quick else _CREATIONS
        steps = []
        warm: dict[str, Contender] = {}
        for engine in _ENGINES:
            warm[engine] = start_isorend(stack, f"--engine={engine}", "--spares=1")
            cold = start_isorend(stack, f"--engine={engine}", "--spares=0")
            # The service asks its first worker what there is and uses it for the first context: that one is warm.
            cold.vmm.gpu.create_context("not measured")
            steps.append(self._step(f"{engine}, CTX_CREATE to first fence", warm[engine], cold))
        return [*steps, self._memory_step(warm), *FIRST_FRAME.open(settings, stack)]

    def _step(self, case: str, warm: Contender, cold: Contender) -> Step:
        return Step(case, self._creation(case, warm, wait=True), self._creation(case, cold, wait=False), _COLD)

    def _creation(self, case: str, side: Contender, *, wait: bool) -> Measure:
        def measure() -> Mapping[str, float]:
            times = []
            for _ in range(self._creations):
                if wait:
                    wait_for_spare(side.back_end.pid)
                times.append(time_first_fence(side.vmm.gpu))
            side.settle()  # the other side is measured next, and not beside the start of a new spare
            return {case: statistics.median(times) * 1000}

        return measure

    def _memory_step(self, sides: Mapping[str, Contender]) -> Step:
        virgl = sides["virgl"]
        player = ScenePlayer(virgl.vmm.gpu, TriangleScene("bench"))
        virgl.vmm.gpu.wait(player.frame(0.0, 0)).check("the first frame")
        null = sides["null"].vmm.gpu.create_context("bench")

        def measure() -> Mapping[str, float]:
            wait_for_spare(virgl.back_end.pid)
            drawing = _worker_memory(virgl, player.context.ctx_id)
            found = {
                "virgl worker, one triangle drawn": drawing.pss,
                "virgl worker, one triangle drawn: private and dirty": drawing.private_dirty,
                "virgl spare": Memory.of(spares(virgl.back_end.pid)[0].pid).pss,
                "null worker": _worker_memory(sides["null"], null.ctx_id).pss,
                "master": Memory.of(virgl.back_end.pid).pss,
            }
            return {case: size / MIB for case, size in found.items()}

        return Step("memory", measure, unit="MiB")


def _worker_memory(side: Contender, ctx_id: int) -> Memory:
    worker = next(each for each in context_workers(side.back_end.pid) if each.ctx_id == ctx_id)
    return Memory.of(worker.pid)


WORKLOAD = Contexts()
