"""Scanouts: damage gathers while the display is busy, readbacks come when they come, and the last picture is right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from master.display import Headless
from master.display_messages import Cursor
from master.errors import GuestError
from master.scanout import Scanouts, intersection, union
from master.virtio_gpu import ResponseType
from master.wire import Rect
from native.texture import Rect as NativeRect
from native.texture import Texture
from resource_table import Resource, ResourceTable

Deliver = Callable[[bytearray | None], None]
RECTS = st.builds(Rect, st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(1, 20))


class RecordingDisplay(Headless):
    """Takes updates while `room` lasts, and notes what it was told."""

    def __init__(self) -> None:
        super().__init__(64, 64)
        self.room = 100
        self.sizes: list[tuple[int, int]] = []
        self.updates: list[Rect] = []
        self.cursors: list[tuple[int, int, Cursor]] = []

    def set_scanout(self, scanout_id: int, width: int, height: int) -> None:
        self.sizes.append((width, height))

    def disable_scanout(self, scanout_id: int) -> None:
        self.sizes.append((0, 0))

    def ready_for_update(self, scanout_id: int) -> bool:
        return self.room > 0

    def update(self, scanout_id: int, rect: Rect, pixels: memoryview) -> None:
        assert self.room > 0
        assert len(pixels) == 4 * rect.width * rect.height
        self.room -= 1
        self.updates.append(rect)

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


class PlayedReadbacks:
    """Readbacks that end when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Rect, Deliver]] = []
        self.possible = True

    def start(self, resource: Resource, rect: Rect, deliver: Deliver) -> bool:
        if self.possible:
            self.waiting.append((rect, deliver))
        return self.possible

    def finish(self, *, well: bool = True) -> Rect:
        rect, deliver = self.waiting.pop(0)
        deliver(bytearray(4 * rect.width * rect.height) if well else None)
        return rect


@pytest.fixture
def display() -> RecordingDisplay:
    return RecordingDisplay()


@pytest.fixture
def readbacks() -> PlayedReadbacks:
    return PlayedReadbacks()


@pytest.fixture
def pictures() -> PlayedPictures:
    return PlayedPictures()


@pytest.fixture
def scanouts(display: RecordingDisplay, readbacks: PlayedReadbacks, pictures: PlayedPictures) -> Scanouts:
    return Scanouts(display, 1, readbacks, pictures)  # type: ignore[arg-type]


@pytest.fixture
def table() -> ResourceTable:
    return ResourceTable()


def picture(table: ResourceTable, resource_id: int, width: int = 64, height: int = 64) -> Resource:
    return table.create_2d(resource_id, 2, width, height)


def rendered(table: ResourceTable, resource_id: int) -> Resource:
    return table.create_3d(resource_id, Texture(2, 2, 2, 64, 64, 1, 1, 0, 0, 0))


WHOLE = Rect(0, 0, 64, 64)


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


def test_damage_gathers_while_the_display_is_busy(
    scanouts: Scanouts, display: RecordingDisplay, table: ResourceTable
) -> None:
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


def test_what_the_plane_answered_is_settled(
    scanouts: Scanouts, display: RecordingDisplay, pictures: PlayedPictures, table: ResourceTable
) -> None:
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


def test_readback_under_way_is_not_asked_for_again(
    scanouts: Scanouts, display: RecordingDisplay, readbacks: PlayedReadbacks, table: ResourceTable
) -> None:
    """What is drawn meanwhile is damage for the next."""
    resource = rendered(table, 1)
    scanouts.show(0, resource, WHOLE)
    scanouts.flush(resource, Rect(0, 0, 8, 8))
    for x in (10, 20, 30):
        scanouts.flush(resource, Rect(x, 0, 8, 8))
    assert len(readbacks.waiting) == 1
    readbacks.finish()
    assert display.updates == [Rect(0, 0, 8, 8)]
    assert readbacks.finish() == Rect(10, 0, 28, 8)
    assert not readbacks.waiting


def test_readback_that_fails_is_not_the_end(
    scanouts: Scanouts, display: RecordingDisplay, readbacks: PlayedReadbacks, table: ResourceTable
) -> None:
    resource = rendered(table, 1)
    scanouts.show(0, resource, WHOLE)
    scanouts.flush(resource, WHOLE)
    readbacks.finish(well=False)
    assert display.updates == []
    scanouts.flush(resource, WHOLE)
    readbacks.finish()
    assert display.updates == [WHOLE]
    readbacks.possible = False
    scanouts.flush(resource, WHOLE)
    assert display.updates == [WHOLE]


def test_late_readback_of_what_is_shown_no_more(
    scanouts: Scanouts, display: RecordingDisplay, readbacks: PlayedReadbacks, table: ResourceTable
) -> None:
    old = rendered(table, 1)
    scanouts.show(0, old, WHOLE)
    scanouts.flush(old, WHOLE)
    scanouts.show(0, picture(table, 2, 8, 8), Rect(0, 0, 8, 8))
    readbacks.finish()  # its pixels are nobody's
    assert display.updates == []
    assert display.sizes == [(64, 64), (8, 8)]


def test_flips_faster_than_readbacks_still_show_something(
    scanouts: Scanouts, display: RecordingDisplay, readbacks: PlayedReadbacks, table: ResourceTable
) -> None:
    buffers = rendered(table, 1), rendered(table, 2)
    for turn in range(5):
        scanouts.show(0, buffers[turn % 2], WHOLE)
        scanouts.flush(buffers[turn % 2], WHOLE)
    readbacks.finish()
    assert display.updates == [WHOLE]
    readbacks.finish()  # and the last one's pixels are the last to come
    assert display.updates == [WHOLE, WHOLE]
    assert not readbacks.waiting


def test_page_flip_takes_over_what_was_not_sent(
    scanouts: Scanouts, display: RecordingDisplay, table: ResourceTable
) -> None:
    first, second = picture(table, 1), picture(table, 2)
    scanouts.show(0, first, WHOLE)
    display.room = 0
    scanouts.flush(first, Rect(0, 0, 4, 4))
    scanouts.show(0, second, WHOLE)
    display.room = 9
    scanouts.flush(second, Rect(8, 8, 4, 4))
    assert display.updates == [Rect(0, 0, 12, 12)]
    assert display.sizes == [(64, 64)]


def test_a_flip_that_the_plane_did(scanouts: Scanouts, display: RecordingDisplay, table: ResourceTable) -> None:
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


def test_another_display_gets_the_whole_picture(scanouts: Scanouts, table: ResourceTable) -> None:
    resource = picture(table, 1)
    scanouts.show(0, resource, Rect(8, 8, 16, 24))
    other = RecordingDisplay()
    scanouts.use(other)
    assert other.sizes == [(16, 24)]
    assert other.updates == [Rect(0, 0, 16, 24)]


def test_forgotten_resources_are_shown_no_more(
    scanouts: Scanouts, display: RecordingDisplay, table: ResourceTable
) -> None:
    resource = picture(table, 1)
    scanouts.show(0, resource, WHOLE)
    scanouts.forget(picture(table, 2))
    scanouts.forget(resource)
    scanouts.flush(resource, WHOLE)
    assert display.sizes == [(64, 64), (0, 0)]
    assert display.updates == []


def test_what_cannot_be_shown(scanouts: Scanouts, table: ResourceTable) -> None:
    resource = picture(table, 1)
    for rect in (Rect(1, 0, 64, 64), Rect(0, 0, 0, 1), Rect(0xFFFF_FFFF, 0, 2, 1)):
        with pytest.raises(GuestError) as caught:
            scanouts.show(0, resource, rect)
        assert caught.value.response == ResponseType.ERR_INVALID_PARAMETER
    with pytest.raises(GuestError) as caught:
        scanouts.check_id(1)
    assert caught.value.response == ResponseType.ERR_INVALID_SCANOUT_ID


def test_cursor_of_a_worker_comes_where_the_pointer_is_by_then(
    scanouts: Scanouts, display: RecordingDisplay, readbacks: PlayedReadbacks, table: ResourceTable
) -> None:
    scanouts.define_cursor(0, rendered(table, 1), (1, 2), (10, 20))
    scanouts.move_cursor(0, 30, 40)
    readbacks.finish()
    ((x, y, cursor),) = display.cursors
    assert (x, y, cursor.hot_x, cursor.hot_y) == (30, 40, 1, 2)


def test_cursor_that_was_hidden_before_it_came(
    scanouts: Scanouts, display: RecordingDisplay, readbacks: PlayedReadbacks, table: ResourceTable
) -> None:
    scanouts.define_cursor(0, rendered(table, 1), (1, 2), (10, 20))
    scanouts.hide_cursor(0, 0, 0)
    readbacks.finish()
    assert display.cursors == []
    with pytest.raises(GuestError):
        scanouts.define_cursor(0, picture(table, 2, 32, 32), (0, 0), (0, 0))
