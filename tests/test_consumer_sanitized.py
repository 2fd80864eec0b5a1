"""The consumer's C under sanitizers, driven by consumer_driver.c: no Python, two threads, garbage too."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [ROOT / "native" / "src" / name for name in ("consumer.c", "engine.c", "null_engine.c")]
CFLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-pthread", "-fno-omit-frame-pointer"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]


def build(folder: Path, *sanitizers: str) -> Path:
    """Compile the driver with sanitizers."""
    program = folder / "consumer_driver"
    subprocess.run(
        [
            os.environ.get("CC", "cc"),
            *CFLAGS,
            *WARNINGS,
            f"-fsanitize={','.join(sanitizers)}",
            "-fno-sanitize-recover=all",
            f"-I{ROOT / 'native' / 'src'}",
            str(ROOT / "tests" / "consumer_driver.c"),
            *map(str, SOURCES),
            "-o",
            str(program),
        ],
        check=True,
    )
    return program


def run(command: list[str]) -> str:
    """What the driver prints; fails with its messages when it ends with an error."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert not result.stderr, result.stderr
    return result.stdout


def check(output: str) -> None:
    """The driver did what it was asked: many turns of the ring, and rings of garbage found broken."""
    match = re.search(r"(\d+) records, (\d+) completions, (\d+) ring lengths", output)
    assert match
    assert int(match[3]) >= 5
    assert re.search(r"rings of garbage: [1-9]\d* found broken", output)


def test_memory_and_arithmetic(tmp_path: Path) -> None:
    check(run([str(build(tmp_path, "address", "undefined")), "30000", "300"]))


def test_threads(tmp_path: Path) -> None:
    program = build(tmp_path, "thread")
    setarch = shutil.which("setarch")
    if setarch is None:
        pytest.fail("setarch (util-linux) is missing")
    # ThreadSanitizer maps its shadow at fixed addresses, which layout randomisation of newer kernels may occupy.
    check(run([setarch, os.uname().machine, "-R", str(program), "30000", "50"]))
