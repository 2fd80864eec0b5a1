"""A vtest service as seen from outside, and its clients: unmodified Mesa programs, and bare connections."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from bench.clients.build import Programs
from tests.fake_vtest.client import ConnectionLost, VtestClient
from tests.fake_vtest.protocol import Command, pack_words
from tests.service_lab import LIMIT, RunningService, ServiceLab
from tests.service_process import ServiceProcess
from tests.vm.waiting import wait_until

SPARES = 1
OPTIONS = [f"--spares={SPARES}"]
GEARS_FRAMES = 5
GEARS = ("--scene=gears", f"--frames={GEARS_FRAMES}")
"""Arguments of a MesaProgram whose last picture is always the same."""

_TITLE = re.compile(r"^isorend: vtest (?P<number>\d+)(?: (?P<name>.*?))? \((?P<engine>\S+)\)")
_END = 120.0  # seconds that a program may take


def command(number: Command, body: bytes = b"", length: int | None = None) -> bytes:
    """A vtest command. length: what its header says, if not the body's words."""
    return pack_words(len(body) // 4 if length is None else length, number) + body


def create_renderer(name: bytes = b"bare\0") -> bytes:
    """The command that begins a session; its length counts bytes."""
    return command(Command.CREATE_RENDERER, name, len(name))


def is_served(client: VtestClient) -> bool:
    """Begins a session and asks for an answer: whether there is one. False if the connection was closed."""
    try:
        client.create_renderer()
        return client.ping()
    except ConnectionLost:
        return False


@dataclass(frozen=True)
class ClientWorker:
    """A worker that serves a client: its process id and, as its title says, the client's number, name and engine."""

    pid: int
    number: int
    name: str
    engine: str


class VtestLab(ServiceLab):
    """A vtest service. It must have been started with OPTIONS among its arguments."""

    service: ServiceProcess

    def __init__(self, service: ServiceProcess, spares: int = SPARES) -> None:
        super().__init__(service, spares)

    def workers(self) -> list[ClientWorker]:
        """Those that serve a client now, by client number."""
        workers = []
        for process in self.processes():
            try:
                title = _TITLE.match(" ".join(process.cmdline()))
            except psutil.NoSuchProcess:
                continue
            if title:
                workers.append(ClientWorker(process.pid, int(title["number"]), title["name"] or "", title["engine"]))
        return sorted(workers, key=lambda worker: worker.number)

    def wait_for_workers(self, count: int) -> list[ClientWorker]:
        """That many, once they have taken their titles."""
        return wait_until(lambda: len(found := self.workers()) == count and found, f"{count} workers", LIMIT) or []

    @contextmanager
    def nothing_left(self) -> Iterator[None]:
        """Afterwards the service runs and holds what it held before: the clients within have left no process and no
        descriptor behind."""
        before = self.settle()
        yield
        self.check_running()
        self.wait_for_footprint(before)

    @contextmanager
    def connect(self) -> Iterator[VtestClient]:
        """A bare connection, on which nothing has been said."""
        with VtestClient(connect(self.service.socket_path)) as client:
            yield client


def connect(path: Path) -> socket.socket:
    """A connection to a Unix socket."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


class MesaProgram:
    """The bench's GL client on a vtest service, or without one on Mesa's own renderer, in a process of its own. It has
    drawn its first frame and waits until go() is called, then draws the rest. It looks at a pixel of each itself.

    picture: where its last frame is written.
    """

    def __init__(
        self, programs: Programs, service: RunningService | None, *arguments: str, picture: Path | None = None
    ) -> None:
        environment = {
            **os.environ,
            "LIBGL_ALWAYS_SOFTWARE": "1",
            "GALLIUM_DRIVER": "virpipe" if service else "llvmpipe",
        }
        enter = []
        if service is not None:  # the directory becomes its /tmp, for every Mesa to find the socket
            enter = [str(programs.enter), str(service.socket_path.parent)]
            environment["VTEST_SOCKET_NAME"] = f"/tmp/{service.socket_path.name}"
        dump = [] if picture is None else [f"--dump={picture.name}"]
        self.process = subprocess.Popen(
            [*enter, str(programs.client), "--wait", *arguments, *dump],
            cwd=None if picture is None else picture.parent,  # still there when another /tmp hides its path
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise AssertionError(f"the program did not start: {self.process.communicate()}")

    def go(self) -> None:
        """Draw on."""
        assert self.process.stdin is not None
        self.process.stdin.write("g")
        self.process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """What it says at its end, which must be a good one."""
        out, err = self.process.communicate(timeout=_END)
        assert self.process.returncode == 0, (self.process.returncode, out, err)
        report: dict[str, Any] = json.loads(out)
        return report

    def wait(self) -> tuple[int, str]:
        """Its exit code and complaints, whatever they are."""
        _, err = self.process.communicate(timeout=_END)
        return self.process.returncode, err

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.communicate()
