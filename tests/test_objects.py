"""master.objects: how resources get to contexts, with workers that are played by the test."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

import pytest

from ipc.messages import (
    CONTROL,
    AttachResource,
    BlobObject,
    DetachResource,
    Exported,
    Message,
    ObjectToResource,
    ResourceToObject,
    decode,
)
from master.blame import CauseKind
from native.dataplane import Status
from native.owned_fd import OwnedFd
from native.storage import StorageKind
from resource_table import Abilities, Policy
from tests.dispatch_lab import SIZE, Machine, dispatch_machine
from tests.fake_vmm import Bind, Format, GpuCommand, Rect, ResourceDescription, Resp, commands
from tests.fake_vmm.command_queue import Pending
from tests.plane_rig import PlayedWorker, Record

ONE, OTHER, THIRD = 1, 2, 3
STRIDE = 4 * SIZE
NBYTES = STRIDE * SIZE
BIND = Bind.RENDER_TARGET | Bind.SAMPLER_VIEW
PICTURE = ResourceDescription(SIZE, SIZE, bind=BIND)
FORETOLD = ResourceDescription(SIZE, SIZE, bind=BIND | Bind.SHARED)
MULTISAMPLED = ResourceDescription(SIZE, SIZE, bind=BIND, nr_samples=4)
GPU = Abilities(export=True, import_dmabuf=True)
MEMORY = Abilities(memfd_images=True, pinned_buffers=True)
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


@pytest.fixture
def abilities() -> Abilities:
    """What the machine's workers can do."""
    return Abilities()


@pytest.fixture
def machine(abilities: Abilities) -> Iterator[Machine]:
    with dispatch_machine(abilities) as machine:
        yield machine


with_gpu = pytest.mark.parametrize("abilities", [GPU], ids=["gpu"])
with_memory = pytest.mark.parametrize("abilities", [MEMORY], ids=["memory"])


def memory(nbytes: int = NBYTES, seals: int = SEALS) -> OwnedFd:
    """What a worker could export."""
    fd = OwnedFd(os.memfd_create("object", os.MFD_ALLOW_SEALING))
    os.ftruncate(fd.fd, nbytes)
    fcntl.fcntl(fd.fd, fcntl.F_ADD_SEALS, seals)
    return fd


def exported(ticket: int, **other: object) -> Exported:
    """An answer that is right for PICTURE in memory()."""
    right = Exported(ticket, StorageKind.MEMFD, NBYTES, 0, STRIDE, 0x34325241, 0, 1)
    return replace(right, **other)  # type: ignore[arg-type]


def attach(ctx_id: int, resource_id: int = 1) -> GpuCommand:
    return commands.ctx_attach_resource(ctx_id, resource_id)


def same_file(one: OwnedFd, other: OwnedFd) -> bool:
    return os.path.sameopenfile(one.fd, other.fd)


def told(machine: Machine, worker: PlayedWorker) -> tuple[Record, Message]:
    """The next thing that the worker is told, while the plane is served."""
    records: list[Record] = []

    def look() -> bool:
        if not records and (record := worker.take()) is not None:
            records.append(record)
        return bool(records)

    machine.until(look, "a record")
    return records[0], decode(records[0].payload, CONTROL)


def answered(machine: Machine, worker: PlayedWorker, status: Status = Status.OK) -> Message:
    """The worker does the next thing that it is told, which is returned."""
    record, message = told(machine, worker)
    worker.complete(record.seq, status)
    machine.pump()
    return message


def given(machine: Machine, worker: PlayedWorker, kind: StorageKind) -> OwnedFd:
    """The next thing that the worker is told is to make an object out of storage of this kind, which it does."""
    message = answered(machine, worker)
    assert isinstance(message, ResourceToObject) and message.kind is kind
    assert (message.resource_id, message.width, message.height) == (1, SIZE, SIZE)
    ticket, fd = machine.handle(worker)
    assert ticket == message.ticket
    return fd


def finish(machine: Machine, worker: PlayedWorker) -> None:
    """The worker does all that it is told."""
    machine.pump()
    while (record := worker.take()) is not None:
        if record.flags:
            worker.complete(record.seq)
            machine.pump()


def quiet(machine: Machine, worker: PlayedWorker) -> bool:
    """Whether the worker has been told nothing more."""
    machine.pump()
    return worker.take() is None and machine.no_handle(worker)


class Asked:
    """Two contexts, of which the first is asked for a resource's storage, since the second attaches it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.home, self.other = machine.context(ONE), machine.context(OTHER)
        machine.ok(commands.resource_create_3d(1, PICTURE), attach(ONE))
        assert isinstance(answered(machine, self.home), AttachResource)
        self.attach = machine.submit(attach(OTHER))
        self.record, self.question = told(machine, self.home)
        assert isinstance(self.question, ObjectToResource) and self.question.resource_id == 1
        self.ticket = self.question.ticket
        self.resource = machine.table.get(1)

    def say(self, fd: OwnedFd | None = None, **other: object) -> OwnedFd:
        """The home has exported it, and says so."""
        fd = fd or memory()
        self.machine.say(self.home, exported(self.ticket, **other), fd)
        return fd

    def complete(self, status: Status = Status.OK) -> None:
        self.home.complete(self.record.seq, status)
        self.machine.until(lambda: not self.resource_waits, "the home's answer")

    @property
    def resource_waits(self) -> bool:
        return self.resource in self.machine.contexts._objects._questions

    def doomed(self) -> bool:
        """Whether the home is being killed for what it said."""
        doom = self.machine.lane_worker(self.home).doom
        return doom is not None and doom.kind is CauseKind.PROTOCOL


@pytest.fixture
def asked(machine: Machine) -> Asked:
    return Asked(machine)


# --- mirrored -------------------------------------------------------------------------------------------------------


def test_the_second_context_makes_it_a_mirrored_one(machine: Machine) -> None:
    one, other = machine.context(ONE), machine.context(OTHER)
    machine.ok(commands.resource_create_3d(1, PICTURE), attach(ONE))
    assert isinstance(answered(machine, one), AttachResource)
    assert machine.table.get(1).policy is Policy.WORKER_LOCAL
    machine.ok(attach(OTHER))
    with given(machine, one, StorageKind.MIRROR) as ours, given(machine, other, StorageKind.MIRROR) as theirs:
        assert same_file(ours, theirs)
    resource = machine.table.get(1)
    assert (resource.policy, resource.home, resource.contexts) == (Policy.MIRRORED, ONE, [ONE, OTHER])
    third = machine.context(THIRD)
    machine.ok(attach(THIRD))
    given(machine, third, StorageKind.MIRROR).close()
    assert quiet(machine, one) and quiet(machine, other)


def test_contents_are_copied_in_the_order_of_the_queue(machine: Machine) -> None:
    one, other = machine.context(ONE), machine.context(OTHER)
    machine.ok(commands.resource_create_3d(1, PICTURE), attach(ONE), attach(OTHER))
    answered(machine, one)
    for worker in (one, other):
        given(machine, worker, StorageKind.MIRROR).close()
    pending = machine.rig.gpu.submit(commands.submit_3d(OTHER, bytes(8)), fenced=True)
    machine.until(lambda: machine.rig.plane.progress(one.lane).waiting, "a point")
    out, point = one.wait(), one.wait()
    assert (out.type, point.type) == (5, 4) and quiet(machine, other)
    one.complete(point.seq)
    machine.pump()
    copied, submit = other.wait(), other.wait()
    assert (copied.type, submit.type) == (6, 1)
    other.complete(submit.seq)
    machine.until(lambda: pending.done, "the submit")


def test_a_2d_resource_is_mirrored_by_its_shadow(machine: Machine) -> None:
    machine.ok(commands.resource_create_2d(1, Format.B8G8R8X8, SIZE, SIZE))
    gpa = machine.backed(1)
    machine.rig.memory.write(gpa, b"\x11\x22\x33\x44" * (SIZE * SIZE))
    worker = machine.context(ONE)
    machine.ok(attach(ONE))
    with given(machine, worker, StorageKind.MIRROR) as mirror:
        before = os.pread(mirror.fd, 8, 0)
        machine.ok(commands.transfer_to_host_2d(1, Rect(SIZE, SIZE)))
        machine.ok(commands.transfer_to_host_2d(1, Rect(1, 1)))  # the plane does small ones
        assert os.pread(mirror.fd, 4, 4096) == b"\x11\x22\x33\x44"
        versions = [int.from_bytes(version, "little") for version in (before, os.pread(mirror.fd, 8, 0))]
        assert versions[1] == versions[0] + 2
    machine.ok(commands.resource_unref(1))
    assert len(machine.table) == 0


def test_what_cannot_be_shared_is_everybodys_own(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    workers = [machine.context(ctx_id) for ctx_id in (ONE, OTHER, THIRD)]
    machine.ok(commands.resource_create_3d(1, MULTISAMPLED))
    for ctx_id, worker in enumerate(workers, ONE):
        machine.ok(attach(ctx_id))
        assert isinstance(answered(machine, worker), AttachResource)
    assert machine.table.get(1).policy is Policy.WORKER_LOCAL
    assert caplog.text.count("cannot be shared") == 1


# --- memory of ours -------------------------------------------------------------------------------------------------


@with_memory
def test_what_is_foretold_lies_in_our_memory_from_the_start(machine: Machine) -> None:
    one, other = machine.context(ONE), machine.context(OTHER)
    machine.ok(commands.resource_create_3d(1, FORETOLD), attach(ONE), attach(OTHER))
    with given(machine, one, StorageKind.MEMFD) as ours, given(machine, other, StorageKind.MEMFD) as theirs:
        assert same_file(ours, theirs) and fcntl.fcntl(ours.fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    assert machine.table.get(1).policy is Policy.MASTER_ALLOCATED
    machine.lose(ONE)
    resource = machine.table.get(1)
    assert (resource.lost, resource.home, resource.contexts) == (False, OTHER, [OTHER])
    machine.ok(commands.ctx_detach_resource(OTHER, 1), attach(OTHER))
    assert isinstance(answered(machine, other), DetachResource)
    given(machine, other, StorageKind.MEMFD).close()


@with_memory
def test_memory_that_a_worker_cannot_import_is_mirrored_after_all(machine: Machine) -> None:
    one, other = machine.context(ONE), machine.context(OTHER)
    machine.ok(commands.resource_create_3d(1, FORETOLD), attach(ONE))
    given(machine, one, StorageKind.MEMFD).close()
    pending = machine.submit(attach(OTHER), fenced=True)
    assert isinstance(answered(machine, other, Status.FAILED), ResourceToObject)
    machine.handle(other)[1].close()
    with given(machine, one, StorageKind.MIRROR) as ours, given(machine, other, StorageKind.MIRROR) as theirs:
        assert same_file(ours, theirs)
    machine.until(lambda: pending.done, "the attach")
    assert pending.response.ok and machine.table.get(1).policy is Policy.MIRRORED


@with_memory
def test_a_failed_import_of_what_is_gone_is_nobodys_business(machine: Machine) -> None:
    worker = machine.context(ONE)
    machine.ok(commands.resource_create_3d(1, FORETOLD), attach(ONE), commands.resource_unref(1))
    machine.ok(commands.resource_create_3d(1, FORETOLD))
    assert isinstance(answered(machine, worker, Status.FAILED), ResourceToObject)
    assert isinstance(answered(machine, worker), DetachResource)
    machine.handle(worker)[1].close()
    assert quiet(machine, worker) and machine.table.get(1).policy is Policy.MASTER_ALLOCATED


# --- exported -------------------------------------------------------------------------------------------------------


@with_gpu
def test_an_export_is_waited_for_in_its_place(asked: Asked) -> None:
    machine = asked.machine
    machine.ok(commands.resource_create_3d(2, PICTURE))
    behind = machine.submit(attach(OTHER, 2))
    assert not asked.attach.done and not behind.done and quiet(machine, asked.other)
    fd = asked.say()
    asked.complete()
    with fd, given(machine, asked.other, StorageKind.MEMFD) as theirs:
        assert same_file(fd, theirs)
    message = answered(machine, asked.other)
    assert isinstance(message, AttachResource) and message.resource_id == 2
    machine.until(lambda: asked.attach.done and behind.done, "both attaches")
    assert asked.attach.response.ok and behind.response.ok
    assert (asked.resource.policy, asked.resource.home) == (Policy.EXPORTED, ONE)
    third = machine.context(THIRD)
    machine.ok(attach(THIRD))
    given(machine, third, StorageKind.MEMFD).close()
    assert quiet(machine, asked.home)


@with_gpu
def test_descriptors_keep_the_order_of_their_records(machine: Machine, asked: Asked) -> None:
    """A later attach has its descriptor at once, and an earlier one has to wait for it."""
    machine.ok(commands.resource_create_2d(2, Format.B8G8R8X8, SIZE, SIZE))
    machine.submit(attach(OTHER, 2))
    assert machine.no_handle(asked.other)
    asked.say().close()
    asked.complete()
    tickets = []
    for _ in range(2):
        message = answered(machine, asked.other)
        assert isinstance(message, ResourceToObject)
        ticket, fd = machine.handle(asked.other)
        fd.close()
        tickets.append((message.ticket, ticket))
    assert [ours == theirs for ours, theirs in tickets] == [True, True]


@with_gpu
def test_several_wait_for_the_same_answer(machine: Machine, asked: Asked) -> None:
    third = machine.context(THIRD)
    late = machine.submit(attach(THIRD))
    assert not late.done and quiet(machine, third)
    asked.say().close()
    asked.complete()
    for worker in (asked.other, third):
        given(machine, worker, StorageKind.MEMFD).close()
    machine.until(lambda: late.done and asked.attach.done, "both attaches")


@with_gpu
def test_an_export_that_fails_is_a_mirror(machine: Machine, asked: Asked) -> None:
    asked.complete(Status.FAILED)
    with given(machine, asked.home, StorageKind.MIRROR) as ours, given(machine, asked.other, StorageKind.MIRROR) as fd:
        assert same_file(ours, fd)
    machine.until(lambda: asked.attach.done, "the attach")
    assert asked.resource.policy is Policy.MIRRORED and not asked.doomed() and not asked.resource.lost


@with_gpu
def test_what_was_sent_while_the_home_was_asked_is_copied_where_it_stands(machine: Machine, asked: Asked) -> None:
    """The home draws and the other looks at it before anybody knows that it takes a mirror."""
    drawn = machine.rig.gpu.submit(commands.submit_3d(ONE, bytes(8)), fenced=True)
    seen = machine.rig.gpu.submit(commands.submit_3d(OTHER, bytes(12)), fenced=True)
    machine.until(lambda: machine.rig.plane.progress(asked.other.lane).backlog > 1, "both submits at the plane")
    assert quiet(machine, asked.home) and quiet(machine, asked.other)
    asked.complete(Status.FAILED)
    for worker in (asked.home, asked.other):
        given(machine, worker, StorageKind.MIRROR).close()
    kinds = []
    for _ in range(3):
        record = asked.home.wait()
        kinds.append(record.type)
        if record.flags:
            asked.home.complete(record.seq)
    machine.pump()
    assert kinds[:2] == [1, 5]  # the submit, and the copy of what it drew
    copied, submit = asked.other.wait(), asked.other.wait()
    assert (copied.type, submit.type, len(submit.payload)) == (6, 1, 12)
    asked.other.complete(submit.seq)
    machine.until(lambda: drawn.done and seen.done, "both submits")


@with_gpu
def test_the_home_dies_before_it_has_answered(machine: Machine, asked: Asked) -> None:
    machine.lose(ONE)
    assert isinstance(answered(machine, asked.other), AttachResource)  # one of its own, and empty
    machine.until(lambda: asked.attach.done, "the attach")
    assert (asked.resource.lost, asked.resource.home, asked.resource.policy) == (True, OTHER, Policy.WORKER_LOCAL)
    assert quiet(machine, asked.other)


@with_gpu
def test_the_home_dies_and_several_wait(machine: Machine, asked: Asked) -> None:
    third = machine.context(THIRD)
    machine.submit(attach(THIRD))
    machine.lose(ONE)
    with given(machine, asked.other, StorageKind.MIRROR) as fd, given(machine, third, StorageKind.MIRROR) as theirs:
        assert same_file(fd, theirs)
    assert (asked.resource.lost, asked.resource.policy) == (True, Policy.MIRRORED)


@with_gpu
def test_what_was_exported_survives_its_home(machine: Machine, asked: Asked) -> None:
    fd = asked.say()
    worker = machine.lane_worker(asked.home)
    machine.supervisor.listen(worker)  # its last words
    machine.lose(ONE)
    with fd, given(machine, asked.other, StorageKind.MEMFD) as theirs:
        assert same_file(fd, theirs)
    assert (asked.resource.lost, asked.resource.policy, asked.resource.home) == (False, Policy.EXPORTED, OTHER)


@with_gpu
@pytest.mark.parametrize("how", ["dies", "is destroyed"])
def test_who_waits_goes_away(machine: Machine, asked: Asked, how: str) -> None:
    if how == "dies":
        machine.lose(OTHER)
    else:
        machine.ok(commands.ctx_destroy(OTHER))
    asked.say().close()
    asked.complete()
    finish(machine, asked.other)
    machine.until(lambda: asked.attach.done, "the attach")
    assert asked.resource.contexts == [ONE] and asked.resource.policy is Policy.EXPORTED
    assert not asked.doomed()


@with_gpu
@pytest.mark.parametrize("first", ["detach", "unref", "destroy"])
def test_what_the_guest_does_while_the_home_is_asked(machine: Machine, asked: Asked, first: str) -> None:
    """What was attached is attached, and detached where the guest says so."""
    if first == "detach":
        for ctx_id in (OTHER, ONE):
            machine.submit(commands.ctx_detach_resource(ctx_id, 1))
    elif first == "unref":
        machine.ok(commands.resource_unref(1), commands.resource_create_3d(1, PICTURE))
    else:
        machine.ok(commands.ctx_destroy(ONE))
        machine.submit(commands.ctx_detach_resource(OTHER, 1))
    assert not asked.attach.done
    asked.say().close()
    asked.complete()
    given(machine, asked.other, StorageKind.MEMFD).close()
    finish(machine, asked.home)  # what it was sent before it had to let go
    assert answered(machine, asked.other) == DetachResource(1)
    assert asked.resource.contexts == [] and quiet(machine, asked.other)
    if first == "unref":
        assert asked.resource.storage is None and machine.table.get(1).policy is Policy.WORKER_LOCAL


@with_gpu
def test_a_reset_while_the_home_is_asked(machine: Machine, asked: Asked) -> None:
    machine.dispatcher.reset()
    asked.complete(Status.FAILED)
    machine.until(lambda: asked.attach.done, "the attach")
    assert len(machine.table) == 0 and asked.resource.storage is None


@with_gpu
def test_storage_for_the_display(machine: Machine) -> None:
    got: list[object] = []
    worker = machine.context(ONE)
    machine.ok(commands.resource_create_3d(1, PICTURE))
    resource = machine.table.get(1)
    machine.contexts.obtain_storage(resource, got.append)
    assert got == [None]  # nobody has it
    machine.ok(attach(ONE))
    answered(machine, worker)
    machine.contexts.obtain_storage(resource, got.append)
    machine.contexts.obtain_storage(resource, got.append)  # who is asked already is not asked again
    record, question = told(machine, worker)
    assert isinstance(question, ObjectToResource) and len(got) == 1
    with memory() as fd:
        machine.say(worker, exported(question.ticket), fd)
    worker.complete(record.seq)
    machine.until(lambda: len(got) == 3, "the storage")
    assert resource.storage is not None and got[1:] == [resource.storage] * 2
    machine.contexts.obtain_storage(resource, got.append)
    assert got[3] is resource.storage


# --- lies -----------------------------------------------------------------------------------------------------------


def a_socket() -> OwnedFd:
    ours, theirs = socket.socketpair()
    theirs.close()
    return OwnedFd(ours.detach())


def a_path() -> OwnedFd:
    with memory() as fd:
        return OwnedFd(os.open(f"/proc/self/fd/{fd.fd}", os.O_PATH))


@with_gpu
@pytest.mark.parametrize(
    ("fd", "other"),
    [
        (a_socket, {}),
        (a_socket, {"kind": StorageKind.DMABUF}),
        (a_path, {}),
        (memory, {"kind": StorageKind.DMABUF}),
        (memory, {"kind": StorageKind.MIRROR}),
        (lambda: memory(seals=fcntl.F_SEAL_GROW), {}),
        (lambda: memory(seals=0), {}),
        (lambda: memory(NBYTES - 1), {}),
        (lambda: memory(NBYTES - 1), {"nbytes": NBYTES - 1}),
        (lambda: memory(1 << 40), {"nbytes": 1 << 40}),
        (memory, {"offset": 1}),
        (memory, {"offset": 1 << 63, "stride": 0, "fourcc": 0}),
        (memory, {"stride": STRIDE + 1}),
        (memory, {"stride": STRIDE - 4}),
        (memory, {"stride": 0}),
        (memory, {"map_info": 4}),
    ],
    ids=[
        "a socket", "a socket for a dma-buf", "a path", "memory for a dma-buf", "a mirror", "it can shrink", "no seals",
        "a short file", "too few bytes", "huge", "ends outside", "begins outside", "rows end outside", "rows overlap",
        "no rows", "an unknown way to map",
    ],
)  # fmt: skip
def test_a_lying_home_is_killed_and_the_other_served(
    machine: Machine, asked: Asked, fd: Callable[[], OwnedFd], other: dict[str, object]
) -> None:
    asked.say(fd(), **other).close()
    asked.home.complete(asked.record.seq)
    machine.until(asked.doomed, "the end of the home")
    machine.lose(ONE)
    assert isinstance(answered(machine, asked.other), AttachResource)
    machine.until(lambda: asked.attach.done, "the attach")
    assert machine.lane_worker(asked.other).doom is None


@with_gpu
@pytest.mark.parametrize(
    ("fd", "status"), [(memory, Status.FAILED), (None, Status.OK)], ids=["failed with an object", "done with nothing"]
)
def test_an_answer_that_is_none(
    machine: Machine, asked: Asked, fd: Callable[[], OwnedFd] | None, status: Status
) -> None:
    if fd is not None:
        asked.say(fd()).close()
        machine.supervisor.listen(machine.lane_worker(asked.home))
    asked.complete(status)
    assert asked.doomed()


@with_gpu
@pytest.mark.parametrize("lie", ["another ticket", "twice", "from another", "afterwards", "a blob"])
def test_answers_that_nobody_asked_for(machine: Machine, asked: Asked, lie: str) -> None:
    worker = asked.other if lie == "from another" else asked.home
    message: Message = exported(asked.ticket + 1 if lie == "another ticket" else asked.ticket)
    if lie in ("twice", "afterwards"):
        asked.say().close()
    if lie == "afterwards":
        asked.complete()
    if lie == "a blob":
        message = BlobObject(1, **asdict(asked.resource.texture), offset=0, stride=STRIDE, fourcc=0, modifier=0)
    with memory() as fd:
        try:
            machine.say(worker, message, fd if isinstance(message, Exported) else None)
        except PermissionError:
            assert lie == "from another"  # it was never asked for a descriptor, so the kernel keeps it from sending any
            return
    machine.supervisor.listen(machine.lane_worker(worker))
    doom = machine.lane_worker(worker).doom
    assert doom is not None and doom.kind is CauseKind.PROTOCOL


def waits(pending: Pending) -> bool:
    return not pending.done


def test_a_worker_that_takes_no_descriptors_holds_answers_back(machine: Machine) -> None:
    """Their number is bounded by what the guest may have open."""
    machine.ok(commands.resource_create_2d(1, Format.B8G8R8X8, SIZE, SIZE))
    machine.context(ONE)
    attach_it, detach_it = attach(ONE), commands.ctx_detach_resource(ONE, 1)
    held: list[Pending] = []
    sent = 0
    while len(held) < 4:
        pending = machine.submit(attach_it)
        held += [pending] if waits(pending) else []
        sent += 1
        assert sent < 10_000
        machine.submit(detach_it)
    assert sent > 64  # descriptors that may wait
    machine.lose(ONE)
    machine.until(lambda: not any(waits(pending) for pending in held), "the answers that were held back")
    assert {pending.response.type for pending in held} == {Resp.ERR_UNSPEC}
