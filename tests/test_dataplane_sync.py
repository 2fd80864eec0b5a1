"""The plane telling Python when a resource's contents are finished."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from native.dataplane import Status, WorkDone
from tests.order_rig import OrderRig, order_rig

ONE, OTHER, THIRD = 1, 2, 3
SHARED, SECOND = 5, 6


@pytest.fixture
def rig() -> Iterator[OrderRig]:
    """Three contexts, each with a worker; the first two have a resource in common."""
    with order_rig() as rig:
        for ctx_id in (ONE, OTHER, THIRD):
            rig.open_context(ctx_id)
        rig.share(SHARED, ONE, OTHER)
        yield rig


def synced(rig: OrderRig) -> list[tuple[int, int, Status]]:
    rig.pump()
    return [(event.token, event.lane, event.status) for event in rig.events if isinstance(event, WorkDone)]


def test_sync_without_work_is_done_at_once(rig: OrderRig) -> None:
    rig.plane.sync(SHARED, 7)
    assert synced(rig) == [(7, 0, Status.OK)]
    with pytest.raises(FileNotFoundError):
        rig.plane.sync(99, 8)


def test_sync_waits_for_all_who_have_the_resource(rig: OrderRig) -> None:
    rig.submit(ONE, 1)
    rig.submit(OTHER, 2)
    rig.submit(THIRD, 3)
    rig.plane.sync(SHARED, 7)
    rig.submit(ONE, 4)
    assert rig.work(ONE) == ["1", "point"] and synced(rig) == []
    assert rig.take(OTHER) == ["2", "point"] and synced(rig) == []
    rig.finish(OTHER)
    assert synced(rig) == [(7, 0, Status.OK)]
    assert rig.take(ONE) == ["4"] and rig.take(THIRD) == ["3"]


def test_sync_of_a_resource_with_one_user(rig: OrderRig) -> None:
    rig.share(SECOND, THIRD)
    rig.submit(THIRD, 3)
    rig.plane.sync(SECOND, 7)
    rig.plane.sync(SECOND, 8)
    assert rig.take(THIRD) == ["3", "point"]
    rig.finish(THIRD)
    assert sorted(synced(rig)) == [(7, 0, Status.OK), (8, 0, Status.OK)]


def test_sync_waits_for_those_who_left(rig: OrderRig) -> None:
    rig.submit(ONE, 1)
    rig.plane.detach_resource(SHARED, ONE)
    rig.plane.sync(SHARED, 7)
    assert synced(rig) == []
    rig.work(ONE)
    assert synced(rig) == [(7, 0, Status.OK)]


def test_sync_waits_for_nothing_that_came_after_they_left(rig: OrderRig) -> None:
    rig.submit(ONE, 1)
    rig.plane.detach_resource(SHARED, ONE)
    rig.submit(ONE, 2)
    assert rig.take(ONE, 2) == ["1", "point"]
    rig.finish(ONE)
    rig.plane.sync(SHARED, 7)
    assert synced(rig) == [(7, 0, Status.OK)]


@pytest.mark.parametrize("free", [False, True])
def test_sync_does_not_wait_for_the_dead(rig: OrderRig, free: bool) -> None:
    rig.submit(ONE, 1)
    rig.plane.sync(SHARED, 7)
    rig.plane.remove_resource(SHARED)
    if free:
        rig.plane.free_lane(rig.contexts[ONE].lane)
    else:
        rig.lose(ONE)
    assert synced(rig) == [(7, 0, Status.OK)]
