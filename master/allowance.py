"""Holding a guest to its limits: refusing, and saying so once."""

import logging
import time
from collections.abc import Callable
from typing import Final

from master.errors import GuestError
from master.events import EventSource, LimitReached
from master.limits import Limits
from master.line_limit import LineLimit
from master.virtio_gpu import ResponseType
from master.window import Window

log = logging.getLogger(__name__)

REPEAT_INTERVAL: Final = 10.0  # seconds between two log lines, and events, about the same limit of the whole guest


class Allowance:
    """What a guest has used of its limits that no context counts for itself."""

    def __init__(self, limits: Limits, events: EventSource, now: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._events = events
        self._now = now
        self._spawns = Window(limits.spawns)
        self._lines: dict[str, LineLimit] = {}

    def check_context(self, ctx_id: int, program: str, existing: int) -> None:
        """May there be another context besides the existing ones? Raises GuestError (OUT_OF_MEMORY)."""
        if existing >= self.limits.contexts:
            raise self._refusal(ctx_id, program, "contexts", f"{self.limits.contexts} contexts")
        if self._spawns.full(self._now()):
            raise self._refusal(ctx_id, program, "spawns", f"contexts made too fast ({self.limits.spawns} s)")

    def context_made(self) -> None:
        """There is one more."""
        self._spawns.add(self._now())

    def _refusal(self, ctx_id: int, program: str, limit: str, words: str) -> GuestError:
        line = self._lines.setdefault(limit, LineLimit(REPEAT_INTERVAL, self._now))
        if (before := line.admit()) is not None:
            self.tell(ctx_id, program, limit, words + before)
        return GuestError(ResponseType.ERR_OUT_OF_MEMORY, words)

    def tell(self, ctx_id: int, program: str, limit: str, words: str) -> None:
        """The log line and the event; how often is the caller's to bound."""
        log.warning("over the limit: ctx %d %s: %s", ctx_id, program, words)
        self._events.publish(LimitReached(**self._events.stamp(), ctx_id=ctx_id, program=program, limit=limit))
