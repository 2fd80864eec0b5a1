"""Unmodified Mesa programs over vtest, one and several at a time, on isorend and on virgl_test_server."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from bench.clients.programs import ProgramFailed, first_frame_ms, run_together
from bench.clients.x_programs import XDisplay, check_installed, glmark2_rate, glxgears_rate
from bench.vtest_servers import (
    BARE,
    ONE_PROCESS_PEER,
    PEER,
    Renderer,
    start_bare,
    start_isorend,
    start_peer,
)
from bench.workload import Better, Measure, Settings, Step

CLIENT_SCENES = ("gears", "draws", "upload")
GLMARK2_SCENES = ("build:use-vbo=false", "build:use-vbo=true", "buffer")
CLIENT_COUNTS = (1, 2, 4, 8)
GLMARK2_COUNTS = (1, 4)
ONE_PROCESS_COUNT = 4
_SECONDS, _QUICK_SECONDS = 3.0, 0.4

Rate = Callable[[Renderer], float]
"""Frames a second on a renderer, of all programs of a case together."""


@dataclass(frozen=True, slots=True)
class Case:
    """Some programs at once: so many of `scene`."""

    scene: str
    count: int
    rate: Rate

    @property
    def name(self) -> str:
        return f"{self.scene}, {self.count} client{'s' if self.count > 1 else ''}"


@dataclass(slots=True)
class Round:
    """Rates of the latest round by (side, case name), of which the summaries are made."""

    rates: dict[tuple[str, str], float] = field(default_factory=dict)

    def note(self, side: str, case: str, rate: Rate, renderer: Renderer) -> Measure:
        """A measurement that is kept here as well."""

        def measure() -> Mapping[str, float]:
            renderer.settle()
            value = self.rates[side, case] = rate(renderer)
            return {case: value}

        return measure

    def mean(self, side: str, name: str, cases: Iterable[Case]) -> Measure:
        """The geometric mean of these cases."""
        names = [case.name for case in cases]
        return lambda: {name: math.exp(math.fsum(math.log(self.rates[side, case]) for case in names) / len(names))}


class ClientsWorkload:
    """Rates of real clients. `ours` is measured anew for each peer, so that the two lie next to each other in time."""

    name = "clients"
    summary = "GL programs over vtest, 1 to 8 at once, against virgl_test_server (forking, and as one process)"
    unit = "frames/s"
    better: Better = "higher"

    def open(self, settings: Settings, stack: ExitStack) -> Sequence[Step]:
        """Raises WorkloadUnavailable."""
        check_installed()
        seconds = _QUICK_SECONDS if settings.quick else _SECONDS
        renderers = [start_isorend(stack), start_peer(stack), start_bare(stack)]
        displays = {id(renderer): XDisplay.start(stack, renderer) for renderer in renderers}
        cases = [*_client_cases(seconds), *_x_cases(seconds, displays)]
        return [*_fork_steps(cases, *renderers), *_one_process_steps(seconds, renderers[0])]


def _client_cases(seconds: float, counts: Iterable[int] = CLIENT_COUNTS) -> list[Case]:
    def rate(scene: str, count: int) -> Rate:
        return lambda renderer: sum(report.rate for report in run_together(renderer, scene, seconds, count))

    return [Case(scene, count, rate(scene, count)) for scene in CLIENT_SCENES for count in counts]


def _x_cases(seconds: float, displays: Mapping[int, XDisplay]) -> list[Case]:
    def glmark2(scene: str, count: int) -> Rate:
        return lambda renderer: glmark2_rate(displays[id(renderer)], scene, seconds, count)

    return [
        *(
            Case(f"glmark2 {scene}", count, glmark2(scene, count))
            for scene in GLMARK2_SCENES
            for count in GLMARK2_COUNTS
        ),
        Case("glxgears", 1, lambda renderer: glxgears_rate(displays[id(renderer)])),
    ]


def _fork_steps(cases: Sequence[Case], ours: Renderer, peer: Renderer, bare: Renderer) -> list[Step]:
    """Every case against the forking server, then what they come to."""
    latest = Round()
    steps = [
        Step(
            case.name,
            ours=latest.note("ours", case.name, case.rate, ours),
            peer=latest.note("peer", case.name, case.rate, peer),
            peer_name=PEER,
            limit=latest.note("limit", case.name, case.rate, bare),
            limit_name=BARE,
        )
        for case in cases
    ]
    for count in (1, 4):
        some = [case for case in cases if case.count == count]
        steps.append(_mean_step(latest, some, count, PEER))
    return steps


def _one_process_steps(seconds: float, ours: Renderer) -> list[Step]:
    """Identical clients that start together against one process for all of them; none if that serves no client here.

    In that mode virgl_test_server wants version 3 of the protocol. Mesa speaks it from 25.0 on, and to a virglrenderer
    only that can use a resource id again, which Debian 12's 0.10.4 and Debian 13's 1.1.0 cannot.
    """
    if not _one_process_serves():
        print(f"bench: {WORKLOAD.name}: {ONE_PROCESS_PEER}, refuses this Mesa's clients: left out", file=sys.stderr)
        return []
    latest = Round()
    cases = _client_cases(seconds, [ONE_PROCESS_COUNT])
    steps = [
        Step(
            f"{case.name}, one process",
            ours=latest.note("ours", case.name, case.rate, ours),
            peer=_on_new_process(latest, case),
            peer_name=ONE_PROCESS_PEER,
        )
        for case in cases
    ]
    return [*steps, _mean_step(latest, cases, ONE_PROCESS_COUNT, ONE_PROCESS_PEER)]


def _one_process_serves() -> bool:
    """Whether a client draws a frame there."""
    with ExitStack() as stack:
        try:
            first_frame_ms(start_peer(stack, one_process=True), CLIENT_SCENES[0])
        except ProgramFailed:
            return False
        return True


def _on_new_process(latest: Round, case: Case) -> Measure:
    """A server for each sample: one that served before loses clients more easily. Raises ProgramFailed."""

    def measure() -> Mapping[str, float]:
        with ExitStack() as stack:
            return latest.note("peer", case.name, case.rate, start_peer(stack, one_process=True))()

    return measure


def _mean_step(latest: Round, cases: Sequence[Case], count: int, peer_name: str) -> Step:
    name = f"all of {count} client{'s' if count > 1 else ''}, geometric mean"
    return Step(
        f"{name}, {peer_name}",
        ours=latest.mean("ours", name, cases),
        peer=latest.mean("peer", name, cases),
        peer_name=peer_name,
    )


WORKLOAD = ClientsWorkload()
