"""Builds native targets with clang's libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer, into build/fuzz."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from tests.fuzz.targets import HERE, NativeTarget

ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "fuzz"
KEY_DIGITS = 24
KEPT_SECONDS = 24 * 3600  # programs of sources that have changed since
_NATIVE = ROOT / "native" / "src"
_FLAGS = (
    *("-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-pthread", "-Wall", "-Wextra"),
    *("-fno-omit-frame-pointer", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"),
)


def build(target: NativeTarget, *defines: str) -> Path:
    """The target's program, built if its sources have changed. Raises CalledProcessError."""
    files = [HERE / "c" / name for name in (f"{target.name}.c", *target.helpers)]
    files += [_NATIVE / name for name in target.sources]
    wraps = [f"-Wl,--wrap={name}" for name in target.wrapped]
    command = [os.environ.get("CLANG", "clang"), *_FLAGS, *(f"-D{define}" for define in defines)]
    command += [f"-I{_NATIVE}", f"-I{HERE / 'c'}", *map(str, files), *wraps]
    BUILD.mkdir(parents=True, exist_ok=True)
    kind = "-".join([target.name, *defines])
    program = BUILD / f"{kind}-{_key(command)}"
    with (BUILD / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _forget(BUILD.glob(f"{kind}-{'[0-9a-f]' * KEY_DIGITS}"))
            unfinished = program.with_suffix(".new")
            subprocess.run([*command, "-o", str(unfinished)], check=True)
            unfinished.rename(program)
    return program


def _forget(programs: Iterable[Path]) -> None:
    """Removes those that nobody can be about to run."""
    for program in programs:
        if time.time() - program.stat().st_mtime > KEPT_SECONDS:
            program.unlink()


def _key(command: list[str]) -> str:
    """Of all that a program is made of: the compiler and its arguments, every file of C that it may read."""
    version = subprocess.run([command[0], "--version"], check=True, stdout=subprocess.PIPE).stdout
    digest = hashlib.sha256(version + "\0".join(command).encode())
    for path in sorted([*_NATIVE.glob("*.[chi]*"), *(HERE / "c").glob("*.[ch]")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:KEY_DIGITS]
