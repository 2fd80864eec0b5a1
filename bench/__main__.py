"""`python -m bench` (`make bench`): measures isorend and its peers in turn; prints figures and judges nothing."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console

from bench import workloads
from bench.workload import Settings, WorkloadUnavailable

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130
_ROUNDS, _QUICK_ROUNDS, _MAX_ROUNDS = 5, 2, 1000
_RESULTS = Path(__file__).resolve().parent / "results"
_PLAIN_WIDTH = 180  # of a table that goes to a file or a pipe


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of argparse's usage and error."""
        self.exit(2, f"bench: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("names", metavar="NAME", nargs="*", help="workloads to run, all if none is named")
    parser.add_argument("--list", action="store_true", help="name the workloads and end")
    parser.add_argument("--rounds", metavar="N", type=_rounds, help=f"samples of each case (default {_ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="short samples, few rounds: figures mean nothing")
    parser.add_argument("--out", metavar="DIR", type=Path, default=_RESULTS, help="where results go (bench/results)")
    return parser


def _rounds(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= _MAX_ROUNDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {_MAX_ROUNDS}")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, 1 when a workload failed or cannot run here, 2 for a wrong command line, 130 when interrupted."""
    parser = _parser()
    args = parser.parse_args(arguments)
    unknown = [name for name in args.names if name not in workloads.NAMES]
    if unknown:
        parser.error(f"there is no workload {unknown[0]!r}; there are {', '.join(workloads.NAMES)}")
    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    if args.list:
        for name in workloads.NAMES:
            console.print(f"{name:15}{workloads.load(name).summary}", highlight=False)
        return 0
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        parser.error(f"argument --out: cannot write to {args.out}: {reason.strerror}")
    rounds = args.rounds or (_QUICK_ROUNDS if args.quick else _ROUNDS)
    settings = Settings(rounds=rounds, quick=args.quick, out=args.out)
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}"
    console.print(f"{machine}; rounds: {rounds}{', quick' * args.quick}", highlight=False)
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return max([_run(name, settings, console) for name in dict.fromkeys(args.names or workloads.NAMES)])
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM ends a run as Ctrl-C does, so that nothing it started stays behind."""
    raise KeyboardInterrupt


def _run(name: str, settings: Settings, console: Console) -> int:
    """One workload from start to its files; what goes wrong in it is told and does not keep the others from running."""
    from bench import report, runner

    try:
        with console.status(name) as status:
            results = runner.run(workloads.load(name), settings, status.update)
    except WorkloadUnavailable as reason:
        print(f"bench: {name}: {' '.join(str(reason).split())}", file=sys.stderr)
        return EXIT_FAILURE
    except Exception:
        console.print_exception()
        print(f"bench: {name}: failed", file=sys.stderr)
        return EXIT_FAILURE
    report.show(results, console)
    for path in report.save(results, settings.out):
        console.print(f"  {os.path.relpath(path)}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
