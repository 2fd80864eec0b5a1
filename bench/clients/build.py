"""Builds the two C programs of the benchmarks, the client and the one that starts it, into build/bench-clients/.

    python bench/clients/build.py        build and print where they are
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

SOURCE_DIR = Path(__file__).resolve().parent
TARGET_DIR = SOURCE_DIR.parents[1] / "build" / "bench-clients"

CFLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]
ENTER_SOURCES = ["enter.c"]
# What each needs beyond libc, by its pkg-config names, and the Debian packages that have them.
CLIENT_LIBRARIES = ["egl", "glesv2"]
DEBIAN_PACKAGES = ["gcc", "libc6-dev", "pkg-config", "libegl-dev", "libgles-dev"]


class Programs(NamedTuple):
    """Paths of what is built: the timed client, and the program that gives another one a /tmp of its own."""

    client: Path
    enter: Path


class BuildFailed(Exception):
    """The programs cannot be built. The message's first line says what is missing or wrong."""


def build() -> Programs:
    """Builds what has changed since the last time; several processes may call this at once. Raises BuildFailed."""
    programs = Programs(TARGET_DIR / "isorend-bench-client", TARGET_DIR / "isorend-bench-enter")
    TARGET_DIR.mkdir(parents=True, exist_ok=True)
    compiler = shlex.split(os.environ.get("CC", "cc"))
    for tool in (compiler[0], "pkg-config"):
        if shutil.which(tool) is None:
            raise BuildFailed(f"{tool} is missing: apt-get install {' '.join(DEBIAN_PACKAGES)}")
    with _locked(TARGET_DIR / "lock"):
        stamp, key = TARGET_DIR / "key", _key(compiler)
        if not (stamp.exists() and stamp.read_text() == key and all(program.exists() for program in programs)):
            client_sources = sorted(path.name for path in SOURCE_DIR.glob("*.c") if path.name not in ENTER_SOURCES)
            _compile(compiler, client_sources, programs.client, [*_flags_of(CLIENT_LIBRARIES), "-lm"])
            _compile(compiler, ENTER_SOURCES, programs.enter, [])
            stamp.write_text(key)
    return programs


def _compile(compiler: list[str], sources: list[str], target: Path, flags: list[str]) -> None:
    # Never write into a file that a running process has mapped.
    new = target.with_suffix(".new")
    _run([*compiler, *CFLAGS, *sources, "-o", str(new), *flags])
    new.replace(target)


def _flags_of(libraries: list[str]) -> list[str]:
    return shlex.split(_run(["pkg-config", "--cflags", "--libs", *libraries]))


def _run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=SOURCE_DIR, capture_output=True, text=True)
    if done.returncode:
        hint = f"the Debian packages are {' '.join(DEBIAN_PACKAGES)}"
        raise BuildFailed(f"{Path(command[0]).name} failed ({hint}):\n{done.stderr.strip()}")
    return done.stdout


def _key(compiler: list[str]) -> str:
    digest = hashlib.sha256(repr([compiler, CFLAGS]).encode())
    for path in sorted(SOURCE_DIR.glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        print(*build(), sep="\n")
    except BuildFailed as error:
        sys.exit(f"bench clients: {error}")
