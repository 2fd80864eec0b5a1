"""A control plane in this process, with a service behind it that does nothing but answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from master.blame import Cause, CauseKind, Incident
from master.control.directory import ServiceDirectory
from master.control.server import ControlServer
from master.events import ContextCreated, Event
from master.status import ContextStatus, Quarantine, ServiceStatus

LIMIT_S = 30.0
HOSTILE = "[bold red]evil[/]\x1b[2J\x1b]0;mine\x07\u202e\n\x9b"
"""What a guest program may call itself."""


def incident(number: int = 1, program: str = "kmscube", **more: object) -> Incident:
    """One, of a worker that was killed."""
    cause = Cause(kind=CauseKind.SIGNAL, text="killed by SIGKILL", signal="SIGKILL")
    values = {"service": "vm-1", "time": 1e9, "number": number, "ctx_id": 3, "program": program, "pid": 4712}
    return Incident(**{**values, "cause": cause, **more})  # type: ignore[arg-type]


def created(program: str = "kmscube", service: str = "vm-1") -> ContextCreated:
    """An event."""
    return ContextCreated(service=service, time=1e9, ctx_id=3, program=program, pid=4712)


@dataclass
class FakeService:
    """A Controlled (master.control_target). killed and released: what it was told."""

    name: str = "vm-1"
    contexts: list[ContextStatus] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    listed: list[Incident] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)
    released: list[str | None] = field(default_factory=list)
    broken: bool = False

    def status(self) -> ServiceStatus:
        if self.broken:
            raise RuntimeError("a bug")
        return ServiceStatus(
            service=self.name,
            kind="serve",
            pid=4711,
            version="0.1.0",
            renderer="virgl: llvmpipe",
            sandbox="enforce",
            seconds=75.0,
            connected=1,
            spares=2,
            resources=14,
            incidents=len(self.listed),
            contexts=self.contexts,
            quarantined=[Quarantine(program=name, strikes=3, since=1e9) for name in self.quarantined],
        )

    def incidents(self) -> list[Incident]:
        return self.listed

    def release(self, program: str | None) -> list[str]:
        self.released.append(program)
        names = [name for name in self.quarantined if program in (None, name)]
        self.quarantined = [name for name in self.quarantined if name not in names]
        return names

    def kill(self, ctx_id: int) -> bool:
        self.killed.append(ctx_id)
        return any(context.ctx_id == ctx_id for context in self.contexts)


def context(ctx_id: int = 3, program: str = "kmscube") -> ContextStatus:
    """One that runs."""
    numbers = {"fences": 1, "queued": 2, "submits": 345, "memory_bytes": 96 << 20}
    return ContextStatus(ctx_id=ctx_id, program=program, pid=4712, state="running", **numbers)


class RunningControl:
    """A server in a loop of its own thread. raised: what came out of the loop, which nothing may."""

    def __init__(self, where: Path, service: FakeService) -> None:
        self.service = service
        self.directory = where / service.name
        self.raised: list[dict[str, object]] = []
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _loop, what: self.raised.append(what))
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server = ControlServer(self._loop, ServiceDirectory.claim(service.name, where), service)
        self._thread.start()

    def call(self, function: Callable[[ControlServer], None]) -> None:
        """Runs it in the loop, and waits for that."""
        done = threading.Event()

        def run() -> None:
            try:
                function(self._server)
            finally:
                done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(LIMIT_S), "the loop stands still"

    def publish(self, *events: Event) -> None:
        """All of them at once."""

        def publish(server: ControlServer) -> None:
            for event in events:
                server.publish(event)

        self.call(publish)

    def end(self) -> None:
        """The service ends as it should. May be called again."""
        self.call(lambda server: server.close())

    def close(self) -> None:
        self.end()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT_S)
        self._loop.close()
        assert self.raised == []


@contextmanager
def running_control(where: Path, service: FakeService | None = None) -> Iterator[RunningControl]:
    """A RunningControl below the directory `where`; nothing may have been raised into its loop in the end."""
    control = RunningControl(where, service or FakeService())
    try:
        yield control
    finally:
        control.close()
