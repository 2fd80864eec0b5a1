"""Comparing what two sides answered to the same tests, several times where they did not agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

Case = tuple[str, str]
"""A test's name and a subtest's, which is empty for the test itself."""
Results = Mapping[Case, str]
"""One run: pass, fail, skip, crash, timeout ..., by case."""

MISSING = "missing"
_SHOWN_CASES = 5


@dataclass(frozen=True)
class Disagreement:
    """A case that the sides answered differently in their first runs. ours, theirs: its results, run by run."""

    case: Case
    ours: Sequence[str]
    theirs: Sequence[str]

    @property
    def flaky(self) -> bool:
        """Whether there is a result that both sides have given: then chance decides, not the renderer."""
        return bool(set(self.ours) & set(self.theirs))

    def __str__(self) -> str:
        return f"{': '.join(filter(None, self.case))}: ours {_times(self.ours)}; theirs {_times(self.theirs)}"


@dataclass
class Comparison:
    """Runs of two sides: the first of everything, then any number of those tests that differ."""

    ours: Results
    theirs: Results
    _ours_again: list[Results] = field(default_factory=list)
    _theirs_again: list[Results] = field(default_factory=list)

    def add_runs(self, ours: Results, theirs: Results) -> None:
        """Another run of the tests that `tests_to_repeat` names."""
        self._ours_again.append(ours)
        self._theirs_again.append(theirs)

    def disagreements(self) -> list[Disagreement]:
        """Cases whose first results differ, those that a side lacks too, by name."""
        ours, theirs = [self.ours, *self._ours_again], [self.theirs, *self._theirs_again]
        return [
            Disagreement(case, _of(case, ours), _of(case, theirs))
            for case in sorted(self.ours.keys() | self.theirs.keys())
            if self.ours.get(case) != self.theirs.get(case)
        ]

    def tests_to_repeat(self) -> list[str]:
        """The tests (not subtests) to be run again, by name."""
        return sorted({disagreement.case[0] for disagreement in self.disagreements()})

    def report(self) -> list[str]:
        """A line for each disagreement; of a test's subtests, which may be thousands, only the first few."""
        lines = []
        for test, cases in groupby(self.disagreements(), lambda disagreement: disagreement.case[0]):
            shown, more = (group := list(cases))[:_SHOWN_CASES], group[_SHOWN_CASES:]
            lines += [f"{'flaky' if case.flaky else 'different'}: {case}" for case in shown]
            if more:
                lines.append(f"       and {len(more)} more subtests of {test}")
        return lines

    def counts(self) -> list[tuple[str, int, int]]:
        """(result, how often on our side, how often on theirs) of the first runs, the most frequent first."""
        ours, theirs = Counter(self.ours.values()), Counter(self.theirs.values())
        return [(result, ours[result], theirs[result]) for result, _ in (ours + theirs).most_common()]


def _of(case: Case, runs: Sequence[Results]) -> list[str]:
    return [run.get(case, MISSING) for run in runs]


def _times(results: Sequence[str]) -> str:
    return ", ".join(f"{result} {count}x" for result, count in Counter(results).most_common())
