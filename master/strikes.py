"""Who is refused contexts because of what became of earlier ones.

A strike is an incident that the program itself brought about. As many of them as --strikes says, within its seconds,
put the program's name in quarantine; as many as --guest-strikes says put the whole guest there, whatever its programs
call themselves. A name is the guest's own word, so a program can take another one: the whole guest cannot.

Quarantine ends by release() alone. It outlives device resets and front ends, so that a guest cannot leave it by
rebooting, and it holds for names and not for contexts, so not by making new ones either.

Contexts that exist when their program is put away go on: what they may do is not changed by it.

Names that never struck cost nothing. Of those that did MAX_NAMES are remembered, with MAX_STRIKES strikes in all; those
whose strikes are too old to count make room. A guest that needs more is at it with ever new names, and is put in
quarantine as a whole.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

from master.events import EventSource, Quarantined, Released
from master.limits import Rate
from master.status import Quarantine
from master.window import Window

log = logging.getLogger(__name__)

MAX_NAMES: Final = 1024
MAX_STRIKES: Final = 1 << 16
WHOLE_GUEST: Final = ""


class Strikes:
    """The strikes of one guest."""

    def __init__(
        self,
        events: EventSource,
        per_program: Rate | None,
        whole_guest: Rate | None = None,
        suffix: str = "",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """None: never. suffix: what is added to names where they are shown, to tell guests apart."""
        self._events = events
        self._per_program = per_program
        self._suffix = suffix
        self._now = now
        self._all = Window(whole_guest) if whole_guest else None
        self._names: dict[str, Window] = {}
        self._quarantine: dict[str, Quarantine] = {}

    def strike(self, program: str) -> None:
        """It was to blame for an incident."""
        now = self._now()
        if self._all is not None:
            self._all.add(now)
            if self._all.full(now):
                self._put_away(WHOLE_GUEST, self._all.count(now))
        if self._per_program is not None and program not in self._quarantine:
            self._note(program, self._per_program, now)

    def _note(self, program: str, rate: Rate, now: float) -> None:
        window = self._names.get(program)
        if window is None:
            window = self._names[program] = Window(rate)
        window.add(now)
        if window.full(now):
            del self._names[program]
            self._put_away(program, rate.count)
        if self._remembers_too_much():
            self._forget_old(now)
            if self._remembers_too_much():
                self._names.clear()
                self._put_away(WHOLE_GUEST, MAX_NAMES)

    def _remembers_too_much(self) -> bool:
        return len(self._names) + len(self._quarantine) > MAX_NAMES or self._kept > MAX_STRIKES

    @property
    def _kept(self) -> int:
        return sum(len(window) for window in self._names.values())

    def _forget_old(self, now: float) -> None:
        for name in [name for name, window in self._names.items() if not window.count(now)]:
            del self._names[name]

    def _put_away(self, program: str, strikes: int) -> None:
        if program in self._quarantine:
            return
        stamp = self._events.stamp()
        entry = Quarantine(program=self._shown(program), strikes=strikes, since=stamp["time"])
        self._quarantine[program] = entry
        log.error("quarantine: %s gets no contexts until released (%d strikes)", self._words(program), strikes)
        self._events.publish(Quarantined(**stamp, program=entry.program, strikes=strikes))

    # ---- asking, and ending it

    def refuses(self, program: str) -> bool:
        """Whether it gets no context."""
        return WHOLE_GUEST in self._quarantine or program in self._quarantine

    def quarantined(self) -> list[Quarantine]:
        """Oldest first."""
        return list(self._quarantine.values())

    def is_idle(self) -> bool:
        """Whether nothing here matters any more: no quarantine, and every strike too old to count."""
        now = self._now()
        self._forget_old(now)
        return not self._names and not self._quarantine and not (self._all and self._all.count(now))

    def release(self, program: str | None) -> list[str]:
        """Ends the quarantine of a name, as it is shown or without the suffix; WHOLE_GUEST: of the guest; None: all.

        Returns the names as shown. Strikes that have been counted are forgotten.
        """
        found = [name for name in self._quarantine if program is None or program in (name, self._shown(name))]
        for name in found:
            entry = self._quarantine.pop(name)
            if name == WHOLE_GUEST and self._all is not None:
                self._all.clear()
            log.warning("quarantine: %s is released", self._words(name))
            self._events.publish(Released(**self._events.stamp(), program=entry.program))
        return [self._shown(name) for name in found]

    def _shown(self, program: str) -> str:
        return f"{program} {self._suffix}".strip()

    def _words(self, program: str) -> str:
        return self._shown(program) or "the whole guest"
