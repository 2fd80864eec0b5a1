"""Mirrored resources in the plane: copies in their places, and what mirrors look like (native/src/mirror.h)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from master.history import describe
from native.dataplane import Command, Status, WorkDone
from native.lane_history import WorkKind
from native.texture import MIRROR_HEADER_BYTES, MirrorLevel, Texture
from tests.fake_vmm import Box, Resp, commands
from tests.fake_vmm import Rect as GuestRect
from tests.order_rig import OrderRig, order_rig

ONE, OTHER, THIRD = 1, 2, 3
MIRRORED, SECOND = 5, 6
DXT1 = 105


@pytest.fixture
def rig() -> Iterator[OrderRig]:
    """Three contexts; the first two have a mirrored resource, of which the first has the latest contents."""
    with order_rig() as rig:
        for ctx_id in (ONE, OTHER, THIRD):
            rig.open_context(ctx_id)
        rig.share(MIRRORED, ONE, OTHER)
        rig.plane.set_mirrored(MIRRORED, ONE)
        yield rig


# --- copies ---------------------------------------------------------------------------------------------------------


def test_contents_go_from_the_owner_to_the_next(rig: OrderRig) -> None:
    rig.submit(ONE, 1)
    rig.submit(OTHER, 2)
    assert rig.take(ONE) == ["1", "out 5", "point"] and rig.take(OTHER) == []
    rig.finish(ONE)
    assert rig.take(OTHER) == ["in 5", "2"]


def test_the_owner_itself_copies_nothing(rig: OrderRig) -> None:
    rig.submit(ONE, 1)
    rig.submit(ONE, 2)
    assert rig.take(ONE) == ["1", "2"]


def test_an_owner_with_nothing_to_do_is_waited_for_all_the_same(rig: OrderRig) -> None:
    rig.submit(ONE, 1, fenced=True)
    rig.work(ONE)
    rig.submit(OTHER, 2)
    assert rig.take(ONE) == ["out 5", "point"] and rig.take(OTHER) == []
    rig.finish(ONE)
    assert rig.take(OTHER) == ["in 5", "2"]


def test_contents_go_to_and_fro(rig: OrderRig) -> None:
    for number in (1, 3):
        rig.submit(ONE, number)
        rig.submit(OTHER, number + 1)
    assert rig.work(ONE) == ["1", "out 5", "point"]
    assert rig.work(OTHER) == ["in 5", "2", "out 5", "point"]
    assert rig.work(ONE) == ["in 5", "3", "out 5", "point"]
    assert rig.work(OTHER) == ["in 5", "4"]


def test_many_resources_take_no_more_places_than_one(rig: OrderRig) -> None:
    """A neighbour's work is no reason to refuse a context's own: copies that wait are one piece of work."""
    several = range(100, 400)
    for resource_id in several:
        rig.share(resource_id, ONE, OTHER)
        rig.plane.set_mirrored(resource_id, ONE)
    rig.submit(ONE, 1)
    for number in (2, 4, 6):
        rig.submit(OTHER, number)
        rig.submit(ONE, number + 1)
    assert rig.plane.progress(rig.contexts[OTHER].lane).backlog < 16
    out = [f"out {each}" for each in (MIRRORED, *several)]
    copies_in = [f"in {each}" for each in (MIRRORED, *several)]
    assert rig.work(ONE) == ["1", *out, "point"]
    assert rig.work(OTHER) == [*copies_in, "2", *out, "point"]
    assert rig.work(ONE) == [*copies_in, "3", *out, "point"]


def test_each_resource_for_itself(rig: OrderRig) -> None:
    rig.share(SECOND, OTHER, THIRD)
    rig.plane.set_mirrored(SECOND, THIRD)
    rig.submit(OTHER, 2)
    assert rig.work(ONE) == ["out 5", "point"] and rig.take(OTHER) == []
    assert rig.work(THIRD) == ["out 6", "point"]
    assert sorted(rig.take(OTHER)) == ["2", "in 5", "in 6"]
    rig.submit(ONE, 1)
    assert rig.take(OTHER) == ["out 5", "point"]
    rig.finish(OTHER)
    assert rig.take(ONE) == ["in 5", "1"]


def test_transfers_and_readbacks_are_such_work(rig: OrderRig) -> None:
    rig.transfer(OTHER, MIRRORED)
    assert rig.work(ONE) == ["out 5", "point"]
    assert rig.take(OTHER) == ["in 5", "write 5"]
    rig.readback(ONE, MIRRORED, 3)
    assert rig.take(OTHER) == ["out 5", "point"]
    rig.finish(OTHER)
    assert rig.take(ONE) == ["in 5", "read 5"]


def test_contexts_of_one_worker_have_one_object(rig: OrderRig) -> None:
    rig.open_context(4, rig.contexts[ONE])
    rig.plane.attach_resource(MIRRORED, 4)
    rig.submit(4, 4)
    rig.submit(ONE, 1)
    assert rig.take(ONE) == ["4", "1"]
    rig.submit(OTHER, 2)
    assert rig.work(ONE)[0] == "out 5"
    assert rig.take(OTHER) == ["in 5", "2"]


def test_who_gets_it_later_copies_in(rig: OrderRig) -> None:
    rig.plane.attach_resource(MIRRORED, THIRD)
    rig.submit(THIRD, 3)
    assert rig.work(ONE) == ["out 5", "point"]
    assert rig.take(THIRD) == ["in 5", "3"]


def test_a_resource_that_turns_mirrored_with_work_under_way(rig: OrderRig) -> None:
    rig.share(SECOND, ONE, OTHER)
    rig.submit(ONE, 1)
    rig.plane.set_mirrored(SECOND, ONE)
    rig.submit(OTHER, 2)
    assert sorted(rig.work(ONE)) == ["1", "out 5", "out 6", "point"]
    assert sorted(rig.take(OTHER)) == ["2", "in 5", "in 6"]


def test_copies_are_told_for_blame(rig: OrderRig) -> None:
    rig.submit(OTHER, 2)
    latest = rig.plane.history(rig.contexts[ONE].lane).latest
    assert [(placed.kind, placed.resource_id, placed.ctx_id) for placed in latest] == [
        (WorkKind.COPY_OUT, MIRRORED, ONE), (WorkKind.POINT, 0, ONE),
    ]  # fmt: skip
    assert [describe(placed).split(" (")[0] for placed in latest] == [
        "copy of resource 5 to its mirror", "a fence for other contexts",
    ]  # fmt: skip
    rig.work(ONE)
    (placed, _) = rig.plane.history(rig.contexts[OTHER].lane).latest
    assert describe(placed) == "copy of resource 5 from its mirror (record 1)"


# --- owners that go -------------------------------------------------------------------------------------------------


def test_an_owner_that_detaches_copies_out(rig: OrderRig) -> None:
    rig.submit(ONE, 1)
    rig.plane.detach_resource(MIRRORED, ONE)
    rig.plane.send(rig.contexts[ONE].lane, ONE, b"detach")
    rig.submit(OTHER, 2)
    assert rig.take(ONE) == ["1", "out 5", "point", "detach"] and rig.take(OTHER) == []
    rig.finish(ONE)
    assert rig.take(OTHER) == ["in 5", "2"]


def test_an_owner_that_was_alone_copies_out(rig: OrderRig) -> None:
    rig.plane.detach_resource(MIRRORED, OTHER)
    rig.plane.detach_resource(MIRRORED, ONE)
    assert rig.take(ONE) == ["out 5"]
    rig.plane.attach_resource(MIRRORED, THIRD)
    rig.submit(THIRD, 3)
    assert rig.take(ONE) == ["point"] and rig.take(THIRD) == []
    rig.finish(ONE)
    assert rig.take(THIRD) == ["in 5", "3"]


def test_an_owner_that_is_forgotten_copies_out(rig: OrderRig) -> None:
    gone = rig.contexts[ONE]
    rig.plane.forget_context(ONE)
    rig.plane.send(gone.lane, ONE, b"destroy")
    rig.submit(OTHER, 2)
    assert rig.take(OTHER) == []
    assert rig.work(ONE) == ["out 5", "point", "destroy"]
    assert rig.take(OTHER) == ["in 5", "2"]


@pytest.mark.parametrize("free", [False, True])
def test_an_owner_that_dies_leaves_what_was_copied(rig: OrderRig, free: bool) -> None:
    rig.submit(ONE, 1)
    if free:
        rig.plane.free_lane(rig.contexts[ONE].lane)
    else:
        rig.lose(ONE)
    rig.submit(OTHER, 2)
    assert rig.take(OTHER) == ["in 5", "2"]
    rig.plane.detach_resource(MIRRORED, ONE)
    rig.submit(OTHER, 3)
    assert rig.take(OTHER) == ["3"]
    rig.pump()
    assert rig.events == []


def test_an_owner_that_dies_while_it_is_waited_for(rig: OrderRig) -> None:
    rig.submit(OTHER, 2)
    assert rig.take(OTHER) == []
    rig.lose(ONE)
    assert rig.take(OTHER) == ["in 5", "2"]


def test_a_detached_context_copies_nothing_any_more(rig: OrderRig) -> None:
    rig.plane.detach_resource(MIRRORED, OTHER)
    rig.submit(OTHER, 2)
    rig.submit(ONE, 1)
    assert rig.take(OTHER) == ["2"] and rig.take(ONE) == ["1"]


def test_a_removed_resource_is_copied_no_more(rig: OrderRig) -> None:
    rig.plane.remove_resource(MIRRORED)
    rig.submit(OTHER, 2)
    rig.submit(ONE, 1)
    assert rig.take(OTHER) == ["2"] and rig.take(ONE) == ["1"]


def test_owners_that_cannot_be(rig: OrderRig) -> None:
    for resource_id, owner in ((99, 0), (MIRRORED, 99), (MIRRORED, THIRD)):
        with pytest.raises(FileNotFoundError):
            rig.plane.set_mirrored(resource_id, owner)
    with pytest.raises(ValueError, match="header"):
        rig.plane.set_mirrored(MIRRORED, ONE, memoryview(bytearray(MIRROR_HEADER_BYTES - 1)))


# --- waiting for contents -------------------------------------------------------------------------------------------


def test_sync_brings_the_mirror_up_to_date(rig: OrderRig) -> None:
    rig.submit(ONE, 1, fenced=True)
    rig.work(ONE)
    rig.plane.sync(MIRRORED, 7)
    rig.pump()
    assert rig.events == []
    assert rig.work(ONE) == ["out 5", "point"]
    rig.pump()
    assert rig.events == [WorkDone(0, 7, Status.OK, 0, 0)]
    rig.submit(ONE, 2)
    assert rig.take(ONE) == ["2"]  # it is the owner still


def test_sync_of_a_dead_owner(rig: OrderRig) -> None:
    rig.lose(ONE)
    rig.plane.sync(MIRRORED, 7)
    rig.pump()
    assert rig.events == [WorkDone(0, 7, Status.OK, 0, 0)]


# --- mirrors that this side writes ----------------------------------------------------------------------------------

PICTURE = Texture(2, 1, 2, 64, 32, 1, 1, 0, 0, 0)


class Picture:
    """Resource 6, a picture whose shadow is its mirror; two contexts have it."""

    def __init__(self, rig: OrderRig) -> None:
        level = PICTURE.mirror_level()
        assert level is not None and level.stride == 4 * PICTURE.width
        self.memory = bytearray(PICTURE.mirror_bytes)
        self.start = level.offset
        self.page = rig.memory.allocate(4096 * 2)
        rig.share(SECOND, ONE, THIRD)
        view = memoryview(self.memory)
        rig.plane.set_picture(SECOND, PICTURE.width, PICTURE.height, view[self.start :])
        rig.plane.set_backing(SECOND, rig.entries([(self.page, 4 * PICTURE.width * PICTURE.height)]))
        rig.plane.set_mirrored(SECOND, 0, view[:MIRROR_HEADER_BYTES])

    @property
    def version(self) -> int:
        return int.from_bytes(self.memory[:8], "little")


def test_pixels_that_the_plane_writes_reach_contexts(rig: OrderRig) -> None:
    """That is, while nobody is at it: else Python sees to the order (master/turns.py)."""
    picture = Picture(rig)
    rig.memory.write(picture.page, b"\x5a" * 256)
    transfer = commands.transfer_to_host_2d(SECOND, GuestRect(64, 1))
    rig.gpu.wait(rig.command(transfer)).check()
    assert picture.version == 1
    assert picture.memory[picture.start : picture.start + 257] == b"\x5a" * 256 + b"\0"
    rig.submit(THIRD, 3)
    assert rig.take(THIRD) == ["in 6", "3"]
    rig.submit(THIRD, 4)
    assert rig.take(THIRD) == ["4"]
    handed = rig.command(transfer)
    rig.pump()
    assert not handed.done and picture.version == 1
    assert any(isinstance(event, Command) for event in rig.events)


def test_pixels_that_python_writes_reach_contexts(rig: OrderRig) -> None:
    picture = Picture(rig)
    rig.submit(THIRD, 3)
    rig.plane.written(SECOND)
    assert picture.version == 1
    rig.submit(THIRD, 4)
    assert rig.take(THIRD) == ["in 6", "3", "in 6", "4"]
    rig.plane.written(MIRRORED)  # without a header: this side is the newest all the same
    rig.plane.written(99)
    rig.submit(OTHER, 2)
    assert rig.take(OTHER) == ["in 5", "2"]


# --- guest memory as storage ----------------------------------------------------------------------------------------


def test_transfers_of_what_the_guest_sees_itself_do_nothing(rig: OrderRig) -> None:
    rig.plane.set_resource(SECOND, Texture(*[0] * 10))
    rig.plane.attach_resource(SECOND, ONE)
    transfers = [make(ONE, SECOND, Box(1)) for make in (commands.transfer_to_host_3d, commands.transfer_from_host_3d)]
    assert {rig.gpu.wait(rig.command(command)).ok for command in transfers} == {False}
    rig.plane.set_shared_with_guest(SECOND)
    assert {rig.gpu.wait(rig.command(command)).ok for command in transfers} == {True}
    assert rig.take(ONE) == []
    rig.plane.detach_resource(SECOND, ONE)
    assert rig.gpu.wait(rig.command(transfers[0])).type == Resp.ERR_INVALID_RESOURCE_ID
    with pytest.raises(FileNotFoundError):
        rig.plane.set_shared_with_guest(99)


# --- what mirrors look like -----------------------------------------------------------------------------------------

H = MIRROR_HEADER_BYTES


@pytest.mark.parametrize(
    ("texture", "nbytes", "levels"),
    [
        (Texture(2, 1, 2, 64, 32, 1, 1, 0, 0, 0), H + 8192, [MirrorLevel(H, 64, 32, 1, 256, 8192)]),
        (Texture(2, 1, 2, 64, 32, 1, 1, 0, 1, 0), H + 8192, [MirrorLevel(H, 64, 32, 1, 256, 8192)]),
        (Texture(0, 64, 2, 1000, 1, 1, 1, 0, 0, 0), H + 1000, [MirrorLevel(H, 1000, 1, 1, 1000, 1000)]),
        (
            Texture(2, 1, 2, 5, 3, 1, 1, 2, 0, 0), H + 60 + 8 + 4,
            [MirrorLevel(H, 5, 3, 1, 20, 60), MirrorLevel(H + 60, 2, 1, 1, 8, 8), MirrorLevel(H + 68, 1, 1, 1, 4, 4)],
        ),
        (
            Texture(3, 1, 2, 4, 4, 4, 1, 1, 0, 0), H + 256 + 32,
            [MirrorLevel(H, 4, 4, 4, 16, 64), MirrorLevel(H + 256, 2, 2, 2, 8, 16)],
        ),
        (
            Texture(4, 1, 2, 4, 4, 1, 6, 1, 0, 0), H + 6 * 64 + 6 * 16,
            [MirrorLevel(H, 4, 4, 6, 16, 64), MirrorLevel(H + 384, 2, 2, 6, 8, 16)],
        ),
        (Texture(2, DXT1, 8, 6, 5, 1, 1, 0, 0, 0), H + 2 * 2 * 8, [MirrorLevel(H, 6, 5, 1, 16, 32)]),
        (Texture(2, 1, 2, 64, 32, 1, 1, 0, 4, 0), 0, []),
        (Texture(2, 100000, 2, 64, 32, 1, 1, 0, 0, 0), 0, []),
        (Texture(9, 1, 2, 64, 32, 1, 1, 0, 0, 0), 0, []),
    ],
    ids=str,
)  # fmt: skip
def test_layout(texture: Texture, nbytes: int, levels: list[MirrorLevel]) -> None:
    assert texture.mirror_bytes == nbytes
    assert [texture.mirror_level(level) for level in range(len(levels))] == levels
    assert texture.mirror_level(len(levels)) is None


def test_the_largest_mirror_does_not_overflow() -> None:
    largest = Texture(3, 27, 2, 16384, 16384, 2048, 2048, 14, 0, 1)
    assert largest.is_valid()
    assert 16384**2 * 2048 * 16 <= largest.mirror_bytes < 16384**2 * 2048 * 64
