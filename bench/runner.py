"""Runs a workload: A B, B A, A B ... for some rounds, so that what changes meanwhile meets both sides."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from bench.workload import Better, Settings, Step, Workload

Announce = Callable[[str], None]


@dataclass(slots=True)
class Row:
    """One case's samples, a value per round. `peer` is empty without a peer; `limits` without a known limit."""

    case: str
    unit: str
    better: Better
    peer_name: str
    limit_name: str
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """ours / peer of every round, whichever is better; a round whose peer was 0 has none."""
        return [ours / peer for ours, peer in zip(self.ours, self.peer, strict=False) if peer]

    @property
    def limit(self) -> float | None:
        """The limit's median."""
        return statistics.median(self.limits) if self.limits else None

    def as_json(self, unit: str, better: Better) -> dict[str, Any]:
        """Its entry under "rows" of a workload's results; unit and better only where they are not the workload's."""
        ratios = self.ratios
        own = {"unit": self.unit} if self.unit != unit else {}
        return {
            "case": self.case,
            "ours": self.ours,
            "peer": self.peer,
            "peer_name": self.peer_name,
            "ratio_median": statistics.median(ratios) if ratios else None,
            "ratio_min": min(ratios, default=None),
            "ratio_max": max(ratios, default=None),
            "limit": self.limit,
            "limit_name": self.limit_name,
            **own,
            **({"better": self.better} if self.better != better else {}),
        }


@dataclass(frozen=True, slots=True)
class Results:
    """All rows of a workload, in the order of its steps."""

    workload: str
    summary: str
    unit: str
    better: Better
    rows: Sequence[Row]

    def by_unit(self) -> list[list[Row]]:
        """The rows in groups of one unit and direction, in the order of the groups' first rows."""
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.unit, row.better), []).append(row)
        return list(groups.values())

    def as_json(self) -> dict[str, Any]:
        """What bench/results/NAME.json holds."""
        return {
            "workload": self.workload,
            "unit": self.unit,
            "better": self.better,
            "rows": [row.as_json(self.unit, self.better) for row in self.rows],
        }


def run(workload: Workload, settings: Settings, announce: Announce = lambda _: None) -> Results:
    """Open, measure all rounds, close. announce: told what happens now. Raises WorkloadUnavailable."""
    table = _Rows(workload)
    with ExitStack() as stack:
        announce(f"{workload.name}: starting")
        steps = workload.open(settings, stack)
        for number in range(settings.rounds):
            for step in steps:
                for side, values in _sample(step, swapped=number % 2 == 1, say=_saying(announce, workload, number)):
                    table.add(step, side, values)
    return Results(workload.name, workload.summary, workload.unit, workload.better, table.rows)


def _saying(announce: Announce, workload: Workload, number: int) -> Announce:
    return lambda what: announce(f"{workload.name}: round {number + 1}: {what}")


def _sample(step: Step, *, swapped: bool, say: Announce) -> Iterator[tuple[str, Mapping[str, float]]]:
    """One sample of each side, ours first unless `swapped`, and of the limit."""
    sides = [("ours", step.ours), ("peer", step.peer)]
    for side, measure in [*(reversed(sides) if swapped else sides), ("limits", step.limit)]:
        if measure is not None:
            say(f"{step.name}, {side}")
            yield side, measure()


class _Rows:
    """Rows as their values come in; a row is known by its case and its peer."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._rows: dict[tuple[str, str], tuple[Step, Row]] = {}

    def add(self, step: Step, side: str, values: Mapping[str, float]) -> None:
        """Raises ValueError if another step has the same case and peer."""
        for case, value in values.items():
            owner, row = self._rows.setdefault((case, step.peer_name), (step, self._new_row(step, case)))
            if owner is not step:
                raise ValueError(f"{self._workload.name}: steps {owner.name!r} and {step.name!r} share case {case!r}")
            getattr(row, side).append(float(value))

    def _new_row(self, step: Step, case: str) -> Row:
        unit, better = step.unit or self._workload.unit, step.better or self._workload.better
        return Row(case, unit, better, step.peer_name if step.peer else "", step.limit_name if step.limit else "")

    @property
    def rows(self) -> list[Row]:
        """In the order of their first values. Raises ValueError for cases that the peer or the limit alone has."""
        rows = [row for _, row in self._rows.values()]
        for row in rows:
            if not row.ours:
                raise ValueError(f"{self._workload.name}: nothing of ours for case {row.case!r}")
            row.peer_name = row.peer_name if row.peer else ""
            row.limit_name = row.limit_name if row.limits else ""
        return rows
