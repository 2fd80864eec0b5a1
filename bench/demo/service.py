"""The isorend service as the demo's child process: what it runs on, its workers, what it says is lost."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.demo.errors import DemoFailed
from tests.fake_vmm import BackEndProcess
from tests.vm.workers import WorkerProcess, context_workers

PROGRAM = "isorend-vhost-user-gpu"
_IN_THIS_PYTHON = "import sys; from master.cli import vhost_user_gpu_main; sys.exit(vhost_user_gpu_main())"
_SOURCES = Path(__file__).resolve().parents[2]

_RENDERING = re.compile(r"rendering by (?P<engine>\S+): (?P<renderer>.+)")
_LOST = re.compile(  # from the beginning of a line, where workers cannot write
    r"^isorend: error: (?:\(\d+ lines were left out\) )?"
    r"(?P<words>context lost: ctx (?P<ctx>\d+) (?P<name>.*) \(worker (?P<pid>\d+)\): (?P<cause>[^;]+))"
)


@dataclass(frozen=True, slots=True)
class LostContext:
    """A line of the service's log about a context that is lost."""

    ctx_id: int
    name: str
    pid: int
    cause: str
    line: str


def service_command() -> list[str]:
    """The program installed beside this Python, else the same from the sources."""
    beside = Path(sys.executable).parent / PROGRAM
    return [str(beside)] if os.access(beside, os.X_OK) else [sys.executable, "-c", _IN_THIS_PYTHON]


class DemoService(BackEndProcess):
    """The service, started without --keep-listening: it ends with its front end even if the demo is killed."""

    def __init__(self) -> None:
        super().__init__(service_command(), cwd=_SOURCES)

    def __enter__(self) -> DemoService:
        return self

    def rendering(self) -> tuple[str, str]:
        """Engine and renderer, as the service logs them at its start. Raises DemoFailed."""
        match = _RENDERING.search(self.log)
        if match is None:
            raise DemoFailed("the service did not say what it renders with")
        return match["engine"], match["renderer"]

    def is_listening(self) -> bool:
        """Whether a VMM can connect. Raises DemoFailed if it has ended."""
        self.check_running()
        return "listening on " in self.log

    def check_running(self) -> None:
        """Raises DemoFailed if it has ended."""
        if not self.running:
            raise DemoFailed(f"the service has ended; its last words: {self.last_words()}")

    def worker(self, ctx_id: int, timeout: float = 30.0) -> WorkerProcess:
        """The worker process of a context, found by its title. Raises DemoFailed."""
        deadline = time.monotonic() + timeout
        while True:
            for worker in context_workers(self.pid):
                if worker.ctx_id == ctx_id:
                    return worker
            if time.monotonic() > deadline:
                raise DemoFailed(f"no process is titled as the worker of context {ctx_id}")
            time.sleep(0.01)

    def lost_contexts(self) -> list[LostContext]:
        """All that the service has reported so far, in order."""
        matches = map(_LOST.search, self.log.splitlines())
        return [LostContext(int(m["ctx"]), m["name"], int(m["pid"]), m["cause"], m["words"]) for m in matches if m]

    def last_words(self) -> str:
        """The last line of its log, for a person."""
        return (self.log.strip().splitlines() or ["none"])[-1]

    def keep_log(self, path: Path) -> None:
        """Copy its log."""
        shutil.copyfile(self.log_path, path)


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def main_thread_seconds(pid: int) -> float:
    """CPU time of a process's first thread (proc(5), schedstat), or of all of it where the kernel does not count that.

    Raises psutil.NoSuchProcess once the process is gone.
    """
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except (FileNotFoundError, ProcessLookupError):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
