"""Where the pixels of pictures come from, whatever kind of resource they are.

Some are here: in a shadow, in guest memory, in shared memory or a mirror that the master can map. What contexts have
drawn there is complete once their workers are done with all they were sent before; the plane tells when (sync). Others
are objects of a driver and are read back by the worker that has them, while it lives.
"""

import logging
from collections.abc import Callable

from master.contexts import Contexts
from master.picture import Picture, lives_in_worker, read
from master.readback import Deliver, Readbacks
from master.wire import Rect
from native.dataplane import Plane, WorkDone
from native.guest_memory import GuestMemory
from resource_table import Resource

log = logging.getLogger(__name__)

MAX_SYNCS = 64
"""Waited for at once: as with readbacks, one for each scanout, and cursors."""


class PictureSource:
    """All resources, seen as pictures."""

    def __init__(self, plane: Plane, contexts: Contexts, memory: Callable[[], GuestMemory | None]) -> None:
        """memory(): guest RAM, as it is now."""
        self._memory = memory
        self._plane = plane
        self._contexts = contexts
        self._readbacks = Readbacks(plane, contexts)
        self._waiting: dict[int, Callable[[bool], None]] = {}

    def fetch(self, resource: Resource, picture: Picture, rect: Rect, deliver: Deliver) -> None:
        """deliver(packed x8r8g8b8 pixels of a rectangle, or None if they cannot be had) is called, now or later."""
        asked = lives_in_worker(resource, picture) and self._readbacks.start(resource, picture.format, rect, deliver)
        if asked:
            return
        self.complete(resource, lambda done: deliver(self._read(resource, picture, rect) if done else None))

    def complete(self, resource: Resource, then: Callable[[bool], None]) -> None:
        """then(True) is called, now or later, once what contexts were sent before is in the resource's storage; or
        then(False), if that cannot be known."""
        if resource.storage is None:
            then(True)
            return
        if len(self._waiting) >= MAX_SYNCS:
            log.warning("resource %d is not looked at: %d wait already", resource.resource_id, MAX_SYNCS)
            then(False)
            return
        token = self._contexts.new_token()
        try:
            self._plane.sync(resource.resource_id, token)
        except OSError as error:
            log.warning("resource %d is not looked at: %s", resource.resource_id, error)
            then(False)
            return
        self._waiting[token] = then

    def work_done(self, done: WorkDone) -> bool:
        """Something that was waited for. False if the token is not one of ours."""
        then = self._waiting.pop(done.token, None)
        if then is None:
            return self._readbacks.work_done(done)
        then(True)
        return True

    def _read(self, resource: Resource, picture: Picture, rect: Rect) -> bytearray | None:
        try:
            return read(resource, picture, rect, self._memory())
        except (OSError, ValueError) as error:  # ValueError: Python's word for memory that is too short
            log.warning("resource %d cannot be looked at: %s", resource.resource_id, error)
            return None
