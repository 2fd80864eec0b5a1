"""The service's context workers as the host sees them: processes titled `isorend: ctx 7 kmscube (virgl)`."""

from __future__ import annotations

import re
from dataclasses import dataclass

import psutil

TITLE = re.compile(r"^isorend: ctx (?P<ctx>\d+)(?: (?P<name>.*?))? \((?P<engine>\S+)\)")


@dataclass(frozen=True)
class WorkerProcess:
    """One context's worker: its process id and, as its title says, context id, guest program's name and engine."""

    pid: int
    ctx_id: int
    name: str
    engine: str

    def cpu_seconds(self) -> float:
        """CPU time it has used. Raises psutil.NoSuchProcess once it is gone."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)


def context_workers(service_pid: int) -> list[WorkerProcess]:
    """The workers below a service process that render for a guest context now, by context id."""
    workers = []
    for process in psutil.Process(service_pid).children(recursive=True):
        try:
            title = TITLE.match(" ".join(process.cmdline()))
        except psutil.NoSuchProcess:
            continue
        if title:
            workers.append(WorkerProcess(process.pid, int(title["ctx"]), title["name"] or "", title["engine"]))
    return sorted(workers, key=lambda worker: worker.ctx_id)
