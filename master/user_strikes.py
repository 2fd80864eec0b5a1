"""Strikes of the programs of this machine's users.

What a program is called is its own word (proc(5), comm), whose it is the kernel's. So each user has strikes of their
own: nobody can get another user's programs refused by taking their names. A user who takes ever new names is refused as
a whole (master.strikes).
"""

from typing import Final

from master.events import EventSource
from master.limits import Rate
from master.peer import Peer
from master.status import Quarantine
from master.strikes import Strikes

MAX_USERS: Final = 256


class UserStrikes:
    """Strikes by user, of MAX_USERS at a time; those of whom nothing counts any more make room for others."""

    def __init__(self, events: EventSource, per_program: Rate | None) -> None:
        """per_program: None for never."""
        self._events = events
        self._per_program = per_program
        self._users: dict[int, Strikes] = {}

    def strike(self, peer: Peer) -> None:
        """Its program was to blame for an incident."""
        if self._per_program is None:
            return
        if peer.uid not in self._users:
            self._make_room()
            self._users[peer.uid] = Strikes(self._events, self._per_program, suffix=f"(uid {peer.uid})")
        self._users[peer.uid].strike(_name(peer))

    def _make_room(self) -> None:
        if len(self._users) < MAX_USERS:
            return
        for uid in [uid for uid, strikes in self._users.items() if strikes.is_idle()]:
            del self._users[uid]
        if len(self._users) >= MAX_USERS:  # one who has struck least lately, rather than the newest
            free = [uid for uid, strikes in self._users.items() if not strikes.quarantined()]
            del self._users[(free or list(self._users))[0]]

    def refuses(self, peer: Peer) -> bool:
        """Whether it gets no worker."""
        return peer.uid in self._users and self._users[peer.uid].refuses(_name(peer))

    def quarantined(self) -> list[Quarantine]:
        """Of all users."""
        return [entry for strikes in self._users.values() for entry in strikes.quarantined()]

    def release(self, program: str | None) -> list[str]:
        """As Strikes.release(): a name with "(uid N)" as it is shown, or without for that of every user."""
        return [name for strikes in self._users.values() for name in strikes.release(program)]


def _name(peer: Peer) -> str:
    return peer.program or "unknown program"
