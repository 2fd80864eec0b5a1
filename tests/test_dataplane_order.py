"""The plane between contexts that share resources: who waits for whom, and what becomes of it when one of them ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from native.dataplane import COMPLETE, WorkDone
from native.lane_history import WorkKind
from tests.fake_vmm import Resp, commands
from tests.order_rig import TEXTURE, OrderRig, order_rig
from tests.plane_rig import PlayedWorker
from tests.ring_producer import CPL_HEAD

ONE, OTHER, THIRD = 1, 2, 3
SHARED, SECOND = 5, 6
MAX_BACKLOG = 16384


@pytest.fixture
def rig() -> Iterator[OrderRig]:
    """Three contexts, each with a worker; the first two have a resource in common."""
    with order_rig() as rig:
        for ctx_id in (ONE, OTHER, THIRD):
            rig.open_context(ctx_id)
        rig.share(SHARED, ONE, OTHER)
        yield rig


# --- who waits ------------------------------------------------------------------------------------------------------


def test_work_waits_for_what_a_peer_was_sent_before(rig: OrderRig) -> None:
    rig.submit(ONE, 1)
    pending = rig.submit(OTHER, 2)
    assert rig.take(ONE) == ["1", "point"]
    assert rig.take(OTHER) == [] and rig.blocked(OTHER)
    rig.gpu.reap()
    assert not pending.done
    rig.finish(ONE)
    assert rig.take(OTHER) == ["2"] and not rig.blocked(OTHER)
    assert rig.gpu.wait(pending).ok


def test_nobody_else_waits(rig: OrderRig) -> None:
    rig.share(SECOND, THIRD)
    for ctx_id in (ONE, THIRD, OTHER, THIRD):
        rig.submit(ctx_id, ctx_id)
    assert rig.take(ONE) == ["1", "point"]
    assert rig.take(THIRD) == ["3", "3"]
    assert rig.take(OTHER) == []


def test_contexts_that_share_nothing_get_no_points(rig: OrderRig) -> None:
    rig.plane.detach_resource(SHARED, OTHER)
    for _ in range(3):
        rig.submit(ONE, 1)
        rig.submit(OTHER, 2)
    assert rig.take(ONE) == ["1"] * 3 and rig.take(OTHER) == ["2"] * 3


def test_messages_and_later_work_stay_behind_what_waits(rig: OrderRig) -> None:
    rig.submit(ONE, 1)
    rig.submit(OTHER, 2)
    assert not rig.plane.send(rig.contexts[OTHER].lane, OTHER, b"hello", COMPLETE, 9)
    rig.submit(OTHER, 3)
    assert rig.take(OTHER) == []
    assert rig.work(ONE) == ["1", "point"]
    assert rig.take(OTHER) == ["2", "hello", "3"]


def test_a_message_waits_for_nobody(rig: OrderRig) -> None:
    rig.submit(ONE, 1)
    assert rig.plane.send(rig.contexts[OTHER].lane, OTHER, b"hello")
    assert rig.take(OTHER) == ["hello"]


@pytest.mark.parametrize("to_host", [True, False])
def test_transfers_wait_and_are_waited_for(rig: OrderRig, to_host: bool) -> None:
    word = "write 5" if to_host else "read 5"
    rig.submit(ONE, 1)
    pending = rig.transfer(OTHER, SHARED, to_host=to_host)
    assert rig.take(OTHER) == []
    rig.work(ONE)
    rig.submit(ONE, 2)
    assert rig.take(OTHER) == [word, "point"] and rig.take(ONE) == []
    rig.finish(OTHER, 1)
    assert rig.gpu.wait(pending).ok
    assert rig.take(ONE) == []  # executed is not finished by the driver
    rig.finish(OTHER)
    assert rig.take(ONE) == ["2"]


def test_readbacks_wait_and_are_waited_for(rig: OrderRig) -> None:
    rig.submit(ONE, 1)
    rig.readback(OTHER, SHARED, 77)
    assert rig.take(OTHER) == []
    rig.work(ONE)
    assert rig.take(OTHER) == ["read 5"]
    rig.submit(ONE, 2)
    assert rig.take(OTHER) == ["point"]
    assert rig.take(ONE) == []
    rig.finish(OTHER)
    assert rig.take(ONE) == ["2"]
    rig.pump()
    assert [event.token for event in rig.events if isinstance(event, WorkDone)] == [77]


def test_two_take_turns(rig: OrderRig) -> None:
    for turn in range(4):
        rig.submit(ONE, 10 + turn)
        rig.submit(OTHER, 20 + turn)
    order = list[str]()
    for _ in range(4):
        order += rig.work(ONE) + rig.work(OTHER)
    assert [word for word in order if word != "point"] == ["10", "20", "11", "21", "12", "22", "13", "23"]


def test_a_chain_of_three(rig: OrderRig) -> None:
    rig.share(SECOND, OTHER, THIRD)
    rig.submit(ONE, 1)
    rig.submit(OTHER, 2)
    rig.submit(THIRD, 3)
    assert rig.take(ONE) == ["1", "point"] and rig.take(OTHER) == rig.take(THIRD) == []
    rig.finish(ONE)
    assert rig.take(OTHER) == ["2", "point"] and rig.take(THIRD) == []
    rig.finish(OTHER)
    assert rig.take(THIRD) == ["3"]


def test_contexts_of_one_worker_are_in_order_as_they_are(rig: OrderRig) -> None:
    rig.open_context(4, rig.contexts[ONE])
    rig.plane.attach_resource(SHARED, 4)
    rig.submit(ONE, 1)
    rig.submit(4, 4)
    rig.submit(ONE, 2)
    assert rig.take(ONE) == ["1", "4", "2"]
    rig.submit(OTHER, 5)
    assert rig.take(ONE) == ["point", "point"] and rig.take(OTHER) == []
    rig.finish(ONE)
    assert rig.take(OTHER) == ["5"]


# --- points ---------------------------------------------------------------------------------------------------------


def test_all_who_wait_for_the_same_work_wait_for_one_point(rig: OrderRig) -> None:
    rig.plane.attach_resource(SHARED, THIRD)
    rig.submit(ONE, 1)
    rig.submit(OTHER, 2)
    rig.submit(THIRD, 3)
    assert rig.take(ONE) == ["1", "point"]
    rig.finish(ONE)
    assert rig.take(OTHER) == ["2", "point"]
    rig.finish(OTHER)
    assert rig.take(THIRD) == ["3"]
    rig.submit(OTHER, 4)
    assert rig.take(ONE) == []  # all of its work is known to be finished


def test_what_was_waited_for_once_is_not_waited_for_again(rig: OrderRig) -> None:
    rig.submit(ONE, 1)
    for number in (2, 3, 4):
        rig.submit(OTHER, number)
    assert rig.work(ONE) == ["1", "point"]
    assert rig.take(OTHER) == ["2", "3", "4"]


def test_a_fenced_submit_is_a_point_itself(rig: OrderRig) -> None:
    rig.submit(ONE, 1, fenced=True)
    rig.submit(OTHER, 2)
    assert rig.take(ONE) == ["1!"] and rig.take(OTHER) == []
    rig.finish(ONE)
    assert rig.take(OTHER) == ["2"]


def test_a_fenced_submit_that_has_finished_takes_no_point(rig: OrderRig) -> None:
    pending = rig.submit(ONE, 1, fenced=True)
    assert rig.work(ONE) == ["1!"]
    assert rig.gpu.wait(pending).ok
    rig.submit(OTHER, 2)
    assert rig.take(ONE) == [] and rig.take(OTHER) == ["2"]


def test_work_behind_a_fenced_submit_takes_one(rig: OrderRig) -> None:
    rig.submit(ONE, 1, fenced=True)
    rig.submit(ONE, 2)
    rig.submit(OTHER, 3)
    assert rig.take(ONE) == ["1!", "2", "point"]
    rig.finish(ONE, 1)
    assert rig.take(OTHER) == []
    rig.finish(ONE)
    assert rig.take(OTHER) == ["3"]


def test_each_ring_idx_gets_a_fence(rig: OrderRig) -> None:
    """The fences of one ring_idx say nothing about the work of another."""
    rig.plane.set_ring_idx(True)
    rig.submit(ONE, 1, fenced=True, ring_idx=63)
    rig.submit(OTHER, 2)
    assert rig.take(ONE) == ["1!", "point", "point"]
    rig.finish(ONE, 2)
    assert rig.take(OTHER) == []
    rig.finish(ONE)
    assert rig.take(OTHER) == ["2"]


def test_a_fenced_submit_that_cannot_be_placed_lets_nobody_past(rig: OrderRig) -> None:
    """Guest memory went away while it waited; what stands before it is still to be waited for."""
    rig.submit(ONE, 1)
    rig.submit(OTHER, 2)
    refused = rig.submit(OTHER, 3, fenced=True)
    rig.submit(ONE, 4)
    until_here = rig.take(ONE)
    rig.plane.set_memory(None)
    rig.finish(ONE)
    assert until_here == ["1", "point"] and rig.take(OTHER) == ["point"]  # nor can 2 be read any more
    assert rig.take(ONE) == []
    rig.plane.set_memory(rig.native_memory)
    rig.finish(OTHER)
    assert rig.take(ONE) == ["4"]
    rig.gpu.reap()
    assert not refused.done or not rig.gpu.wait(refused).ok


def test_points_are_no_work_of_the_guest(rig: OrderRig) -> None:
    rig.submit(ONE, 1)
    rig.submit(OTHER, 2)
    assert rig.plane.history(rig.contexts[ONE].lane).latest[-1].kind is WorkKind.POINT
    rig.lose(ONE)
    assert rig.plane.history(rig.contexts[ONE].lane).retired == 0
    rig.pump()
    assert rig.events == []


def test_points_that_were_never_placed_are_none_either(rig: OrderRig) -> None:
    lane = rig.contexts[ONE].lane
    rig.plane.reserve(lane, ONE, 100)
    rig.submit(ONE, 1)
    rig.submit(OTHER, 2)
    rig.lose(ONE)
    assert rig.plane.history(lane).retired == 1  # the submit that the guest waits for
    assert rig.take(OTHER) == ["2"]


# --- attaching and detaching ----------------------------------------------------------------------------------------


def test_who_gets_a_resource_waits_for_what_was_drawn_before(rig: OrderRig) -> None:
    rig.submit(ONE, 1)
    rig.plane.attach_resource(SHARED, THIRD)
    rig.submit(THIRD, 3)
    assert rig.take(ONE) == ["1", "point"] and rig.take(THIRD) == []


def test_work_from_before_it_had_the_resource_is_waited_for_by_nobody(rig: OrderRig) -> None:
    rig.submit(THIRD, 3)
    rig.plane.attach_resource(SHARED, THIRD)
    rig.submit(ONE, 1)
    assert rig.take(THIRD) == ["3"] and rig.take(ONE) == ["1"]


def test_a_peer_that_detaches_is_waited_for(rig: OrderRig) -> None:
    rig.submit(ONE, 1)
    rig.plane.detach_resource(SHARED, ONE)
    rig.submit(OTHER, 2)
    rig.submit(ONE, 3)
    assert rig.take(ONE) == ["1", "point", "3"] and rig.take(OTHER) == []
    rig.finish(ONE)
    assert rig.take(OTHER) == ["2"]
    rig.submit(ONE, 4)
    assert rig.take(ONE) == ["4"]  # it has nothing to do with the other one's work


def test_one_resource_less_of_two_changes_nothing(rig: OrderRig) -> None:
    rig.share(SECOND, ONE, OTHER)
    rig.plane.detach_resource(SHARED, ONE)
    rig.submit(ONE, 1)
    rig.submit(OTHER, 2)
    assert rig.take(ONE) == ["1", "point"] and rig.take(OTHER) == []


def test_who_comes_when_the_other_has_left_already(rig: OrderRig) -> None:
    """A program draws, gives the buffer up, and only then somebody else gets it."""
    rig.plane.detach_resource(SHARED, OTHER)
    rig.submit(ONE, 1)
    rig.plane.detach_resource(SHARED, ONE)
    rig.plane.attach_resource(SHARED, OTHER)
    rig.submit(OTHER, 2)
    assert rig.take(ONE) == ["1", "point"] and rig.take(OTHER) == []
    rig.finish(ONE)
    assert rig.take(OTHER) == ["2"]


def test_who_comes_when_the_other_was_destroyed(rig: OrderRig) -> None:
    """The point goes before whatever ends the context; its id may be another's by then."""
    rig.plane.detach_resource(SHARED, OTHER)
    gone = rig.contexts[ONE]
    rig.submit(ONE, 1)
    rig.plane.detach_resource(SHARED, ONE)
    rig.plane.forget_context(ONE)
    rig.plane.send(gone.lane, ONE, b"destroy")
    new = rig.open_context(ONE)
    rig.plane.attach_resource(SHARED, OTHER)
    rig.submit(OTHER, 2)
    rig.submit(ONE, 3)
    assert rig.take(ONE) == ["3"] and new is not gone
    rig.contexts[ONE] = gone
    assert rig.take(ONE) == ["1", "point", "destroy"] and rig.take(OTHER) == []
    rig.finish(ONE)
    assert rig.take(OTHER) == ["2"]


def test_who_comes_when_the_other_is_long_gone(rig: OrderRig) -> None:
    rig.plane.detach_resource(SHARED, OTHER)
    rig.submit(ONE, 1)
    rig.plane.forget_context(ONE)
    rig.plane.free_lane(rig.contexts[ONE].lane)
    rig.plane.attach_resource(SHARED, OTHER)
    rig.submit(OTHER, 2)
    assert rig.take(OTHER) == ["2"]


def test_a_context_that_is_forgotten_gives_up_what_it_had(rig: OrderRig) -> None:
    gone = rig.contexts[ONE]
    rig.submit(ONE, 1)
    rig.plane.forget_context(ONE)
    assert rig.plane.progress(gone.lane).waiting  # a point
    rig.submit(OTHER, 2)
    assert rig.take(OTHER) == []
    rig.open_context(ONE)  # which is not attached to anything
    response = rig.gpu.wait(rig.transfer(ONE, SHARED))
    assert response.type == Resp.ERR_INVALID_RESOURCE_ID
    rig.contexts[ONE] = gone
    rig.work(ONE)
    assert rig.take(OTHER) == ["2"]


def test_who_left_and_comes_back(rig: OrderRig) -> None:
    rig.submit(ONE, 1)
    rig.plane.detach_resource(SHARED, ONE)
    rig.plane.attach_resource(SHARED, ONE)
    rig.submit(OTHER, 2)
    assert rig.take(ONE) == ["1", "point"] and rig.take(OTHER) == []
    rig.finish(ONE)
    rig.submit(ONE, 3)
    assert rig.take(OTHER) == ["2", "point"] and rig.take(ONE) == []


def test_a_resource_that_is_removed_connects_nobody(rig: OrderRig) -> None:
    rig.plane.remove_resource(SHARED)
    rig.submit(ONE, 1)
    rig.submit(OTHER, 2)
    assert rig.take(ONE) == ["1"] and rig.take(OTHER) == ["2"]


def test_attaching_twice_or_nothing(rig: OrderRig) -> None:
    rig.plane.attach_resource(SHARED, ONE)
    rig.plane.detach_resource(SHARED, ONE)
    rig.plane.detach_resource(SHARED, ONE)
    rig.plane.detach_resource(99, ONE)
    rig.plane.detach_resource(SHARED, 99)
    for resource_id, ctx_id in ((99, ONE), (SHARED, 99)):
        with pytest.raises(FileNotFoundError):
            rig.plane.attach_resource(resource_id, ctx_id)
    rig.submit(ONE, 1)
    rig.submit(OTHER, 2)
    assert rig.take(ONE) == ["1"] and rig.take(OTHER) == ["2"]


# --- ends -----------------------------------------------------------------------------------------------------------


def test_the_one_waited_for_dies(rig: OrderRig) -> None:
    rig.submit(ONE, 1, fenced=True)
    rig.submit(ONE, 2)
    pending = rig.submit(OTHER, 3)
    assert rig.take(OTHER) == []
    rig.lose(ONE)
    assert rig.take(OTHER) == ["3"]
    assert rig.gpu.wait(pending).ok
    rig.submit(OTHER, 4)
    assert rig.take(OTHER) == ["4"]


def test_the_one_waited_for_is_freed(rig: OrderRig) -> None:
    rig.submit(ONE, 1)
    rig.submit(OTHER, 2)
    rig.plane.free_lane(rig.contexts[ONE].lane)
    assert rig.take(OTHER) == ["2"]
    rig.plane.detach_resource(SHARED, ONE)
    rig.plane.forget_context(ONE)
    rig.submit(OTHER, 3)
    assert rig.take(OTHER) == ["3"]


def test_the_one_waited_for_breaks_the_rules(rig: OrderRig) -> None:
    rig.submit(ONE, 1)
    rig.submit(OTHER, 2)
    rig.contexts[ONE].word(CPL_HEAD, 5000)
    rig.contexts[ONE].wake_master()
    assert rig.contexts[OTHER].wait().payload == b"\2\0\0\0"


def test_the_one_who_waits_dies(rig: OrderRig) -> None:
    rig.submit(ONE, 1)
    waiting = [rig.submit(OTHER, 2), rig.submit(OTHER, 3, fenced=True)]
    rig.lose(OTHER)
    assert {response.type for response in rig.gpu.wait_all(waiting)} == {Resp.ERR_UNSPEC}
    assert rig.work(ONE) == ["1", "point"]
    rig.submit(ONE, 4)
    assert rig.take(ONE) == ["4"]


def test_the_one_who_waits_dies_and_is_waited_for(rig: OrderRig) -> None:
    rig.share(SECOND, OTHER, THIRD)
    rig.submit(ONE, 1)
    rig.submit(OTHER, 2)
    rig.submit(THIRD, 3)
    rig.lose(OTHER)
    assert rig.take(THIRD) == ["3"]
    rig.plane.free_lane(rig.contexts[OTHER].lane)
    assert rig.work(ONE) == ["1", "point"]


def test_all_die_while_they_wait(rig: OrderRig) -> None:
    """A device reset: contexts are forgotten, then their lanes go, in an order other than that of the waiting."""
    rig.plane.attach_resource(SHARED, THIRD)
    waiting = [rig.submit(ctx_id, 1, fenced=True) for ctx_id in (ONE, OTHER, THIRD, ONE, OTHER, THIRD)]
    for ctx_id in (ONE, OTHER, THIRD):
        rig.plane.forget_context(ctx_id)
    for ctx_id in (OTHER, ONE, THIRD):
        rig.lose(ctx_id)
    rig.plane.queue_abandon(0)
    assert {response.type for response in rig.gpu.wait_all(waiting)} == {Resp.ERR_UNSPEC}
    assert rig.plane.queue_open(0) == 0
    assert rig.gpu.wait(rig.submit(ONE, 2)).type == Resp.ERR_INVALID_CONTEXT_ID


def test_a_queue_that_is_abandoned_leaves_what_waits(rig: OrderRig) -> None:
    rig.submit(ONE, 1)
    pending = rig.submit(OTHER, 2)
    rig.plane.queue_abandon(0)
    assert rig.work(ONE) == ["1", "point"]
    assert rig.take(OTHER) == ["2"] and rig.gpu.wait(pending).ok


# --- who is to blame ------------------------------------------------------------------------------------------------


def test_the_one_waited_for_is_at_work_and_the_one_who_waits_is_not(rig: OrderRig) -> None:
    rig.submit(ONE, 1)
    rig.submit(OTHER, 2)
    busy, waits = (rig.plane.progress(rig.contexts[ctx_id].lane) for ctx_id in (ONE, OTHER))
    assert (busy.at_work, busy.blocked, busy.waiting, busy.backlog) == (True, False, 1, 0)
    assert (waits.at_work, waits.blocked, waits.waiting) == (False, True, 0) and waits.backlog
    rig.work(ONE)
    assert rig.work(OTHER) == ["2"]
    assert not any(rig.plane.progress(worker.lane).at_work for worker in rig.contexts.values())


def test_a_full_ring_is_the_workers_own(rig: OrderRig) -> None:
    for _ in range(6):
        rig.command(commands.submit_3d(ONE, bytes(500_000)))
    progress = rig.plane.progress(rig.contexts[ONE].lane)
    assert progress.backlog and progress.at_work and not progress.blocked


def test_points_wait_for_room_like_everything(rig: OrderRig) -> None:
    pending = [rig.command(commands.submit_3d(ONE, bytes(500_000))) for _ in range(6)]
    rig.submit(OTHER, 2)
    worker = rig.contexts[ONE]
    for _ in range(6):
        assert rig.take(OTHER) == []
        assert len(worker.wait().payload) == 500_000
        worker.wake_master()
    record = worker.wait()
    assert rig.take(OTHER) == []
    worker.complete(record.seq)
    assert rig.contexts[OTHER].wait().payload == b"\2\0\0\0"
    assert all(response.ok for response in rig.gpu.wait_all(pending))


# --- limits ---------------------------------------------------------------------------------------------------------


def test_who_waits_for_the_hung_takes_bounded_memory(rig: OrderRig) -> None:
    """Attaching and detaching as such brings no more than one barrier and one point."""
    rig.submit(ONE, 1)
    for _ in range(50):
        rig.plane.detach_resource(SHARED, ONE)
        rig.plane.attach_resource(SHARED, ONE)
        rig.plane.detach_resource(SHARED, OTHER)
        rig.plane.attach_resource(SHARED, OTHER)
    assert rig.plane.progress(rig.contexts[OTHER].lane).backlog == 1
    assert rig.take(ONE) == ["1", "point"]
    rig.finish(ONE)
    assert rig.plane.progress(rig.contexts[OTHER].lane).backlog == 0


def test_a_backlog_has_an_end(rig: OrderRig) -> None:
    lane = rig.contexts[ONE].lane
    rig.plane.reserve(lane, ONE, 100)
    while rig.plane.progress(lane).backlog < MAX_BACKLOG:
        rig.plane.send(lane, ONE, b"")
    assert rig.gpu.wait(rig.submit(ONE, 1)).type == Resp.ERR_OUT_OF_MEMORY
    rig.plane.fill(lane, 100)
    pending = rig.submit(ONE, 2)
    assert rig.take(ONE)[-1] == "2" and rig.gpu.wait(pending).ok


def test_peers_and_resources_are_many(rig: OrderRig) -> None:
    with order_rig() as large:
        shared: PlayedWorker = large.open_context(1)
        for ctx_id in range(2, 40):
            large.open_context(ctx_id, shared if ctx_id % 8 else None)
        for resource_id in range(1, 20):
            large.plane.set_resource(resource_id, TEXTURE)
            for ctx_id in large.contexts:
                large.plane.attach_resource(resource_id, ctx_id)
        for ctx_id in large.contexts:
            large.submit(ctx_id, ctx_id)
        for ctx_id in list(large.contexts)[::2]:
            large.plane.forget_context(ctx_id)
        order = list[str]()
        while (before := len(order)) or True:
            for ctx_id in (1, 8, 16, 24, 32):
                order += [word for word in large.work(ctx_id) if word != "point"]
            if len(order) == before:
                break
        assert [int(word) for word in order] == list(range(1, 40))
