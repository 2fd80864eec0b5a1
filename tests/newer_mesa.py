"""A Mesa whose software renderer imports plain memory as if it were a dma-buf (24.1 and newer), for services and tests.

Debian 13 has one. For Debian 12 set-up unpacks that of its backports in the user's cache (`make test`), and a process
that is started with environment() uses it: libraries are found when a process starts, never later.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

SYSTEM_HAS_IT_SINCE = 13
"""Debian's version."""


def environment() -> dict[str, str]:
    """What is to be added to a process' environment; nothing where the system's Mesa is new enough.

    Without such a Mesa the test is skipped with what to do, but never in CI.
    """
    found = find()
    if found is None:
        _absent(f"there is no newer Mesa in {_place()}: run `make test`, which sets it up")
    return found


def find() -> dict[str, str] | None:
    """As environment(), but None without such a Mesa."""
    if _debian_version() >= SYSTEM_HAS_IT_SINCE:
        return {}
    place = _place()
    libraries = sorted(place.glob("usr/lib/*/libEGL_mesa.so.0"))
    if not libraries:
        return None
    directory = libraries[0].parent
    return {
        # The manifest names its library without a directory: this alone is what finds it.
        "LD_LIBRARY_PATH": os.fspath(directory),
        "__EGL_VENDOR_LIBRARY_FILENAMES": os.fspath(place / "usr/share/glvnd/egl_vendor.d/50_mesa.json"),
        "GBM_BACKENDS_PATH": os.fspath(directory / "gbm"),
        "LIBGL_DRIVERS_PATH": os.fspath(directory / "dri"),
    }


def _place() -> Path:
    """As .ci/setup has it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "isorend/newer-mesa"


def _debian_version() -> float:
    for line in Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_ID":
            return float(value.strip('"'))
    return float("inf")  # testing and unstable have none


def _absent(text: str) -> NoReturn:
    import pytest  # benchmarks do without

    if os.environ.get("CI") == "true":
        pytest.fail(text)
    pytest.skip(text)
