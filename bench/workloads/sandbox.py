"""What the sandbox costs: the service as it is by default against `--sandbox=off`, on each of the ways that data goes.

The other workloads' own cases, some of each, so that a figure here can be found again there. The null engine shows the
worker's system calls (doorbells, and no more), virgl those of a driver, a new context the namespaces and the filter.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

from bench import vtest_servers
from bench.clients.programs import first_frame_ms, run_together
from bench.contenders import Contender, start_isorend
from bench.limits import percentiles
from bench.processes import placed, wait_for_spare
from bench.workload import Better, Measure, Settings, Step
from bench.workloads.contexts import time_first_fence
from bench.workloads.submit import nop_stream, outstanding, size_name
from tests.fake_vmm import Box, GpuCommand, ResourceDescription, commands
from tests.fake_vmm.scene_player import ScenePlayer
from tests.fake_vmm.virgl.many_draws import ManyDrawsScene

_OFF = "--sandbox=off"
_WARM_UP_S = 0.02
_SMALL, _LARGE = 64, 64 << 10
_FRAMES_IN_FLIGHT = 2
_CREATIONS, _QUICK_CREATIONS = 9, 1
_CLIENT_S, _QUICK_CLIENT_S = 2.0, 0.3
_STARTS, _QUICK_STARTS = 3, 1


@dataclass(frozen=True, slots=True)
class _Side:
    """One service of each kind, all with the same sandbox."""

    null: Contender
    virgl: Contender
    vtest: vtest_servers.Renderer

    @classmethod
    def start(cls, stack: ExitStack, *options: str) -> _Side:
        return cls(
            start_isorend(stack, "--engine=null", "--spares=1", *options),
            start_isorend(stack, "--spares=1", *options),
            vtest_servers.start_isorend(stack, "--spares=1", *options),
        )


class Sandbox:
    """Rates, latencies and starts, with and without."""

    name = "sandbox"
    summary = f"what the sandbox costs: as it is by default against {_OFF}"
    unit = "commands/s"
    better: Better = "higher"

    def open(self, settings: Settings, stack: ExitStack) -> Sequence[Step]:
        """Raises WorkloadUnavailable."""
        self._seconds = settings.sample_seconds
        self._quick = settings.quick
        self._sides = [_Side.start(stack, *options) for options in ([], [_OFF])]
        steps = [
            self._fence_step(),
            self._submit_step(_SMALL),
            self._submit_step(_LARGE),
            self._transfer_step(),
            self._draws_step(),
            *(self._client_step(scene) for scene in ("gears", "draws", "upload")),
            self._creation_step("null", lambda side: side.null),
            self._creation_step("virgl", lambda side: side.virgl),
            self._first_frame_step(),
        ]
        for side in self._sides:
            side.null.settle()
            side.virgl.settle()
        return steps

    def _step(
        self, case: str, value: Callable[[_Side], float], unit: str | None = None, better: Better | None = None
    ) -> Step:
        def measure(side: _Side) -> Measure:
            return lambda: {case: value(side)}

        ours, peer = map(measure, self._sides)
        return Step(case, ours, peer, _OFF, unit=unit, better=better)

    # --- the null engine: the data plane --------------------------------------------------------------------------

    def _fence_step(self) -> Step:
        case = f"null, fence of {size_name(_SMALL)}, one at a time, on one CPU, p50"
        contexts = self._contexts()

        def measure(side: _Side) -> Measure:
            def p50() -> Mapping[str, float]:
                command = commands.submit_3d(contexts[id(side)], nop_stream(_SMALL))
                with (
                    placed(side.null.processes(), True),
                    closing(side.null.driver([command], fenced=True)) as driver,
                ):
                    driver.batches(1, min(_WARM_UP_S, self._seconds))
                    times = driver.batches(1, self._seconds, latencies=True).latencies_us
                return {case: percentiles(times, [50])[0]}

            return p50

        ours, peer = map(measure, self._sides)
        return Step(case, ours, peer, _OFF, unit="µs", better="lower")

    def _submit_step(self, size: int) -> Step:
        contexts = self._contexts()

        def rate(side: _Side) -> float:
            command = commands.submit_3d(contexts[id(side)], nop_stream(size))
            return self._rate(side.null, [command] * outstanding(size))

        return self._step(f"null, SUBMIT_3D of {size_name(size)}", rate)

    def _contexts(self) -> dict[int, int]:
        return {id(side): side.null.vmm.gpu.create_context("bench").ctx_id for side in self._sides}

    def _rate(self, contender: Contender, sent: Sequence[GpuCommand]) -> float:
        with closing(contender.driver(sent, fenced=True)) as driver:
            driver.window(len(sent), min(_WARM_UP_S, self._seconds))
            return driver.window(len(sent), self._seconds).rate

    # --- virgl: a driver --------------------------------------------------------------------------------------------

    def _transfer_step(self) -> Step:
        sent = {}
        for side in self._sides:
            gpu = side.virgl.vmm.gpu
            context = gpu.create_context("bench-transfer")
            texture = gpu.create_resource_3d(ResourceDescription(128, 128), backing_size=_LARGE)
            context.attach(texture)
            sent[id(side)] = commands.transfer_to_host_3d(context.ctx_id, texture.resource_id, Box(128, 128))
        return self._step(
            "virgl, TRANSFER_TO_HOST_3D of 64 KiB", lambda side: self._rate(side.virgl, [sent[id(side)]] * 16)
        )

    def _draws_step(self) -> Step:
        players = {}
        for side in self._sides:
            player = ScenePlayer(side.virgl.vmm.gpu, ManyDrawsScene(200, "bench-draws", (256, 256)))
            side.virgl.vmm.gpu.wait(player.frame(0.0, 0)).check("the first frame")
            players[id(side)] = player

        def frames(side: _Side) -> float:
            player = players[id(side)]
            ctx_id = player.context.ctx_id
            sent = [commands.submit_3d(ctx_id, player.scene.frame(0.0, n)) for n in range(_FRAMES_IN_FLIGHT)]
            return self._rate(side.virgl, sent)

        return self._step("virgl, frames of 200 small draws", frames, "frames/s")

    def _client_step(self, scene: str) -> Step:
        seconds = _QUICK_CLIENT_S if self._quick else _CLIENT_S

        def frames(side: _Side) -> float:
            side.vtest.settle()
            return sum(report.rate for report in run_together(side.vtest, scene, seconds, 1))

        return self._step(f"vtest, {scene}, 1 client", frames, "frames/s")

    # --- starts -----------------------------------------------------------------------------------------------------

    def _creation_step(self, engine: str, of: Callable[[_Side], Contender]) -> Step:
        creations = _QUICK_CREATIONS if self._quick else _CREATIONS

        def time_ms(side: _Side) -> float:
            contender, times = of(side), []
            for _ in range(creations):
                wait_for_spare(contender.back_end.pid)
                times.append(time_first_fence(contender.vmm.gpu))
            contender.settle()
            return statistics.median(times) * 1000

        return self._step(f"{engine}, CTX_CREATE to first fence", time_ms, "ms", "lower")

    def _first_frame_step(self) -> Step:
        starts = _QUICK_STARTS if self._quick else _STARTS

        def time_ms(side: _Side) -> float:
            times = []
            for _ in range(starts):
                side.vtest.settle()
                times.append(first_frame_ms(side.vtest, "gears"))
            return statistics.mean(times)

        return self._step("vtest, gears, start to first frame", time_ms, "ms", "lower")


WORKLOAD = Sandbox()
