"""What a heavy program does to a light one beside it: the light one's frame times, alone and with the neighbour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from bench.clients.programs import Client, Report
from bench.vtest_servers import BARE, PEER, Renderer, start_bare, start_isorend, start_peer
from bench.workload import Better, Measure, Settings, Step

LIGHT_HZ = 60
_SECONDS, _QUICK_SECONDS = 5.0, 0.5
_HEAVY_WARM_UP_FRAMES = 1
# The heavy client draws until it is ended; this is longer than any sample.
_HEAVY_SECONDS = 600.0


class NeighboursWorkload:
    """A paced client beside one whose every frame takes long. A frame's time counts from when it was due."""

    name = "neighbours"
    summary = "a light 60 Hz client's frame times, alone and beside a heavy one, against virgl_test_server (forking)"
    unit = "ms"
    better: Better = "lower"

    def open(self, settings: Settings, stack: ExitStack) -> Sequence[Step]:
        """Raises WorkloadUnavailable."""
        seconds = _QUICK_SECONDS if settings.quick else _SECONDS
        ours, peer, bare = start_isorend(stack), start_peer(stack), start_bare(stack)
        return [
            Step(
                "beside a heavy client" if beside else "alone",
                ours=_measure(ours, seconds, beside),
                peer=_measure(peer, seconds, beside),
                peer_name=PEER,
                limit=_measure(bare, seconds, beside),
                limit_name=BARE,
            )
            for beside in (False, True)
        ]


def _measure(renderer: Renderer, seconds: float, beside: bool) -> Measure:
    def measure() -> Mapping[str, float]:
        renderer.settle()
        if not beside:
            return _rows(light_report(renderer, seconds), "alone")
        with Client(renderer, "heavy", _HEAVY_SECONDS, warm_up=_HEAVY_WARM_UP_FRAMES) as heavy:
            heavy.wait_ready()
            return _rows(light_report(renderer, seconds, heavy), "beside a heavy one")

    return measure


def light_report(renderer: Renderer, seconds: float, heavy: Client | None = None) -> Report:
    """The light client's frames over `seconds`; `heavy` is let go just before. Raises ProgramFailed."""
    with Client(renderer, "light", seconds, f"--pace={LIGHT_HZ}") as light:
        light.wait_ready()
        renderer.settle()
        if heavy is not None:
            heavy.go()
        light.go()
        return light.report()


def _rows(report: Report, where: str) -> Mapping[str, float]:
    return {f"light client {where}, p50": report.p50_us / 1000, f"light client {where}, p99": report.p99_us / 1000}


WORKLOAD = NeighboursWorkload()
