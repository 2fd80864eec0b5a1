"""The isorend service under pytest-xprocess: the command people use, its log in the report of a failing test.

    service = ServiceProcess(xprocess, ["--engine=null"])
    FakeVmm.connect(service.socket_path)
    assert service.stop() == 0

Names of processes hold pytest's pid, since two pytests may run in one tree and xprocess would share them by name.
"""

from __future__ import annotations

import atexit
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from xprocess import ProcessStarter
from xprocess.xprocess import XProcess

from tests import sanitized

PROGRAM = "isorend-vhost-user-gpu"
VTEST_COMMAND = ("isorend", "vtest")
ROGUE_COMMAND = ("tests.rogue.service", "serve")
SOCKET_NAMES = {PROGRAM: "gpu.sock", VTEST_COMMAND[0]: ".virgl_test", ROGUE_COMMAND[0]: "gpu.sock"}
"""By program. Debian 12's Mesa looks for a vtest service at /tmp/.virgl_test only, so a test gives it another /tmp."""
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 60.0
LISTENING = "listening on "
_NAME = re.compile(r"service-(?P<pytest>\d+)-\d+")
_numbers = itertools.count(1)


class ServiceEnded(Exception):
    """The service ended while it was wanted; the message has its exit code and the end of its log."""


class ServiceProcess:
    """A service that listens at socket_path; ready for front ends or clients once made.

    arguments: besides --socket-path. command: an installed program, or a module of ours (a name with dots), and its
    subcommand. env: added to the environment.
    Raises ServiceEnded if it does not come up.
    """

    def __init__(
        self,
        xprocess: XProcess,
        arguments: Sequence[str] = (),
        *,
        command: Sequence[str] = (PROGRAM,),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="isorend-"))
        atexit.register(shutil.rmtree, self._directory, ignore_errors=True)  # for whoever does not stop it
        self.runtime_directory = self._directory
        """XDG_RUNTIME_DIR of this service, unless `env` has another: nobody else's service is there."""
        self.socket_path = self._directory / SOCKET_NAMES[command[0]]
        self.name = f"service-{os.getpid()}-{next(_numbers)}"
        self._xprocess = xprocess
        # No test's end leaves a service behind, whatever ends pytest.
        self.command = [
            *("setpriv", "--pdeathsig", "KILL", sys.executable, *_program(command[0])),
            *(*command[1:], f"--socket-path={self.socket_path}", *sanitized.service_arguments(env or {}), *arguments),
        ]
        self._info = xprocess.getinfo(self.name)
        try:
            environment = {**os.environ, "XDG_RUNTIME_DIR": str(self._directory), **(env or {})}
            xprocess.ensure(self.name, self._starter(environment), persist_logs=False)
        except ServiceEnded:
            shutil.rmtree(self._directory)
            raise
        self.pid: int = self._popen.pid

    @property
    def log_path(self) -> Path:
        """Where it and its workers log."""
        return Path(str(self._info.logpath))

    @property
    def log(self) -> str:
        """All that they have logged."""
        return self.log_path.read_text(errors="replace")

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._popen.poll()

    def check_running(self) -> None:
        """Raises ServiceEnded if it has ended."""
        code = self.exit_code
        if code is not None:
            raise ServiceEnded(f"the service ended with {code}; the end of its log:\n{self.log[-4000:]}")

    def wait(self, timeout: float = STOP_TIMEOUT_S) -> int:
        """Waits for it to end by itself. Returns its exit code. Raises TimeoutError."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"service {self.pid} did not end within {timeout} s\n{self.log[-4000:]}") from None

    def stop(self) -> int:
        """Ends it by SIGTERM. Returns its exit code. Raises TimeoutError if that was not enough; it is gone even so."""
        if self.exit_code is None:
            self._popen.send_signal(signal.SIGTERM)
        try:
            return self.wait()
        except TimeoutError:
            self._info.terminate(timeout=1)
            raise
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def _popen(self) -> subprocess.Popen[bytes]:
        for resources in self._xprocess.resources:
            if resources.popen is not None and resources.info[0].name == self.name:
                popen: subprocess.Popen[bytes] = resources.popen
                return popen
        raise LookupError(f"{self.name} was not started")

    def _starter(self, environment: dict[str, str]) -> type[ProcessStarter]:
        service = self

        class Starter(ProcessStarter):
            args = service.command
            env = environment  # type: ignore[assignment]  # None in the base class says "inherit"
            timeout = START_TIMEOUT_S
            terminate_on_interrupt = True

            def startup_check(self) -> bool:
                service.check_running()
                return LISTENING in service.log

        return Starter


def _program(name: str) -> list[str]:
    """What Python is to run, as its arguments."""
    return ["-m", name] if "." in name else [str(Path(sys.executable).parent / name)]


def forget_crashed_runs(xprocess: XProcess) -> None:
    """Ends services that a pytest which is gone has left, and removes their logs."""
    for directory in Path(str(xprocess.rootdir)).iterdir():
        match = _NAME.fullmatch(directory.name)
        if match is None or psutil.pid_exists(int(match["pytest"])):
            continue
        info: Any = xprocess.getinfo(directory.name)
        # Its pid may be another process's by now.
        if info.isrunning() and any(Path(word).name in SOCKET_NAMES for word in psutil.Process(info.pid).cmdline()):
            info.terminate()
        shutil.rmtree(directory)
