"""The plane between queues and lanes: order, flow control, fences, and workers that break the rules of their ring."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from native.dataplane import COMPLETE, Command, LaneBroken, QueueBroken, Status, WorkDone
from native.texture import Rect, Texture
from tests.device_lab import until
from tests.fake_vmm import Box, Resp, commands, misbehaviour
from tests.fake_vmm.command_queue import Pending
from tests.plane_rig import MEBIBYTE, PlaneRig, PlayedWorker, plane_rig
from tests.ring_producer import CMD_TAIL, CPL_HEAD

ONE, OTHER = 1, 2
SUBMIT, FENCE, CONTROL = 1, 4, 16
STREAM = b"\x01\x02\x03\x04" * 4


@pytest.fixture
def rig() -> Iterator[PlaneRig]:
    with plane_rig() as rig:
        yield rig


@pytest.fixture
def one(rig: PlaneRig) -> PlayedWorker:
    return rig.worker(ONE)


@pytest.fixture
def other(rig: PlaneRig) -> PlayedWorker:
    return rig.worker(OTHER)


def submit(rig: PlaneRig, ctx_id: int, stream: bytes = STREAM, *, fenced: bool = True) -> Pending:
    return rig.gpu.submit(commands.submit_3d(ctx_id, stream), fenced=fenced)


def serve(rig: PlaneRig, worker: PlayedWorker, ctx_id: int) -> None:
    """The lane works."""
    pending = submit(rig, ctx_id)
    worker.complete(worker.wait().seq)
    assert rig.gpu.wait(pending).ok


# --- answers --------------------------------------------------------------------------------------------------------


def test_unfenced_is_answered_when_placed(rig: PlaneRig, one: PlayedWorker) -> None:
    assert rig.gpu.wait(submit(rig, ONE, fenced=False)).ok
    record = one.wait()
    assert (record.type, record.flags, record.payload) == (SUBMIT, 0, STREAM)


def test_fenced_is_answered_when_finished(rig: PlaneRig, one: PlayedWorker) -> None:
    pending = submit(rig, ONE)
    record = one.wait()
    assert (record.type, record.flags) == (SUBMIT, 2)
    rig.gpu.reap()
    assert not pending.done
    one.complete(record.seq)
    assert rig.gpu.wait(pending).ok


def test_fence_without_a_stream(rig: PlaneRig, one: PlayedWorker) -> None:
    pending = submit(rig, ONE, b"")
    record = one.wait()
    assert (record.type, record.payload) == (FENCE, b"")
    one.complete(record.seq)
    assert rig.gpu.wait(pending).ok


def test_stream_in_many_pieces_is_one_record(rig: PlaneRig, one: PlayedWorker) -> None:
    stream = bytes(range(256)) * 64
    pages = rig.memory.buffer(len(stream), scattered=True)
    pages.write(stream)
    rig.gpu.wait(rig.gpu.submit(commands.submit_3d(ONE, pages))).check()
    assert one.wait().payload == stream


# --- order ----------------------------------------------------------------------------------------------------------


def test_nothing_overtakes_what_python_has_yet_to_place(rig: PlaneRig, one: PlayedWorker) -> None:
    with rig.gpu.batch():
        first = rig.gpu.submit(commands.ctx_attach_resource(ONE, 5))
        second = submit(rig, ONE, fenced=False)
    rig.wait_for(lambda events: any(isinstance(e, Command) for e in events[:1]), "the first command")
    # pump() took everything, which says that all of it has been placed; so let that be seen in steps.
    rig.plane.complete(next(e.request for e in rig.events if isinstance(e, Command)), Resp.OK_NODATA)
    rig.plane.flush()
    assert rig.gpu.wait(first).ok
    assert rig.gpu.wait(second).ok
    assert one.wait().type == SUBMIT


def test_message_of_python_goes_before_the_submit_behind_it(rig: PlaneRig, one: PlayedWorker) -> None:
    with rig.gpu.batch():
        attach = rig.gpu.submit(commands.ctx_attach_resource(ONE, 5))
        behind = submit(rig, ONE, fenced=False)
    until(lambda: rig.plane.statistics().handed == 1, "a command for Python")
    command = rig.plane.take()
    assert isinstance(command, Command)
    assert one.take() is None
    rig.plane.send(one.lane, 1, b"attach", COMPLETE, 77)
    rig.plane.complete(command.request, Resp.OK_NODATA)
    rig.pump()
    records = [one.wait(), one.wait()]
    assert [record.type for record in records] == [CONTROL, SUBMIT]
    assert records[0].payload == b"attach"
    one.complete(records[0].seq, 2)
    rig.wait_for(lambda events: [e.token for e in events if isinstance(e, WorkDone)] == [77], "its end")
    assert all(response.ok for response in rig.gpu.wait_all([attach, behind]))


def test_fences_of_two_contexts_retire_in_queue_order(rig: PlaneRig, one: PlayedWorker, other: PlayedWorker) -> None:
    first, second = submit(rig, ONE), submit(rig, OTHER)
    late, early = one.wait(), other.wait()
    other.complete(early.seq)
    until(lambda: rig.plane.statistics().responses == 1, "the second's answer")
    rig.gpu.reap()
    assert not second.done
    one.complete(late.seq)
    responses = rig.gpu.wait_all([first, second])
    assert all(response.ok for response in responses)
    assert first.completed_at <= second.completed_at


def test_ring_idx_has_a_timeline_of_its_own_if_negotiated(
    rig: PlaneRig, one: PlayedWorker, other: PlayedWorker
) -> None:
    rig.plane.set_ring_idx(True)
    first = submit(rig, ONE)
    second = rig.gpu.submit(commands.submit_3d(OTHER, STREAM), fenced=True, ring_idx=3)
    late, early = one.wait(), other.wait()
    assert (late.ring_idx, early.ring_idx) == (0, 3)
    other.complete(early.seq)
    assert rig.gpu.wait(second).ok
    assert not first.done
    one.complete(late.seq)
    assert rig.gpu.wait(first).ok
    assert rig.gpu.wait(
        rig.gpu.submit(commands.submit_3d(ONE, STREAM), fenced=True, ring_idx=64)
    ).type == Resp.ERR_INVALID_PARAMETER  # fmt: skip


# --- flow control ---------------------------------------------------------------------------------------------------


def test_full_ring_keeps_order_and_stops_nobody_else(rig: PlaneRig, one: PlayedWorker, other: PlayedWorker) -> None:
    streams = [bytes([number]) * 400_000 for number in range(12)]  # 4.8 MB in a ring of 2
    pending = [submit(rig, ONE, stream, fenced=False) for stream in streams]
    serve(rig, other, OTHER)
    rig.gpu.reap()
    assert not pending[-1].done
    assert rig.plane.progress(one.lane).backlog > 0
    for stream in streams:
        assert one.wait().payload == stream
        one.wake_master()
    assert all(response.ok for response in rig.gpu.wait_all(pending))


def test_larger_than_half_a_ring(rig: PlaneRig, one: PlayedWorker) -> None:
    fits = submit(rig, ONE, bytes(MEBIBYTE - 32), fenced=False)
    assert rig.gpu.wait(fits).ok
    assert len(one.wait().payload) == MEBIBYTE - 32
    assert rig.gpu.wait(submit(rig, ONE, bytes(MEBIBYTE - 28))).type == Resp.ERR_OUT_OF_MEMORY


# --- readbacks ------------------------------------------------------------------------------------------------------

TEXTURE = Texture(2, 1, 2, 256, 256, 1, 1, 0, 0, 0)


def test_readback_keeps_its_staging_memory_until_released(rig: PlaneRig, one: PlayedWorker) -> None:
    whole = Rect(0, 0, 256, 256)  # a quarter of the staging memory
    for token in (1, 2, 3, 4, 5):
        rig.plane.readback(one.lane, 1, token, 9, TEXTURE, whole)
    records = [one.wait() for _ in range(4)]
    assert one.take() is None  # no room for the fifth
    for record, pixel in zip(records, b"abcd", strict=True):
        offset = one.transfer(record).offset
        one.staging[offset : offset + 4] = bytes([pixel]) * 4
        one.complete(record.seq)
    rig.wait_for(lambda events: len(events) == 4, "four readbacks")
    done = [event for event in rig.events if isinstance(event, WorkDone)]
    assert [event.token for event in done] == [1, 2, 3, 4]
    assert [bytes(one.lane.staging(e.staging_offset, 1)) for e in done] == [b"a", b"b", b"c", b"d"]
    assert one.take() is None
    rig.plane.release_readback(one.lane, 1)
    assert one.transfer(one.wait()).offset == one.transfer(records[0]).offset


def test_readbacks_that_cannot_be(rig: PlaneRig, one: PlayedWorker) -> None:
    for rect in (Rect(0, 0, 257, 1), Rect(256, 0, 1, 1), Rect(0, 0, 0, 1)):
        with pytest.raises(OSError, match="Invalid argument"):
            rig.plane.readback(one.lane, 1, 1, 9, TEXTURE, rect)
    with pytest.raises(OSError, match="No space"):
        rig.plane.readback(one.lane, 1, 1, 9, Texture(2, 1, 2, 1024, 1024, 1, 1, 0, 0, 0), Rect(0, 0, 1024, 1024))
    rig.plane.lose_lane(one.lane)
    with pytest.raises(BrokenPipeError):
        rig.plane.readback(one.lane, 1, 1, 9, TEXTURE, Rect(0, 0, 1, 1))


# --- workers that lie -----------------------------------------------------------------------------------------------


def _answer_unknown(worker: PlayedWorker, seq: int) -> None:
    worker.complete(seq + 1000)


def _answer_zero(worker: PlayedWorker, _seq: int) -> None:
    worker.complete(0)


def _answer_twice(worker: PlayedWorker, seq: int) -> None:
    worker.complete(seq)
    worker.complete(seq)


def _completions_ahead(worker: PlayedWorker, _seq: int) -> None:
    worker.word(CPL_HEAD, 5000)
    worker.wake_master()


def _completions_backwards(worker: PlayedWorker, _seq: int) -> None:
    worker.word(CPL_HEAD, (1 << 64) - 1)
    worker.wake_master()


@pytest.mark.parametrize(
    "lie", [_answer_unknown, _answer_zero, _answer_twice, _completions_ahead, _completions_backwards]
)
def test_lie_ends_that_lane(
    rig: PlaneRig, one: PlayedWorker, other: PlayedWorker, lie: Callable[[PlayedWorker, int], None]
) -> None:
    first, second = submit(rig, ONE), submit(rig, ONE)
    record = one.wait()
    one.wait()
    lie(one, record.seq)
    assert rig.gpu.wait(second).type == Resp.ERR_UNSPEC
    assert rig.gpu.wait(first).ok == (lie is _answer_twice)
    rig.wait_for(lambda events: LaneBroken(1) in events, "a broken lane")
    assert rig.gpu.wait(submit(rig, ONE)).type == Resp.ERR_UNSPEC
    with pytest.raises(BrokenPipeError):
        rig.plane.send(one.lane, 1, b"hello")
    serve(rig, other, OTHER)
    assert rig.events.count(LaneBroken(1)) == 1


@pytest.mark.parametrize("tail", [1 << 40, (1 << 64) - 32])
def test_impossible_tail_ends_that_lane(rig: PlaneRig, one: PlayedWorker, other: PlayedWorker, tail: int) -> None:
    """It is looked at when there is no room by the last tail that was known."""
    one.word(CMD_TAIL, tail)
    pending = [submit(rig, ONE, bytes(500_000), fenced=False) for _ in range(6)]
    responses = rig.gpu.wait_all(pending)
    assert responses[-1].type == Resp.ERR_UNSPEC
    rig.wait_for(lambda events: LaneBroken(1) in events, "a broken lane")
    serve(rig, other, OTHER)


def test_completion_without_ringing_is_not_lost(rig: PlaneRig, one: PlayedWorker) -> None:
    """A worker that completes and does not ring hurts its own context only; the next ring brings it to light."""
    first, second = submit(rig, ONE), submit(rig, ONE)
    records = [one.wait(), one.wait()]
    for record in records:
        one.complete(record.seq)
    assert all(response.ok for response in rig.gpu.wait_all([first, second]))


# --- ends -----------------------------------------------------------------------------------------------------------


def test_lost_lane_answers_everything(rig: PlaneRig, one: PlayedWorker, other: PlayedWorker) -> None:
    pending = [submit(rig, ONE) for _ in range(5)]
    one.complete(one.wait().seq)
    assert rig.gpu.wait(pending[0]).ok
    rig.plane.send(one.lane, 1, b"message", COMPLETE, 5)
    rig.plane.lose_lane(one.lane)
    assert [r.type for r in rig.gpu.wait_all(pending[1:])] == [Resp.ERR_UNSPEC] * 4
    rig.pump()
    (done,) = (event for event in rig.events if isinstance(event, WorkDone))
    assert (done.token, done.status) == (5, Status.LOST)
    assert not any(isinstance(event, LaneBroken) for event in rig.events)
    serve(rig, other, OTHER)


def test_what_was_completed_before_the_end_counts(rig: PlaneRig, one: PlayedWorker) -> None:
    """A worker that dies right behind its last answer."""
    pending = submit(rig, ONE)
    record = one.wait()
    one.complete(record.seq)
    rig.plane.lose_lane(one.lane)
    assert rig.gpu.wait(pending).ok


def test_context_ids(rig: PlaneRig) -> None:
    first = PlayedWorker(11)
    rig.plane.add_lane(first.lane)
    rig.plane.bind_lane(first.lane, 7)
    second = PlayedWorker(12)
    rig.plane.add_lane(second.lane)
    with pytest.raises(FileExistsError):
        rig.plane.bind_lane(second.lane, 7)
    rig.plane.free_lane(first.lane)
    assert rig.gpu.wait(submit(rig, 7)).type == Resp.ERR_UNSPEC  # lost, but not destroyed
    with pytest.raises(FileExistsError):
        rig.plane.bind_lane(second.lane, 7)
    rig.plane.forget_context(7)
    assert rig.gpu.wait(submit(rig, 7)).type == Resp.ERR_INVALID_CONTEXT_ID
    rig.plane.bind_lane(second.lane, 7)
    serve(rig, second, 7)
    rig.plane.free_lane(second.lane)
    first.close()
    second.close()


def test_a_lane_of_two_contexts(rig: PlaneRig) -> None:
    shared = PlayedWorker(13)
    rig.plane.add_lane(shared.lane)
    for ctx_id in (7, 8):
        rig.plane.bind_lane(shared.lane, ctx_id)
    for ctx_id in (7, 8, 7):
        pending = submit(rig, ctx_id)
        record = shared.wait()
        assert record.ctx_id == ctx_id
        shared.complete(record.seq)
        assert rig.gpu.wait(pending).ok
    rig.plane.send(shared.lane, 8, b"message")
    assert shared.wait().ctx_id == 8
    rig.plane.forget_context(7)
    assert rig.gpu.wait(submit(rig, 7)).type == Resp.ERR_INVALID_CONTEXT_ID
    serve(rig, shared, 8)
    rig.plane.bind_lane(shared.lane, 7)
    rig.plane.free_lane(shared.lane)
    for ctx_id in (7, 8):
        assert rig.gpu.wait(submit(rig, ctx_id)).type == Resp.ERR_UNSPEC
        rig.plane.forget_context(ctx_id)
    shared.close()


def test_forgotten_context_finishes_its_work(rig: PlaneRig, one: PlayedWorker) -> None:
    pending = submit(rig, ONE)
    record = one.wait()
    rig.plane.forget_context(ONE)
    assert rig.gpu.wait(submit(rig, ONE, fenced=False)).type == Resp.ERR_INVALID_CONTEXT_ID
    one.complete(record.seq)
    assert rig.gpu.wait(pending).ok


def test_transfer_outlives_its_resource(rig: PlaneRig, one: PlayedWorker) -> None:
    page = rig.memory.allocate(4096)
    rig.plane.set_resource(4, Texture(2, 1, 2, 16, 16, 1, 1, 0, 0, 0))
    backing = rig.entries([(page, 1024)])
    rig.plane.set_backing(4, backing)
    rig.plane.attach_resource(4, ONE)
    pending = rig.gpu.submit(commands.transfer_from_host_3d(ONE, 4, Box(16, 16)))
    record = one.wait()
    rig.plane.remove_resource(4)
    backing.close()
    one.staging[:1024] = b"\x42" * 1024
    one.complete(record.seq)
    assert rig.gpu.wait(pending).ok
    assert rig.memory.read(page, 1024) == b"\x42" * 1024


# --- queues ---------------------------------------------------------------------------------------------------------


def test_abandoned_commands_are_answered_and_forgotten(rig: PlaneRig, one: PlayedWorker) -> None:
    """Those that Python never took, too; and what was made of their memory since is not disturbed."""
    with rig.gpu.batch():
        pending = [rig.gpu.submit(commands.get_display_info()) for _ in range(20)]
    until(lambda: rig.plane.statistics().handed == 20, "commands for Python")
    taken = rig.plane.take()
    assert isinstance(taken, Command)
    rig.plane.queue_abandon(0)
    assert {response.type for response in rig.gpu.wait_all(pending)} == {Resp.ERR_UNSPEC}
    assert not rig.plane.complete(taken.request, Resp.OK_NODATA)
    assert rig.pump() == []
    for _ in range(3):
        with rig.gpu.batch():
            again = [rig.gpu.submit(commands.get_edid(0)) for _ in range(30)]
        until(lambda: rig.plane.statistics().handed % 30 == 20, "commands for Python")
        rig.answer_commands()
        assert all(response.ok for response in rig.gpu.wait_all(again))
        assert rig.pump() == []
    serve(rig, one, ONE)


def test_abandoning_one_queue_leaves_the_others_commands(rig: PlaneRig) -> None:
    cursor = rig.gpu.cursor.submit(commands.move_cursor(0, 1, 1))
    control = rig.gpu.submit(commands.get_display_info())
    until(lambda: rig.plane.statistics().handed == 2, "two commands")
    rig.plane.queue_abandon(0)
    assert rig.gpu.wait(control).type == Resp.ERR_UNSPEC
    (event,) = rig.pump()
    assert isinstance(event, Command)
    assert event.queue == 1
    rig.plane.complete(event.request, Resp.OK_NODATA)
    rig.plane.flush()
    rig.gpu.cursor.wait(cursor)


def test_completing_twice(rig: PlaneRig) -> None:
    pending = rig.gpu.submit(commands.get_display_info())
    rig.wait_for(lambda events: events, "the command")
    (event,) = rig.events
    assert isinstance(event, Command)
    assert rig.plane.complete(event.request, Resp.ERR_UNSPEC)
    assert not rig.plane.complete(event.request, Resp.OK_NODATA)
    assert not rig.plane.complete(event.request ^ 1, Resp.OK_NODATA)
    assert not rig.plane.complete(0xFFFF_FFFF_FFFF_FFFF, Resp.OK_NODATA)
    rig.plane.flush()
    assert rig.gpu.wait(pending).type == Resp.ERR_UNSPEC


def test_stopped_queue_says_where_it_stopped(rig: PlaneRig, one: PlayedWorker) -> None:
    queue = rig.gpu.control.queue
    pending = submit(rig, ONE)
    record = one.wait()
    assert rig.plane.queue_stop(0) == 1
    assert rig.plane.queue_open(0) == 1
    late = rig.gpu.submit(commands.submit_3d(ONE, STREAM))
    one.complete(record.seq)
    assert rig.gpu.wait(pending).ok
    assert rig.plane.queue_open(0) == 0
    assert one.take() is None
    rig.set_up(queue, 1)
    assert rig.gpu.wait(late).ok


def test_queues_that_cannot_be(rig: PlaneRig) -> None:
    plane = rig.plane
    with pytest.raises(OSError, match="Invalid"):
        plane.queue_setup(0, 64, 0, 0, 0, 0, True)  # it runs
    plane.queue_stop(0)
    for queue, size in ((2, 64), (0, 0), (0, 3), (0, 2048)):
        with pytest.raises(OSError, match="Invalid"):
            plane.queue_setup(queue, size, 0, 0, 0, 0, True)
    good = rig.gpu.control.queue
    plane.queue_setup(0, 64, 0xDEAD_0000, 0, 0, 0, True)
    with pytest.raises(OSError, match="address"):
        plane.queue_start(0, good.kick_fd)
    misaligned = rig.memory.to_uva(good.desc_gpa) + 1
    plane.queue_setup(0, 64, misaligned, misaligned, misaligned, 0, True)
    with pytest.raises(OSError, match="address"):
        plane.queue_start(0, good.kick_fd)


def test_impossible_index(rig: PlaneRig) -> None:
    misbehaviour.available_index_jump(rig.gpu.cursor.queue)
    rig.gpu.cursor.queue.kick(force=True)
    rig.wait_for(lambda events: QueueBroken(1) in events, "a broken queue")
    assert rig.gpu.cursor.queue.broken
    pending = rig.gpu.submit(commands.get_display_info())
    rig.wait_for(lambda events: any(isinstance(e, Command) for e in events), "the other queue's command")
    rig.plane.complete(next(e.request for e in rig.events if isinstance(e, Command)), Resp.OK_NODATA)
    rig.plane.flush()
    assert rig.gpu.wait(pending).ok


def test_memory_that_goes_away(rig: PlaneRig, one: PlayedWorker) -> None:
    """Queues stand still without their rings and go on when they are back."""
    assert rig.plane.set_memory(None) == 2
    pending = submit(rig, ONE, struct.pack("<I", 1), fenced=False)
    rig.pump()
    assert one.take() is None
    assert rig.plane.set_memory(rig.native_memory) == 0
    assert rig.gpu.wait(pending).ok
