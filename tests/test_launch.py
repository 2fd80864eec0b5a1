"""master.launch: what of the service's environment its workers are given."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from master.launch import LaunchSettings, Sandbox
from tests.worker_nursery import WorkerNursery, worker_nursery

SECRET = "correct-horse-battery-staple"
SECRETS = ("AWS_SECRET_ACCESS_KEY", "SSH_AUTH_SOCK", "MY_TOKEN", "XDG_RUNTIME_DIR", "STRIPE_KEY", "LD_AUDIT")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, SECRET)


def test_what_workers_need_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {
        name: f"value of {name}"
        for name in (
            *("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "ISOREND_X", "ASAN_OPTIONS"),
            *("MESA_DEBUG", "LIBGL_ALWAYS_SOFTWARE", "GALLIUM_DRIVER", "LP_NUM_THREADS", "EGL_PLATFORM"),
            *("VK_DRIVER_FILES", "VK_ICD_FILENAMES", "__GLX_VENDOR_LIBRARY_NAME", "__EGL_VENDOR_LIBRARY_DIRS"),
            *("__NV_PRIME_RENDER_OFFLOAD", "DRI_PRIME", "GBM_BACKENDS_PATH", "DRIRC_CONFIGDIR", "VREND_DEBUG"),
        )
    }
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    assert wanted.items() <= LaunchSettings().environment().items()


def test_nothing_else_is() -> None:
    given = LaunchSettings().environment()
    assert SECRET not in given.values()
    assert not set(SECRETS) & set(given)


def test_workers_are_no_clients_of_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTEST_SOCKET_NAME", "/tmp/service")
    monkeypatch.setenv("GALLIUM_DRIVER", "virpipe")
    assert not {"VTEST_SOCKET_NAME", "GALLIUM_DRIVER"} & set(LaunchSettings().environment())


@pytest.mark.parametrize("sandbox", list(Sandbox))
def test_a_preloaded_library_comes_along_only_without_a_sandbox(
    monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/lib/libasan.so")
    given = LaunchSettings(sandbox=sandbox).environment()
    assert given.get("LD_PRELOAD") == ("/lib/libasan.so" if sandbox is Sandbox.OFF else None)


@pytest.fixture
def nursery() -> Iterator[WorkerNursery]:
    with worker_nursery(spares=0) as nursery:
        yield nursery


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into a worker's memory")
def test_a_secret_is_nowhere_in_a_worker(nursery: WorkerNursery) -> None:
    pid = nursery.started().pid
    assert SECRET.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    looked_at = 0
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for first, last in writable(pid):
            memory.seek(first)
            found = memory.read(last - first)
            looked_at += len(found)
            assert SECRET.encode() not in found
    assert looked_at > 1 << 20


def writable(pid: int) -> Iterator[tuple[int, int]]:
    """Where a process has data of its own: its heap, stacks and variables."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        place, access, *_ = line.split()
        if access.startswith("rw-p"):
            first, last = (int(number, 16) for number in place.split("-"))
            yield first, last
