"""What scanouts stand on, played: a display that takes notes, pixels and exports that come when the test says so."""

from __future__ import annotations

import os
from collections.abc import Callable

from master.display import Headless
from master.display_messages import Cursor, DmabufScanout
from master.picture import Picture, read
from master.scanout import Scanouts
from master.wire import Rect
from native.owned_fd import OwnedFd
from native.storage import MODIFIER_LINEAR, Layout, StorageKind
from native.texture import Rect as NativeRect
from native.texture import Texture
from resource_table import Blob, Policy, Resource, ResourceTable, Storage

Deliver = Callable[[bytearray | None], None]

TILED = 0x0200_0000_0000_0001
"""A DRM format modifier."""
WHOLE = Rect(0, 0, 64, 64)


class RecordingDisplay(Headless):
    """Takes updates while `room` lasts, and notes what it was told."""

    def __init__(self) -> None:
        super().__init__(64, 64)
        self.room = 100
        self.sizes: list[tuple[int, int]] = []
        self.modifiers: set[int] = set()
        self.surfaces: dict[int, DmabufScanout | None] = {}
        self.updates: list[Rect] = []
        self.by_scanout: dict[int, list[bytes]] = {}
        self.dmabuf_updates: list[Rect] = []
        self.files: list[int] = []
        """Inodes of the dma-bufs that were shown."""
        self.cursors: list[tuple[int, int, Cursor]] = []

    def set_scanout(self, scanout_id: int, width: int, height: int) -> None:
        self.sizes.append((width, height))
        self.surfaces[scanout_id] = None

    def disable_scanout(self, scanout_id: int) -> None:
        self.sizes.append((0, 0))
        del self.surfaces[scanout_id]

    def can_scan_out_dmabuf(self, modifier: int) -> bool:
        return modifier in self.modifiers

    def set_dmabuf_scanout(self, scanout_id: int, scanout: DmabufScanout, fd: OwnedFd) -> None:
        self.surfaces[scanout_id] = scanout
        self.files.append(os.fstat(fd.fd).st_ino)
        fd.close()

    def ready_for_update(self, scanout_id: int) -> bool:
        return self.room > 0

    def update(self, scanout_id: int, rect: Rect, pixels: memoryview) -> None:
        assert self.room > 0
        assert self.surfaces[scanout_id] is None
        assert len(pixels) == 4 * rect.width * rect.height
        self.room -= 1
        self.updates.append(rect)
        self.by_scanout.setdefault(scanout_id, []).append(bytes(pixels))

    def update_dmabuf(self, scanout_id: int, rect: Rect) -> None:
        assert self.room > 0
        assert self.surfaces[scanout_id] is not None
        self.room -= 1
        self.dmabuf_updates.append(rect)

    def define_cursor(self, scanout_id: int, x: int, y: int, cursor: Cursor) -> None:
        self.cursors.append((x, y, cursor))


class PlayedPictures:
    """A plane whose flushes the test makes up."""

    def __init__(self) -> None:
        self.shown: dict[int, tuple[int, NativeRect]] = {}
        self.damage: NativeRect | None = None

    def show(self, scanout: int, resource_id: int, part: NativeRect) -> None:
        self.shown[scanout] = (resource_id, part)

    def take_damage(self, scanout: int) -> NativeRect | None:
        damage, self.damage = self.damage, None
        return damage


class PlayedSource:
    """Shadows are read at once; pixels from workers, and the end of what they draw, come when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Rect, Deliver]] = []
        self.drawing: list[Callable[[bool], None]] = []
        self.possible = True
        self.slow = False
        """Whether something is being drawn."""

    def fetch(self, resource: Resource, picture: Picture, rect: Rect, deliver: Deliver) -> None:
        if resource.shadow is not None:
            deliver(read(resource, picture, rect, None))
        elif self.possible:
            self.waiting.append((rect, deliver))
        else:
            deliver(None)

    def complete(self, resource: Resource, then: Callable[[bool], None]) -> None:
        if self.slow:
            self.drawing.append(then)
        else:
            then(True)

    def finish(self, *, well: bool = True) -> Rect:
        rect, deliver = self.waiting.pop(0)
        deliver(bytearray(4 * rect.width * rect.height) if well else None)
        return rect


class PlayedExport:
    """Drivers that make dma-bufs when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[Resource, Callable[[Storage | None], None]]] = []

    def __call__(self, resource: Resource, obtained: Callable[[Storage | None], None]) -> None:
        self.asked.append((resource, obtained))


class ScanoutLab:
    """Scanouts and all of that, and a table."""

    def __init__(self, *, dmabufs: bool = True) -> None:
        self.display = RecordingDisplay()
        self.source = PlayedSource()
        self.pictures = PlayedPictures()
        self.export = PlayedExport()
        self.table = ResourceTable()
        self.scanouts = Scanouts(
            self.display, 16, self.source, self.pictures, self.export, dmabufs=dmabufs  # type: ignore[arg-type]
        )


def picture(table: ResourceTable, resource_id: int, width: int = 64, height: int = 64) -> Resource:
    return table.create_2d(resource_id, 2, width, height)


def rendered(table: ResourceTable, resource_id: int) -> Resource:
    return table.create_3d(resource_id, Texture(2, 2, 2, 64, 64, 1, 1, 0, 0, 0))


def blob(table: ResourceTable, resource_id: int, nbytes: int = 16384) -> Resource:
    return table.create_blob(resource_id, Blob(2, 0, 1, nbytes), None)


def dmabuf(table: ResourceTable, resource: Resource, modifier: int = MODIFIER_LINEAR, **layout: int) -> int:
    """What a driver gave of it; its inode."""
    fd = OwnedFd(os.memfd_create("dma-buf"))
    fields = {"stride": 256, "fourcc": 0x34325258} | layout
    storage = Storage(fd, StorageKind.DMABUF, Layout(1 << 20, modifier=modifier, **fields))
    table.give_storage(resource, storage)
    resource.policy = Policy.EXPORTED if resource.blob is None else resource.policy
    return os.fstat(fd.fd).st_ino
