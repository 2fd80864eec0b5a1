"""What the control plane asks of a service, of either kind."""

from typing import Protocol

from master.blame import Incident
from master.status import ServiceStatus


class Controlled(Protocol):
    """A service that can be watched and told a few things. Everything returns at once."""

    def status(self) -> ServiceStatus: ...

    def incidents(self) -> list[Incident]:
        """The latest, oldest first; as many as are kept."""

    def release(self, program: str | None) -> list[str]:
        """Ends the quarantine of a program's name ("" is the whole guest), or of all. Returns what was released."""

    def kill(self, ctx_id: int) -> bool:
        """Ends a context's worker. False if there is no such context with a worker that lives."""
