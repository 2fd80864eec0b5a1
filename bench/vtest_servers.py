"""Where GL programs render: isorend's vtest service, virgl_test_server, or llvmpipe in the program itself.

Each is a `Renderer` with a directory of its own, which its programs see as /tmp and where the server's socket is
(bench/clients/enter.c says why). All get the same Mesa, and both servers render through EGL without a surface.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from bench.clients.build import BuildFailed, Programs, build
from bench.contenders import isorend_command
from bench.workload import WorkloadUnavailable

PEER = "virgl_test_server"
ONE_PROCESS_PEER = f"{PEER}, one process"
BARE = "llvmpipe in the client"
SOCKET_NAME = ".virgl_test"
_SOURCES = Path(__file__).resolve().parent.parent
_START_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 15.0
_SETTLE_S = 0.1
_SETTLE_LIMIT_S = 20.0
_LOG_TAIL = 4000


@dataclass(frozen=True, slots=True)
class Renderer:
    """Where a GL program may render. pid: of the server, None where there is none. driver: what Mesa is to load."""

    name: str
    directory: Path
    driver: str
    programs: Programs
    pid: int | None = None

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        """`argv` as a program of this renderer."""
        return [str(self.programs.enter), str(self.directory), *map(str, argv)]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """This process's environment, with what a program of this renderer needs and `more` added."""
        ours = {"LIBGL_ALWAYS_SOFTWARE": "1", "GALLIUM_DRIVER": self.driver, "vblank_mode": "0"}
        return {**_environment(), **ours, **(more or {})}

    def settle(self) -> None:
        """Waits until the server does nothing: it is done with the last program and ready for the next."""
        deadline = time.monotonic() + _SETTLE_LIMIT_S
        before, now = -1.0, self._server_seconds()
        while before != now and time.monotonic() < deadline:
            time.sleep(_SETTLE_S)
            before, now = now, self._server_seconds()

    def _server_seconds(self) -> float:
        """CPU time of the server and all below it, in the kernel's ticks."""
        if self.pid is None:
            return 0.0
        server = psutil.Process(self.pid)
        total = 0.0
        for process in [server, *server.children(recursive=True)]:
            try:
                total += sum(process.cpu_times()[:2])
            except psutil.NoSuchProcess:
                continue
        return total


def _environment() -> dict[str, str]:
    """What servers and programs share: Mesa's cache of shaders is on, as it is for its users, in a place of its own."""
    mesa = {key for key in os.environ if key.startswith(("VTEST_", "MESA_", "GALLIUM_", "LIBGL_", "EGL_"))}
    kept = {key: value for key, value in os.environ.items() if key not in mesa}
    return {**kept, "MESA_SHADER_CACHE_DIR": f"/tmp/mesa-cache-{os.getuid()}"}


def start_isorend(stack: ExitStack, *arguments: str) -> Renderer:
    """`isorend vtest` with these arguments; ends with `stack`. Raises WorkloadUnavailable."""
    directory = _directory(stack)
    argv = isorend_command("vtest", f"--socket-path={directory / SOCKET_NAME}", *arguments)
    pid = _start_server(stack, "isorend vtest", argv, directory, _environment())
    return Renderer("isorend", directory, "virpipe", _programs(), pid)


def start_peer(stack: ExitStack, *, one_process: bool = False, shader_cache: bool = True) -> Renderer:
    """virgl_test_server, forking for each client unless `one_process`; ends with `stack`. Raises WorkloadUnavailable.

    shader_cache: whether it keeps compiled shaders for later clients, as it does unless Mesa is told not to.

    Debian 12's listens at /tmp/.virgl_test whatever --socket-path says.
    """
    if shutil.which(PEER) is None:
        raise WorkloadUnavailable(f"{PEER} is missing: apt-get install virgl-server")
    directory = _directory(stack)
    options = ["--no-fork", "--multi-clients"] if one_process else []
    argv = [str(_programs().enter), str(directory), PEER, "--use-egl-surfaceless", *options]
    environment = _environment() if shader_cache else {**_environment(), "MESA_SHADER_CACHE_DISABLE": "true"}
    pid = _start_server(stack, PEER, argv, directory, environment)
    return Renderer(ONE_PROCESS_PEER if one_process else PEER, directory, "virpipe", _programs(), pid)


def start_bare(stack: ExitStack) -> Renderer:
    """No server: programs render by themselves. Raises WorkloadUnavailable."""
    return Renderer(BARE, _directory(stack), "llvmpipe", _programs())


def _programs() -> Programs:
    try:
        return build()
    except BuildFailed as error:
        raise WorkloadUnavailable(str(error)) from None


def _directory(stack: ExitStack) -> Path:
    """As writable for everybody as /tmp, since it becomes one. Its name is short, for sockets."""
    directory = Path(tempfile.mkdtemp(prefix="isorend-bench-"))
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    directory.chmod(0o1777)
    return directory


def _start_server(
    stack: ExitStack, name: str, argv: Sequence[str], directory: Path, environment: Mapping[str, str]
) -> int:
    """The process id, once it listens. Raises WorkloadUnavailable with the end of its log if it does not."""
    log_path = directory / "server.log"
    log = stack.enter_context(log_path.open("wb"))
    server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=_SOURCES, env=environment)
    stack.callback(end_process, server)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not _accepts(directory / SOCKET_NAME):
        if server.poll() is not None or time.monotonic() > deadline:
            tail = log_path.read_text(errors="replace")[-_LOG_TAIL:]
            raise WorkloadUnavailable(f"{name} does not listen; the end of its log: {tail}")
        time.sleep(0.02)
    return server.pid


def _accepts(path: Path) -> bool:
    """Whether somebody listens there. Asked of /proc/net/unix, since a connection would be a client."""
    listening = f" {path} ", f" /tmp/{path.name} "
    return path.exists() and any(
        f"{line} ".endswith(listening) and line.split()[3] == "00010000"  # __SO_ACCEPTCON
        for line in Path("/proc/net/unix").read_text().splitlines()
    )


def end_process(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """SIGTERM, and SIGKILL if that is not enough; its pipes are closed."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    pipes: tuple[IO[bytes] | IO[str] | None, ...] = (process.stdin, process.stdout, process.stderr)
    for pipe in pipes:
        if pipe is not None:
            pipe.close()
