"""context_worker.cgroups on a directory that looks like a cgroup: what is written where, and what is left alone.

A directory has no limits and moves no process: what the kernel makes of these files is not tested here.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from context_worker import cgroups
from context_worker.cgroups import Cgroups
from native.owned_fd import OwnedFd

SERVICE = {1234, 1235}
LIMITS = ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cgroup.procs")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup with the service in it. Directories that are made in it get their files, as the kernel would make them,
    and are removed with them."""

    def populate(path: Path) -> None:
        for name in LIMITS:
            (path / name).touch()
        (path / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 3\noom_kill 0\noom_group_kill 0\n")
        (path / "dmem.max").write_text("drm/0000:03:00.0/vram0 max\n")

    def mkdir(name: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real_mkdir(name, mode, dir_fd=dir_fd)
        if dir_fd is not None:
            populate(Path(os.readlink(f"/proc/self/fd/{dir_fd}")) / name)

    def rmdir(name: str, *, dir_fd: int | None = None) -> None:
        if dir_fd is None:
            real_rmdir(name)
            return
        path = Path(os.readlink(f"/proc/self/fd/{dir_fd}")) / name
        if (path / "busy").exists():
            raise OSError(16, "busy")
        for file in path.iterdir():
            file.unlink()
        real_rmdir(name, dir_fd=dir_fd)

    real_mkdir, real_rmdir = os.mkdir, os.rmdir
    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(os, "rmdir", rmdir)
    base = tmp_path / "service.scope"
    base.mkdir()
    (base / "cgroup.controllers").write_text("cpu io memory pids\n")
    (base / "cgroup.procs").write_text("1234\n1235\n")
    (base / "cgroup.subtree_control").touch()
    (base / "isorend").mkdir()
    (base / "isorend" / "cgroup.procs").touch()
    return base


def delegated(directory: Path) -> Cgroups:
    made = Cgroups.delegated(directory, SERVICE, None)
    assert made is not None
    return made


def test_the_service_moves_below_and_the_controllers_are_switched_on(directory: Path) -> None:
    delegated(directory).close()
    assert (directory / "isorend" / "cgroup.procs").read_text() in ("1234", "1235")  # a file keeps the last write
    assert (directory / "cgroup.subtree_control").read_text() == "+pidsry"  # "+memory" before it


def test_a_worker_s_limits(directory: Path) -> None:
    groups = delegated(directory)
    groups.make(7, 1 << 30)
    made = {name: (directory / "worker-7" / name).read_text() for name in LIMITS}
    assert made == {
        "memory.max": str(1 << 30),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": str(cgroups.MAX_PROCESSES),
        "cgroup.procs": "",
    }
    groups.close()


def test_without_a_limit_of_memory_there_is_that_of_processes(directory: Path) -> None:
    groups = delegated(directory)
    groups.make(7, None)
    assert (directory / "worker-7" / "memory.max").read_text() == ""
    assert (directory / "worker-7" / "pids.max").read_text()
    groups.close()


def test_memory_of_devices(directory: Path) -> None:
    (directory / "cgroup.controllers").write_text("memory pids dmem")
    groups = delegated(directory)
    groups.make(7, 4096)
    assert (directory / "worker-7" / "dmem.max").read_text().startswith("drm/0000:03:00.0/vram0 4096")
    groups.close()


def test_a_worker_joins(directory: Path) -> None:
    groups = delegated(directory)
    group = groups.make(7, None)
    cgroups.join(group.directory.fd)
    assert (directory / "worker-7" / "cgroup.procs").read_text() == "0"
    groups.close()


@pytest.mark.parametrize(("kills", "said"), [(0, False), (1, True), (3, True)])
def test_the_kernel_s_word_for_a_worker_without_memory(directory: Path, kills: int, said: bool) -> None:
    groups = delegated(directory)
    group = groups.make(7, 4096)
    (directory / "worker-7" / "memory.events").write_text(f"low 0\noom 5\noom_kill {kills}\n")
    assert group.was_out_of_memory() is said
    groups.close()


def test_it_is_removed_when_its_last_thread_is_gone(directory: Path) -> None:
    groups = delegated(directory)
    first, busy = groups.make(1, None), groups.make(2, None)
    (directory / "worker-2" / "busy").touch()
    groups.leave(first)
    groups.leave(busy)
    assert not (directory / "worker-1").exists() and (directory / "worker-2").exists()
    (directory / "worker-2" / "busy").unlink()
    groups.make(3, None)
    assert not (directory / "worker-2").exists() and busy.directory.closed
    groups.close()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("cgroup.procs", "1234\n1235\n99\n"),  # somebody else lives there
        ("cgroup.controllers", "cpu pids\n"),  # memory cannot be limited
    ],
)
def test_what_is_not_for_us_is_left_alone(directory: Path, file: str, text: str) -> None:
    (directory / file).write_text(text)
    assert Cgroups.delegated(directory, SERVICE, None) is None
    assert (directory / "cgroup.subtree_control").read_text() == ""
    assert (directory / "isorend" / "cgroup.procs").read_text() == ""


def test_a_refusal_leaves_the_service_where_it_was(directory: Path) -> None:
    (directory / "cgroup.subtree_control").unlink()
    (directory / "cgroup.procs").write_text("1234\n")
    assert Cgroups.delegated(directory, SERVICE, None) is None
    assert (directory / "cgroup.procs").read_text().split()[0] == "1234"


def test_where_there_are_no_cgroups_there_are_none(tmp_path: Path) -> None:
    assert Cgroups.delegated(None, SERVICE, None) is None
    assert Cgroups.delegated(tmp_path / "nowhere", SERVICE, None) is None


def test_a_failing_limit_leaves_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = delegated(directory)

    def refuse(self: cgroups.WorkerCgroup, controllers: object, memory: object) -> None:
        raise PermissionError(1, "refused")

    monkeypatch.setattr(cgroups.WorkerCgroup, "limit", refuse)
    with pytest.raises(PermissionError):
        groups.make(7, 1)
    assert not (directory / "worker-7").exists()
    groups.close()


def test_the_own_directory_exists_if_there_is_one() -> None:
    found = cgroups.own_directory()
    if found is None:
        assert "cgroup2" not in Path("/proc/self/mountinfo").read_text()
    else:
        with OwnedFd(os.open(found, os.O_RDONLY)):
            assert (found / "cgroup.procs").exists()
