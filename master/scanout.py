"""Scanouts: which resource each shows, and how its picture gets to the display.

Damage gathers in each scanout until the display can take an update, so a slow display costs memory for one rectangle
and nothing else. Pixels come from a PictureSource. A resource that is a dma-buf goes to the display as such, if that
takes them, and then only the word that it has changed; one that a driver could make a dma-buf of is asked for (export).
When the pixels cannot be had any more, because their worker has died, the display keeps the last picture.

What the display shows is decided update by update: a resource can become a dma-buf, or cease to be one, while it is
shown.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from master.cursors import Cursors
from master.display import Display
from master.errors import GuestError
from master.picture import Picture, ShownDmabuf, as_dmabuf, picture_in_blob, picture_of
from master.picture_source import PictureSource
from master.virtio_gpu import ResponseType
from master.wire import Rect
from native import texture
from native.owned_fd import OwnedFd
from native.storage import MODIFIER_LINEAR
from resource_table import Policy, Resource, Storage

log = logging.getLogger(__name__)

Export = Callable[[Resource, Callable[[Storage | None], None]], None]


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


@dataclass(slots=True)
class Update:
    """What the display is to be told, of a rectangle in the scanout's coordinates: pixels, or that a dma-buf has new
    contents there."""

    rect: Rect
    what: bytearray | ShownDmabuf


@dataclass(eq=False, slots=True)
class Scanout:
    """What one scanout shows: the part `rect` of a picture in a resource."""

    resource: Resource
    picture: Picture
    rect: Rect
    damage: Rect | None = None
    fetching: Rect | None = None
    """What is being fetched, or waited for."""
    fetched: Update | None = None
    """What the display could not take yet."""
    surface: ShownDmabuf | None = None
    """What the display draws from; None: from pixels that it was sent."""

    @property
    def whole(self) -> Rect:
        """All of it, in its own coordinates."""
        return Rect(0, 0, self.rect.width, self.rect.height)

    def wants_update(self) -> bool:
        """Whether something could be sent, or fetched to be sent."""
        return self.fetched is not None or (self.damage is not None and self.fetching is None)

    def unsent(self) -> Rect | None:
        """All that the display has not seen."""
        rects = [self.damage, self.fetching, self.fetched.rect if self.fetched else None]
        unsent: Rect | None = None
        for rect in rects:
            unsent = unsent if rect is None else union(unsent, rect)
        return unsent


class Pictures(Protocol):
    """Who answers flushes of what has a shadow: the plane."""

    def show(self, scanout: int, resource_id: int, part: texture.Rect) -> None:
        """The scanout shows this part of the resource; resource 0: nothing."""

    def take_damage(self, scanout: int) -> texture.Rect | None:
        """What was flushed since the last call, in the scanout's coordinates."""


class Scanouts:
    """All scanouts of the device, and its cursors."""

    def __init__(
        self,
        display: Display,
        count: int,
        source: PictureSource,
        pictures: Pictures,
        export: Export | None = None,
        *,
        dmabufs: bool = True,
    ) -> None:
        """export(resource, obtained): have its driver make a dma-buf of a worker's object. dmabufs: whether the display
        may be given any."""
        self._display = display
        self._count = count
        self._source = source
        self._pictures = pictures
        self._export = export
        self._dmabufs = dmabufs
        self._scanouts: dict[int, Scanout] = {}
        self._asked: set[Resource] = set()
        """Those for which export was called."""
        self.cursors = Cursors(source, lambda: self._display)

    @property
    def display(self) -> Display:
        """Where the pictures go."""
        return self._display

    def use(self, display: Display) -> None:
        """Another display from now on: it is told what is shown, and gets it whole."""
        self._display = display
        for scanout_id, scanout in self._scanouts.items():
            scanout.fetched = scanout.surface = None
            display.set_scanout(scanout_id, scanout.rect.width, scanout.rect.height)
            scanout.damage = scanout.whole
            self.pump(scanout_id)

    # ---- what the guest does

    def check_id(self, scanout_id: int) -> None:
        """Raises GuestError (INVALID_SCANOUT_ID)."""
        if scanout_id >= self._count:
            raise GuestError(ResponseType.ERR_INVALID_SCANOUT_ID, f"scanout {scanout_id}")

    def show(self, scanout_id: int, resource: Resource, rect: Rect) -> None:
        """SET_SCANOUT. Raises GuestError (INVALID_PARAMETER) if the rectangle is not in a resource that can be
        shown."""
        self._show(scanout_id, resource, picture_of(resource), rect)

    def show_blob(
        self,
        scanout_id: int,
        resource: Resource,
        rect: Rect,
        format: int,
        width: int,
        height: int,
        stride: int,
        offset: int,
    ) -> None:
        """SET_SCANOUT_BLOB; of its planes, the first. Raises GuestError (INVALID_PARAMETER) if the resource is no blob,
        the picture not in the blob, or the rectangle not in the picture."""
        picture = picture_in_blob(resource, Picture(format, width, height, stride, offset))
        self._show(scanout_id, resource, picture, rect)

    def _show(self, scanout_id: int, resource: Resource, picture: Picture, rect: Rect) -> None:
        if not rect.within(picture.width, picture.height):
            raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"{rect} of resource {resource.resource_id}")
        scanout = self._scanouts.get(scanout_id)
        if scanout is not None and (scanout.rect.width, scanout.rect.height) == (rect.width, rect.height):
            self._flip(scanout, resource, picture, rect)
        else:
            self._scanouts[scanout_id] = Scanout(resource, picture, rect)
            self._display.set_scanout(scanout_id, rect.width, rect.height)
        self._pictures.show(scanout_id, resource.resource_id, texture.Rect(rect.x, rect.y, rect.width, rect.height))

    def flip(self, scanout_id: int, resource: Resource, rect: Rect) -> None:
        """SET_SCANOUT with another picture of the same size, which the plane has done some time ago. Nothing happens to
        a scanout that is off by now, or by a resource that has become another under the same number."""
        scanout, image = self._scanouts.get(scanout_id), resource.image
        if scanout is not None and image is not None and rect.within(image.width, image.height):
            self._flip(scanout, resource, picture_of(resource), rect)

    @staticmethod
    def _flip(scanout: Scanout, resource: Resource, picture: Picture, rect: Rect) -> None:
        """The display keeps its surface, and the flush that follows brings the pixels. What is being fetched is shown
        still, or a guest that flips faster than we fetch would never see anything."""
        scanout.damage = scanout.unsent()
        scanout.resource, scanout.picture, scanout.rect = resource, picture, rect

    def disable(self, scanout_id: int) -> None:
        """SET_SCANOUT with resource 0."""
        if self._scanouts.pop(scanout_id, None) is not None:
            self._display.disable_scanout(scanout_id)
            self._pictures.show(scanout_id, 0, texture.Rect(0, 0, 0, 0))

    def flush(self, resource: Resource, rect: Rect) -> None:
        """RESOURCE_FLUSH: the rectangle of the resource has new contents, wherever it is shown. Raises GuestError
        (INVALID_PARAMETER) if it is not in the picture; a blob is none until somebody shows it."""
        if resource.blob is None:
            picture = picture_of(resource)
            if not rect.within(picture.width, picture.height):
                raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"{rect} of resource {resource.resource_id}")
        for scanout_id, scanout in list(self._scanouts.items()):
            visible = intersection(rect, scanout.rect) if scanout.resource is resource else None
            if visible is not None:
                x, y = visible.x - scanout.rect.x, visible.y - scanout.rect.y
                self._damaged(scanout_id, scanout, Rect(x, y, visible.width, visible.height))

    def settle(self) -> None:
        """Sends what has gathered from the flushes that the plane answered itself."""
        for scanout_id, scanout in list(self._scanouts.items()):
            damage = self._pictures.take_damage(scanout_id)
            if damage is None:
                continue
            inside = intersection(Rect(damage.x, damage.y, damage.width, damage.height), scanout.whole)
            if inside is not None:
                self._damaged(scanout_id, scanout, inside)

    def _damaged(self, scanout_id: int, scanout: Scanout, rect: Rect) -> None:
        scanout.damage = union(scanout.damage, rect)
        self.pump(scanout_id)

    def forget(self, resource: Resource) -> None:
        """The resource goes away: scanouts that show it are disabled."""
        self._asked.discard(resource)
        for scanout_id, scanout in list(self._scanouts.items()):
            if scanout.resource is resource:
                self.disable(scanout_id)

    def reset(self) -> None:
        """Device reset."""
        for scanout_id in list(self._scanouts):
            self.disable(scanout_id)
        self._asked.clear()
        self.cursors.reset()

    # ---- to the display

    def pump(self, scanout_id: int) -> None:
        """Sends the display what it can take now; also its on_ready callback."""
        scanout = self._scanouts.get(scanout_id)
        if scanout is None:
            return
        while scanout.wants_update() and self._display.ready_for_update(scanout_id):
            if scanout.fetched is not None:
                self._send(scanout_id, scanout, scanout.fetched)
            elif scanout.damage is not None:
                damage, scanout.damage = scanout.damage, None
                self._fetch(scanout_id, scanout, damage)

    def _fetch(self, scanout_id: int, scanout: Scanout, damage: Rect) -> None:
        """Gets an update; it may be there when this returns, and gone to the display."""
        resource = scanout.resource
        scanout.fetching = damage

        def deliver(what: bytearray | ShownDmabuf | None) -> None:
            scanout.fetching = None
            if what is not None and self._scanouts.get(scanout_id) is scanout:
                scanout.fetched = Update(damage, what)
            self.pump(scanout_id)

        dmabuf = self._as_dmabuf(scanout)
        if dmabuf is not None:
            self._source.complete(resource, lambda done: deliver(dmabuf if done else None))
            return
        self._ask_for_export(resource)
        part = Rect(damage.x + scanout.rect.x, damage.y + scanout.rect.y, damage.width, damage.height)
        self._source.fetch(resource, scanout.picture, part, deliver)

    def _send(self, scanout_id: int, scanout: Scanout, update: Update) -> None:
        """Sends an update, or first makes the display ready for one of its kind."""
        if isinstance(update.what, ShownDmabuf):
            if scanout.surface == update.what:
                scanout.fetched = None
                self._display.update_dmabuf(scanout_id, update.rect)
            elif update.what.storage.fd.closed:  # of a resource that went away after a page flip
                scanout.fetched = None
            else:
                update.rect = scanout.whole
                try:
                    fd = OwnedFd.duplicate(update.what.storage.fd)
                except OSError as error:
                    log.warning("scanout %d is not shown: %s", scanout_id, error)
                    scanout.fetched = None
                    return
                scanout.surface = update.what
                self._display.set_dmabuf_scanout(scanout_id, update.what.scanout, fd)
            return
        scanout.fetched = None
        if scanout.surface is None:
            self._display.update(scanout_id, update.rect, memoryview(update.what))
        else:
            scanout.surface = None
            self._display.set_scanout(scanout_id, scanout.rect.width, scanout.rect.height)
            scanout.damage = scanout.whole

    # ---- dma-bufs

    def _as_dmabuf(self, scanout: Scanout) -> ShownDmabuf | None:
        dmabuf = as_dmabuf(scanout.resource, scanout.picture, scanout.rect) if self._dmabufs else None
        if dmabuf is None or not self._display.can_scan_out_dmabuf(dmabuf.scanout.modifier):
            return None
        return dmabuf

    def _ask_for_export(self, resource: Resource) -> None:
        """Once for each resource: a driver that cannot will not learn it."""
        wanted = resource.policy is Policy.WORKER_LOCAL and self._dmabufs and self._export is not None
        if not wanted or resource in self._asked or not self._display.can_scan_out_dmabuf(MODIFIER_LINEAR):
            return
        self._asked.add(resource)
        assert self._export is not None

        def obtained(storage: Storage | None) -> None:
            for scanout_id, scanout in list(self._scanouts.items()):
                if storage is not None and scanout.resource is resource:
                    self._damaged(scanout_id, scanout, scanout.whole)

        self._export(resource, obtained)
