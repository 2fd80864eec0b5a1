"""The service on native modules that are built with AddressSanitizer and UndefinedBehaviorSanitizer.

build/sanitized holds a second tree of the import packages: links to the real ones, and native with modules of its own.
A process started with `environment()` imports from there; its workers inherit that.

    python -m tests.sanitized        build and print the environment, to be put before a command
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "sanitized"
MODULES = ("dataplane", "engines", "sandbox")
LINKED_PACKAGES = ("master", "context_worker", "resource_table", "ipc")
# AddressSanitizer's and UndefinedBehaviorSanitizer's headlines.
REPORT = re.compile(r"^.*(?:ERROR: AddressSanitizer|: runtime error:|UndefinedBehaviorSanitizer:).*$", re.MULTILINE)
_OPTIONS = "detect_leaks=0:print_stacktrace=1:halt_on_error=1:handle_abort=0"


def environment() -> dict[str, str]:
    """Variables of a process that is to run on the sanitized modules, which are built if need be.

    Leaks are not looked for: Python and Mesa keep memory until the end. Raises CalledProcessError.
    """
    build()
    library = subprocess.run(
        [os.environ.get("CC", "cc"), "-print-file-name=libasan.so"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    return {
        "LD_PRELOAD": str(Path(library).resolve(strict=True)),
        "ASAN_OPTIONS": _OPTIONS,
        "UBSAN_OPTIONS": _OPTIONS,
        "PYTHONPATH": str(TREE),
    }


def service_arguments(environment: Mapping[str, str]) -> list[str]:
    """What a service has to be told in such an environment: a sanitizer needs more calls, addresses
    and files than a sandbox leaves it."""
    return ["--sandbox=off"] if "ASAN_OPTIONS" in environment else []


def compile_driver(folder: Path, driver: str, sources: tuple[str, ...], *sanitizers: str) -> Path:
    """Compiles tests/DRIVER.c with files of native/src and sanitizers, without Python; the program."""
    program = folder / driver
    native = ROOT / "native" / "src"
    subprocess.run(
        [
            *(os.environ.get("CC", "cc"), "-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-pthread"),
            *("-fno-omit-frame-pointer", "-Wall", "-Wextra", "-Werror"),
            *(f"-fsanitize={','.join(sanitizers)}", "-fno-sanitize-recover=all", f"-I{native}"),
            *(str(ROOT / "tests" / f"{driver}.c"), *(str(native / name) for name in sources)),
            *("-o", str(program)),
        ],
        check=True,
    )
    return program


def run_driver(program: Path, *arguments: str) -> str:
    """What a driver prints. Fails with its messages when it ends with an error or says anything on stderr."""
    setarch = shutil.which("setarch")
    assert setarch, "setarch (util-linux) is missing"
    # ThreadSanitizer maps its shadow at fixed addresses, which layout randomisation of newer kernels may occupy.
    command = [setarch, os.uname().machine, "-R", str(program), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert not result.stderr, result.stderr
    return result.stdout


def reports(log: str) -> list[str]:
    """Headlines of sanitizers in a log."""
    return REPORT.findall(log)


def build() -> Path:
    """Builds what has changed. Returns the tree to import from. Raises CalledProcessError."""
    native = TREE / "native"
    native.mkdir(parents=True, exist_ok=True)
    with _locked(TREE / "lock"):
        for package in LINKED_PACKAGES:
            _link(TREE / package, ROOT / package)
        for source in (ROOT / "native").glob("*.py"):
            _link(native / source.name, source)
        stamp, key = TREE / "key", _key()
        if not stamp.exists() or stamp.read_text() != key:
            for module in MODULES:
                subprocess.run(
                    [sys.executable, str(ROOT / "native" / f"build_{module}.py"), str(native)],
                    check=True,
                    cwd=ROOT,
                    env={**os.environ, "ISOREND_SANITIZE": "1"},
                )
            stamp.write_text(key)
    return TREE


def _link(link: Path, target: Path) -> None:
    if not link.is_symlink():
        link.symlink_to(target)


def _key() -> str:
    digest = hashlib.sha256(sys.version.encode())
    native = ROOT / "native"
    for path in sorted([*native.glob("build_*.py"), *native.glob("cffi_build.py"), *native.rglob("*.[chi]*")]):
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    print(" ".join(f"{name}={shlex.quote(value)}" for name, value in environment().items()))
