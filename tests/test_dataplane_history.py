"""What lanes remember for blame, tell of limits, and give back."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator

import pytest

from ipc.messages import AttachResource, DestroyContext
from master.history import History, describe
from native.dataplane import COMPLETE, CommandLimit, TooLarge
from native.lane_history import Placed, WorkKind
from native.texture import Rect, Texture
from tests.fake_vmm import Box, Resp, commands
from tests.fake_vmm.command_queue import Pending
from tests.plane_rig import MEBIBYTE, PlaneRig, PlayedWorker, plane_rig
from tests.ring_producer import BEGUN, CMD_TAIL

ONE = 1
KEPT, LATEST = 64, 8
ATTACH = AttachResource(7, 2, 1, 2, 64, 32, 1, 1, 0, 0, 1).encode()
BUFFER = Texture(0, 64, 1 << 4, 64 * MEBIBYTE, 1, 1, 1, 0, 0, 0)


@pytest.fixture
def rig() -> Iterator[PlaneRig]:
    with plane_rig() as rig:
        yield rig


@pytest.fixture
def one(rig: PlaneRig) -> PlayedWorker:
    return rig.worker(ONE, 64 * MEBIBYTE)


def submit(rig: PlaneRig, words: int, *, fenced: bool = False) -> Pending:
    return rig.gpu.submit(commands.submit_3d(ONE, bytes(4 * words)), fenced=fenced)


def transfer(rig: PlaneRig, nbytes: int) -> Pending:
    return rig.gpu.submit(commands.transfer_to_host_3d(ONE, 7, Box(nbytes)))


def give_buffer(rig: PlaneRig, nbytes: int) -> None:
    """Resource 7, a buffer with a backing; the same page again and again."""
    rig.plane.set_resource(7, BUFFER)
    page = rig.memory.allocate(MEBIBYTE)
    backing = rig.entries([(page, MEBIBYTE)] * (nbytes // MEBIBYTE))
    rig.plane.set_backing(7, backing)
    rig.plane.attach_resource(7, ONE)


# --- what it was at -------------------------------------------------------------------------------------------------


def test_nothing_was_sent(rig: PlaneRig, one: PlayedWorker) -> None:
    assert History.of(rig.plane.history(one.lane)) == History()


def test_each_kind_in_words(rig: PlaneRig, one: PlayedWorker) -> None:
    give_buffer(rig, MEBIBYTE)
    rig.plane.send(one.lane, ONE, ATTACH)
    rig.gpu.wait(submit(rig, 3))
    submit(rig, 0, fenced=True)
    transfer(rig, 4096)
    rig.wait_until(lambda: len(rig.plane.history(one.lane).latest) == 4, "all records")
    rig.plane.readback(one.lane, ONE, 5, 7, Texture(2, 1, 2, 64, 32, 1, 1, 0, 0, 1), Rect(0, 0, 32, 16))
    rig.plane.send(one.lane, ONE, DestroyContext().encode())
    rig.plane.send(one.lane, ONE, b"\xff\xff\xff\xff")
    rig.plane.send(one.lane, ONE, b"")
    history = rig.plane.history(one.lane)
    assert [placed.seq for placed in history.latest] == list(range(1, 9)) and history.under_way is None
    assert History.of(history).last_commands == (
        "AttachResource 7 (record 1)",
        "SUBMIT_3D of 12 bytes (record 2)",
        "a fence (record 3)",
        "TRANSFER_TO_HOST_3D of resource 7, 4096 bytes (record 4)",
        "readback for the display of resource 7, 2048 bytes (record 5)",
        "DestroyContext (record 6)",
        "message 4294967295 (record 7)",
        "message 0 (record 8)",
    )


def test_only_the_latest_are_told(rig: PlaneRig, one: PlayedWorker) -> None:
    for words in range(1, 21):
        rig.gpu.wait(submit(rig, words))
    latest = rig.plane.history(one.lane).latest
    assert [(placed.seq, placed.nbytes) for placed in latest] == [(words, 4 * words) for words in range(13, 21)]
    assert {(placed.kind, placed.ctx_id) for placed in latest} == {(WorkKind.SUBMIT, ONE)}


def test_what_was_begun_and_not_consumed(rig: PlaneRig, one: PlayedWorker) -> None:
    for words in range(1, 4):
        rig.gpu.wait(submit(rig, words))
    tails = []
    for _ in range(3):
        assert one.take(free=False) is not None
        tails.append(one.tail)
    one.word(BEGUN, 2)
    one.word(CMD_TAIL, tails[0])
    under_way = rig.plane.history(one.lane).under_way
    assert under_way is not None and (under_way.seq, under_way.nbytes) == (2, 8)
    one.word(CMD_TAIL, tails[1])
    assert rig.plane.history(one.lane).under_way is None  # it is done with it, and at nothing


@pytest.mark.parametrize("begun", [0, 1 << 63, 4711])
def test_lies_about_it_are_nothing(rig: PlaneRig, one: PlayedWorker, begun: int) -> None:
    rig.gpu.wait(submit(rig, 1))
    one.word(BEGUN, begun)
    assert rig.plane.history(one.lane).under_way is None


def test_a_worker_far_behind(rig: PlaneRig, one: PlayedWorker) -> None:
    for _ in range(KEPT + 10):
        rig.gpu.wait(submit(rig, 1))
    for begun, kind in ((10, WorkKind.UNKNOWN), (11, WorkKind.SUBMIT)):
        one.word(BEGUN, begun)
        under_way = rig.plane.history(one.lane).under_way
        assert under_way is not None and (under_way.seq, under_way.kind) == (begun, kind)
    assert describe(Placed(10, WorkKind.UNKNOWN, 0, 0, 0, 0)) == "record 10, sent long before the latest"


def test_fences_that_retire_with_it(rig: PlaneRig, one: PlayedWorker) -> None:
    finished, *awaited = [submit(rig, 1, fenced=True) for _ in range(4)]
    submit(rig, 1)
    one.complete(one.wait().seq)
    assert rig.gpu.wait(finished).ok
    rig.plane.send(one.lane, ONE, ATTACH, COMPLETE, 5)
    rig.wait_until(lambda: rig.plane.history(one.lane).latest[-1].kind is WorkKind.CONTROL, "the message")
    rig.plane.lose_lane(one.lane)
    assert not any(rig.gpu.wait(pending).ok for pending in awaited)
    rig.plane.lose_lane(one.lane)
    history = rig.plane.history(one.lane)
    assert history.retired == 4 and len(history.latest) == 6


# --- commands that are too large ------------------------------------------------------------------------------------


def too_large(rig: PlaneRig) -> list[tuple[int, int, CommandLimit]]:
    rig.pump()
    return [(event.lane, event.ctx_id, event.limit) for event in rig.events if isinstance(event, TooLarge)]


def test_streams_larger_than_any_record_are_told_of_once(rig: PlaneRig, one: PlayedWorker) -> None:
    pages = rig.memory.buffer(2 * MEBIBYTE)
    for _ in range(3):
        response = rig.gpu.wait(rig.gpu.submit(commands.submit_3d(ONE, pages), fenced=True))
        assert response.type == Resp.ERR_OUT_OF_MEMORY
    assert too_large(rig) == [(1, ONE, CommandLimit.SUBMIT)]


def test_transfers_larger_than_staging_memory_too(rig: PlaneRig) -> None:
    rig.worker(ONE, MEBIBYTE)
    give_buffer(rig, 2 * MEBIBYTE)
    for _ in range(3):
        assert rig.gpu.wait(transfer(rig, 2 * MEBIBYTE)).type == Resp.ERR_OUT_OF_MEMORY
    assert too_large(rig) == [(1, ONE, CommandLimit.TRANSFER)]


# --- staging memory -------------------------------------------------------------------------------------------------


def pages_of(worker: PlayedWorker) -> int:
    """Bytes of staging memory that exist."""
    return os.fstat(worker.memory.staging.fd).st_blocks * 512


def trim_all(rig: PlaneRig, worker: PlayedWorker) -> int:
    """How many calls it took."""
    calls = 1
    while rig.plane.trim(worker.lane):
        calls += 1
        assert calls < 100
    return calls


def test_an_idle_lane_gives_its_staging_memory_back_in_pieces(rig: PlaneRig, one: PlayedWorker) -> None:
    give_buffer(rig, 40 * MEBIBYTE)
    pending = transfer(rig, 40 * MEBIBYTE)
    record = one.wait()
    assert pages_of(one) >= 40 * MEBIBYTE
    assert not rig.plane.trim(one.lane) and pages_of(one) >= 40 * MEBIBYTE  # it is under way
    one.complete(record.seq)
    assert rig.gpu.wait(pending).ok
    assert rig.plane.trim(one.lane) and pages_of(one) >= 31 * MEBIBYTE
    assert trim_all(rig, one) < 10 and pages_of(one) <= MEBIBYTE
    assert not rig.plane.trim(one.lane)


def test_transfers_are_whole_after_that(rig: PlaneRig, one: PlayedWorker) -> None:
    give_buffer(rig, 16 * MEBIBYTE)
    page = rig.memory.allocate(MEBIBYTE)
    rig.plane.set_backing(7, rig.entries([(page, MEBIBYTE)] * 16))
    rig.memory.write(page, b"\x5a" * MEBIBYTE)
    for _ in range(2):
        pending = transfer(rig, 16 * MEBIBYTE)
        record = one.wait()
        what = one.transfer(record)
        assert bytes(one.staging[what.offset : what.offset + what.length]) == b"\x5a" * (16 * MEBIBYTE)
        one.complete(record.seq)
        assert rig.gpu.wait(pending).ok
        trim_all(rig, one)
        assert one.staging[8 * MEBIBYTE] == 0


def test_a_lane_that_is_lost_is_left_alone(rig: PlaneRig, one: PlayedWorker) -> None:
    give_buffer(rig, 16 * MEBIBYTE)
    transfer(rig, 16 * MEBIBYTE)
    one.wait()
    rig.plane.lose_lane(one.lane)
    assert not rig.plane.trim(one.lane)
    assert one.staging[0] == 0 and pages_of(one) >= mmap.PAGESIZE
    with pytest.raises(BrokenPipeError) as error:
        rig.plane.send(one.lane, ONE, ATTACH)
    assert error.value.errno == errno.EPIPE


# --- sizes of textures ----------------------------------------------------------------------------------------------

DXT1 = 105


@pytest.mark.parametrize(
    ("texture", "nbytes"),
    [
        (Texture(2, 1, 2, 64, 32, 1, 1, 0, 0, 1), 64 * 32 * 4),
        (Texture(2, 1, 2, 64, 32, 1, 1, 0, 4, 1), 64 * 32 * 4 * 4),
        (Texture(2, 1, 2, 4, 4, 1, 1, 2, 0, 1), (16 + 4 + 1) * 4),
        (Texture(2, 1, 2, 4, 1, 1, 1, 2, 0, 1), (4 + 2 + 1) * 4),
        (Texture(4, 1, 2, 4, 4, 1, 6, 0, 0, 1), 6 * 16 * 4),
        (Texture(3, 1, 2, 4, 4, 4, 1, 1, 0, 1), (64 + 8) * 4),
        (Texture(0, 64, 2, 1000, 1, 1, 1, 0, 0, 0), 1000),
        (Texture(0, 64, 2, 2**32 - 1, 1, 1, 1, 0, 0, 0), 2**32 - 1),
        (Texture(2, DXT1, 8, 5, 5, 1, 1, 0, 0, 0), 2 * 2 * 8),
        (Texture(2, 100000, 2, 64, 32, 1, 1, 0, 0, 1), 0),
        (Texture(9, 1, 2, 64, 32, 1, 1, 0, 0, 1), 0),
    ],
    ids=str,
)
def test_bytes_of_a_texture(texture: Texture, nbytes: int) -> None:
    assert texture.nbytes == nbytes


def test_the_largest_that_is_valid_does_not_overflow() -> None:
    largest = Texture(3, 27, 2, 16384, 16384, 2048, 2048, 14, 32, 1)  # R64G64B64A64: 32 bytes a pixel
    assert largest.is_valid()
    assert 16384**2 * 2048 * 2048 * 32 * 32 < largest.nbytes < 16384**2 * 2048 * 2048 * 32 * 32 * 2
