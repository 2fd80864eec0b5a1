"""Descriptors on their way to a worker, in the order of the records that speak of them.

A worker that comes to a record with a ticket takes the next Handle off its channel. So where a record has a place in
the ring's order before it can be written (Records.reserve), its descriptor has one here, and those of later records
wait.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ipc.channel import Channel
from ipc.errors import ChannelClosed
from ipc.messages import Handle
from ipc.outbox import RETRY_S, Outbox
from native.owned_fd import OwnedFd

CROWD: Final = 64
"""Descriptors that may wait for a worker before whoever wants to send more has to wait, too."""


@dataclass(eq=False, slots=True)
class HandlePlace:
    """A place in the order of descriptors: open, or with the descriptor that goes there, or with none."""

    open: bool = True
    ticket: int = 0
    fd: OwnedFd | None = None


class HandlePost:
    """The descriptors that one worker is sent. Nothing here waits."""

    def __init__(self, loop: asyncio.AbstractEventLoop, channel: Channel, on_failure: Callable[[str], None]) -> None:
        """`channel` stays the caller's. on_failure(why): what was put here will never arrive."""
        self._loop = loop
        self._outbox = Outbox(channel)
        self._places: deque[HandlePlace] = deque()
        self._on_failure = on_failure
        self._waits_for_room = False
        self._retry: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        """How many wait."""
        return len(self._outbox) + len(self._places)

    @property
    def crowded(self) -> bool:
        """Whether so many wait that there had better be no more."""
        return len(self) >= CROWD

    def put(self, ticket: int, fd: OwnedFd) -> None:
        """Sends a duplicate behind everything, as a Handle with this ticket. Raises OSError, with nothing sent."""
        self.fill(self.reserve(), ticket, fd)

    def reserve(self) -> HandlePlace:
        """A place behind everything, to be filled or given up."""
        place = HandlePlace()
        self._places.append(place)
        return place

    def fill(self, place: HandlePlace, ticket: int, fd: OwnedFd) -> None:
        """Puts a duplicate there. Raises OSError, with the place given up."""
        try:
            if not self._closed:
                place.fd = OwnedFd.duplicate(fd)
                place.ticket = ticket
        finally:
            self.give_up(place)

    def give_up(self, place: HandlePlace) -> None:
        """Nothing more goes there."""
        place.open = False
        while self._places and not self._places[0].open:
            self._post(self._places.popleft())
        self._flush()

    def _post(self, place: HandlePlace) -> None:
        if place.fd is None:
            return
        try:
            self._outbox.put(Handle(place.ticket), place.fd)
        except OSError as error:
            self._fail(str(error))
        finally:
            place.fd.close()

    def _flush(self) -> None:
        self._rest()
        if self._closed:
            return
        try:
            if self._outbox.flush():
                return
        except ChannelClosed:  # it is ending, and others notice
            self.close()
            return
        except OSError as error:
            self._fail(str(error))
            return
        if self._outbox.crowded:
            self._retry = self._loop.call_later(RETRY_S, self._flush)
        else:
            self._waits_for_room = True
            self._loop.add_writer(self._outbox, self._flush)

    def _fail(self, why: str) -> None:
        self.close()
        self._on_failure(why)

    def _rest(self) -> None:
        if self._waits_for_room:
            self._waits_for_room = False
            self._loop.remove_writer(self._outbox)
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def close(self) -> None:
        """Nothing more is sent. To be called before the channel is closed."""
        self._rest()
        self._closed = True
        self._outbox.close()
        for place in self._places:
            if place.fd is not None:
                place.fd.close()
        self._places.clear()
