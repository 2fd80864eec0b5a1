"""Runs of piglit: the client in a Debian root with its newer Mesa, the server on the host."""

from __future__ import annotations

import bz2
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.vtest_servers import SOCKET_NAME, Renderer
from tests.piglit.compare import Case, Results
from tests.piglit.selection import PROFILE
from tests.vm.debian_tree import DebianTree
from tests.vm.vtest_client import VtestClient

# Longer than any test takes: a server's speed is not what is compared.
TEST_TIMEOUT_S = 180
RUN_TIMEOUT_S = 3600.0
JOBS = 2
_OUT_MOUNT = "/run/piglit"
_ENVIRONMENT = {
    "PIGLIT_PLATFORM": "surfaceless_egl",
    # Piglit would ask once for extensions, in a way of its own, and leave tests out by that.
    "PIGLIT_NO_FAST_SKIP": "1",
}


class RunFailed(Exception):
    """Piglit or the server ended; the message says how."""


@dataclass(frozen=True)
class Patterns:
    """Tests by regular expressions: whose name one of `included` is in and none of `excluded`."""

    included: Sequence[str]
    excluded: Sequence[str] = ()


Chosen = Patterns | Sequence[str]
"""Patterns, or names of tests."""


@dataclass(frozen=True)
class Run:
    """What came of one. seconds: the whole run's."""

    results: Results
    seconds: float


def run_piglit(tree: DebianTree, server: Renderer, out: Path, chosen: Chosen) -> Run:
    """Runs tests; leaves piglit's own results.json.bz2 in out/results. Raises RunFailed."""
    out.mkdir(parents=True, exist_ok=True)
    if isinstance(chosen, Patterns):
        choice = [word for test in chosen.included for word in ("-t", test)]
        choice += [word for test in chosen.excluded for word in ("-x", test)]
    else:
        (out / "list").write_text("".join(f"{test}\n" for test in chosen))
        choice = ["--test-list", f"{_OUT_MOUNT}/list"]
    settings = [f"--timeout={TEST_TIMEOUT_S}", f"--jobs={JOBS}", "--log-level=quiet", "--overwrite"]
    command = ["piglit", "run", PROFILE, *choice, *settings, f"{_OUT_MOUNT}/results"]
    client = VtestClient(tree.root, server.directory / SOCKET_NAME)
    process = subprocess.run(
        client.command(command, {_OUT_MOUNT: out}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=client.environment(_ENVIRONMENT),
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    if process.returncode != 0:
        raise RunFailed(f"piglit ended with {process.returncode}: {process.stdout[-2000:]}")
    if server.pid is None or not psutil.pid_exists(server.pid):
        raise RunFailed(f"{server.name} ended during the run")
    report = json.loads(bz2.decompress((out / "results" / "results.json.bz2").read_bytes()))
    elapsed = report["time_elapsed"]
    return Run(parse_results(report), elapsed["end"] - elapsed["start"])


def parse_results(report: Mapping[str, Any]) -> dict[Case, str]:
    """The results in a results.json (piglit's format 10)."""
    results = {}
    for test, outcome in report["tests"].items():
        results[test, ""] = outcome["result"]
        for subtest, result in outcome["subtests"].items():
            if subtest != "__type__":
                results[test, subtest] = result
    return results
