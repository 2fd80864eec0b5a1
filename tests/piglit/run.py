"""Runs of piglit: the client in a Debian root with its newer Mesa, the server on the host."""

from __future__ import annotations

import bz2
import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.demo.service import is_running
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
_GLINFO = "/usr/lib/x86_64-linux-gnu/piglit/bin/glinfo"
_TOLD = re.compile(r"^GL_(RENDERER|VERSION) = (.*)$", re.MULTILINE)
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
    process = _run_client(tree, server, command, {_OUT_MOUNT: out})
    if process.returncode != 0:
        last_words = ([line for line in process.stdout.splitlines() if line.strip()] or ["it said nothing"])[-1]
        raise RunFailed(f"piglit ended with {process.returncode}: {last_words}")
    if server.pid is None or not is_running(server.pid):
        raise RunFailed(f"{server.name} ended during the run")
    report = json.loads(bz2.decompress((out / "results" / "results.json.bz2").read_bytes()))
    elapsed = report["time_elapsed"]
    return Run(parse_results(report), elapsed["end"] - elapsed["start"])


def renderer_of(tree: DebianTree, server: Renderer) -> str:
    """GL renderer and version that a client is told, as "virgl (...), 4.3 ...". Raises RunFailed without virgl."""
    done = _run_client(tree, server, [_GLINFO, "-auto", "-fbo"], {})
    told = dict(_TOLD.findall(done.stdout))
    if done.returncode != 0 or not told.get("RENDERER", "").startswith("virgl"):
        raise RunFailed(f"a client of {server.name} does not render by virgl: {done.stdout[-2000:]}")
    return f"{told['RENDERER']}, {told['VERSION']}"


def parse_results(report: Mapping[str, Any]) -> dict[Case, str]:
    """The results in a results.json (piglit's format 10)."""
    results = {}
    for test, outcome in report["tests"].items():
        results[test, ""] = outcome["result"]
        for subtest, result in outcome["subtests"].items():
            if subtest != "__type__":
                results[test, subtest] = result
    return results


def _run_client(
    tree: DebianTree, server: Renderer, argv: Sequence[str], directories: Mapping[str, Path]
) -> subprocess.CompletedProcess[str]:
    client = VtestClient(tree.root, server.directory / SOCKET_NAME)
    return subprocess.run(
        client.command(argv, directories),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=client.environment(_ENVIRONMENT),
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
