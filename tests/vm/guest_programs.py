"""The C programs of programs/, which run in the guest: linked statically, so that they need nothing of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCE_DIR = Path(__file__).parent / "programs"
_FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-s")


def build_blobs(directory: Path) -> bytes:
    """programs/blobs.c as an executable, made in this directory. RuntimeError says what failed."""
    target = directory / "blobs"
    sources = [str(_SOURCE_DIR / name) for name in ("blobs.c", "gpu.c")]
    done = subprocess.run(["gcc", *_FLAGS, *sources, "-o", str(target)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"gcc failed:\n{done.stderr}")
    return target.read_bytes()
