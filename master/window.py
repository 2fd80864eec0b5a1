"""How often something has happened lately."""

from collections import deque

from master.limits import Rate


class Window:
    """The times at which something happened, as far as a rate looks back. It never keeps more than the rate's count.

    Times are seconds of any clock that does not run backwards; each call says what the clock shows now.
    """

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._times: deque[float] = deque(maxlen=rate.count)

    def __len__(self) -> int:
        """Times that are kept, those out of the window too."""
        return len(self._times)

    def clear(self) -> None:
        """Forgets all."""
        self._times.clear()

    def add(self, now: float) -> None:
        """It happens."""
        self._times.append(now)

    def count(self, now: float) -> int:
        """How often within the rate's seconds; its count at most."""
        while self._times and self._times[0] <= now - self._rate.seconds:
            self._times.popleft()
        return len(self._times)

    def full(self, now: float) -> bool:
        """Whether it has happened as often as the rate says."""
        return self.count(now) >= self._rate.count
