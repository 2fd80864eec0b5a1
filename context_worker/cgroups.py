"""A cgroup for each worker (cgroups(7), the kernel's admin-guide/cgroup-v2.rst), where the service may make some.

It may if the service alone is in a cgroup v2 whose files it may write (systemd: Delegate=yes). Processes and limits
do not go together in one cgroup, so service and launcher move into one below it, and each worker gets another, with
limits of its own; when the kernel ends a worker for its memory, the cgroup says so. Where this is not to be had, the
limits are those of the process (RLIMIT_DATA).
"""

import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from native.owned_fd import OwnedFd

log = logging.getLogger(__name__)

MAX_PROCESSES = 1024
"""Threads of a worker: software renderers have one or two for each processor."""

_SERVICE = "isorend"
_CONTROLLERS = ("memory", "pids", "dmem")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def own_directory() -> Path | None:
    """The directory of this process' cgroup v2, None if there is none."""
    try:
        own = re.search(r"^0::(/.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    for line in mounts:
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if own and after.startswith("cgroup2 ") and Path(own[1]).is_relative_to(fields[3]):
            return Path(fields[4]) / Path(own[1]).relative_to(fields[3])
    return None


def _read(directory: int, name: str) -> str:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)) as file:
        return file.read()


def _write(directory: int, name: str, text: str) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


class WorkerCgroup:
    """One worker's, or what is left of it."""

    def __init__(self, parent: OwnedFd, name: str) -> None:
        """Raises OSError."""
        self._parent = parent
        self.name = name
        self.directory = OwnedFd(os.open(name, _DIRECTORY, dir_fd=parent.fd))

    def limit(self, controllers: Iterable[str], memory: int | None) -> None:
        """Set the limits of those controllers. Raises OSError."""
        if "memory" in controllers:
            _write(self.directory.fd, "memory.oom.group", "1")
            if memory is not None:
                _write(self.directory.fd, "memory.max", str(memory))
                self._write_if_there("memory.swap.max", "0")  # not there when swap is not accounted
        if "pids" in controllers:
            _write(self.directory.fd, "pids.max", str(MAX_PROCESSES))
        if "dmem" in controllers and memory is not None:
            for line in _read(self.directory.fd, "dmem.max").splitlines():  # a region of device memory each
                _write(self.directory.fd, "dmem.max", f"{line.partition(' ')[0]} {memory}")

    def _write_if_there(self, name: str, text: str) -> None:
        try:
            _write(self.directory.fd, name, text)
        except FileNotFoundError:
            log.debug("no %s", name)

    def was_out_of_memory(self) -> bool:
        """Whether the kernel has ended a process in it for want of memory."""
        try:
            events = dict(line.split() for line in _read(self.directory.fd, "memory.events").splitlines())
        except FileNotFoundError:
            return False
        return int(events.get("oom_kill", 0)) > 0

    def remove(self) -> bool:
        """False while somebody is in it: the last of its threads may still be ending."""
        try:
            os.rmdir(self.name, dir_fd=self._parent.fd)
        except FileNotFoundError:
            pass
        except OSError:
            return False
        self.directory.close()
        return True


def join(directory: int) -> None:
    """Move the calling process into the cgroup. Raises OSError."""
    _write(directory, "cgroup.procs", "0")


class Cgroups:
    """Where workers' cgroups are made."""

    def __init__(self, directory: OwnedFd, controllers: frozenset[str]) -> None:
        self._directory = directory
        self._controllers = controllers
        self._leaving: list[WorkerCgroup] = []

    @classmethod
    def delegated(cls, directory: Path | None, service: set[int], owner: tuple[int, int] | None) -> Self | None:
        """Makes `directory`, a cgroup with no process but those of `service`, the place for workers' cgroups.

        None where there is no such cgroup; nothing is changed then. It is given to `owner`, if one is named.
        """
        if directory is None:
            return None
        try:
            return cls._take(directory, service, owner)
        except OSError as error:
            log.debug("no cgroups for workers: %s", error)
            return None

    @classmethod
    def _take(cls, directory: Path, service: set[int], owner: tuple[int, int] | None) -> Self | None:
        fd = OwnedFd(os.open(directory, _DIRECTORY))
        controllers = [name for name in _CONTROLLERS if name in _read(fd.fd, "cgroup.controllers").split()]
        there = {int(pid) for pid in _read(fd.fd, "cgroup.procs").split()}
        if "memory" not in controllers or not there <= service:
            log.debug("no cgroups for workers: controllers %s, processes %s", controllers, sorted(there))
            fd.close()
            return None
        os.makedirs(directory / _SERVICE, exist_ok=True)
        moved = OwnedFd(os.open(_SERVICE, _DIRECTORY, dir_fd=fd.fd))
        with moved:
            try:
                for pid in there:
                    _write(moved.fd, "cgroup.procs", str(pid))
                for name in controllers:
                    _write(fd.fd, "cgroup.subtree_control", f"+{name}")
                if owner is not None:
                    for name in (".", "cgroup.procs"):
                        os.chown(name, *owner, dir_fd=fd.fd)
            except OSError:
                for pid in there:
                    _write(fd.fd, "cgroup.procs", str(pid))
                raise
        return cls(fd, frozenset(controllers))

    def make(self, worker_id: int, memory_limit: int | None) -> WorkerCgroup:
        """One for a worker. Raises OSError."""
        self._sweep()
        name = f"worker-{worker_id}"
        os.mkdir(name, 0o755, dir_fd=self._directory.fd)
        cgroup = WorkerCgroup(self._directory, name)
        try:
            cgroup.limit(self._controllers, memory_limit)
        except OSError:
            self.leave(cgroup)
            raise
        return cgroup

    def leave(self, cgroup: WorkerCgroup) -> None:
        """Its worker has ended: it is removed, now or when that can be done."""
        self._leaving.append(cgroup)
        self._sweep()

    def _sweep(self) -> None:
        self._leaving = [cgroup for cgroup in self._leaving if not cgroup.remove()]

    def close(self) -> None:
        """Remove what is left."""
        self._sweep()
        self._directory.close()
