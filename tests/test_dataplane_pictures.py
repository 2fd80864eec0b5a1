"""The 2D commands that the plane does itself: which it takes, what they leave in the shadow, and how damage gathers."""

from __future__ import annotations

import select
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native.dataplane import Command, Flipped
from native.texture import Rect as Pixels
from native.texture import Texture
from tests.fake_vmm import GpuCommand, Rect, Resp, commands
from tests.plane_rig import LIMIT, PlaneRig, plane_rig

PICTURE, OTHER, UNKNOWN = 7, 8, 99
SCANOUT = 3
WIDTH, HEIGHT = 64, 32
WIDE = 4096  # of a picture that is too much for one short transfer
TEXTURE = Texture(2, 1, 2, WIDTH, HEIGHT, 1, 1, 0, 0, 0)
OUTSIDE = [
    Rect(0, 1),
    Rect(1, 0),
    Rect(WIDTH + 1, 1),
    Rect(1, HEIGHT + 1),
    Rect(1, 1, WIDTH, 0),
    Rect(1, 1, 0, HEIGHT),
    Rect(2, 1, 0xFFFFFFFF, 0),
    Rect(0xFFFFFFFF, 0xFFFFFFFF, 1, 1),
]


class Canvas:
    """A rig with a picture in it: `shadow` is what the plane copies to."""

    def __init__(self, rig: PlaneRig) -> None:
        self.rig = rig
        self.shadow = bytearray(4 * WIDTH * HEIGHT)
        self.content = bytes(i * 7 & 0xFF for i in range(4 * WIDTH * HEIGHT))
        buffer = rig.memory.buffer(len(self.content), scattered=True)
        self.segments = buffer.segments()
        buffer.free()
        rig.pump()
        rig.events.clear()
        rig.plane.show(SCANOUT, 0, Pixels(0, 0, 0, 0))
        rig.plane.take_damage(SCANOUT)
        rig.plane.remove_resource(PICTURE)
        rig.plane.set_resource(PICTURE, TEXTURE)
        rig.plane.set_picture(PICTURE, WIDTH, HEIGHT, memoryview(self.shadow))
        rig.plane.set_backing(PICTURE, rig.entries(self.segments))
        at = 0
        for gpa, length in self.segments:
            rig.memory.write(gpa, self.content[at : at + length])
            at += length

    def answered_here(self, command: GpuCommand) -> bool:
        """Whether the plane did it; if it went to Python, that answers ERR_UNSPEC."""
        pending = self.rig.gpu.submit(command)
        self.rig.wait_until(lambda: pending.done or self.handed(), f"{command.name} taken")
        handed = self.handed()
        if handed:
            for event in handed:
                self.rig.plane.complete(event.request, Resp.ERR_UNSPEC)
            self.rig.plane.flush()
            self.rig.events.clear()
        response = self.rig.gpu.wait(pending)
        assert (response.type == Resp.OK_NODATA) != bool(handed)
        return not handed

    def handed(self) -> list[Command]:
        self.rig.pump()
        return [event for event in self.rig.events if isinstance(event, Command)]

    def show(self, part: Pixels = Pixels(0, 0, WIDTH, HEIGHT)) -> None:  # noqa: B008 - it is frozen
        self.rig.plane.show(SCANOUT, PICTURE, part)

    def damage(self) -> Pixels | None:
        """What was flushed since the last call."""
        return self.rig.plane.take_damage(SCANOUT)


@pytest.fixture(scope="module")
def rig() -> Iterator[PlaneRig]:
    with plane_rig() as rig:
        yield rig


@pytest.fixture
def canvas(rig: PlaneRig) -> Canvas:
    return Canvas(rig)


# --- transfers ------------------------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_exactly_the_rectangle_is_copied(rig: PlaneRig, data: st.DataObject) -> None:
    canvas = Canvas(rig)
    x, y = data.draw(st.integers(0, WIDTH - 1)), data.draw(st.integers(0, HEIGHT - 1))
    rect = Rect(data.draw(st.integers(1, WIDTH - x)), data.draw(st.integers(1, HEIGHT - y)), x, y)
    offset = data.draw(st.integers(0, 300))
    needed = offset + 4 * WIDTH * (rect.height - 1) + 4 * rect.width
    expected = bytearray(len(canvas.shadow))
    for row in range(rect.height):
        at, source = 4 * (WIDTH * (y + row) + x), offset + 4 * WIDTH * row
        expected[at : at + 4 * rect.width] = canvas.content[source : source + 4 * rect.width]
    fits = needed <= len(canvas.content)
    assert canvas.answered_here(commands.transfer_to_host_2d(PICTURE, rect, offset)) is fits
    if fits:
        assert canvas.shadow == expected


@pytest.mark.parametrize("rect", OUTSIDE, ids=str)
def test_what_lies_outside_is_for_python(canvas: Canvas, rect: Rect) -> None:
    assert not canvas.answered_here(commands.transfer_to_host_2d(PICTURE, rect))
    assert not canvas.answered_here(commands.resource_flush(PICTURE, rect))
    assert not any(canvas.shadow)


def test_what_is_not_there_is_for_python(canvas: Canvas) -> None:
    whole, plane = Rect(WIDTH, HEIGHT), canvas.rig.plane
    assert not canvas.answered_here(commands.transfer_to_host_2d(UNKNOWN, whole))
    assert not canvas.answered_here(commands.resource_flush(UNKNOWN, whole))
    transfer = commands.transfer_to_host_2d(PICTURE, whole)
    assert not canvas.answered_here(transfer._replace(body=transfer.body[:-1]))
    assert not canvas.answered_here(commands.transfer_to_host_2d(PICTURE, whole, (1 << 64) - 4))
    plane.set_backing(PICTURE, None)
    assert not canvas.answered_here(transfer)
    plane.set_picture(PICTURE, WIDTH, HEIGHT, None)  # its pixels are in a worker
    plane.set_backing(PICTURE, canvas.rig.entries(canvas.segments))
    assert not canvas.answered_here(transfer)


def test_a_large_transfer_is_for_python(canvas: Canvas) -> None:
    plane, shadow = canvas.rig.plane, bytearray(4 * WIDE * 32)
    plane.remove_resource(OTHER)
    plane.set_resource(OTHER, TEXTURE)
    plane.set_picture(OTHER, WIDE, 32, memoryview(shadow))
    plane.set_backing(OTHER, canvas.rig.entries([(canvas.rig.memory.allocate(len(shadow)), len(shadow))]))
    assert canvas.answered_here(commands.transfer_to_host_2d(OTHER, Rect(WIDE, 16)))
    assert not canvas.answered_here(commands.transfer_to_host_2d(OTHER, Rect(WIDE, 17)))
    plane.remove_resource(OTHER)


def test_a_shadow_that_is_too_small_is_refused(canvas: Canvas) -> None:
    with pytest.raises(ValueError, match="fewer pixels"):
        canvas.rig.plane.set_picture(PICTURE, WIDTH, HEIGHT + 1, memoryview(canvas.shadow))


# --- flushes --------------------------------------------------------------------------------------------------------


def test_a_flush_of_what_nobody_sees_damages_nothing(canvas: Canvas) -> None:
    corner = commands.resource_flush(PICTURE, Rect(1, 1, WIDTH - 1, HEIGHT - 1))
    assert canvas.answered_here(corner)
    assert canvas.damage() is None
    canvas.show(Pixels(0, 0, WIDTH - 1, HEIGHT - 1))
    assert canvas.answered_here(corner)
    assert canvas.damage() is None


def test_flushes_of_what_is_shown_gather(canvas: Canvas) -> None:
    canvas.show()
    pending = [
        canvas.rig.gpu.submit(commands.resource_flush(PICTURE, rect))
        for rect in (Rect(2, 3, 10, 20), Rect(4, 1, 30, 2), Rect(1, 1, 12, 21))
    ]
    for each in pending:
        assert canvas.rig.gpu.wait(each).type == Resp.OK_NODATA
    assert select.select([canvas.rig.plane], [], [], LIMIT)[0]  # Python is told
    assert canvas.damage() == Pixels(10, 2, 24, 21)
    assert canvas.damage() is None
    canvas.show(Pixels(4, 8, 10, 10))
    assert canvas.answered_here(commands.resource_flush(PICTURE, Rect(WIDTH, HEIGHT)))
    assert canvas.damage() == Pixels(0, 0, 10, 10)
    assert canvas.answered_here(commands.resource_flush(PICTURE, Rect(WIDTH - 6, HEIGHT - 9, 6, 9)))
    assert canvas.damage() == Pixels(2, 1, 8, 9)


def test_damage_outlives_a_page_flip(canvas: Canvas) -> None:
    """What the display has not seen of one page, it has to be shown of the next."""
    canvas.show()
    assert canvas.answered_here(commands.resource_flush(PICTURE, Rect(2, 2, 5, 5)))
    canvas.rig.plane.show(SCANOUT, OTHER, Pixels(0, 0, WIDTH, HEIGHT))
    assert canvas.answered_here(commands.resource_flush(PICTURE, Rect(2, 2, 20, 20)))
    assert canvas.damage() == Pixels(5, 5, 2, 2)


def test_a_shown_picture_of_a_worker_is_for_python(canvas: Canvas) -> None:
    canvas.rig.plane.set_picture(PICTURE, WIDTH, HEIGHT, None)
    canvas.show()
    flush = commands.resource_flush(PICTURE, Rect(1, 1))
    assert not canvas.answered_here(flush)
    canvas.rig.plane.show(SCANOUT, OTHER, Pixels(0, 0, WIDTH, HEIGHT))
    assert canvas.answered_here(flush)


# --- page flips -----------------------------------------------------------------------------------------------------


@pytest.fixture
def other(canvas: Canvas) -> Iterator[int]:
    """A second picture of the same size."""
    plane, shadow = canvas.rig.plane, bytearray(4 * WIDTH * HEIGHT)
    plane.remove_resource(OTHER)
    plane.set_resource(OTHER, TEXTURE)
    plane.set_picture(OTHER, WIDTH, HEIGHT, memoryview(shadow))
    yield OTHER
    plane.remove_resource(OTHER)


def flips(rig: PlaneRig) -> list[Flipped]:
    rig.pump()
    return [event for event in rig.events if isinstance(event, Flipped)]


def test_of_flips_the_last_is_told(canvas: Canvas, other: int) -> None:
    canvas.show(Pixels(0, 0, 32, 32))
    pending = [
        canvas.rig.gpu.submit(commands.set_scanout(SCANOUT, resource, Rect(32, 32, x, 0)))
        for x, resource in ((0, other), (1, PICTURE), (2, other))
    ]
    for each in pending:
        assert canvas.rig.gpu.wait(each).type == Resp.OK_NODATA
    assert flips(canvas.rig) == [Flipped(SCANOUT, other, Pixels(2, 0, 32, 32))]
    assert canvas.answered_here(commands.resource_flush(PICTURE, Rect(WIDTH, HEIGHT)))
    assert canvas.damage() is None
    assert canvas.answered_here(commands.resource_flush(other, Rect(4, 4)))
    assert canvas.damage() == Pixels(0, 0, 2, 4)
    assert canvas.answered_here(commands.set_scanout(SCANOUT, PICTURE, Rect(32, 32)))
    assert flips(canvas.rig)[-1] == Flipped(SCANOUT, PICTURE, Pixels(0, 0, 32, 32))


def test_what_is_no_flip_is_for_python(canvas: Canvas, other: int) -> None:
    whole = Rect(WIDTH, HEIGHT)
    flip = commands.set_scanout(SCANOUT, other, whole)
    assert not canvas.answered_here(flip)  # nothing was shown before
    canvas.show()
    for command in (
        commands.set_scanout(SCANOUT, 0, whole),
        commands.set_scanout(SCANOUT, UNKNOWN, whole),
        commands.set_scanout(SCANOUT + 1, other, whole),
        commands.set_scanout(16, other, whole),
        commands.set_scanout(0xFFFFFFFF, other, whole),
        commands.set_scanout(SCANOUT, other, Rect(WIDTH - 1, HEIGHT)),
        *(commands.set_scanout(SCANOUT, other, rect) for rect in OUTSIDE),
        flip._replace(body=flip.body[:-1]),
    ):
        assert not canvas.answered_here(command)
    canvas.rig.plane.set_picture(other, WIDTH, HEIGHT, None)
    assert not canvas.answered_here(flip)  # its pixels are in a worker
    assert flips(canvas.rig) == []


def test_scanouts_that_there_are_not(canvas: Canvas) -> None:
    canvas.rig.plane.show(16, PICTURE, Pixels(0, 0, WIDTH, HEIGHT))
    assert canvas.answered_here(commands.resource_flush(PICTURE, Rect(1, 1)))
    assert canvas.rig.plane.take_damage(16) is None


def test_order_with_what_python_decides(canvas: Canvas) -> None:
    """Neither overtakes a command that Python has not placed yet."""
    rig, whole = canvas.rig, Rect(WIDTH, HEIGHT)
    with rig.gpu.batch():
        first = rig.gpu.submit(commands.resource_unref(OTHER))
        transfer = rig.gpu.submit(commands.transfer_to_host_2d(PICTURE, whole))
        flush = rig.gpu.submit(commands.resource_flush(PICTURE, whole))
    assert select.select([rig.plane], [], [], LIMIT)[0]
    command = rig.plane.take()
    assert isinstance(command, Command)
    assert not transfer.done and not any(canvas.shadow)
    rig.plane.complete(command.request, Resp.OK_NODATA)
    assert rig.plane.take() is None  # by which the command has been placed
    rig.gpu.wait_all([first, transfer, flush])
    assert canvas.shadow == canvas.content
