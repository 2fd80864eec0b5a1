"""What a service tells of itself: plain data for `isorend status` and whoever else asks. All of it can become JSON."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextStatus:
    """A guest context, or a vtest client, and its worker.

    ctx_id: the guest's number, or ours of the client. program: debug_name, printable. pid: 0 while the process is being
    started. state: ending is one that the guest has destroyed. fences: completions that somebody waits for. queued:
    commands that wait for room in the worker's ring. memory_bytes: resident, 0 if unknown. resources: attached ones;
    resource_bytes: what they take by their sizes. seconds: age.
    """

    ctx_id: int
    program: str
    pid: int
    state: Literal["starting", "running", "lost", "ending"]
    fences: int = 0
    queued: int = 0
    submits: int = 0
    submit_bytes: int = 0
    resources: int = 0
    resource_bytes: int = 0
    memory_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """A program's name, or the whole guest (""), that gets no contexts until it is released. since: Unix time."""

    program: str
    strikes: int
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """One service now. service: its name; connected: front ends, or clients; seconds: since its start."""

    service: str
    kind: Literal["serve", "vtest"]
    pid: int
    version: str
    renderer: str
    sandbox: str
    seconds: float
    connected: int
    spares: int
    resources: int
    incidents: int
    contexts: list[ContextStatus] = field(default_factory=list)
    quarantined: list[Quarantine] = field(default_factory=list)
