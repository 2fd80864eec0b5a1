"""What a workload is: steps that are measured on isorend and on its peer in turn, round by round.

A workload lives in bench/workloads/NAME.py (dashes of its name as underscores) and is the module's `WORKLOAD`. It opens
once: servers of both sides start and stay, idle while the other side is measured. The runner then calls its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

Better = Literal["higher", "lower"]
Measure = Callable[[], Mapping[str, float]]
"""Takes one sample: the value of every case, by the case's name. A warm-up is its own affair."""

_SAMPLE_S, _QUICK_SAMPLE_S = 0.5, 0.05


class WorkloadUnavailable(Exception):
    """A workload cannot run here, because a program or an option is missing; the message is one line for a person."""


@dataclass(frozen=True, slots=True)
class Settings:
    """rounds: how many samples of every case. quick: samples too short to mean anything, to see that all works.

    out: the directory for results.
    """

    rounds: int
    quick: bool
    out: Path

    @property
    def sample_seconds(self) -> float:
        """About how long one sample of one case should take."""
        return _QUICK_SAMPLE_S if self.quick else _SAMPLE_S


@dataclass(frozen=True, slots=True)
class Step:
    """Cases that are measured together: on isorend, on the peer, and as far as this machine goes (the limit).

    Each of `ours`, `peer` and `limit` gives one value per case; the latter two may leave cases out. `unit` and `better`
    are those of these cases where they are not the workload's. Two steps may share a case if their peers differ.
    """

    name: str
    ours: Measure
    peer: Measure | None = None
    peer_name: str = ""
    limit: Measure | None = None
    limit_name: str = ""
    unit: str | None = None
    better: Better | None = None


class Workload(Protocol):
    """name: as on the command line. summary: a line for --list. unit, better: where a step has none of its own."""

    name: str
    summary: str
    unit: str
    better: Better

    def open(self, settings: Settings, stack: ExitStack) -> Sequence[Step]:
        """Start what is to be measured, its end registered on `stack`. Raises WorkloadUnavailable."""
        ...
