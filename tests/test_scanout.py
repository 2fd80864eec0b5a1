"""Scanouts: damage gathers while the display is busy, pixels come when they come, and the last picture is right."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from master.errors import GuestError
from master.scanout import intersection, union
from master.virtio_gpu import Format, ResponseType
from master.wire import Rect
from native.texture import Rect as NativeRect
from tests.scanout_lab import WHOLE, RecordingDisplay, ScanoutLab, blob, picture, rendered

RECTS = st.builds(Rect, st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(1, 20))


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


def points(rect: Rect | None) -> set[tuple[int, int]]:
    if rect is None:
        return set()
    return {(x, y) for x in range(rect.x, rect.x + rect.width) for y in range(rect.y, rect.y + rect.height)}


@given(RECTS, RECTS)
def test_intersection_and_union(a: Rect, b: Rect) -> None:
    assert points(intersection(a, b)) == points(a) & points(b)
    both = points(a) | points(b)
    around = union(a, b)
    assert points(around) >= both
    xs, ys = [x for x, _ in both], [y for _, y in both]
    assert (around.x, around.y) == (min(xs), min(ys))
    assert (around.width, around.height) == (max(xs) - min(xs) + 1, max(ys) - min(ys) + 1)
    assert union(None, a) == a


def test_damage_gathers_while_the_display_is_busy(lab: ScanoutLab) -> None:
    scanouts, display, table = lab.scanouts, lab.display, lab.table
    resource = picture(table, 1)
    scanouts.show(0, resource, WHOLE)
    display.room = 0
    for number in range(1000):
        scanouts.flush(resource, Rect(number % 60, 5, 2, 2))
    assert display.updates == []
    display.room = 1
    scanouts.pump(0)
    assert display.updates == [Rect(0, 5, 61, 2)]
    display.room = 1
    scanouts.pump(0)
    assert len(display.updates) == 1


def test_what_the_plane_answered_is_settled(lab: ScanoutLab) -> None:
    scanouts, display, pictures, table = lab.scanouts, lab.display, lab.pictures, lab.table
    scanouts.show(0, picture(table, 1), Rect(8, 8, 32, 32))
    assert pictures.shown == {0: (1, NativeRect(8, 8, 32, 32))}
    pictures.damage = NativeRect(1, 1, 2, 2)
    scanouts.settle()
    assert display.updates == [Rect(1, 1, 2, 2)]
    scanouts.settle()
    assert len(display.updates) == 1
    pictures.damage = NativeRect(30, 30, 9, 9)  # of a larger picture that was shown before
    scanouts.settle()
    assert display.updates[1:] == [Rect(30, 30, 2, 2)]
    scanouts.disable(0)
    assert pictures.shown == {0: (0, NativeRect(0, 0, 0, 0))}
    pictures.damage = NativeRect(0, 0, 1, 1)
    scanouts.settle()
    assert len(display.updates) == 2


def test_readback_under_way_is_not_asked_for_again(lab: ScanoutLab) -> None:
    """What is drawn meanwhile is damage for the next."""
    scanouts, display, source, table = lab.scanouts, lab.display, lab.source, lab.table
    resource = rendered(table, 1)
    scanouts.show(0, resource, WHOLE)
    scanouts.flush(resource, Rect(0, 0, 8, 8))
    for x in (10, 20, 30):
        scanouts.flush(resource, Rect(x, 0, 8, 8))
    assert len(source.waiting) == 1
    source.finish()
    assert display.updates == [Rect(0, 0, 8, 8)]
    assert source.finish() == Rect(10, 0, 28, 8)
    assert not source.waiting


def test_readback_that_fails_is_not_the_end(lab: ScanoutLab) -> None:
    scanouts, display, source, table = lab.scanouts, lab.display, lab.source, lab.table
    resource = rendered(table, 1)
    scanouts.show(0, resource, WHOLE)
    scanouts.flush(resource, WHOLE)
    source.finish(well=False)
    assert display.updates == []
    scanouts.flush(resource, WHOLE)
    source.finish()
    assert display.updates == [WHOLE]
    source.possible = False
    scanouts.flush(resource, WHOLE)
    assert display.updates == [WHOLE]


def test_late_readback_of_what_is_shown_no_more(lab: ScanoutLab) -> None:
    scanouts, display, source, table = lab.scanouts, lab.display, lab.source, lab.table
    old = rendered(table, 1)
    scanouts.show(0, old, WHOLE)
    scanouts.flush(old, WHOLE)
    scanouts.show(0, picture(table, 2, 8, 8), Rect(0, 0, 8, 8))
    source.finish()  # its pixels are nobody's
    assert display.updates == []
    assert display.sizes == [(64, 64), (8, 8)]


def test_flips_faster_than_readbacks_still_show_something(lab: ScanoutLab) -> None:
    scanouts, display, source, table = lab.scanouts, lab.display, lab.source, lab.table
    buffers = rendered(table, 1), rendered(table, 2)
    for turn in range(5):
        scanouts.show(0, buffers[turn % 2], WHOLE)
        scanouts.flush(buffers[turn % 2], WHOLE)
    source.finish()
    assert display.updates == [WHOLE]
    source.finish()  # and the last one's pixels are the last to come
    assert display.updates == [WHOLE, WHOLE]
    assert not source.waiting


def test_page_flip_takes_over_what_was_not_sent(lab: ScanoutLab) -> None:
    scanouts, display, table = lab.scanouts, lab.display, lab.table
    first, second = picture(table, 1), picture(table, 2)
    scanouts.show(0, first, WHOLE)
    display.room = 0
    scanouts.flush(first, Rect(0, 0, 4, 4))
    scanouts.show(0, second, WHOLE)
    display.room = 9
    scanouts.flush(second, Rect(8, 8, 4, 4))
    assert display.updates == [Rect(0, 0, 12, 12)]
    assert display.sizes == [(64, 64)]


def test_a_flip_that_the_plane_did(lab: ScanoutLab) -> None:
    scanouts, display, table = lab.scanouts, lab.display, lab.table
    first, second = picture(table, 1), picture(table, 2)
    scanouts.flip(0, second, WHOLE)  # of a scanout that has gone off since
    scanouts.settle()
    scanouts.show(0, first, WHOLE)
    display.room = 0
    scanouts.flush(first, Rect(0, 0, 4, 4))
    scanouts.flip(0, second, WHOLE)
    display.room = 2
    scanouts.flush(second, Rect(8, 8, 4, 4))
    assert display.updates == [Rect(0, 0, 12, 12)]
    scanouts.flush(first, WHOLE)
    assert len(display.updates) == 1


def test_a_flip_to_what_is_another_by_now(lab: ScanoutLab) -> None:
    scanouts, display, table = lab.scanouts, lab.display, lab.table
    resource = picture(table, 1)
    scanouts.show(0, resource, WHOLE)
    scanouts.flip(0, picture(table, 2, 64, 63), WHOLE)
    scanouts.flip(0, blob(table, 3), WHOLE)
    scanouts.flush(resource, Rect(0, 0, 4, 4))
    assert display.updates == [Rect(0, 0, 4, 4)]


def test_another_display_gets_the_whole_picture(lab: ScanoutLab) -> None:
    scanouts, table = lab.scanouts, lab.table
    resource = picture(table, 1)
    scanouts.show(0, resource, Rect(8, 8, 16, 24))
    other = RecordingDisplay()
    scanouts.use(other)
    assert other.sizes == [(16, 24)]
    assert other.updates == [Rect(0, 0, 16, 24)]


def test_forgotten_resources_are_shown_no_more(lab: ScanoutLab) -> None:
    scanouts, display, table = lab.scanouts, lab.display, lab.table
    resource = picture(table, 1)
    scanouts.show(0, resource, WHOLE)
    scanouts.forget(picture(table, 2))
    scanouts.forget(resource)
    scanouts.flush(resource, WHOLE)
    assert display.sizes == [(64, 64), (0, 0)]
    assert display.updates == []


def test_what_cannot_be_shown(lab: ScanoutLab) -> None:
    scanouts, table = lab.scanouts, lab.table
    resource = picture(table, 1)
    for rect in (Rect(1, 0, 64, 64), Rect(0, 0, 0, 1), Rect(0xFFFF_FFFF, 0, 2, 1)):
        with pytest.raises(GuestError) as caught:
            scanouts.show(0, resource, rect)
        assert caught.value.response == ResponseType.ERR_INVALID_PARAMETER
    with pytest.raises(GuestError) as caught:
        scanouts.check_id(16)
    assert caught.value.response == ResponseType.ERR_INVALID_SCANOUT_ID


def test_cursor_of_a_worker_comes_where_the_pointer_is_by_then(lab: ScanoutLab) -> None:
    scanouts, display, source, table = lab.scanouts, lab.display, lab.source, lab.table
    scanouts.cursors.define(0, rendered(table, 1), (1, 2), (10, 20))
    scanouts.cursors.move(0, 30, 40)
    source.finish()
    ((x, y, cursor),) = display.cursors
    assert (x, y, cursor.hot_x, cursor.hot_y) == (30, 40, 1, 2)


def test_cursor_that_was_hidden_before_it_came(lab: ScanoutLab) -> None:
    scanouts, display, source, table = lab.scanouts, lab.display, lab.source, lab.table
    scanouts.cursors.define(0, rendered(table, 1), (1, 2), (10, 20))
    scanouts.cursors.hide(0, 0, 0)
    source.finish()
    assert display.cursors == []
    with pytest.raises(GuestError):
        scanouts.cursors.define(0, picture(table, 2, 32, 32), (0, 0), (0, 0))


# --- several scanouts -----------------------------------------------------------------------------------------------


def test_one_resource_on_many_scanouts(lab: ScanoutLab) -> None:
    scanouts, display, table = lab.scanouts, lab.display, lab.table
    resource = picture(table, 1, 64, 64)
    for scanout_id in range(16):
        scanouts.check_id(scanout_id)
        scanouts.show(scanout_id, resource, Rect(4 * scanout_id, 0, 4, 64))
    assert resource.shadow is not None
    with resource.shadow.view() as pixels:
        for x in range(64):
            pixels[4 * x] = x
    scanouts.flush(resource, Rect(8, 0, 48, 1))
    assert display.by_scanout == {
        scanout_id: [b"".join(bytes([4 * scanout_id + x, 0, 0, 0]) for x in range(4))] for scanout_id in range(2, 14)
    }
    scanouts.disable(3)
    scanouts.flush(resource, Rect(0, 0, 64, 1))
    assert [len(display.by_scanout[scanout_id]) for scanout_id in (2, 3, 4)] == [2, 1, 2]
    scanouts.forget(resource)
    assert display.surfaces == {}


def test_each_scanout_shows_its_own(lab: ScanoutLab) -> None:
    scanouts, display, source, table = lab.scanouts, lab.display, lab.source, lab.table
    drawn, transferred = rendered(table, 1), picture(table, 2)
    scanouts.show(0, drawn, WHOLE)
    scanouts.show(1, transferred, WHOLE)
    scanouts.flush(drawn, WHOLE)
    scanouts.flush(transferred, WHOLE)  # does not wait for the other
    assert list(display.by_scanout) == [1]
    source.finish()
    assert list(display.by_scanout) == [1, 0]


# --- blobs ----------------------------------------------------------------------------------------------------------


def test_a_blob_is_shown_as_the_guest_says(lab: ScanoutLab) -> None:
    scanouts, display, source, table = lab.scanouts, lab.display, lab.source, lab.table
    resource = blob(table, 1)
    scanouts.show_blob(0, resource, Rect(1, 2, 8, 4), Format.R8G8B8X8_UNORM, 16, 8, 100, 12)
    assert display.sizes == [(8, 4)]
    scanouts.flush(resource, Rect(0, 0, 16, 8))
    assert source.finish() == Rect(1, 2, 8, 4)
    scanouts.flush(resource, Rect(100, 100, 5, 5))  # a blob has no size in pixels
    scanouts.flush(resource, Rect(0, 0, 0, 0))
    assert not source.waiting
    with pytest.raises(GuestError):
        scanouts.show(0, resource, Rect(0, 0, 8, 4))


def test_flips_between_blobs_keep_the_surface(lab: ScanoutLab) -> None:
    scanouts, display, source, table = lab.scanouts, lab.display, lab.source, lab.table
    for resource_id in (1, 2, 3):
        resource = blob(table, resource_id)
        scanouts.show_blob(0, resource, Rect(0, 0, 16, 8), Format.B8G8R8X8_UNORM, 16, 8, 64, 0)
        scanouts.flush(resource, Rect(0, 0, 16, 8))
        source.finish()
    assert display.sizes == [(16, 8)]
    assert len(display.updates) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": 5},
        {"width": 0},
        {"height": 0},
        {"width": 16385, "stride": 4 * 16385, "height": 1},
        {"stride": 60},
        {"stride": 66},
        {"offset": 16384 - 8 * 64 + 1},
        {"offset": 0xFFFF_FFFF},
        {"stride": 0xFFFF_FFFC},
        {"height": 257},
        {"rect": Rect(1, 0, 16, 8)},
        {"rect": Rect(0, 0, 0, 8)},
    ],
    ids=str,
)
def test_pictures_that_are_not_in_a_blob(lab: ScanoutLab, wrong: dict[str, object]) -> None:
    scanouts, table = lab.scanouts, lab.table
    right: dict[str, object] = {
        "rect": Rect(0, 0, 16, 8), "format": 2, "width": 16, "height": 8, "stride": 64, "offset": 0
    }  # fmt: skip
    resource = blob(table, 1)
    scanouts.show_blob(0, resource, **(right | {"offset": 16384 - 8 * 64}))  # type: ignore[arg-type]
    for target, arguments in ((resource, right | wrong), (picture(table, 2), right)):
        with pytest.raises(GuestError) as caught:
            scanouts.show_blob(0, target, **arguments)  # type: ignore[arg-type]
        assert caught.value.response == ResponseType.ERR_INVALID_PARAMETER


def test_cursor_of_a_blob(lab: ScanoutLab) -> None:
    scanouts, display, source, table = lab.scanouts, lab.display, lab.source, lab.table
    scanouts.cursors.define(0, blob(table, 1), (1, 2), (10, 20))
    assert source.finish() == Rect(0, 0, 64, 64)
    assert len(display.cursors) == 1
    with pytest.raises(GuestError):
        scanouts.cursors.define(0, blob(table, 2, 16383), (0, 0), (0, 0))
