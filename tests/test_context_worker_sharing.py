"""Workers that share: descriptors with the control records that speak of them, and the answers."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import pytest

from context_worker.exit_code import ExitCode
from context_worker.lockdown import MAX_FDS, SCRATCH_BYTES
from context_worker.null import ABILITIES_VARIABLE
from ipc.messages import (
    AttachResource,
    BlobObject,
    CreateBlob,
    CreateContext,
    DetachResource,
    EngineName,
    Exported,
    Fault,
    Message,
    ObjectToResource,
    ResourceToObject,
)
from ipc.ring import RecordFlag, RecordStatus, RecordType
from native.owned_fd import OwnedFd
from native.storage import StorageKind
from tests.consumer_bench import BLOB, CHECK, FILL, words
from tests.ring_producer import Launcher, Worker, running_launcher

PAGE = 4096
HEADER = 4096  # of a mirror
OK = RecordStatus.OK


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ABILITIES_VARIABLE, "memfd,export")
        with running_launcher() as running:
            yield running


@pytest.fixture
def worker(launcher: Launcher) -> Worker:
    return start(launcher)


def start(launcher: Launcher) -> Worker:
    """A worker with a context."""
    worker = launcher.start(EngineName.NULL)
    assert do(worker, CreateContext(7, 0, "x")) == OK
    return worker


def do(worker: Worker, message: Message) -> int:
    """How a control record ends."""
    return worker.producer.wait(worker.producer.control(message))


def submit(worker: Worker, *numbers: int) -> int:
    """How a stream ends."""
    return worker.producer.wait(worker.producer.submit(words(*numbers), RecordFlag.COMPLETE))


def buffer(resource_id: int, size: int) -> AttachResource:
    """A buffer of `size` bytes."""
    return AttachResource(resource_id, 0, 64, 0, size, 1, 1, 1, 0, 0, 0)


def stored(made: AttachResource, nbytes: int, ticket: int, kind: StorageKind = StorageKind.MEMFD) -> ResourceToObject:
    """The resource, as one that has storage."""
    layout = {"nbytes": nbytes, "offset": 0, "stride": 0, "fourcc": 0, "modifier": 0}
    return ResourceToObject(**vars(made), kind=kind, ticket=ticket, **layout)


@pytest.fixture
def memory() -> Iterator[OwnedFd]:
    """Sealed, of two pages."""
    with OwnedFd(os.memfd_create("storage", os.MFD_ALLOW_SEALING)) as fd:
        os.ftruncate(fd.fd, 2 * PAGE)
        fcntl.fcntl(fd.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        yield fd


def exit_code(launcher: Launcher, worker: Worker) -> int:
    return os.waitstatus_to_exitcode(launcher.wait_exited(worker))


def refusal(launcher: Launcher, worker: Worker) -> str:
    """What a worker says that ends because the master breaks the rules."""
    message = worker.recv()
    assert isinstance(message, Fault)
    assert exit_code(launcher, worker) == ExitCode.PROTOCOL
    return message.text


def test_two_workers_have_one_memory(launcher: Launcher, memory: OwnedFd) -> None:
    one, other = start(launcher), start(launcher)
    for worker in (one, other):
        worker.hand(1, memory)
        assert do(worker, stored(buffer(5, 100), 2 * PAGE, ticket=1)) == OK
    assert submit(one, FILL, 5, 0, 100, 3) == OK
    assert submit(other, CHECK, 5, 0, 100, 3) == OK
    assert os.pread(memory.fd, 101, 0) == b"\3" * 100 + b"\0"


def test_what_one_exports_another_imports(launcher: Launcher) -> None:
    home, other = start(launcher), start(launcher)
    assert do(home, buffer(5, 100)) == OK
    assert submit(home, FILL, 5, 0, 100, 3) == OK
    assert do(home, ObjectToResource(5, ticket=9)) == OK
    answer, (fd,) = home.answer()  # it has come before the record was completed
    assert answer == Exported(9, StorageKind.MEMFD, PAGE, 0, 0, 0, 0, map_info=1)
    with fd:
        other.hand(1, fd)
    assert do(other, stored(buffer(5, 100), PAGE, ticket=1)) == OK
    assert submit(other, CHECK, 5, 0, 100, 3) == OK
    home.close()
    assert submit(other, CHECK, 5, 0, 100, 3, FILL, 5, 0, 100, 4, CHECK, 5, 0, 100, 4) == OK


def test_what_cannot_be_exported_is_not_answered(worker: Worker) -> None:
    assert do(worker, ObjectToResource(5, ticket=9)) == RecordStatus.INVALID_RESOURCE
    assert do(worker, buffer(5, 0)) == OK
    assert do(worker, ObjectToResource(5, ticket=9)) == RecordStatus.INVALID_PARAMETER
    assert worker.channel.recv_nowait() is None


def test_an_object_that_is_larger_than_a_file_may_be_stays_where_it_is(worker: Worker) -> None:
    assert do(worker, buffer(5, SCRATCH_BYTES)) == OK
    assert do(worker, buffer(6, SCRATCH_BYTES + 1)) == OK
    assert do(worker, ObjectToResource(6, ticket=9)) == RecordStatus.FAILED
    assert worker.channel.recv_nowait() is None
    assert do(worker, ObjectToResource(5, ticket=9)) == OK
    _, (fd,) = worker.answer()
    with fd:
        assert os.fstat(fd.fd).st_size == SCRATCH_BYTES
    assert submit(worker, FILL, 6, SCRATCH_BYTES, 1, 1, FILL, 5, SCRATCH_BYTES - 1, 1, 1) == OK


def test_a_mirror_between_two_workers(launcher: Launcher, memory: OwnedFd) -> None:
    one, other = start(launcher), start(launcher)
    assert do(one, buffer(5, PAGE)) == OK
    assert submit(one, FILL, 5, 0, PAGE, 3) == OK
    for worker in (one, other):
        worker.hand(1, memory)
        assert do(worker, stored(buffer(5, PAGE), HEADER + PAGE, 1, StorageKind.MIRROR)) == OK
    assert one.producer.wait(one.producer.copy(RecordType.COPY_OUT, 5)) == OK
    assert other.producer.wait(other.producer.copy(RecordType.COPY_IN, 5)) == OK
    assert submit(other, CHECK, 5, 0, PAGE, 3) == OK


def test_a_blob_lies_in_the_master_s_memory_or_in_its_own(worker: Worker, memory: OwnedFd) -> None:
    assert submit(worker, BLOB, 21, 100, BLOB, 22, 200) == OK
    worker.hand(1, memory)
    assert do(worker, CreateBlob(5, 2, 1, 21, 2 * PAGE, ticket=1)) == OK
    assert worker.answer()[0] == BlobObject(5, 0, 64, 0, 100, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0)
    assert do(worker, CreateBlob(6, 2, 1, 22, PAGE, ticket=0)) == OK
    assert worker.answer()[0] == BlobObject(6, 0, 64, 0, 200, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0)
    assert submit(worker, FILL, 5, 0, 100, 1, FILL, 6, 0, 200, 2) == OK
    assert os.pread(memory.fd, 101, 0) == b"\1" * 100 + b"\0"


def test_a_blob_that_there_is_not_takes_its_descriptor_along(worker: Worker, memory: OwnedFd) -> None:
    for ticket in (1, 2):
        worker.hand(ticket, memory)
        refused = CreateBlob(5, 2, 1, blob_id=21, nbytes=PAGE, ticket=ticket)
        assert do(worker, refused) == RecordStatus.INVALID_PARAMETER
    assert worker.channel.recv_nowait() is None


def test_descriptors_come_in_the_order_of_the_records(worker: Worker, memory: OwnedFd) -> None:
    for ticket in (10, 3, 2**63):
        worker.hand(ticket, memory)
    producer = worker.producer
    seqs = [producer.control(stored(buffer(5 + n, 8), 2 * PAGE, t)) for n, t in enumerate((10, 3, 2**63))]
    assert producer.wait_all(seqs) == [OK] * 3


def test_a_record_waits_for_its_descriptor(worker: Worker, memory: OwnedFd) -> None:
    seq = worker.producer.control(stored(buffer(5, 8), 2 * PAGE, ticket=4))
    worker.producer.wait_begun(seq)
    assert worker.producer.completions[-1].seq < seq
    worker.hand(4, memory)
    assert worker.producer.wait(seq) == OK


def test_another_ticket_ends_the_worker(launcher: Launcher, worker: Worker, memory: OwnedFd) -> None:
    worker.hand(1, memory)
    worker.producer.control(stored(buffer(5, 8), 2 * PAGE, ticket=2))
    assert "descriptor 1 where 2 was due" in refusal(launcher, worker)


def test_a_record_without_a_ticket_ends_the_worker(launcher: Launcher, worker: Worker, memory: OwnedFd) -> None:
    worker.hand(1, memory)
    worker.producer.control(stored(buffer(5, 8), 2 * PAGE, ticket=0))
    assert "without the ticket" in refusal(launcher, worker)


def test_another_message_than_a_descriptor_ends_the_worker(launcher: Launcher, worker: Worker) -> None:
    worker.channel.send(CreateContext(1, 0, "x"))
    worker.producer.control(stored(buffer(5, 8), 2 * PAGE, ticket=1))
    assert "CreateContext" in refusal(launcher, worker)


def test_a_worker_that_waits_for_a_descriptor_ends_with_its_master(launcher: Launcher, worker: Worker) -> None:
    worker.producer.wait_begun(worker.producer.control(stored(buffer(5, 8), 2 * PAGE, ticket=1)))
    worker.channel.close()
    assert exit_code(launcher, worker) == ExitCode.OK


def test_descriptors_that_nobody_takes_do_not_hide_the_master_s_end(
    launcher: Launcher, worker: Worker, memory: OwnedFd
) -> None:
    for ticket in (1, 2, 3):
        worker.hand(ticket, memory)
    assert submit(worker, 0) == OK
    worker.channel.close()
    assert exit_code(launcher, worker) == ExitCode.OK


def test_more_shared_resources_than_a_worker_may_have_descriptors(worker: Worker, memory: OwnedFd) -> None:
    count = 2 * MAX_FDS
    producer = worker.producer
    for n in range(1, count + 1):
        worker.hand(n, memory)
        seq = producer.control(stored(buffer(n, 8), 2 * PAGE, ticket=n))
        if n % 16 == 0:  # so many wait in the socket
            assert producer.wait(seq) == OK
    assert submit(worker, FILL, 1, 0, 8, 5, CHECK, count, 0, 8, 5) == OK
    for n in range(count + 1, count + MAX_FDS + 1):
        assert producer.wait_all([producer.control(buffer(n, 8)), producer.control(ObjectToResource(n, n))]) == [OK] * 2
        _, (fd,) = worker.answer()
        fd.close()
    assert do(worker, DetachResource(1)) == OK
    assert submit(worker, CHECK, count, 0, 8, 5) == OK
