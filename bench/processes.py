"""What the kernel tells about the service's processes: memory, and which spares wait for a context."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_POLL_S = 0.01
_QUIET_S = 0.15
_PATIENCE_S = 60.0
_SPARE = "isorend: spare ("
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, from /proc/PID/smaps_rollup (proc(5)): pss counts a page that n processes share for 1/n."""

    pss: int
    private_dirty: int

    @classmethod
    def of(cls, pid: int) -> Memory:
        """Raises psutil.NoSuchProcess."""
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            raise psutil.NoSuchProcess(pid) from None
        fields = dict(line.split(":", 1) for line in lines[1:])
        return cls(_bytes(fields["Pss"]), _bytes(fields["Private_Dirty"]))


def _bytes(field: str) -> int:
    number, unit = field.split()
    if unit != "kB":
        raise ValueError(f"smaps_rollup counts in {unit}")
    return int(number) * 1024


def total_pss(service_pid: int) -> int:
    """Bytes of a process and all below it; what has ended meanwhile counts for nothing."""
    process = psutil.Process(service_pid)
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += Memory.of(each.pid).pss
        except psutil.NoSuchProcess:
            continue
    return total


def spares(service_pid: int) -> list[psutil.Process]:
    """The service's spare workers, ready or starting."""
    found = []
    for process in psutil.Process(service_pid).children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(_SPARE):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_for_spare(service_pid: int) -> None:
    """Until all spare workers, one at least, are done with their start: they use no CPU time any more."""
    before: dict[int, float] = {}

    def ready() -> bool:
        nonlocal before
        now = {process.pid: sum(process.cpu_times()[:2]) for process in spares(service_pid) if process.is_running()}
        quiet, before = bool(now) and now == before, now
        return quiet

    wait_until(ready, f"a spare worker of process {service_pid}", every=_QUIET_S)


def wait_until(condition: Callable[[], bool], awaited: str, *, every: float = _POLL_S) -> None:
    """Look every so many seconds; raises TimeoutError."""
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {_PATIENCE_S:g} s in vain for {awaited}")
        time.sleep(every)


@contextmanager
def placed(processes: Iterable[psutil.Process], on_one_cpu: bool) -> Iterator[None]:
    """Every thread of this process and of `processes` on the first CPU that this one may use, if `on_one_cpu`."""
    if not on_one_cpu:
        yield
        return
    threads = [thread.id for process in (psutil.Process(), *processes) for thread in process.threads()]
    before = {thread: os.sched_getaffinity(thread) for thread in threads}
    cpu = {min(os.sched_getaffinity(0))}
    try:
        for thread in threads:
            os.sched_setaffinity(thread, cpu)
        yield
    finally:
        for thread, cpus in before.items():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread, cpus)
