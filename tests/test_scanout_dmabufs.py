"""Scanouts of dma-bufs: shown as they are to displays that take them, exported for those, and never too early."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from master.display_messages import DmabufScanout
from master.virtio_gpu import Format
from master.wire import Rect
from native.storage import MODIFIER_INVALID, MODIFIER_LINEAR
from resource_table import Blob
from tests.scanout_lab import TILED, WHOLE, RecordingDisplay, ScanoutLab, blob, dmabuf, picture, rendered


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.fixture
def lab() -> Iterator[ScanoutLab]:
    lab = ScanoutLab()
    yield lab
    lab.table.clear()


def test_a_dmabuf_is_shown_once_and_updated_often(lab: ScanoutLab) -> None:
    scanouts, display, table = lab.scanouts, lab.display, lab.table
    resource = rendered(table, 1)
    inode = dmabuf(table, resource, TILED)
    display.modifiers = {TILED}
    scanouts.show(0, resource, Rect(8, 8, 32, 16))
    for x in (1, 2, 3):
        scanouts.flush(resource, Rect(8 + x, 8, 1, 1))
    assert display.surfaces == {0: DmabufScanout(Rect(8, 8, 32, 16), 64, 64, 256, 0x34325258, TILED)}
    assert display.files == [inode]
    assert display.dmabuf_updates == [Rect(0, 0, 32, 16), Rect(2, 0, 1, 1), Rect(3, 0, 1, 1)]
    assert display.updates == []


def test_a_dmabuf_is_not_shown_before_it_is_drawn(lab: ScanoutLab) -> None:
    scanouts, display, source, table = lab.scanouts, lab.display, lab.source, lab.table
    resource = rendered(table, 1)
    dmabuf(table, resource)
    display.modifiers = {MODIFIER_LINEAR}
    source.slow = True
    scanouts.show(0, resource, WHOLE)
    scanouts.flush(resource, Rect(0, 0, 1, 1))
    scanouts.flush(resource, Rect(5, 0, 1, 1))
    assert len(source.drawing) == 1
    assert display.files == []
    source.drawing.pop()(True)
    assert display.dmabuf_updates == [WHOLE]
    source.drawing.pop()(False)  # nobody knows: it stays as it was
    assert display.dmabuf_updates == [WHOLE]
    assert not source.drawing


def test_flips_between_dmabufs(lab: ScanoutLab) -> None:
    scanouts, display, table = lab.scanouts, lab.display, lab.table
    display.modifiers = {MODIFIER_LINEAR}
    first, second = rendered(table, 1), rendered(table, 2)
    inodes = [dmabuf(table, resource) for resource in (first, second)]
    for resource in (first, second, first):
        scanouts.show(0, resource, WHOLE)
        scanouts.flush(resource, Rect(0, 0, 4, 4))
    assert display.files == [*inodes, inodes[0]]
    assert display.dmabuf_updates == [WHOLE] * 3
    assert display.sizes == [(64, 64)]


def test_a_flip_to_pixels_and_back(lab: ScanoutLab) -> None:
    scanouts, display, table = lab.scanouts, lab.display, lab.table
    display.modifiers = {MODIFIER_LINEAR}
    drawn, transferred = rendered(table, 1), picture(table, 2)
    dmabuf(table, drawn)
    scanouts.show(0, drawn, WHOLE)
    scanouts.flush(drawn, WHOLE)
    scanouts.show(0, transferred, WHOLE)
    scanouts.flush(transferred, Rect(0, 0, 1, 1))
    assert display.sizes == [(64, 64), (64, 64)]
    assert display.updates == [WHOLE]  # the display has a new surface
    scanouts.show(0, drawn, WHOLE)
    scanouts.flush(drawn, Rect(0, 0, 1, 1))
    assert display.dmabuf_updates == [WHOLE, WHOLE]


def test_a_dmabuf_that_went_away_before_it_was_shown(lab: ScanoutLab) -> None:
    scanouts, display, source, table = lab.scanouts, lab.display, lab.source, lab.table
    display.modifiers = {MODIFIER_LINEAR}
    old = rendered(table, 1)
    dmabuf(table, old)
    source.slow = True
    scanouts.show(0, old, WHOLE)
    scanouts.flush(old, WHOLE)
    new = picture(table, 2)
    scanouts.show(0, new, WHOLE)
    scanouts.forget(old)
    table.remove(1)
    source.drawing.pop()(True)
    assert display.files == []
    assert display.updates == [WHOLE]  # the new one, in its place


def test_dmabufs_that_a_display_does_not_take(lab: ScanoutLab) -> None:
    """Of a modifier that it does not know, or whose picture does not begin where the buffer does."""
    scanouts, display, source, table = lab.scanouts, lab.display, lab.source, lab.table
    display.modifiers = {MODIFIER_LINEAR}
    tiled, shifted, nameless = (rendered(table, number) for number in (1, 2, 3))
    dmabuf(table, tiled, TILED)
    dmabuf(table, shifted, offset=64)
    dmabuf(table, nameless, fourcc=0)
    for resource in (tiled, shifted, nameless):
        scanouts.show(0, resource, WHOLE)
        scanouts.flush(resource, WHOLE)
        source.finish()
    assert display.files == []
    assert display.updates == [WHOLE] * 3


def test_displays_that_are_to_be_given_none() -> None:
    lab = ScanoutLab(dmabufs=False)
    scanouts, display, source, export, table = lab.scanouts, lab.display, lab.source, lab.export, lab.table
    display.modifiers = {MODIFIER_LINEAR}
    for resource in (rendered(table, 1), rendered(table, 2)):
        scanouts.show(0, resource, WHOLE)
        scanouts.flush(resource, WHOLE)
        source.finish()
        dmabuf(table, resource)
        scanouts.flush(resource, WHOLE)
        source.finish()
    assert display.files == []
    assert export.asked == []
    table.clear()


def test_a_dmabuf_of_guest_pages(lab: ScanoutLab) -> None:
    """The guest says how the picture lies there."""
    scanouts, display, table = lab.scanouts, lab.display, lab.table
    display.modifiers = {MODIFIER_LINEAR}
    resource = table.create_blob(1, Blob(1, 0, 0, 16384), None)
    dmabuf(table, resource, stride=0, fourcc=0)
    scanouts.show_blob(0, resource, Rect(0, 0, 16, 8), Format.R8G8B8A8_UNORM, 16, 8, 100, 0)
    scanouts.flush(resource, Rect(0, 0, 16, 8))
    fourcc = int.from_bytes(b"AB24", "little")
    assert display.surfaces == {0: DmabufScanout(Rect(0, 0, 16, 8), 16, 8, 100, fourcc, MODIFIER_LINEAR)}


def test_a_tiled_blob_lies_as_its_driver_says(lab: ScanoutLab) -> None:
    scanouts, display, table = lab.scanouts, lab.display, lab.table
    display.modifiers = {TILED}
    resource = blob(table, 1)
    dmabuf(table, resource, TILED, stride=512)
    scanouts.show_blob(0, resource, Rect(0, 0, 16, 8), Format.B8G8R8X8_UNORM, 16, 8, 64, 0)
    scanouts.flush(resource, Rect(0, 0, 16, 8))
    assert display.surfaces == {0: DmabufScanout(Rect(0, 0, 16, 8), 16, 8, 512, 0x34325258, TILED)}


def test_another_display_is_given_the_dmabuf_anew(lab: ScanoutLab) -> None:
    scanouts, display, table = lab.scanouts, lab.display, lab.table
    display.modifiers = {MODIFIER_INVALID}
    resource = rendered(table, 1)
    inode = dmabuf(table, resource, MODIFIER_INVALID)
    scanouts.show(0, resource, WHOLE)
    scanouts.flush(resource, WHOLE)
    other = RecordingDisplay()
    other.modifiers = {MODIFIER_INVALID}
    scanouts.use(other)
    assert other.sizes == [(64, 64)]
    assert other.files == [inode]
    assert other.dmabuf_updates == [WHOLE]


# --- export ---------------------------------------------------------------------------------------------------------


def test_what_is_shown_is_exported(lab: ScanoutLab) -> None:
    """Once; until it has been, it is read back."""
    scanouts, display, source, export, table = lab.scanouts, lab.display, lab.source, lab.export, lab.table
    display.modifiers = {MODIFIER_LINEAR}
    resource = rendered(table, 1)
    scanouts.show(0, resource, WHOLE)
    for _ in range(3):
        scanouts.flush(resource, Rect(0, 0, 4, 4))
        source.finish()
    ((asked, obtained),) = export.asked
    assert asked is resource
    assert display.updates == [Rect(0, 0, 4, 4)] * 3
    dmabuf(table, resource)
    obtained(resource.storage)
    assert display.dmabuf_updates == [WHOLE]
    scanouts.flush(resource, Rect(0, 0, 4, 4))
    assert display.dmabuf_updates == [WHOLE, Rect(0, 0, 4, 4)]


def test_what_cannot_be_exported_is_read_back_for_good(lab: ScanoutLab) -> None:
    scanouts, display, source, export, table = lab.scanouts, lab.display, lab.source, lab.export, lab.table
    display.modifiers = {MODIFIER_LINEAR}
    buffers = rendered(table, 1), rendered(table, 2)
    for turn in range(6):
        resource = buffers[turn % 2]
        scanouts.show(0, resource, WHOLE)
        scanouts.flush(resource, WHOLE)
        source.finish()
        if turn < 2:
            export.asked[turn][1](None)
    assert len(export.asked) == 2
    assert len(display.updates) == 6
    scanouts.forget(buffers[0])
    table.remove(1)
    other = rendered(table, 1)  # of the same number
    scanouts.show(0, other, WHOLE)
    scanouts.flush(other, WHOLE)
    assert len(export.asked) == 3


def test_nothing_is_exported_for_a_display_that_takes_pixels(lab: ScanoutLab) -> None:
    scanouts, source, export, table = lab.scanouts, lab.source, lab.export, lab.table
    resource = rendered(table, 1)
    scanouts.show(0, resource, WHOLE)
    scanouts.flush(resource, WHOLE)
    source.finish()
    assert export.asked == []
