"""context_worker.probe: what it says of this machine, and of one that forbids."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest

from tests.ring_producer import ROOT

PROBE = [sys.executable, "-m", "context_worker.probe"]
NAMES = ["user namespace", "namespaces", "root", "Landlock", "system call filter", "worker"]


def probe(*before: str) -> dict[str, dict[str, Any]]:
    done = subprocess.run([*before, *PROBE], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    parts = json.loads(done.stdout)
    assert [part["name"] for part in parts] == NAMES
    assert all(set(part) == {"name", "ok", "required", "found", "hint"} for part in parts)
    return {part["name"]: part for part in parts}


def test_here_all_can_be_had() -> None:
    assert {name: part["found"] for name, part in probe().items() if part["required"] and not part["ok"]} == {}


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap makes the container")
def test_where_user_namespaces_are_forbidden_it_says_so_and_how() -> None:
    forbidding = ("bwrap", "--unshare-user", "--disable-userns", "--bind", "/", "/", "--dev", "/dev", "--proc", "/proc")
    parts = probe(*forbidding)
    for name in ("user namespace", "namespaces", "root", "worker"):
        assert not parts[name]["ok"] and "unshare" in parts[name]["found"] and parts[name]["hint"]
    for name in ("Landlock", "system call filter"):
        assert parts[name]["ok"] and not parts[name]["hint"]
