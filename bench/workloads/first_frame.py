"""How long a program takes from its start to its first frame over vtest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from bench.clients.programs import first_frame_ms
from bench.vtest_servers import BARE, PEER, Renderer, start_bare, start_isorend, start_peer
from bench.workload import Better, Measure, Settings, Step

SCENES = ("gears", "light")
_STARTS, _QUICK_STARTS = 3, 1


class FirstFrameWorkload:
    """Each start meets a server that is done with what it owes to the program before it: a spare worker is ready."""

    name = "first-frame"
    summary = "a GL program's start to its first frame over vtest, against virgl_test_server"
    unit = "ms"
    better: Better = "lower"

    def open(self, settings: Settings, stack: ExitStack) -> Sequence[Step]:
        """Raises WorkloadUnavailable."""
        starts = _QUICK_STARTS if settings.quick else _STARTS
        ours, peer, bare = start_isorend(stack), start_peer(stack), start_bare(stack)
        for renderer in (ours, peer, bare):
            for scene in SCENES:
                first_frame_ms(renderer, scene)  # libraries are in the page cache then, shaders in Mesa's
        return [
            Step(
                scene,
                ours=_measure(ours, scene, starts),
                peer=_measure(peer, scene, starts),
                peer_name=PEER,
                limit=_measure(bare, scene, starts),
                limit_name=BARE,
            )
            for scene in SCENES
        ]


def _measure(renderer: Renderer, scene: str, starts: int) -> Measure:
    """The mean of some starts."""

    def measure() -> Mapping[str, float]:
        times = []
        for _ in range(starts):
            renderer.settle()
            times.append(first_frame_ms(renderer, scene))
        return {f"{scene}, start to first frame": sum(times) / len(times)}

    return measure


WORKLOAD = FirstFrameWorkload()
