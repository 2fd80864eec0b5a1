"""Scanouts: which resource each shows, and how its pixels get to the display.

Damage gathers in each scanout until the display can take an update, so a slow display costs memory for one rectangle
and nothing else. Pixels of a guest-only resource are in its shadow. Those of a worker-local one are read back by its
home worker, in order with everything that the context submitted, and off the data plane. When that worker has died the
display keeps the last picture.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from master.contexts import Contexts
from master.display import Display
from master.display_messages import Cursor
from master.errors import GuestError
from master.virtio_gpu import CURSOR_SIZE, ResponseType
from master.wire import Rect
from native import dataplane, texture
from native.dataplane import Plane, Status, WorkDone
from native.texture import convert_to_xrgb
from resource_table import Image, Resource

log = logging.getLogger(__name__)

Deliver = Callable[[bytearray | None], None]

MAX_READBACKS = 64
"""Under way at once. A scanout has one, a cursor as many as it is redefined meanwhile."""


def union(a: Rect | None, b: Rect) -> Rect:
    """The smallest rectangle around both."""
    if a is None:
        return b
    x, y = min(a.x, b.x), min(a.y, b.y)
    right, bottom = max(a.x + a.width, b.x + b.width), max(a.y + a.height, b.y + b.height)
    return Rect(x, y, right - x, bottom - y)


def intersection(a: Rect, b: Rect) -> Rect | None:
    """What both have in common, or None."""
    x, y = max(a.x, b.x), max(a.y, b.y)
    right, bottom = min(a.x + a.width, b.x + b.width), min(a.y + a.height, b.y + b.height)
    return Rect(x, y, right - x, bottom - y) if right > x and bottom > y else None


@dataclass(eq=False, slots=True)
class Scanout:
    """What one scanout shows: the part `rect` of a resource."""

    resource: Resource
    rect: Rect
    damage: Rect | None = None
    fetching: Rect | None = None
    """What a readback under way will bring."""
    fetched: tuple[Rect, bytearray] | None = None
    """Pixels that the display could not take yet, in the scanout's coordinates."""

    def wants_update(self) -> bool:
        """Whether something could be sent, or fetched to be sent."""
        return self.fetched is not None or (self.damage is not None and self.fetching is None)

    def unsent(self) -> Rect | None:
        """All that the display has not seen."""
        rects = [self.damage, self.fetching, self.fetched[0] if self.fetched else None]
        unsent: Rect | None = None
        for rect in rects:
            unsent = unsent if rect is None else union(unsent, rect)
        return unsent


@dataclass(eq=False, slots=True)
class CursorState:
    """Where a cursor is, in pixels of its scanout."""

    at: tuple[int, int]


class Pictures(Protocol):
    """Who answers flushes of what has a shadow: the plane."""

    def show(self, scanout: int, resource_id: int, part: texture.Rect) -> None:
        """The scanout shows this part of the resource; resource 0: nothing."""

    def take_damage(self, scanout: int) -> texture.Rect | None:
        """What was flushed since the last call, in the scanout's coordinates."""


class Readbacks:
    """Pixels of resources that live in workers."""

    def __init__(self, plane: Plane, contexts: Contexts) -> None:
        self._plane = plane
        self._contexts = contexts
        self._waiting: dict[int, tuple[int, Image, Rect, Deliver]] = {}

    def start(self, resource: Resource, rect: Rect, deliver: Deliver) -> bool:
        """Asks the resource's home for a rectangle. deliver(packed x8r8g8b8 pixels, or None if it failed) comes later.

        False if there is nobody to ask (no context has the resource, or its worker died), or too much was asked before.
        """
        if resource.home is None or resource.v1 is None or resource.image is None:
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
        self._waiting[token] = (context.ctx_id, resource.image, rect, deliver)
        return True

    def work_done(self, done: WorkDone) -> bool:
        """A readback has ended. False if the token is not one of ours."""
        waiting = self._waiting.pop(done.token, None)
        if waiting is None:
            return False
        ctx_id, image, rect, deliver = waiting
        if done.status is not Status.OK:
            if done.status is not Status.LOST:
                log.warning("ctx %d: a readback for the display failed: %s", ctx_id, done.status.name)
            deliver(None)
            return True
        lane = self._lane(done.lane)
        if lane is None:
            deliver(None)
            return True
        pixels = lane.staging(done.staging_offset, done.length)
        packed = texture.Rect(0, 0, rect.width, rect.height)
        xrgb = convert_to_xrgb(image.format, pixels, 4 * rect.width, packed)
        pixels.release()
        self._plane.release_readback(lane, done.token)
        deliver(xrgb)
        return True

    def _lane(self, number: int) -> dataplane.Lane | None:
        return self._contexts.lane(number)


class Scanouts:
    """All scanouts of the device, and its cursors."""

    def __init__(self, display: Display, count: int, readbacks: Readbacks, pictures: Pictures) -> None:
        self._display = display
        self._count = count
        self._readbacks = readbacks
        self._pictures = pictures
        self._scanouts: dict[int, Scanout] = {}
        self._cursors: dict[int, CursorState] = {}

    @property
    def display(self) -> Display:
        """Where the pictures go."""
        return self._display

    def use(self, display: Display) -> None:
        """Another display from now on: it is told what is shown, and gets it whole."""
        self._display = display
        for scanout_id, scanout in self._scanouts.items():
            scanout.fetched = None
            display.set_scanout(scanout_id, scanout.rect.width, scanout.rect.height)
            scanout.damage = Rect(0, 0, scanout.rect.width, scanout.rect.height)
            self.pump(scanout_id)

    def check_id(self, scanout_id: int) -> None:
        """Raises GuestError (INVALID_SCANOUT_ID)."""
        if scanout_id >= self._count:
            raise GuestError(ResponseType.ERR_INVALID_SCANOUT_ID, f"scanout {scanout_id}")

    def show(self, scanout_id: int, resource: Resource, rect: Rect) -> None:
        """SET_SCANOUT. Raises GuestError (INVALID_PARAMETER) if the rectangle is not in a resource that can be
        shown."""
        if resource.image is None or not rect.within(resource.image.width, resource.image.height):
            raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"{rect} of resource {resource.resource_id}")
        scanout = self._scanouts.get(scanout_id)
        if scanout is not None and (scanout.rect.width, scanout.rect.height) == (rect.width, rect.height):
            self.flip(scanout_id, resource, rect)
        else:
            self._scanouts[scanout_id] = Scanout(resource, rect)
            self._display.set_scanout(scanout_id, rect.width, rect.height)
        self._pictures.show(scanout_id, resource.resource_id, texture.Rect(rect.x, rect.y, rect.width, rect.height))

    def flip(self, scanout_id: int, resource: Resource, rect: Rect) -> None:
        """SET_SCANOUT with another picture of the same size: the display keeps its surface, and the flush that follows
        brings the pixels. What is being fetched is shown still, or a guest that flips faster than we fetch would never
        see anything. Nothing happens to a scanout that is off."""
        scanout = self._scanouts.get(scanout_id)
        if scanout is not None:
            scanout.damage = scanout.unsent()
            scanout.resource, scanout.rect = resource, rect

    def disable(self, scanout_id: int) -> None:
        """SET_SCANOUT with resource 0."""
        if self._scanouts.pop(scanout_id, None) is not None:
            self._display.disable_scanout(scanout_id)
            self._pictures.show(scanout_id, 0, texture.Rect(0, 0, 0, 0))

    def flush(self, resource: Resource, rect: Rect) -> None:
        """RESOURCE_FLUSH: the rectangle of the resource has new contents, wherever it is shown."""
        for scanout_id, scanout in self._scanouts.items():
            if scanout.resource is not resource:
                continue
            visible = intersection(rect, scanout.rect)
            if visible is None:
                continue
            inside = Rect(visible.x - scanout.rect.x, visible.y - scanout.rect.y, visible.width, visible.height)
            scanout.damage = union(scanout.damage, inside)
            self.pump(scanout_id)

    def settle(self) -> None:
        """Sends what has gathered from the flushes that the plane answered itself."""
        for scanout_id, scanout in list(self._scanouts.items()):
            damage = self._pictures.take_damage(scanout_id)
            if damage is None:
                continue
            inside = intersection(
                Rect(damage.x, damage.y, damage.width, damage.height),
                Rect(0, 0, scanout.rect.width, scanout.rect.height),
            )
            if inside is not None:
                scanout.damage = union(scanout.damage, inside)
                self.pump(scanout_id)

    def forget(self, resource: Resource) -> None:
        """The resource goes away: scanouts that show it are disabled."""
        for scanout_id, scanout in list(self._scanouts.items()):
            if scanout.resource is resource:
                self.disable(scanout_id)

    def reset(self) -> None:
        """Device reset."""
        for scanout_id in list(self._scanouts):
            self.disable(scanout_id)
        self._cursors.clear()

    def pump(self, scanout_id: int) -> None:
        """Sends the display what it can take now; also its on_ready callback."""
        scanout = self._scanouts.get(scanout_id)
        if scanout is None:
            return
        while scanout.wants_update() and self._display.ready_for_update(scanout_id):
            if scanout.fetched is not None:
                rect, pixels = scanout.fetched
                scanout.fetched = None
                self._display.update(scanout_id, rect, memoryview(pixels))
            elif scanout.damage is not None:
                damage, scanout.damage = scanout.damage, None
                self._fetch(scanout_id, scanout, damage)

    def _fetch(self, scanout_id: int, scanout: Scanout, damage: Rect) -> None:
        resource, image = scanout.resource, scanout.resource.image
        part = Rect(damage.x + scanout.rect.x, damage.y + scanout.rect.y, damage.width, damage.height)
        if resource.shadow is not None and image is not None:
            box = texture.Rect(part.x, part.y, part.width, part.height)
            self._display.update(scanout_id, damage, memoryview(resource.shadow.to_xrgb(image.format, box)))
            return

        def deliver(pixels: bytearray | None) -> None:
            scanout.fetching = None
            if pixels is not None and self._scanouts.get(scanout_id) is scanout:
                scanout.fetched = (damage, pixels)
            self.pump(scanout_id)

        if self._readbacks.start(resource, part, deliver):
            scanout.fetching = damage

    # ---- cursors

    def define_cursor(self, scanout_id: int, resource: Resource, hot: tuple[int, int], at: tuple[int, int]) -> None:
        """UPDATE_CURSOR with a picture. Raises GuestError if the resource is no cursor."""
        image = resource.image
        if image is None or (image.width, image.height) != (CURSOR_SIZE, CURSOR_SIZE):
            raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"resource {resource.resource_id} is no 64x64 picture")
        state = self._cursors[scanout_id] = CursorState(at)
        whole = Rect(0, 0, CURSOR_SIZE, CURSOR_SIZE)

        def deliver(pixels: bytearray | None) -> None:
            # A picture that was fetched from a worker may come after the cursor has moved, or been replaced or hidden.
            if pixels is not None and self._cursors.get(scanout_id) is state:
                self._display.define_cursor(scanout_id, *state.at, Cursor(*hot, bytes(pixels)))

        if resource.shadow is not None:
            deliver(resource.shadow.to_xrgb(image.format, texture.Rect(0, 0, CURSOR_SIZE, CURSOR_SIZE)))
        else:
            self._readbacks.start(resource, whole, deliver)

    def move_cursor(self, scanout_id: int, x: int, y: int) -> None:
        """MOVE_CURSOR."""
        if scanout_id in self._cursors:
            self._cursors[scanout_id].at = (x, y)
        self._display.move_cursor(scanout_id, x, y)

    def hide_cursor(self, scanout_id: int, x: int, y: int) -> None:
        """UPDATE_CURSOR with resource 0."""
        self._cursors.pop(scanout_id, None)
        self._display.hide_cursor(scanout_id, x, y)
