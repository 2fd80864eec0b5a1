"""Fuzzes targets one after the other, and says how to see a failure again.

    python -m tests.fuzz                          all, a minute each
    python -m tests.fuzz virtqueue --seconds 3600
    python -m tests.fuzz --list
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys

from tests.fuzz.runner import CRASHES, Report, command, environment, fuzz, kept
from tests.fuzz.targets import TARGETS, NativeTarget, PythonTarget, chosen


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Coverage-guided fuzzers.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="which; all if none is given")
    parser.add_argument("--seconds", type=int, default=60, help="time for each (60)")
    parser.add_argument("--runs", type=int, help="so many inputs for each, in place of a time")
    parser.add_argument("--list", action="store_true", help="say which targets there are")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.targets if name not in TARGETS]:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    return arguments


def show_failure(target: NativeTarget | PythonTarget, report: Report, before: set[str]) -> None:
    """The fuzzer's own words, and the command for each input that it left."""
    print(report.output[-8000:], file=sys.stderr)
    options = " ".join(f"{name}={shlex.quote(environment()[name])}" for name in ("ASAN_OPTIONS", "PYTHONPATH"))
    for name in sorted({path.name for path in CRASHES.iterdir()} - before):
        print(f"again: {options} {shlex.join(command(target))} {CRASHES / name}", file=sys.stderr)


def main() -> int:
    arguments = parse()
    if arguments.list:
        for target in TARGETS.values():
            print(f"{target.name:14} {target.summary}")
        return 0
    how = [f"-runs={arguments.runs}"] if arguments.runs else [f"-max_total_time={arguments.seconds}"]
    failed = []
    CRASHES.mkdir(parents=True, exist_ok=True)
    for target in chosen(arguments.targets):
        before = {path.name for path in CRASHES.iterdir()}
        report = fuzz(target, kept(target), arguments=how)
        runs, edges, inputs = report.status
        verdict = "FAILED" if report.failed else "fine"
        figures = f"{runs} inputs tried, {edges} edges reached, {inputs} inputs kept"
        print(f"{target.name:14} {verdict}: {figures}", flush=True)
        if report.failed:
            failed.append(target.name)
            show_failure(target, report, before)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"a target cannot be built: {error}")
