"""Every target over its corpus, with what once made it fail, and on from there for a fixed number of inputs.

The long run is `make fuzz`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.fuzz.build import build
from tests.fuzz.runner import Report, fuzz, run
from tests.fuzz.seeds import MOST_BYTES, SEEDS
from tests.fuzz.targets import CORPUS, TARGETS, NativeTarget, PythonTarget

LIMIT = 250.0
CANARY_RUNS = 20_000_000
PYTHON_CANARY_RUNS = 500_000
VIRGL = TARGETS["virgl_limits"]


def seeded(runs: int) -> list[str]:
    """The same run each time."""
    return [f"-runs={runs}", "-seed=1"]


def here(folder: Path) -> str:
    """The input that fails as it should is not kept with those that should not."""
    return f"-artifact_prefix={folder}/"


def told(report: Report) -> str:
    return report.output[-6000:]


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    assert list(target.corpus.iterdir())
    alone = run(target, ["-runs=1", str(tmp_path)], limit=LIMIT)
    report = fuzz(target, tmp_path / "found", arguments=seeded(target.runs), limit=LIMIT)
    assert not alone.failed and not report.failed, told(report)
    runs, edges, kept = report.status
    assert runs >= target.runs
    assert edges > alone.status[1], "the corpus reaches no more than an empty input"
    assert kept > 1


def test_the_fuzzer_of_c_finds_a_bug(tmp_path: Path) -> None:
    assert isinstance(VIRGL, NativeTarget)
    small = replace(VIRGL, max_len=32)
    report = run(small, [*seeded(CANARY_RUNS), here(tmp_path)], "ISO_FUZZ_CANARY", limit=LIMIT)
    assert report.failed, told(report)
    assert "in sing" in report.output  # the function that the bug is in
    assert report.status[0] < CANARY_RUNS


def test_the_fuzzer_of_python_finds_a_bug(tmp_path: Path) -> None:
    canary = PythonTarget("canary", "a bug", 16, PYTHON_CANARY_RUNS)
    report = run(canary, [*seeded(PYTHON_CANARY_RUNS), here(tmp_path)], limit=LIMIT)
    assert report.failed, told(report)
    assert "the canary sings" in report.output


def test_programs_are_built_once() -> None:
    assert isinstance(VIRGL, NativeTarget)
    program = build(VIRGL)
    before = program.stat()
    assert build(VIRGL) == program
    assert program.stat().st_mtime_ns == before.st_mtime_ns
    assert build(VIRGL, "ISO_FUZZ_CANARY") != program


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_what_the_script_writes(name: str) -> None:
    target = TARGETS[name]
    written = [path.read_bytes() for path in sorted(target.corpus.glob("seed-*"))]
    assert written == [data[: target.max_len] for data in SEEDS[name]()], "run python -m tests.fuzz.seeds"


def test_the_corpus_is_small() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    assert {path.parent.name for path in files} == set(TARGETS)
