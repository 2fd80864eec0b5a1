"""Pixels of resources that live in workers: asked for in order with everything that contexts submitted, and off the
data plane."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from master.contexts import Contexts
from master.wire import Rect
from native import texture
from native.dataplane import Plane, Status, WorkDone
from native.texture import convert_to_xrgb
from resource_table import Resource

log = logging.getLogger(__name__)

Deliver = Callable[[bytearray | None], None]

MAX_READBACKS = 64
"""Under way at once. A scanout has one, a cursor as many as it is redefined meanwhile."""


@dataclass(frozen=True, slots=True)
class _Readback:
    """One under way."""

    ctx_id: int
    format: int
    rect: Rect
    deliver: Deliver


class Readbacks:
    """What workers are being asked for."""

    def __init__(self, plane: Plane, contexts: Contexts) -> None:
        self._plane = plane
        self._contexts = contexts
        self._waiting: dict[int, _Readback] = {}

    def start(self, resource: Resource, format: int, rect: Rect, deliver: Deliver) -> bool:
        """Asks the resource's home for a rectangle, whose pixels are of this format. deliver(packed x8r8g8b8 pixels, or
        None if it failed) comes later.

        False if there is nobody to ask (no context has the resource, or its worker died), or too much was asked before.
        """
        if resource.home is None or resource.v1 is None:
            return False
        if len(self._waiting) >= MAX_READBACKS:
            log.warning("resource %d is not read back: %d readbacks wait", resource.resource_id, MAX_READBACKS)
            return False
        context = self._contexts.get(resource.home)
        if context.lost:
            return False
        token = self._contexts.new_token()
        box = texture.Rect(rect.x, rect.y, rect.width, rect.height)
        try:
            self._plane.readback(context.worker.lane, context.ctx_id, token, resource.resource_id, resource.v1, box)
        except OSError as error:
            log.warning("%s: resource %d cannot be read back: %s", context, resource.resource_id, error)
            return False
        self._waiting[token] = _Readback(context.ctx_id, format, rect, deliver)
        return True

    def work_done(self, done: WorkDone) -> bool:
        """A readback has ended. False if the token is not one of ours."""
        readback = self._waiting.pop(done.token, None)
        if readback is None:
            return False
        readback.deliver(self._pixels(readback, done))
        return True

    def _pixels(self, readback: _Readback, done: WorkDone) -> bytearray | None:
        if done.status is not Status.OK:
            if done.status is not Status.LOST:
                log.warning("ctx %d: a readback for the display failed: %s", readback.ctx_id, done.status.name)
            return None
        lane = self._contexts.lane(done.lane)
        if lane is None:
            return None
        rect = readback.rect
        with lane.staging(done.staging_offset, done.length) as pixels:
            packed = texture.Rect(0, 0, rect.width, rect.height)
            xrgb = convert_to_xrgb(readback.format, pixels, 4 * rect.width, packed)
        self._plane.release_readback(lane, done.token)
        return xrgb
