"""How long a program takes from its start to its first frame over vtest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from tempfile import TemporaryDirectory

from bench.clients.programs import first_frame_ms
from bench.vtest_servers import BARE, PEER, Renderer, start_bare, start_isorend, start_peer
from bench.workload import Better, Measure, Settings, Step

SCENES = ("gears", "light")
_STARTS, _QUICK_STARTS = 3, 1


class FirstFrameWorkload:
    """Each start meets a server that is done with what it owes to the program before it: a spare worker is ready.

    What a first frame costs is compiling shaders, unless somebody kept them. virgl_test_server's processes share Mesa's
    cache; isorend's workers do with --shader-cache alone. So there are three comparisons: both with a cache that
    outlives programs, neither with one, and each as it is by default.
    """

    name = "first-frame"
    summary = "a GL program's start to its first frame over vtest, against virgl_test_server"
    unit = "ms"
    better: Better = "lower"

    def open(self, settings: Settings, stack: ExitStack) -> Sequence[Step]:
        """Raises WorkloadUnavailable."""
        starts = _QUICK_STARTS if settings.quick else _STARTS
        cache = stack.enter_context(TemporaryDirectory(prefix="isorend-bench-shaders-"))
        sharing, isolated = start_isorend(stack, f"--shader-cache={cache}"), start_isorend(stack)
        keeping, forgetful = start_peer(stack), start_peer(stack, shader_cache=False)
        bare = start_bare(stack)
        for renderer in (sharing, isolated, keeping, forgetful, bare):
            for scene in SCENES:
                first_frame_ms(renderer, scene)  # libraries are in the page cache then, shaders in Mesa's
        comparisons = (
            ("shaders kept by both", sharing, keeping),
            ("shaders kept by neither", isolated, forgetful),
            ("defaults", isolated, keeping),
        )
        return [
            Step(
                f"{scene}, {how}",
                ours=_measure(ours, scene, how, starts),
                peer=_measure(peer, scene, how, starts),
                peer_name=PEER,
                limit=_measure(bare, scene, how, starts),
                limit_name=BARE,
            )
            for scene in SCENES
            for how, ours, peer in comparisons
        ]


def _measure(renderer: Renderer, scene: str, how: str, starts: int) -> Measure:
    """The mean of some starts."""

    def measure() -> Mapping[str, float]:
        times = []
        for _ in range(starts):
            renderer.settle()
            times.append(first_frame_ms(renderer, scene))
        return {f"{scene}, start to first frame, {how}": sum(times) / len(times)}

    return measure


WORKLOAD = FirstFrameWorkload()
