"""Places in a context's order for messages that are not known yet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from native.dataplane import COMPLETE, Status, WorkDone
from tests.fake_vmm import Resp
from tests.order_rig import OrderRig, order_rig

ONE, OTHER = 1, 2
SHARED = 5


@pytest.fixture
def rig() -> Iterator[OrderRig]:
    with order_rig() as rig:
        rig.open_context(ONE)
        rig.open_context(OTHER)
        yield rig


def reserve(rig: OrderRig, ctx_id: int, slot: int) -> None:
    rig.plane.reserve(rig.contexts[ctx_id].lane, ctx_id, slot)


def fill(rig: OrderRig, ctx_id: int, slot: int, data: bytes = b"", flags: int = 0, token: int = 0) -> None:
    rig.plane.fill(rig.contexts[ctx_id].lane, slot, data, flags, token)


def send(rig: OrderRig, ctx_id: int, data: bytes) -> bool:
    return rig.plane.send(rig.contexts[ctx_id].lane, ctx_id, data)


def test_what_comes_later_waits_behind_the_place(rig: OrderRig) -> None:
    pending = rig.submit(ONE, 1)
    reserve(rig, ONE, 100)
    behind = rig.submit(ONE, 2)
    assert not send(rig, ONE, b"later")
    rig.submit(OTHER, 9)
    assert rig.take(ONE) == ["1"] and rig.take(OTHER) == ["9"]
    assert rig.gpu.wait(pending).ok and not behind.done
    fill(rig, ONE, 100, b"here")
    assert rig.take(ONE) == ["here", "2", "later"]
    assert rig.gpu.wait(behind).ok


def test_the_message_is_answered_like_any_other(rig: OrderRig) -> None:
    reserve(rig, ONE, 100)
    fill(rig, ONE, 100, b"here", COMPLETE, 55)
    assert rig.work(ONE) == ["here"]
    rig.pump()
    assert rig.events == [WorkDone(rig.contexts[ONE].lane.number, 55, Status.OK, 0, 0)]


def test_a_place_that_is_given_up(rig: OrderRig) -> None:
    reserve(rig, ONE, 100)
    rig.submit(ONE, 1)
    fill(rig, ONE, 100)
    assert rig.take(ONE) == ["1"]
    with pytest.raises(FileNotFoundError):
        fill(rig, ONE, 100, b"again")


def test_places_are_filled_in_any_order(rig: OrderRig) -> None:
    for slot in (100, 101, 102):
        reserve(rig, ONE, slot)
        rig.submit(ONE, slot)
    fill(rig, ONE, 102, b"third")
    fill(rig, ONE, 101)
    assert rig.take(ONE) == []
    fill(rig, ONE, 100, b"first")
    assert rig.take(ONE) == ["first", "100", "101", "third", "102"]


def test_the_last_place_of_several_is_given_up(rig: OrderRig) -> None:
    reserve(rig, ONE, 100)
    reserve(rig, ONE, 101)
    fill(rig, ONE, 101)
    rig.submit(ONE, 1)
    assert rig.take(ONE) == []
    fill(rig, ONE, 100, b"first")
    assert rig.take(ONE) == ["first", "1"]


def test_unknown_places(rig: OrderRig) -> None:
    reserve(rig, ONE, 100)
    for ctx_id, slot in ((ONE, 101), (OTHER, 100)):
        with pytest.raises(FileNotFoundError):
            fill(rig, ctx_id, slot, b"x")
    fill(rig, ONE, 100, b"x")
    with pytest.raises(FileNotFoundError):
        fill(rig, ONE, 100, b"x")
    assert rig.take(ONE) == ["x"]


def test_a_message_larger_than_any_may_be(rig: OrderRig) -> None:
    reserve(rig, ONE, 100)
    rig.submit(ONE, 1)
    fill(rig, ONE, 100, bytes(2 << 20), COMPLETE, 55)
    assert rig.take(ONE) == ["1"]
    rig.pump()
    assert rig.events == [WorkDone(rig.contexts[ONE].lane.number, 55, Status.INVALID_PARAMETER, 0, 0)]


@pytest.mark.parametrize("free", [False, True])
def test_places_go_with_the_worker(rig: OrderRig, free: bool) -> None:
    lane = rig.contexts[ONE].lane
    reserve(rig, ONE, 100)
    pending = rig.submit(ONE, 1)
    if free:
        rig.plane.free_lane(lane)
    else:
        rig.lose(ONE)
    with pytest.raises(BrokenPipeError):
        rig.plane.reserve(lane, ONE, 101)
    assert rig.gpu.wait(pending).type == Resp.ERR_UNSPEC
    with pytest.raises(BrokenPipeError):
        fill(rig, ONE, 100, b"late", COMPLETE, 55)
    rig.pump()
    assert rig.events == []


def test_peers_wait_for_what_stands_behind_a_place(rig: OrderRig) -> None:
    rig.share(SHARED, ONE, OTHER)
    reserve(rig, ONE, 100)
    rig.submit(ONE, 1)
    rig.submit(OTHER, 2)
    assert rig.take(ONE) == rig.take(OTHER) == []
    fill(rig, ONE, 100, b"here")
    assert rig.take(ONE) == ["here", "1", "point"]
    rig.finish(ONE)
    assert rig.take(OTHER) == ["2"]


def test_a_place_behind_what_waits(rig: OrderRig) -> None:
    rig.share(SHARED, ONE, OTHER)
    rig.submit(ONE, 1)
    rig.submit(OTHER, 2)
    reserve(rig, OTHER, 100)
    rig.submit(OTHER, 3)
    fill(rig, OTHER, 100, b"here")
    assert rig.take(OTHER) == []
    rig.work(ONE)
    assert rig.take(OTHER) == ["2", "here", "3"]


def test_who_waits_for_a_place_is_not_to_blame(rig: OrderRig) -> None:
    reserve(rig, ONE, 100)
    rig.submit(ONE, 1)
    progress = rig.plane.progress(rig.contexts[ONE].lane)
    assert progress.blocked and not progress.at_work
    fill(rig, ONE, 100, b"here", COMPLETE, 5)
    progress = rig.plane.progress(rig.contexts[ONE].lane)
    assert progress.at_work and not progress.blocked
