"""Control records: messages in the order of a context, and what comes of them.

A message that cannot be written yet has its place kept (reserve); whatever comes later for the context waits behind it.
A descriptor goes with a message by its ticket: it is posted before the record is placed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ipc.messages import Message
from master.context import Context
from master.handle_post import HandlePlace
from native.dataplane import COMPLETE, Plane, Status
from native.owned_fd import OwnedFd

Executed: TypeAlias = Callable[[Status], None]


@dataclass(frozen=True, slots=True)
class Ticket:
    """A descriptor that a message names by this number. It is lent."""

    number: int
    fd: OwnedFd


@dataclass(eq=False, slots=True)
class Place:
    """A place in a context's order, and one among the descriptors for its worker."""

    context: Context
    slot: int
    handle: HandlePlace


class Records:
    """Tokens of all work that Python has on lanes, and messages among it."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._next_token = 1
        self._next_ticket = 1
        self._waiting: dict[int, Executed] = {}

    def new_token(self) -> int:
        """A number for work on a lane, different from those of messages."""
        token, self._next_token = self._next_token, self._next_token + 1
        return token

    def new_ticket(self) -> int:
        """A number for a descriptor; never 0."""
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        return ticket

    def send(
        self, context: Context, message: Message, done: Executed | None = None, ticket: Ticket | None = None
    ) -> bool:
        """Places a message behind everything of the context; done(status) is called when it has been executed.

        False if the worker is so far behind that the message, or its descriptor, has to wait for room. Raises OSError,
        with nothing placed, if there is no descriptor left for a duplicate of the ticket's.
        """
        worker = context.worker
        crowded = False
        if ticket is not None:
            crowded = worker.post.crowded
            worker.post.put(ticket.number, ticket.fd)
        token = self._note(done)
        try:
            placed = self._plane.send(worker.lane, context.ctx_id, message.encode(), COMPLETE if done else 0, token)
        except BrokenPipeError:
            self.work_done(token, Status.LOST)
            return True
        return placed and not crowded

    def reserve(self, context: Context) -> Place | None:
        """Keeps a place behind everything of the context. None if its worker is gone."""
        slot = self.new_token()
        try:
            self._plane.reserve(context.worker.lane, context.ctx_id, slot)
        except BrokenPipeError:
            return None
        return Place(context, slot, context.worker.post.reserve())

    def fill(self, place: Place, message: Message, done: Executed | None = None, ticket: Ticket | None = None) -> None:
        """As send(), in the place. Raises OSError, with the place given up, for want of a descriptor."""
        post = place.context.worker.post
        if ticket is None:
            post.give_up(place.handle)
        else:
            try:
                post.fill(place.handle, ticket.number, ticket.fd)
            except OSError:
                self._fill(place, b"", None)
                raise
        self._fill(place, message.encode(), done)

    def give_up(self, place: Place) -> None:
        """Nothing goes there."""
        place.context.worker.post.give_up(place.handle)
        self._fill(place, b"", None)

    def _fill(self, place: Place, data: bytes, done: Executed | None) -> None:
        token = self._note(done)
        try:
            self._plane.fill(place.context.worker.lane, place.slot, data, COMPLETE if done else 0, token)
        except BrokenPipeError:  # its worker is gone, and the place with it
            self.work_done(token, Status.LOST)

    def _note(self, done: Executed | None) -> int:
        """The token for a message; 0 if nobody wants to know."""
        return 0 if done is None else self.token_for(done)

    def token_for(self, done: Executed) -> int:
        """A number for work whose end done(status) is told of."""
        token = self.new_token()
        self._waiting[token] = done
        return token

    def work_done(self, token: int, status: Status) -> bool:
        """A message was executed. False if the token is not one of ours."""
        done = self._waiting.pop(token, None)
        if done is None:
            return False
        done(status)
        return True
