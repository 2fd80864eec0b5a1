"""The consumer's C under sanitizers, driven by consumer_driver.c: no Python, two threads, garbage too."""

import re
from pathlib import Path

from tests.sanitized import compile_driver, run_driver

SOURCES = (
    *("consumer.c", "engine.c", "idmap.c", "texture.c", "mirror.c", "sealed_memory.c"),
    *("null_engine.c", "null_fences.c", "null_objects.c", "null_vtest.c"),
)


def build(folder: Path, *sanitizers: str) -> Path:
    """Compile the driver with sanitizers."""
    return compile_driver(folder, "consumer_driver", SOURCES, *sanitizers)


def check(output: str) -> None:
    """The driver did what it was asked: many turns of the ring, and rings of garbage found broken."""
    match = re.search(r"(\d+) records, (\d+) completions, (\d+) of success, (\d+) ring lengths", output)
    assert match
    assert int(match[4]) >= 5
    assert int(match[2]) // 4 < int(match[3]) < int(match[2])
    assert re.search(r"rings of garbage: [1-9]\d* found broken", output)


def test_memory_and_arithmetic(tmp_path: Path) -> None:
    check(run_driver(build(tmp_path, "address", "undefined"), "30000", "300"))


def test_threads(tmp_path: Path) -> None:
    check(run_driver(build(tmp_path, "thread"), "30000", "50"))
