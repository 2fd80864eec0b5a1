"""`python -m tests.piglit` (`make piglit`): piglit's results through isorend against those through virgl_test_server.

Exit code: 0 when both give the same results but for flaky tests, which are named; 1 when they do not, or when it cannot
be run here; 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.vtest_servers import Renderer, start_isorend, start_peer
from bench.workload import WorkloadUnavailable
from tests.piglit.compare import Comparison
from tests.piglit.run import Chosen, Patterns, Run, RunFailed, renderer_of, run_piglit
from tests.piglit.selection import EXCLUDED, QUICK_TESTS, TESTS
from tests.vm.debian_root import LabError
from tests.vm.debian_tree import DebianTree
from tests.vm.recipe import PIGLIT_ROOT

_OUT = Path("build") / "piglit"
_REPEATS, _MAX_REPEATS = 4, 100


@dataclass(frozen=True)
class Sides:
    """The two servers, both on the host."""

    ours: Renderer
    theirs: Renderer

    def run(self, tree: DebianTree, out: Path, chosen: Chosen) -> tuple[Run, Run]:
        """The same tests on one after the other."""
        ours = run_piglit(tree, self.ours, out / "ours", chosen)
        return ours, run_piglit(tree, self.theirs, out / "theirs", chosen)


def compare(tree: DebianTree, sides: Sides, out: Path, chosen: Chosen, repeats: int, console: Console) -> bool:
    """Whether both sides agree but for flaky tests. Raises RunFailed."""
    for side, server in (("ours", sides.ours), ("theirs", sides.theirs)):
        console.print(f"{side}: {server.name}, {renderer_of(tree, server)}", soft_wrap=True, highlight=False)
    console.print(f"piglit's results: {out}", soft_wrap=True, highlight=False)
    ours, theirs = sides.run(tree, out / "first", chosen)
    comparison = Comparison(ours.results, theirs.results)
    _print_counts(console, comparison, ours, theirs)
    repeated = comparison.tests_to_repeat()
    for number in range(1, repeats + 1 if repeated else 1):
        console.print(f"again, {number} of {repeats}: {len(repeated)} tests that differed")
        more_ours, more_theirs = sides.run(tree, out / f"again-{number}", repeated)
        comparison.add_runs(more_ours.results, more_theirs.results)
    for line in comparison.report():
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    disagreements = comparison.disagreements()
    different = sum(not disagreement.flaky for disagreement in disagreements)
    console.print(
        f"{len(comparison.ours)} results of {len({test for test, _ in comparison.ours})} tests: "
        f"{different} different, {len(disagreements) - different} flaky"
    )
    return different == 0


def _print_counts(console: Console, comparison: Comparison, ours: Run, theirs: Run) -> None:
    table = Table("result", title="tests and subtests")
    for side in ("ours", "theirs"):
        table.add_column(side, justify="right")
    for result, mine, other in comparison.counts():
        table.add_row(result, str(mine), str(other))
    table.add_row("seconds", f"{ours.seconds:.0f}", f"{theirs.seconds:.0f}")
    console.print(table)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        """One line instead of argparse's usage and error."""
        self.exit(2, f"piglit: {message}\n")


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as reason:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {reason}") from None
    return text


def _repeats(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > _MAX_REPEATS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {_MAX_REPEATS}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m tests.piglit", description=__doc__, allow_abbrev=False)
    parser.add_argument("tests", metavar="REGEX", nargs="*", type=_regex, help="tests to run instead of the usual ones")
    parser.add_argument("--quick", action="store_true", help="a small part of the usual tests")
    parser.add_argument(
        "--repeat",
        metavar="N",
        type=_repeats,
        default=_REPEATS,
        help=f"how often a difference is tried again ({_REPEATS})",
    )
    parser.add_argument(
        "--control", action="store_true", help="virgl_test_server on both sides: what differs then is chance"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=_OUT, help=f"where piglit's results go ({_OUT})")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    args = _parser().parse_args(arguments)
    tests = args.tests or (QUICK_TESTS if args.quick else TESTS)
    chosen = Patterns(tests, EXCLUDED)
    tree = DebianTree.of(PIGLIT_ROOT)
    try:
        tree.build()
        with ExitStack() as stack:
            sides = Sides(start_peer(stack) if args.control else start_isorend(stack), start_peer(stack))
            return 0 if compare(tree, sides, args.out.absolute(), chosen, args.repeat, Console()) else 1
    except (LabError, RunFailed, WorkloadUnavailable) as reason:
        print(f"piglit: {reason}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
