"""The incidents of a service: numbered, published, the latest of them kept."""

from collections import deque
from collections.abc import Iterable
from typing import Final

from master.blame import MAX_RESOURCES_LISTED, Cause, Incident
from master.events import EventSource
from master.history import History

INCIDENTS_KEPT: Final = 1000


class IncidentLog:
    """What happened since the service's start. Its memory is bounded: each is small, INCIDENTS_KEPT are kept."""

    def __init__(self, events: EventSource) -> None:
        self._events = events
        self._kept: deque[Incident] = deque(maxlen=INCIDENTS_KEPT)
        self._count = 0

    def __len__(self) -> int:
        """All there were."""
        return self._count

    def latest(self) -> list[Incident]:
        """Those that are kept, oldest first."""
        return list(self._kept)

    def report(
        self,
        ctx_id: int,
        program: str,
        pid: int,
        cause: Cause,
        history: History | None = None,
        resources_lost: Iterable[int] = (),
    ) -> Incident:
        """One more. `program` is printable; logging it is the caller's."""
        lost = sorted(resources_lost)
        history = history or History()
        self._count += 1
        incident = Incident(
            **self._events.stamp(),
            number=self._count,
            ctx_id=ctx_id,
            program=program,
            pid=pid,
            cause=cause,
            under_way=history.under_way,
            last_commands=history.last_commands,
            resources_lost=tuple(lost[:MAX_RESOURCES_LISTED]),
            resources_lost_count=len(lost),
            fences=history.fences,
        )
        self._kept.append(incident)
        self._events.publish(incident)
        return incident
