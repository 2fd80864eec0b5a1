"""The null engine: contexts and resources that are bytes, shared in all ways that there are."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable, Iterator

import pytest

from context_worker.engine import EngineError
from context_worker.null import ABILITIES_VARIABLE, NullEngine
from ipc.messages import AttachResource, Capability, CreateBlob, CreateContext, ObjectToResource
from ipc.ring import RecordStatus, RecordType
from native.engines import Status
from native.owned_fd import OwnedFd
from native.storage import Layout, StorageKind
from tests.consumer_bench import BLOB, CHECK
from tests.null_lab import (
    BUFFER,
    DXT1,
    HEADER,
    PAGE,
    R8,
    NullWorker,
    buffer,
    file_of,
    imported,
    memory,
    null_workers,
    resource,
)
from tests.ring_producer import Box


@pytest.fixture
def start() -> Iterator[Callable[..., NullWorker]]:
    """Makes NullWorkers."""
    with null_workers() as make:
        yield make


@pytest.fixture
def worker(start: Callable[..., NullWorker]) -> NullWorker:
    return start()


# ---- what it says that it can do


@pytest.mark.parametrize(
    ("words", "capabilities"),
    [
        ("", Capability(0)),
        (",", Capability(0)),
        ("memfd", Capability.MEMFD_IMPORT | Capability.PINNED_BUFFERS),
        ("export", Capability.OBJECT_EXPORT | Capability.DMABUF_IMPORT),
        ("broken-export", Capability.OBJECT_EXPORT | Capability.DMABUF_IMPORT),
        (
            "export,memfd",
            Capability.OBJECT_EXPORT
            | Capability.DMABUF_IMPORT
            | Capability.MEMFD_IMPORT
            | Capability.PINNED_BUFFERS,
        ),
    ],
)
def test_its_abilities_are_chosen(start: Callable[..., NullWorker], words: str, capabilities: Capability) -> None:
    assert start(words).engine.description.capabilities == capabilities


def test_it_is_told_of_nothing_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ABILITIES_VARIABLE, raising=False)
    engine = NullEngine()
    assert engine.description.capabilities == Capability(0)
    engine.native.close()


def test_an_ability_that_there_is_not_is_no_ability() -> None:
    with pytest.raises(EngineError, match="flying, swimming"):
        NullEngine({ABILITIES_VARIABLE: "swimming,memfd,flying"})


# ---- contexts


def test_contexts_and_what_they_have(worker: NullWorker) -> None:
    engine = worker.engine
    assert engine.create_context(CreateContext(1, 0, "")) is Status.INVALID_PARAMETER
    assert engine.attach_resource(3, buffer(5, 8)) is Status.INVALID_PARAMETER
    worker.attach(buffer(5, 8))
    assert engine.attach_resource(1, buffer(5, 8)) is Status.INVALID_PARAMETER
    assert engine.detach_resource(2, 5) is Status.INVALID_RESOURCE
    assert engine.detach_resource(1, 5) is Status.OK
    assert engine.detach_resource(1, 5) is Status.INVALID_RESOURCE
    assert engine.destroy_context(3) is Status.INVALID_RESOURCE


def test_contexts_in_one_worker_have_one_object_until_the_last_lets_go(worker: NullWorker) -> None:
    worker.attach(buffer(5, 8))
    worker.attach(buffer(5, 8), ctx_id=2)
    worker.fill(5, 0, 8, 7)
    assert worker.engine.detach_resource(1, 5) is Status.OK
    assert worker.holds(5, 0, 8, 7)
    assert worker.engine.destroy_context(2) is Status.OK
    assert worker.bench.submit(CHECK, 5, 0, 8, 7) is RecordStatus.INVALID_RESOURCE
    worker.attach(buffer(5, 8))
    assert worker.holds(5, 0, 8, 0)  # another one


# ---- exports


@pytest.mark.parametrize(
    ("made", "nbytes", "stride"),
    [
        (buffer(5, 100), PAGE, 0),
        (resource(5, 8, 4), PAGE, 32),
        (resource(5, 64, 64, array_size=6, last_level=6), 32 * PAGE, 256),
        (resource(5, 10, 6, format_=DXT1), PAGE, 24),
    ],
)
def test_an_export_is_the_object_and_others_import_it(
    start: Callable[..., NullWorker], made: AttachResource, nbytes: int, stride: int
) -> None:
    home, other = start(), start()
    home.attach(made)
    home.fill(5, 3, 20, 9)
    fd, layout = file_of(home.engine, 1, 5)
    with fd:
        assert layout == Layout(nbytes, 0, stride)
        assert os.fstat(fd.fd).st_size == nbytes
        assert fcntl.fcntl(fd.fd, fcntl.F_GET_SEALS) == (fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        assert os.pread(fd.fd, 24, 0) == bytes(3) + b"\x09" * 20 + bytes(1)
        assert other.take_in(imported(made, layout.nbytes, stride=layout.stride), fd) is Status.OK
    assert other.holds(5, 3, 20, 9)
    other.fill(5, 0, 3, 4)
    assert home.holds(5, 0, 3, 4)
    assert home.engine.detach_resource(1, 5) is Status.OK
    assert other.holds(5, 0, 3, 4)  # it survives its home


def test_an_object_that_nobody_wrote_is_exported_too(worker: NullWorker) -> None:
    worker.attach(buffer(5, 100))
    fd, _ = file_of(worker.engine, 1, 5)
    with fd:
        worker.fill(5, 0, 1, 1)
        assert os.pread(fd.fd, 2, 0) == b"\1\0"


def test_what_cannot_be_exported(start: Callable[..., NullWorker]) -> None:
    worker = start()
    again = ObjectToResource(5, 1)
    assert worker.engine.object_to_resource(1, again) == (Status.INVALID_RESOURCE, None)
    worker.attach(buffer(5, 100))
    assert worker.engine.object_to_resource(2, again) == (Status.INVALID_RESOURCE, None)
    file_of(worker.engine, 1, 5)[0].close()
    assert worker.engine.object_to_resource(1, again) == (Status.FAILED, None)
    with memory(PAGE) as fd:
        assert worker.take_in(imported(buffer(6, 64), PAGE), fd) is Status.OK
    assert worker.engine.object_to_resource(1, ObjectToResource(6, 1)) == (Status.FAILED, None)
    for abilities in ("", "memfd", "broken-export"):
        other = start(abilities)
        other.attach(buffer(5, 100))
        assert other.engine.object_to_resource(1, again) == (Status.FAILED, None)


def test_thousands_of_shared_objects_hold_no_descriptor(worker: NullWorker) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for resource_id in range(1, 2001):
        worker.attach(buffer(resource_id, 64))
    assert len(os.listdir("/proc/self/fd")) == before
    for resource_id in range(1, 501):
        file_of(worker.engine, 1, resource_id)[0].close()
    with memory(HEADER + 64) as fd:
        for resource_id in range(501, 1001):
            message = imported(buffer(resource_id, 64), HEADER + 64, StorageKind.MIRROR)
            assert worker.take_in(message, fd) is Status.OK
        for resource_id in range(2001, 2501):
            assert worker.take_in(imported(buffer(resource_id, 64), 64), fd) is Status.OK
    assert len(os.listdir("/proc/self/fd")) == before


# ---- mirrors


class Mirror:
    """A mirror's memory, as the master has it."""

    def __init__(self, nbytes: int) -> None:
        self.fd = memory(nbytes)
        self.map = mmap.mmap(self.fd.fd, nbytes)

    def version(self) -> int:
        return int.from_bytes(self.map[:8], "little")


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    made = Mirror(HEADER + 160)
    yield made
    made.map.close()
    made.fd.close()


MIRRORED = resource(5, 4, 4, array_size=2, last_level=1)  # 160 bytes
TO_IT = imported(MIRRORED, HEADER + 160, StorageKind.MIRROR)
OUT, IN = RecordType.COPY_OUT, RecordType.COPY_IN


def test_contents_go_through_the_mirror_when_they_have_changed(
    start: Callable[..., NullWorker], mirror: Mirror
) -> None:
    home, other = start(), start()
    home.attach(MIRRORED)
    home.fill(5, 0, 160, 1)
    for each in (home, other):
        assert each.take_in(TO_IT, mirror.fd) is Status.OK
    assert other.bench.copy(IN, 5) is RecordStatus.OK  # nothing was copied yet
    assert mirror.version() == 0 and other.holds(5, 0, 160, 0)
    assert home.bench.copy(OUT, 5) is RecordStatus.OK
    assert mirror.version() == 1 and mirror.map[HEADER:] == b"\1" * 160
    assert other.bench.copy(IN, 5) is RecordStatus.OK
    assert other.holds(5, 0, 160, 1)

    # Who has nothing new says nothing, and who has seen it takes nothing.
    for each in (home, other):
        assert each.bench.copy(OUT, 5) is RecordStatus.OK
    assert mirror.version() == 1
    mirror.map[HEADER:] = b"\7" * 160
    for each in (home, other):
        assert each.bench.copy(IN, 5) is RecordStatus.OK
        assert each.holds(5, 0, 160, 1)

    assert other.bench.write(5, Box(0, 0, 1, 1, 1, 1), 4, b"\5\5\5\5") is RecordStatus.OK
    assert other.bench.copy(OUT, 5) is RecordStatus.OK
    assert home.bench.copy(IN, 5) is RecordStatus.OK
    assert mirror.version() == 2
    assert home.holds(5, 64, 4, 5) and home.holds(5, 68, 92, 1)


def test_what_the_master_writes_comes_in(worker: NullWorker, mirror: Mirror) -> None:
    assert worker.take_in(TO_IT, mirror.fd) is Status.OK
    mirror.map[HEADER : HEADER + 160] = bytes(range(160))
    mirror.map[:8] = (9).to_bytes(8, "little")
    assert worker.bench.copy(IN, 5) is RecordStatus.OK
    assert worker.bench.read(5, Box(0, 0, 1, 2, 2, 1), 8, 16, level=1) == bytes(range(144, 160))
    assert worker.bench.copy(OUT, 5) is RecordStatus.OK
    assert mirror.version() == 9  # it has seen that, and written nothing
    worker.fill(5, 0, 1, 1)
    assert worker.bench.copy(OUT, 5) is RecordStatus.OK
    assert mirror.version() == 10


def test_contexts_of_one_worker_share_the_object_and_its_mirror(worker: NullWorker, mirror: Mirror) -> None:
    worker.attach(MIRRORED)
    worker.fill(5, 0, 160, 1)
    for ctx_id in (1, 2):
        assert worker.take_in(TO_IT, mirror.fd, ctx_id) is Status.OK
    assert worker.take_in(TO_IT, mirror.fd, ctx_id=3) is Status.INVALID_PARAMETER
    for kind in (OUT, IN):
        assert worker.bench.copy(kind, 5) is RecordStatus.OK
    assert worker.holds(5, 0, 160, 1) and mirror.version() == 1


@pytest.mark.parametrize("nbytes", [HEADER + 159, HEADER, 0, HEADER + 161])
def test_a_mirror_of_another_size_is_refused(worker: NullWorker, mirror: Mirror, nbytes: int) -> None:
    message = imported(MIRRORED, nbytes, StorageKind.MIRROR)
    assert worker.take_in(message, mirror.fd) is not Status.OK
    assert worker.bench.copy(OUT, 5) is RecordStatus.INVALID_RESOURCE
    assert worker.engine.detach_resource(1, 5) is Status.INVALID_RESOURCE
    worker.attach(MIRRORED)
    assert worker.take_in(message, mirror.fd) is not Status.OK
    assert worker.bench.copy(OUT, 5) is RecordStatus.INVALID_RESOURCE
    assert worker.holds(5, 0, 160, 0)  # it is there as before


# ---- blobs


def blob(resource_id: int, blob_id: int, nbytes: int, ticket: int = 0) -> CreateBlob:
    return CreateBlob(resource_id, blob_mem=2, blob_flags=1, blob_id=blob_id, nbytes=nbytes, ticket=ticket)


def test_a_blob_lies_in_the_memory_that_it_is_given(worker: NullWorker) -> None:
    assert worker.bench.submit(BLOB, 11, 100, BLOB, 12, 200, ctx_id=1) is RecordStatus.OK
    with memory(PAGE) as fd:
        storage = OwnedFd.duplicate(fd)
        status, made = worker.engine.create_blob(1, blob(5, 11, PAGE, ticket=1), storage)
        assert status is Status.OK and made is not None and storage.closed
        assert (made.resource_id, made.target, made.format, made.width, made.height) == (5, BUFFER, R8, 100, 1)
        assert (made.offset, made.stride, made.fourcc, made.modifier) == (0, 0, 0, 0)
        worker.fill(5, 99, 1, 1)
        assert os.pread(fd.fd, 2, 99) == b"\1\0"
        other = AttachResource(**{name: getattr(made, name) for name in AttachResource.__dataclass_fields__})
        assert worker.engine.detach_resource(1, 5) is Status.OK
        assert worker.take_in(imported(other, PAGE), fd) is Status.OK
        assert worker.holds(5, 99, 1, 1)


def test_a_blob_of_its_own_memory_is_exported(worker: NullWorker) -> None:
    assert worker.bench.submit(BLOB, 11, 100, ctx_id=1) is RecordStatus.OK
    status, made = worker.engine.create_blob(1, blob(5, 11, PAGE), None)
    assert status is Status.OK and made is not None
    fd, layout = file_of(worker.engine, 1, 5)
    with fd:
        assert layout == Layout(PAGE)


def test_blobs_that_there_are_not(worker: NullWorker) -> None:
    def refused(ctx_id: int, message: CreateBlob) -> bool:
        return worker.engine.create_blob(ctx_id, message, None) == (Status.INVALID_PARAMETER, None)

    assert worker.bench.submit(BLOB, 11, 0, ctx_id=1) is RecordStatus.INVALID_PARAMETER
    assert worker.bench.submit(BLOB, 11, PAGE + 1, ctx_id=1) is RecordStatus.OK
    assert worker.bench.submit(BLOB, 11, 1, ctx_id=1) is RecordStatus.INVALID_PARAMETER
    assert refused(1, blob(5, 12, PAGE))
    assert refused(1, blob(5, 11 | 1 << 32, PAGE))
    assert refused(2, blob(5, 11, PAGE))  # another context's
    assert refused(3, blob(5, 11, PAGE))
    assert refused(1, blob(5, 11, PAGE))  # too small for it
    assert refused(1, blob(5, 11, 2 * PAGE))  # it is gone by now
    with memory(PAGE, seals=0) as fd:
        assert worker.bench.submit(BLOB, 11, 8, ctx_id=1) is RecordStatus.OK
        storage = OwnedFd.duplicate(fd)
        assert worker.engine.create_blob(1, blob(5, 11, PAGE, ticket=1), storage) == (Status.FAILED, None)
        assert storage.closed
    assert worker.bench.submit(BLOB, 13, 8, ctx_id=1) is RecordStatus.OK
    assert worker.engine.destroy_context(1) is Status.OK
    assert worker.engine.create_context(CreateContext(1, 0, "")) is Status.OK
    assert refused(1, blob(5, 13, PAGE))


def test_blobs_without_end_are_out_of_memory(worker: NullWorker) -> None:
    for first in range(1, 4097, 256):
        several = [number for blob_id in range(first, first + 256) for number in (BLOB, blob_id, 8)]
        assert worker.bench.submit(*several, ctx_id=1) is RecordStatus.OK
    assert worker.bench.submit(BLOB, 5000, 8, ctx_id=1) is RecordStatus.OUT_OF_MEMORY
