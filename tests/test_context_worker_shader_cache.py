"""Compiled shaders: a directory for each worker, gone with it, or one for all where the operator wants that."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from context_worker.shader_cache import ShaderCaches
from ipc.messages import EngineName
from tests.device_lab import OPTIONS, DeviceLab, assert_draws, triangle, until
from tests.ring_producer import running_launcher
from tests.service_process import ServiceProcess

StartService = Callable[..., ServiceProcess]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made, in this process and those it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_each_worker_has_a_directory_of_its_own(elsewhere: Path) -> None:
    caches = ShaderCaches(None)
    first, second = caches.give(1), caches.give(2)
    assert first.parent == second.parent and first != second and elsewhere in first.parents
    assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
    for directory in (first, second):
        directory.mkdir()
        (directory / "shader").write_bytes(b"x")
    caches.take_back(1)
    assert not first.exists() and second.exists()
    caches.close()
    assert list(elsewhere.iterdir()) == []


def test_what_a_killed_launcher_left_is_removed_and_nothing_else(elsewhere: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    stale = elsewhere / f"isorend-shaders-{int(ended.stdout)}-abc"
    alive = elsewhere / f"isorend-shaders-{os.getpid()}-abc"
    other = elsewhere / "isorend-shaders-of-mine"
    link = elsewhere / f"isorend-shaders-{int(ended.stdout)}-link"
    for directory in (stale, alive, other):
        directory.mkdir()
    link.symlink_to(other)
    ShaderCaches(None).close()
    assert sorted(elsewhere.iterdir()) == sorted([alive, other, link])


def test_a_shared_directory_is_everybody_s_and_stays(tmp_path: Path) -> None:
    caches = ShaderCaches(tmp_path)
    assert caches.give(1) == caches.give(2) == tmp_path
    caches.take_back(1)
    caches.close()
    assert tmp_path.is_dir()


def test_a_worker_s_directory_goes_with_it_however_it_ends(elsewhere: Path) -> None:
    with running_launcher() as launcher:
        workers = [launcher.start(EngineName.VIRGL) for _ in range(2)]
        (root,) = elsewhere.iterdir()
        assert len(list(root.iterdir())) == 2
        assert {stat.S_IMODE(path.stat().st_mode) for path in root.iterdir()} == {0o700}
        os.kill(workers[0].pid, signal.SIGKILL)
        launcher.wait_exited(workers[0])
        until(lambda: len(list(root.iterdir())) == 1, "the removal")
    until(lambda: not root.exists(), "the removal of all")


def test_shaders_are_kept_where_the_operator_says(start_service: StartService, tmp_path: Path) -> None:
    cache = tmp_path / "made" / "shaders"
    service = start_service([*OPTIONS, f"--shader-cache={cache}"])
    lab = DeviceLab(service)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    with lab.vmm() as vmm:
        assert_draws(triangle(vmm.gpu, "first"))
        assert_draws(triangle(vmm.gpu, "second"))
    assert service.stop() == 0
    if "llvmpipe" in service.log:
        assert any(path.is_file() for path in cache.rglob("*"))
