"""Writing to memory that workers look at, when its turn has come.

A 2D resource that contexts have lies in a mirror (native/src/mirror.h), and TRANSFER_TO_HOST_2D writes to it from here.
What contexts were sent before must have been done by then, or they would see the later picture; what they are sent
after that waits until it has been written. So there is a point behind the first, for which the plane has sync(), and a
place before the second, which is filled with nothing.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from master.context import Context
from master.records import Place, Records
from native.dataplane import Plane, Status
from resource_table import Resource


@dataclass(eq=False, slots=True)
class _Turn:
    """Something to be done. come: all that stands before it in contexts is finished."""

    act: Callable[[], None]
    places: list[Place] = field(default_factory=list)
    come: bool = False


class Turns:
    """Those that are waited for, of all resources."""

    def __init__(self, plane: Plane, records: Records, find: Callable[[int], Context]) -> None:
        """find(ctx_id): the context, which exists."""
        self._plane = plane
        self._records = records
        self._find = find
        self._waiting: dict[Resource, deque[_Turn]] = {}

    def take(self, resource: Resource, act: Callable[[], None]) -> None:
        """act(), which writes to a mirrored resource's shadow, is called once everything before it is finished.

        The resource may be gone by then. Raises OSError, with nothing done.
        """
        turn = _Turn(act)
        token = self._records.token_for(lambda _status: self._come(resource, turn))
        try:
            self._plane.sync(resource.resource_id, token)
        except OSError:
            self._records.work_done(token, Status.FAILED)
            raise
        self._plane.written(resource.resource_id)  # it will have been when others are at it again
        for ctx_id in resource.contexts:
            place = self._records.reserve(self._find(ctx_id))
            if place is not None:
                turn.places.append(place)
        self._waiting.setdefault(resource, deque()).append(turn)

    def _come(self, resource: Resource, turn: _Turn) -> None:
        """One after the other: between two of them contexts may have been sent nothing to wait for."""
        turn.come = True
        turns = self._waiting.get(resource)
        while turns and turns[0].come:
            self._act(turns.popleft())
        if not turns:
            self._waiting.pop(resource, None)

    def hurry(self, resource: Resource) -> None:
        """The guest takes the resource or its pages away, behind what still waits for its turn: that is done now."""
        for turn in self._waiting.pop(resource, ()):
            self._act(turn)

    def _act(self, turn: _Turn) -> None:
        turn.act()
        for place in turn.places:
            self._records.give_up(place)
