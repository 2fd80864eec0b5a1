"""Runs one target: over its corpus, over one input, or for a while.

What a long run finds to be new goes to build/fuzz/corpus, an input that makes it fail to build/fuzz/crashes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.build import BUILD, ROOT, build
from tests.fuzz.targets import NativeTarget, PythonTarget

CRASHES = BUILD / "crashes"
_ASAN = "detect_leaks=1:handle_abort=1:quarantine_size_mb=16:allocator_may_return_null=1"
_INPUT_TIMEOUT = 60  # seconds; one input takes a few thousandths
_MEMORY = 4096  # MiB, of which sanitizers hold back a good part
_STATUS = re.compile(r"^#(\d+)\s+[A-Za-z]+\s+cov: (\d+) ft: \d+ corp: (\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Report:
    """How a run ended. output: all it said."""

    target: str
    returncode: int
    output: str

    @property
    def failed(self) -> bool:
        return self.returncode != 0

    @property
    def status(self) -> tuple[int, int, int]:
        """(inputs tried, edges reached, inputs kept) as last told; zeros if nothing was told."""
        runs, edges, kept = (_STATUS.findall(self.output) or [(0, 0, 0)])[-1]
        return int(runs), int(edges), int(kept)


def command(target: NativeTarget | PythonTarget, *defines: str) -> list[str]:
    """What runs the target; libFuzzer's arguments follow. Builds it if need be."""
    if isinstance(target, NativeTarget):
        return [str(build(target, *defines))]
    return [sys.executable, "-m", "tests.fuzz.python_target", target.name]


def environment() -> dict[str, str]:
    """With the sanitizers' options."""
    return {**os.environ, "ASAN_OPTIONS": _ASAN, "UBSAN_OPTIONS": "print_stacktrace=1", "PYTHONPATH": str(ROOT)}


def limits(target: NativeTarget | PythonTarget) -> list[str]:
    """Arguments that every run has."""
    return [
        *(f"-max_len={target.max_len}", f"-timeout={_INPUT_TIMEOUT}", f"-rss_limit_mb={_MEMORY}"),
        *("-print_final_stats=0", "-verbosity=1", f"-artifact_prefix={CRASHES}/{target.name}-"),
    ]


def run(target: NativeTarget | PythonTarget, arguments: list[str], *defines: str, limit: float | None = None) -> Report:
    """Runs it with these arguments of libFuzzer's, and waits. Raises TimeoutExpired after `limit` seconds."""
    CRASHES.mkdir(parents=True, exist_ok=True)
    line = [*command(target, *defines), *limits(target), *arguments]
    result = subprocess.run(
        line, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit
    )
    return Report(target.name, result.returncode, result.stdout.decode("utf-8", "replace"))


def replay(target: NativeTarget | PythonTarget, limit: float | None = None) -> Report:
    """Every input of its corpus, once."""
    return run(target, ["-runs=0", str(target.corpus)], limit=limit)


def fuzz(
    target: NativeTarget | PythonTarget, found: Path, *defines: str, arguments: list[str], limit: float | None = None
) -> Report:
    """From its corpus on. New inputs go to `found`."""
    found.mkdir(parents=True, exist_ok=True)
    return run(target, [*arguments, str(found), str(target.corpus)], *defines, limit=limit)


def kept(target: NativeTarget | PythonTarget) -> Path:
    """Where long runs keep what they found, for the next one to begin with."""
    return BUILD / "corpus" / target.name
