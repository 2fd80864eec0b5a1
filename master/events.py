"""What happens in a service that somebody may want to hear of: plain data that can become JSON."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypedDict


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all. KIND is its name on the event stream; service: who tells; time: Unix time."""

    KIND: ClassVar[str]
    service: str
    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextCreated(Event):
    """A guest context exists (or a vtest client was given a worker); pid is 0 while that is being started."""

    KIND = "context-created"
    ctx_id: int
    program: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextEnded(Event):
    """It ended as it should: destroyed by the guest, or the client left."""

    KIND = "context-ended"
    ctx_id: int
    program: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEndChanged(Event):
    """A VMM connected or left."""

    KIND = "front-end"
    connected: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined(Event):
    """A program's name, or the whole guest (""), gets no contexts any more."""

    KIND = "quarantined"
    program: str
    strikes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Released(Event):
    """It gets contexts again."""

    KIND = "released"
    program: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitReached(Event):
    """A guest asked for more than it may have; it got ERR_OUT_OF_MEMORY."""

    KIND = "limit"
    ctx_id: int
    program: str
    limit: str


Publish = Callable[[Event], None]
"""Who is told. Never blocks, never raises."""


class Stamp(TypedDict):
    """What every event has."""

    service: str
    time: float


class EventSource:
    """Where one service's events come from. `publish` is told of each: nobody, until somebody is set there."""

    def __init__(self, service: str, now: Callable[[], float] = time.time) -> None:
        """service: its name. now: Unix time."""
        self.service = service
        self.publish: Publish = lambda _event: None
        self._now = now

    def stamp(self) -> Stamp:
        """For an event that happens now."""
        return Stamp(service=self.service, time=self._now())
