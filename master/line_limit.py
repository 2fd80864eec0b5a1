"""Keeping log lines of one kind to a trickle.

The log as a whole is bounded (master.logging_setup); this keeps one noisy worker or client from using that up for all.
"""

from collections.abc import Callable


class LineLimit:
    """A burst of lines, then one in each interval; the next line says how many were left out."""

    def __init__(self, interval: float, now: Callable[[], float], burst: int = 1) -> None:
        """interval: seconds, of the clock that `now` reads."""
        self._interval = interval
        self._now = now
        self._burst = burst
        self._tokens = float(burst)
        self._refilled = now()
        self._left_out = 0

    def admit(self) -> str | None:
        """None: leave this line out. Else what to add to it: "", or how many were left out before."""
        now = self._now()
        self._tokens = min(self._burst, self._tokens + (now - self._refilled) / self._interval)
        self._refilled = now
        if self._tokens < 1:
            self._left_out += 1
            return None
        self._tokens -= 1
        return self.rest()

    def rest(self) -> str:
        """What to add to a line that is not ours to leave out, because it is the last one: as admit()."""
        before, self._left_out = self._left_out, 0
        return f" ({before} others before)" if before else ""
