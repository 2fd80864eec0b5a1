"""Compiled shaders: a directory for each worker, gone with it, or one for all where the operator wants that."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
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
    first, second = caches.give(), caches.give()
    assert first.parent == second.parent and first != second and elsewhere in first.parents
    for directory in (first, second, first.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    (second / "shader").write_bytes(b"x")
    caches.take_back(first)
    until(lambda: not first.exists(), "the removal")
    assert second.exists()
    caches.close()
    assert list(elsewhere.iterdir()) == []


def test_what_a_worker_left_can_be_as_deep_as_it_likes(elsewhere: Path) -> None:
    caches = ShaderCaches(None)
    directory = caches.give()
    fd = os.open(directory, os.O_RDONLY)
    for _ in range(3000):  # longer than any path may be
        os.mkdir("d" * 200, dir_fd=fd)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    caches.take_back(directory)
    caches.close()
    assert list(elsewhere.iterdir()) == []


def test_what_a_killed_launcher_left_is_removed_and_nothing_else(elsewhere: Path) -> None:
    alive = ShaderCaches(None)
    theirs = alive.give()
    stale, other = elsewhere / "isorend-shaders-stale", elsewhere / "somebody's"
    link = elsewhere / "isorend-shaders-link"
    for directory in (stale, other):
        directory.mkdir()
        (directory / "file").touch()
    link.symlink_to(other)
    ShaderCaches(None).close()
    assert sorted(elsewhere.iterdir()) == sorted([theirs.parent, other, link])
    assert (other / "file").exists()
    alive.close()


def test_no_process_for_the_removal_is_not_the_end(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = ShaderCaches(None)
    directory = caches.give()
    with monkeypatch.context() as without_processes:

        def refuse(*_arguments: object, **_settings: object) -> None:
            raise BlockingIOError("no process to be had")

        without_processes.setattr(subprocess, "Popen", refuse)
        caches.take_back(directory)
    assert directory.exists()
    caches.close()
    assert list(elsewhere.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's directory")
def test_other_users_directories_are_left_alone(elsewhere: Path) -> None:
    other = elsewhere / "isorend-shaders-other"
    other.mkdir()
    os.chown(other, 65534, 65534)
    ShaderCaches(None).close()
    assert other.exists()


def test_a_shared_directory_is_everybody_s_and_stays(tmp_path: Path) -> None:
    caches = ShaderCaches(tmp_path)
    assert caches.give() == caches.give() == tmp_path
    caches.take_back(tmp_path)
    caches.close()
    assert tmp_path.is_dir()


def test_a_worker_s_directory_goes_with_it_however_it_ends(elsewhere: Path) -> None:
    with running_launcher("--sandbox=off") as launcher:  # with a sandbox it is in a file system of the worker's own
        workers = [launcher.start(EngineName.VIRGL) for _ in range(2)]
        (root,) = elsewhere.iterdir()
        assert len(list(root.iterdir())) == 2
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
