"""A running service as seen from outside: its processes, their descriptors and memory, its log."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from tests.vm.waiting import WaitTimeout, wait_until

LIMIT = 30.0
"""Seconds after which something awaited is taken for never coming."""

LOOKS = 6  # at as many descriptors as before, one poll of wait_until apart
_SPARE = re.compile(r"isorend: (vtest )?spare ")
_LAUNCHER = re.compile(r"isorend: launcher$")
_OUTSIDE = re.compile(r"isorend: sandbox$")


def until(condition: Callable[[], object], what: str) -> None:
    """Waits for a condition of another process."""
    wait_until(condition, what, LIMIT)


def gone(pid: int) -> bool:
    """Whether the process is over (a zombie is)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(pids: Iterable[int]) -> None:
    """Waits for the end of processes. AssertionError tells of those that stay."""
    wanted = list(pids)
    try:
        until(lambda: all(map(gone, wanted)), "the end of processes")
    except WaitTimeout as error:
        raise AssertionError([_sight(pid) for pid in wanted if not gone(pid)]) from error


def _sight(pid: int) -> str:
    """What a process is and does, for a person."""
    place = Path(f"/proc/{pid}")
    try:
        title = (place / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
        tasks = [f"{(task / 'stat').read_text().split(') ')[-1][0]} {(task / 'wchan').read_text()}"
                 for task in (place / "task").iterdir()]  # fmt: skip
    except OSError as error:
        return f"{pid}: {error}"
    return f"{pid} {title}: {', '.join(tasks)}"


@dataclass(frozen=True)
class Footprint:
    """What the service holds when it serves nobody: open descriptors of the master and of the launcher, and processes
    (master, launcher and with a sandbox its guardian outside, spares)."""

    master_fds: int
    launcher_fds: int
    processes: int


class RunningService(Protocol):
    """What a ServiceLab looks at, whoever has started it."""

    @property
    def pid(self) -> int: ...

    @property
    def socket_path(self) -> Path: ...

    @property
    def log_path(self) -> Path: ...

    @property
    def log(self) -> str: ...

    def check_running(self) -> None: ...


class ServiceLab:
    """A service, seen from outside. It must have been started with as many spares."""

    def __init__(self, service: RunningService, spares: int) -> None:
        self.service = service
        self._wanted_spares = spares

    @property
    def pid(self) -> int:
        return self.service.pid

    @property
    def log(self) -> str:
        return self.service.log

    def check_running(self) -> None:
        """Raises ServiceEnded, which has the log, if it does not run."""
        self.service.check_running()

    # --- processes ----------------------------------------------------------------------------------------------

    def processes(self) -> list[psutil.Process]:
        """The master and all below it that still run."""
        try:
            master = psutil.Process(self.pid)
            return [master, *(p for p in master.children(recursive=True) if not gone(p.pid))]
        except psutil.NoSuchProcess:
            return []

    def _titled(self, title: re.Pattern[str]) -> list[int]:
        found = []
        for process in self.processes():
            try:
                if title.match(" ".join(process.cmdline()).rstrip()):
                    found.append(process.pid)
            except psutil.NoSuchProcess:
                continue
        return found

    def spares(self) -> list[int]:
        """Process ids of workers that serve nobody."""
        return self._titled(_SPARE)

    def launchers(self) -> list[int]:
        """Process ids of the launcher: with a sandbox it is two processes, of which the second has the workers."""
        return [*self._titled(_OUTSIDE), self.launcher()]

    def launcher(self) -> int:
        """Process id of the launcher that has the workers."""

        def find() -> int:
            # A worker that has just been forked still has its title.
            titled = set(self._titled(_LAUNCHER))
            return next((pid for pid in titled if _parent(pid) not in (0, *titled)), 0)

        return wait_until(find, "a launcher", LIMIT)

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Ends one process of the service and waits until its parent has reaped it: a zombie may have threads that are
        still ending."""
        assert pid in {process.pid for process in self.processes()}
        os.kill(pid, number)
        until(lambda: not psutil.pid_exists(pid), f"the end of process {pid}")

    # --- what it holds ------------------------------------------------------------------------------------------

    def footprint(self) -> Footprint:
        """Now."""
        processes = self.processes()
        launcher = self.launcher()
        return Footprint(_fds(self.pid), _fds(launcher), len(processes))

    def wait_until_idle(self) -> Footprint:
        """Until nobody is served and all is settled; what is held then."""
        until(
            lambda: len(self.processes()) == 2 + len(self._titled(_OUTSIDE)) + self._wanted_spares,
            "the end of all that are served",
        )
        return self.settle()

    def settle(self) -> Footprint:
        """Until the spares are there again and nobody comes, goes, opens or closes any more; what is held then.

        A spare is there before its start has ended: descriptors of it are still on their way between three processes.
        """
        looks: list[Footprint] = []

        def settled() -> bool:
            if len(self.spares()) != self._wanted_spares:
                looks.clear()
                return False
            looks.append(self.footprint())
            return len(looks) >= LOOKS and len(set(looks[-LOOKS:])) == 1

        until(settled, "a settled service")
        return looks[-1]

    def wait_for_footprint(self, wanted: Footprint) -> None:
        """Until nothing is held that was not before, and that lasts: a worker that ends holds as much as the spare that
        is about to be made. AssertionError names what is held."""
        try:
            until(lambda: self.settle() == wanted, "the footprint of before")
        except Exception as error:
            raise AssertionError(f"{self.footprint()} instead of {wanted}: {_fd_targets(self.pid)}") from error

    def resident(self) -> int:
        """Bytes of the master's own memory: what it shares with others does not count."""
        return resident(self.pid)


def resident(pid: int) -> int:
    """Bytes of a process's own memory."""
    info = psutil.Process(pid).memory_info()
    return int(info.rss - info.shared)


def _parent(pid: int) -> int:
    """0 if the process is gone."""
    try:
        return psutil.Process(pid).ppid()
    except psutil.NoSuchProcess:
        return 0


def _fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _fd_targets(pid: int) -> list[str]:
    return sorted(os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
