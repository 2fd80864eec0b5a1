"""native/src/null_objects.c: contents, transfers, and storage of others that they lie in."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator

import pytest

from ipc.messages import AttachResource, ObjectToResource, ResourceToObject
from ipc.ring import RecordStatus
from native.engines import Status
from native.owned_fd import OwnedFd
from native.storage import StorageKind
from tests.consumer_bench import CHECK, COPY, FILL
from tests.null_lab import BUFFER, DXT1, PAGE, VOLUME, NullWorker, buffer, imported, memory, null_workers, resource
from tests.ring_producer import Box


@pytest.fixture
def start() -> Iterator[Callable[..., NullWorker]]:
    """Makes NullWorkers."""
    with null_workers() as make:
        yield make


@pytest.fixture
def worker(start: Callable[..., NullWorker]) -> NullWorker:
    return start()


# ---- contents


def test_contents_are_zero_and_then_what_was_written(worker: NullWorker) -> None:
    worker.attach(buffer(5, 100))
    worker.attach(buffer(6, 100))
    worker.attach(buffer(7, 99))
    assert worker.holds(5, 0, 100, 0) and not worker.holds(5, 0, 1, 1)
    worker.fill(5, 10, 20, 0x1FF)
    assert worker.holds(5, 10, 20, 0xFF) and worker.holds(5, 0, 10, 0) and worker.holds(5, 30, 70, 0)
    assert not worker.holds(5, 9, 2, 0) and not worker.holds(5, 29, 2, 0xFF)
    assert "byte 9 of resource 5 is not 255" not in worker.bench.faults
    assert worker.bench.submit(COPY, 5, 6) is RecordStatus.OK
    assert worker.holds(6, 10, 20, 0xFF) and worker.holds(6, 30, 70, 0)
    assert worker.bench.submit(COPY, 5, 7) is RecordStatus.INVALID_PARAMETER
    assert worker.bench.submit(COPY, 5, 5) is RecordStatus.INVALID_PARAMETER
    assert worker.bench.submit(COPY, 5, 8) is RecordStatus.INVALID_RESOURCE


def test_a_check_that_fails_says_where(worker: NullWorker) -> None:
    worker.attach(buffer(5, 100))
    worker.fill(5, 41, 1, 3)
    assert not worker.holds(5, 2, 98, 0)
    assert worker.bench.faults == ["byte 41 of resource 5 is not 0"]


@pytest.mark.parametrize(("offset", "length"), [(0, 101), (100, 1), (101, 0), (0xFFFFFFFF, 1), (1, 0xFFFFFFFF)])
def test_streams_stay_in_the_contents(worker: NullWorker, offset: int, length: int) -> None:
    worker.attach(buffer(5, 100))
    for opcode in (FILL, CHECK):
        assert worker.bench.submit(opcode, 5, offset, length, 0) is RecordStatus.INVALID_PARAMETER
        assert worker.bench.submit(opcode, 6, offset, length, 0) is RecordStatus.INVALID_RESOURCE


def test_a_stream_is_several_commands_up_to_the_first_that_fails(worker: NullWorker) -> None:
    worker.attach(buffer(5, 4))
    several = (FILL, 5, 0, 4, 1, CHECK, 5, 0, 4, 1, FILL, 5, 1, 1, 2)
    assert worker.bench.submit(*several) is RecordStatus.OK
    assert worker.holds(5, 1, 1, 2)
    assert worker.bench.submit(CHECK, 5, 0, 4, 1, FILL, 5, 0, 4, 9) is RecordStatus.FAILED
    assert worker.bench.submit(0, FILL, 5, 0, 4, 9) is RecordStatus.OK
    assert worker.bench.submit(999, FILL, 5, 0, 4, 9) is RecordStatus.OK
    assert worker.bench.submit(FILL, 5, 0, 4) is RecordStatus.INVALID_PARAMETER
    assert worker.holds(5, 0, 1, 1)


@pytest.mark.parametrize(
    "nothing",
    [resource(5, 16, 16, samples=4), resource(5, 16, 16, format_=0), resource(5, 0, 0), resource(5, 16, target=99)],
    ids=["samples", "format", "size", "target"],
)
def test_what_has_no_known_size_has_no_contents(worker: NullWorker, nothing: AttachResource) -> None:
    worker.attach(nothing)
    assert worker.bench.submit(FILL, 5, 0, 0, 0) is RecordStatus.INVALID_PARAMETER
    assert worker.bench.read(5, Box(0, 0, 0, 1, 1, 1), 4, 4) is RecordStatus.INVALID_PARAMETER
    assert worker.engine.object_to_resource(1, ObjectToResource(5, 1)) == (Status.INVALID_PARAMETER, None)
    with memory(1 << 20) as fd:
        assert worker.take_in(imported(nothing, 1 << 20, StorageKind.MIRROR), fd) is Status.INVALID_PARAMETER
    assert worker.engine.detach_resource(1, 5) is Status.OK


def test_a_size_that_nobody_has_is_out_of_memory(worker: NullWorker) -> None:
    huge = resource(5, 16384, 16384, array_size=2048, last_level=14)
    worker.attach(huge)
    assert worker.holds(5, 0, 1000, 0)
    assert worker.bench.submit(FILL, 5, 0, 1, 1) is RecordStatus.OUT_OF_MEMORY


# ---- transfers


def test_a_box_is_written_and_read(worker: NullWorker) -> None:
    worker.attach(resource(5, 8, 4))  # 32 bytes a row
    box = Box(2, 1, 0, 3, 2, 1)
    rows = bytes(range(1, 13)) + b"\xaa\xaa\xaa\xaa" + bytes(range(13, 25))
    assert worker.bench.write(5, box, 16, rows) is RecordStatus.OK
    assert worker.bench.read(5, box, 12, 24) == bytes(range(1, 25))
    whole = worker.bench.read(5, Box(0, 0, 0, 8, 4, 1), 32, 128)
    assert whole == bytes(40) + bytes(range(1, 13)) + bytes(20) + bytes(range(13, 25)) + bytes(44)
    assert worker.holds(5, 40, 1, 1) and worker.holds(5, 72, 1, 13)


def test_levels_and_layers_lie_one_behind_the_other(worker: NullWorker) -> None:
    worker.attach(resource(5, 4, 4, array_size=2, last_level=2))
    worker.attach(resource(6, 4, 4, target=VOLUME, depth=4, last_level=1))
    assert worker.bench.write(5, Box(1, 1, 1, 1, 1, 1), 4, b"\1\2\3\4", level=1) is RecordStatus.OK
    assert worker.holds(5, 128 + 16 + 12, 1, 1) and worker.holds(5, 0, 128 + 16 + 12, 0)
    assert worker.bench.write(5, Box(0, 0, 0, 1, 1, 2), 4, b"\1\2\3\4\5\6\7\x08", level=2) is RecordStatus.OK
    assert worker.holds(5, 160, 1, 1) and worker.holds(5, 167, 1, 8)
    assert worker.bench.submit(FILL, 5, 168, 1, 0) is RecordStatus.INVALID_PARAMETER
    assert worker.bench.write(6, Box(1, 1, 1, 1, 1, 1), 4, b"\1\2\3\4", level=1) is RecordStatus.OK
    assert worker.holds(6, 256 + 16 + 12, 1, 1)


def test_blocks_are_moved_whole(worker: NullWorker) -> None:
    worker.attach(resource(5, 10, 6, format_=DXT1))  # 3 x 2 blocks
    block = bytes(range(8))
    assert worker.bench.write(5, Box(8, 4, 0, 2, 2, 1), 8, block) is RecordStatus.OK
    assert worker.holds(5, 40, 1, 0) and worker.holds(5, 47, 1, 7)
    assert worker.bench.read(5, Box(4, 4, 0, 6, 2, 1), 16, 16) == bytes(8) + block


def test_a_buffer_is_one_row_of_bytes(worker: NullWorker) -> None:
    worker.attach(resource(5, 100, target=BUFFER))  # whatever its format
    assert worker.bench.write(5, Box(7, 0, 0, 5, 1, 1), 5, b"hello") is RecordStatus.OK
    assert worker.bench.read(5, Box(6, 0, 0, 7, 1, 1), 7, 7) == b"\0hello\0"


@pytest.mark.parametrize(
    ("box", "level", "stride", "length"),
    [
        (Box(0, 0, 0, 9, 4, 1), 0, 36, 144),
        (Box(8, 0, 0, 1, 1, 1), 0, 4, 4),
        (Box(0, 0, 1, 1, 1, 1), 0, 4, 4),
        (Box(0, 0, 0, 1, 1, 0), 0, 4, 4),
        (Box(0, 0, 0, 1, 1, 1), 1, 4, 4),
        (Box(0, 0, 0, 8, 4, 1), 0, 32, 127),
        (Box(0, 0, 0, 8, 2, 1), 0, 4096, 4100),
        (Box(0, 0, 0, 8, 2, 1), 0, 31, 63),
        (Box(0xFFFFFFFF, 0, 0, 2, 1, 1), 0, 8, 8),
    ],
)
def test_boxes_that_are_not_there_and_staging_memory_that_is_not(
    worker: NullWorker, box: Box, level: int, stride: int, length: int
) -> None:
    worker.attach(resource(5, 8, 4))
    assert worker.bench.write(5, box, stride, bytes(length), level) is RecordStatus.INVALID_PARAMETER
    assert worker.bench.read(5, box, stride, length, level) is RecordStatus.INVALID_PARAMETER


# ---- storage of others


@pytest.mark.parametrize("kind", [StorageKind.MEMFD, StorageKind.DMABUF])
def test_an_import_lies_where_it_is_said_to(worker: NullWorker, kind: StorageKind) -> None:
    picture = resource(5, 8, 4)
    with memory(PAGE) as fd:
        assert worker.take_in(imported(picture, PAGE, kind, offset=100, stride=64), fd) is Status.OK
        worker.fill(5, 0, 128, 1)  # all of it, and no byte between its rows
        one = (b"\1" * 32).ljust(64, b"\0")
        assert os.pread(fd.fd, PAGE, 0) == (bytes(100) + one * 4).ljust(PAGE, b"\0")
        os.pwrite(fd.fd, b"\2" * 8, 100 + 64)
        assert worker.holds(5, 32, 8, 2) and worker.holds(5, 0, 32, 1) and worker.holds(5, 40, 88, 1)
        assert not worker.holds(5, 0, 128, 1)
        assert worker.bench.read(5, Box(0, 0, 0, 2, 2, 1), 8, 16) == b"\1" * 8 + b"\2" * 8
        worker.attach(buffer(6, 128))
        assert worker.bench.submit(COPY, 5, 6) is RecordStatus.OK and worker.holds(6, 32, 8, 2)
        worker.fill(6, 0, 128, 7)
        assert worker.bench.submit(COPY, 6, 5) is RecordStatus.OK
    assert worker.holds(5, 0, 128, 7)
    assert worker.engine.detach_resource(1, 5) is Status.OK


def test_several_contexts_of_a_worker_import_once(worker: NullWorker) -> None:
    with memory(PAGE) as fd, memory(PAGE) as other:
        message = imported(buffer(5, 64), PAGE)
        assert worker.take_in(message, fd) is Status.OK
        assert worker.take_in(message, fd) is Status.INVALID_PARAMETER
        assert worker.take_in(message, other, ctx_id=2) is Status.OK
        assert worker.take_in(message, other, ctx_id=3) is Status.INVALID_PARAMETER
        worker.fill(5, 0, 64, 1)
        assert os.pread(fd.fd, 1, 0) == b"\1" and os.pread(other.fd, 1, 0) == b"\0"


def test_storage_of_which_nothing_is_known_is_bytes(worker: NullWorker) -> None:
    unknown = resource(5, 0, 0, target=0, format_=0, depth=0, array_size=0)
    with memory(PAGE) as fd:
        assert worker.take_in(imported(unknown, PAGE, StorageKind.DMABUF, offset=96), fd) is Status.OK
        worker.fill(5, PAGE - 97, 1, 3)
        assert worker.bench.submit(FILL, 5, PAGE - 96, 1, 3) is RecordStatus.INVALID_PARAMETER
        assert os.pread(fd.fd, 1, PAGE - 1) == b"\3"
        assert worker.take_in(imported(resource(6, 0), PAGE, offset=PAGE), fd) is Status.INVALID_PARAMETER


PICTURE_OF_128 = resource(5, 8, 4)


@pytest.mark.parametrize(
    "message",
    [
        imported(PICTURE_OF_128, 127),
        imported(PICTURE_OF_128, PAGE, offset=PAGE - 127),
        imported(PICTURE_OF_128, PAGE, offset=PAGE + 1),
        imported(PICTURE_OF_128, PAGE, offset=2**64 - 1),
        imported(PICTURE_OF_128, PAGE, stride=31),
        imported(PICTURE_OF_128, PAGE, stride=(PAGE - 32) // 3 + 1),
        imported(PICTURE_OF_128, PAGE, stride=2**32 - 1),
        imported(buffer(5, PAGE + 1), PAGE),
        imported(buffer(5, 64), PAGE, stride=65),
        imported(resource(5, 8, 4, array_size=2), PAGE, stride=64),
        imported(resource(5, 8, 4, last_level=1), PAGE, stride=64),
        imported(resource(5, 8, 4, samples=4), PAGE),
        imported(PICTURE_OF_128, 2 * PAGE),  # larger than the file is
    ],
)
def test_an_import_that_does_not_fit_is_refused(worker: NullWorker, message: ResourceToObject) -> None:
    with memory(PAGE) as fd:
        assert worker.take_in(message, fd) in (Status.INVALID_PARAMETER, Status.FAILED)
    assert worker.bench.submit(CHECK, 5, 0, 1, 0) is RecordStatus.INVALID_RESOURCE
    assert worker.engine.detach_resource(1, 5) is Status.INVALID_RESOURCE


@pytest.mark.parametrize("kind", list(StorageKind))
def test_memory_that_could_shrink_is_refused(worker: NullWorker, kind: StorageKind) -> None:
    with memory(1 << 20, seals=fcntl.F_SEAL_GROW) as fd:
        assert worker.take_in(imported(buffer(5, 64), 1 << 20, kind), fd) is Status.FAILED
    reading, writing = os.pipe()
    with OwnedFd(reading) as pipe, OwnedFd(writing):
        assert worker.take_in(imported(buffer(5, 64), PAGE, kind), pipe) is not Status.OK
    assert worker.engine.detach_resource(1, 5) is Status.INVALID_RESOURCE
