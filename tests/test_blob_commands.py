"""Blob resources: what the guest is answered, what its workers and its front end are asked. All three are played."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ipc.messages import (
    CONTROL,
    AttachResource,
    BlobObject,
    CreateBlob,
    DetachResource,
    Exported,
    Message,
    ObjectToResource,
    ResourceToObject,
    decode,
)
from master.blame import CauseKind
from master.virtio_gpu import Feature
from native.dataplane import Status
from native.owned_fd import OwnedFd
from native.storage import StorageKind
from resource_table import Abilities, Policy
from tests.dispatch_lab import Machine, dispatch_machine
from tests.fake_vmm import BlobFlag, BlobMem, Format, GpuCommand, Rect, Resp, commands, wire
from tests.fake_vmm.command_queue import Pending
from tests.plane_rig import PlayedWorker, Record

ONE, OTHER = 1, 2
NAME = 7  # of the context's object
PAGE = 4096
SIZE = 2 * PAGE
UNKNOWN = 4711
AB4H = int.from_bytes(b"AB4H", "little")
MAPPABLE = int(BlobFlag.MAPPABLE)
GUEST_HANDLE = int(BlobFlag.CREATE_GUEST_HANDLE)
GPU = Abilities(export=True, import_dmabuf=True)

with_gpu = pytest.mark.parametrize("abilities", [GPU], ids=["gpu"])


@pytest.fixture
def abilities() -> Abilities:
    """What the machine's workers can do."""
    return Abilities()


@pytest.fixture
def machine(abilities: Abilities) -> Iterator[Machine]:
    with dispatch_machine(abilities) as machine:
        yield machine


def host_blob(resource_id: int = 1, flags: int = MAPPABLE, size: int = SIZE, ctx_id: int = ONE) -> GpuCommand:
    return commands.resource_create_blob(resource_id, BlobMem.HOST3D, flags, size, ctx_id=ctx_id, blob_id=NAME)


def guest_blob(machine: Machine, resource_id: int = 1, flags: int = 0, size: int = SIZE) -> GpuCommand:
    pages = [(machine.rig.memory.allocate(PAGE), PAGE) for _ in range(SIZE // PAGE)]
    return commands.resource_create_blob(resource_id, BlobMem.GUEST, flags, size, segments=pages)


def told(machine: Machine, worker: PlayedWorker) -> tuple[Record, Message]:
    """The next thing that the worker is told."""
    records: list[Record] = []

    def look() -> bool:
        if not records and (record := worker.take()) is not None:
            records.append(record)
        return bool(records)

    machine.until(look, "a record")
    return records[0], decode(records[0].payload, CONTROL)


def described(resource_id: int = 1, **other: int) -> BlobObject:
    """A buffer of the blob's size."""
    return replace(
        BlobObject(
            resource_id, target=0, format=64, bind=16, width=SIZE, height=1, depth=1, array_size=1, last_level=0,
            nr_samples=0, flags=0, offset=0, stride=0, fourcc=0, modifier=0,
        ),
        **other,
    )  # fmt: skip


class Making:
    """A blob that a context's worker is being asked to make."""

    def __init__(self, machine: Machine, command: GpuCommand | None = None) -> None:
        self.machine = machine
        self.worker = machine.context(ONE)
        self.pending = machine.submit(command or host_blob())
        self.record, message = told(machine, self.worker)
        assert isinstance(message, CreateBlob) and (message.resource_id, message.blob_id) == (1, NAME)
        self.message = message
        self.resource = machine.table.get(1)

    def say(self, **other: int) -> None:
        """It says what it made."""
        self.machine.say(self.worker, described(**other))

    def complete(self, status: Status = Status.OK) -> Resp:
        """Its answer, and so ours."""
        self.worker.complete(self.record.seq, status)
        self.machine.until(lambda: self.pending.done, "the answer to RESOURCE_CREATE_BLOB")
        return Resp(self.pending.response.type)

    def made(self) -> OwnedFd:
        """All goes well. The memory that the worker was given."""
        ticket, memory = self.machine.handle(self.worker)
        assert ticket == self.message.ticket
        self.say()
        assert self.complete() is Resp.OK_NODATA
        return memory

    def doomed(self) -> bool:
        """Whether the worker is being killed for what it said."""
        doom = self.machine.lane_worker(self.worker).doom
        return doom is not None and doom.kind is CauseKind.PROTOCOL


# --- what is wrong with it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (commands.resource_create_blob(1, 0, 0, SIZE), Resp.ERR_INVALID_PARAMETER),
        (commands.resource_create_blob(1, 4, 0, SIZE, ctx_id=ONE), Resp.ERR_INVALID_PARAMETER),
        (host_blob(flags=16), Resp.ERR_INVALID_PARAMETER),
        (host_blob(flags=GUEST_HANDLE), Resp.ERR_INVALID_PARAMETER),
        (host_blob(size=0), Resp.ERR_INVALID_PARAMETER),
        (host_blob(size=1 << 60), Resp.ERR_OUT_OF_MEMORY),
        (host_blob(0), Resp.ERR_INVALID_RESOURCE_ID),
        (host_blob(2), Resp.ERR_INVALID_RESOURCE_ID),
        (host_blob(ctx_id=OTHER), Resp.ERR_INVALID_CONTEXT_ID),
        (
            commands.resource_create_blob(
                1, BlobMem.HOST3D, 0, PAGE, ctx_id=ONE, blob_id=NAME, segments=[(0x10000, PAGE)]
            ),
            Resp.ERR_INVALID_PARAMETER,
        ),
        (
            commands.resource_create_blob(
                1, BlobMem.HOST3D_GUEST, 0, SIZE, ctx_id=ONE, blob_id=NAME, segments=[(0x10000, PAGE)]
            ),
            Resp.ERR_INVALID_PARAMETER,
        ),
        (commands.resource_create_blob(1, BlobMem.GUEST, 0, PAGE), Resp.ERR_INVALID_PARAMETER),
        (
            commands.resource_create_blob(1, BlobMem.GUEST, 0, PAGE, blob_id=NAME, segments=[(0x10000, PAGE)]),
            Resp.ERR_INVALID_PARAMETER,
        ),
        (
            commands.resource_create_blob(1, BlobMem.GUEST, 0, PAGE + 1, segments=[(0x10000, PAGE)]),
            Resp.ERR_INVALID_PARAMETER,
        ),
        (
            commands.resource_create_blob(1, BlobMem.GUEST, 0, PAGE, segments=[(1 << 40, PAGE)]),
            Resp.ERR_INVALID_PARAMETER,
        ),
        (commands.resource_map_blob(UNKNOWN, 0), Resp.ERR_INVALID_RESOURCE_ID),
        (commands.resource_map_blob(2, 0), Resp.ERR_INVALID_PARAMETER),
        (commands.resource_unmap_blob(UNKNOWN), Resp.ERR_INVALID_RESOURCE_ID),
        (commands.resource_unmap_blob(2), Resp.ERR_UNSPEC),
        (
            commands.set_scanout_blob(0, UNKNOWN, Rect(4, 4), (4, 4), Format.B8G8R8X8, [16]),
            Resp.ERR_INVALID_RESOURCE_ID,
        ),
        (commands.set_scanout_blob(0, 2, Rect(4, 4), (4, 4), Format.B8G8R8X8, [16]), Resp.ERR_INVALID_PARAMETER),
        (commands.set_scanout_blob(1, 0, Rect(0, 0), (0, 0), 0, []), Resp.ERR_INVALID_SCANOUT_ID),
        (commands.set_scanout_blob(0, 0, Rect(0, 0), (0, 0), 0, []), Resp.OK_NODATA),
    ],
)
def test_answers_at_once(machine: Machine, command: GpuCommand, code: Resp) -> None:
    machine.context(ONE)
    machine.ok(commands.resource_create_2d(2, Format.B8G8R8X8, 8, 8))
    assert machine.code(command) is code
    assert len(machine.table) == 1


@pytest.mark.parametrize(
    "command",
    [
        host_blob(),
        commands.resource_map_blob(1, 0),
        commands.resource_unmap_blob(1),
        commands.set_scanout_blob(0, 0, Rect(0, 0), (0, 0), 0, []),
    ],
    ids=lambda command: command.name,
)
def test_what_was_not_negotiated(machine: Machine, command: GpuCommand) -> None:
    machine.context(ONE)
    machine.guest.features &= ~Feature.RESOURCE_BLOB
    assert machine.code(command) is Resp.ERR_UNSPEC
    assert len(machine.table) == 0


# --- of the guest ---------------------------------------------------------------------------------------------------


def test_a_guest_blob_is_nothing_to_a_worker_that_cannot_see_its_pages(machine: Machine) -> None:
    worker = machine.context(ONE)
    machine.ok(guest_blob(machine), commands.ctx_attach_resource(ONE, 1))
    resource = machine.table.get(1)
    assert (resource.policy, resource.contexts, resource.storage) == (Policy.GUEST_ONLY, [ONE], None)
    assert machine.submit(commands.ctx_attach_resource(ONE, 1), fenced=True).done
    machine.ok(commands.transfer_to_host_2d(1, Rect(1, 1)))  # its pages are what is shown
    machine.ok(commands.ctx_detach_resource(ONE, 1), commands.resource_unref(1))
    assert worker.take() is None and len(machine.table) == 0


@with_gpu
def test_a_guest_blob_with_a_descriptor_is_imported(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.table._udmabuf, "create", lambda *_: OwnedFd(os.memfd_create("pages")))
    worker = machine.context(ONE)
    machine.ok(guest_blob(machine, flags=GUEST_HANDLE), commands.ctx_attach_resource(ONE, 1))
    _, message = told(machine, worker)
    assert isinstance(message, ResourceToObject)
    assert (message.kind, message.width, message.nbytes) == (StorageKind.DMABUF, 0, SIZE)
    ticket, fd = machine.handle(worker)
    fd.close()
    assert ticket == message.ticket
    machine.ok(commands.resource_detach_backing(1))  # and with it the dma-buf; the worker has it still
    machine.ok(commands.ctx_detach_resource(ONE, 1))
    assert told(machine, worker)[1] == DetachResource(1)


def test_a_handle_that_cannot_be_made(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.table._udmabuf, "create", lambda *_: None)
    assert machine.code(guest_blob(machine, flags=GUEST_HANDLE)) is Resp.ERR_UNSPEC
    assert len(machine.table) == 0
    machine.ok(guest_blob(machine))


def test_a_guest_blob_is_not_mapped(machine: Machine) -> None:
    machine.ok(guest_blob(machine, flags=MAPPABLE))
    assert machine.code(commands.resource_map_blob(1, 0)) is Resp.ERR_INVALID_PARAMETER


# --- of the host ----------------------------------------------------------------------------------------------------


def test_a_blob_lies_in_memory_of_ours(machine: Machine) -> None:
    making = Making(machine)
    assert not making.pending.done and making.message.nbytes == SIZE
    with making.made() as memory:
        assert os.fstat(memory.fd).st_size == SIZE
        assert fcntl.fcntl(memory.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        resource = making.resource
        assert resource.fd is not None and os.path.sameopenfile(memory.fd, resource.fd.fd)
    assert (resource.policy, resource.contexts, resource.home) == (Policy.HOST_BLOB, [ONE], ONE)
    assert resource.v1 is not None and resource.v1.width == SIZE
    machine.ok(commands.ctx_attach_resource(ONE, 1))  # as Linux does, though it has it
    other = machine.context(OTHER)
    machine.ok(commands.ctx_attach_resource(OTHER, 1))
    _, message = told(machine, other)
    assert isinstance(message, ResourceToObject) and (message.kind, message.width) == (StorageKind.MEMFD, SIZE)
    machine.handle(other)[1].close()
    machine.lose(ONE)
    assert not resource.lost and resource.home == OTHER


def test_an_attach_waits_until_it_is_known_what_the_blob_is(machine: Machine) -> None:
    making, other = Making(machine), machine.context(OTHER)
    attach = machine.submit(commands.ctx_attach_resource(OTHER, 1))
    assert not attach.done and other.take() is None
    making.made().close()
    record, message = told(machine, other)
    assert isinstance(message, ResourceToObject) and message.width == SIZE
    machine.handle(other)[1].close()
    other.complete(record.seq)
    machine.until(lambda: attach.done, "the attach")
    assert attach.response.ok


@pytest.mark.parametrize("how", ["fails", "dies"])
def test_a_blob_that_is_not_made_never_was(machine: Machine, how: str) -> None:
    making, other = Making(machine), machine.context(OTHER)
    attach = machine.submit(commands.ctx_attach_resource(OTHER, 1))
    mapping = machine.submit(commands.resource_map_blob(1, 0))
    if how == "fails":
        making.worker.complete(making.record.seq, Status.INVALID_PARAMETER)
    else:
        machine.lose(ONE)
    machine.until(lambda: making.pending.done and attach.done and mapping.done, "three answers")
    created = Resp.ERR_INVALID_PARAMETER if how == "fails" else Resp.ERR_UNSPEC
    assert [Resp(each.response.type) for each in (making.pending, attach, mapping)] == [
        created, Resp.ERR_INVALID_RESOURCE_ID, Resp.ERR_UNSPEC,
    ]  # fmt: skip
    assert len(machine.table) == 0 and other.take() is None
    assert not machine.contexts.get(OTHER).resources and not making.doomed()
    machine.ok(commands.resource_create_2d(1, Format.B8G8R8X8, 8, 8))  # the plane has forgotten it, too


def test_an_id_is_used_again_before_the_first_blob_is_made(machine: Machine) -> None:
    making = Making(machine)
    machine.ok(commands.resource_unref(1))
    again = machine.submit(host_blob())
    (_, detach), (second, create) = told(machine, making.worker), told(machine, making.worker)
    assert detach == DetachResource(1) and isinstance(create, CreateBlob)
    making.say()
    making.say()
    making.worker.complete(making.record.seq)
    making.worker.complete(second.seq)
    machine.until(lambda: making.pending.done and again.done, "two answers")
    assert again.response.ok and not making.doomed()
    assert machine.table.get(1).v1 is not None


def test_the_guest_gives_it_up_before_it_is_made(machine: Machine) -> None:
    making = Making(machine)
    machine.ok(commands.resource_unref(1), commands.resource_create_2d(1, Format.B8G8R8X8, 8, 8))
    assert making.complete(Status.FAILED) is Resp.ERR_UNSPEC
    assert told(machine, making.worker)[1] == DetachResource(1)
    assert machine.table.get(1) is not making.resource and making.resource.storage is None


@pytest.mark.parametrize(
    "lie",
    [
        {"width": SIZE + 1},
        {"offset": 1},
        {"target": 99},
        {"resource_id": 2},
        {"target": 2, "format": 1, "width": 64, "height": 64, "stride": 256},
        {"target": 2, "format": 1, "width": 64, "height": 16, "stride": 64},
        {"target": 2, "format": 64, "width": 64, "height": 16, "stride": 64, "fourcc": AB4H},
        {"target": 2, "format": 64, "width": 64, "height": 16, "stride": 64, "modifier": 1},
    ],
    ids=str,
)
def test_a_worker_that_lies_about_what_it_made(machine: Machine, lie: dict[str, int]) -> None:
    making = Making(machine)
    making.say(**lie)
    making.worker.complete(making.record.seq)
    machine.until(making.doomed, "the end of the worker")
    machine.until(lambda: making.pending.done, "the answer")
    assert making.pending.response.type == Resp.ERR_UNSPEC and len(machine.table) == 0


def test_a_worker_that_says_nothing_of_what_it_made(machine: Machine) -> None:
    making = Making(machine)
    assert making.complete() is Resp.ERR_UNSPEC
    assert making.doomed() and len(machine.table) == 0


@with_gpu
@pytest.mark.parametrize("status", [Status.OK, Status.FAILED])
def test_a_drivers_own_memory_is_exported(machine: Machine, status: Status) -> None:
    making = Making(machine)
    assert making.message.ticket == 0
    making.say()
    assert making.complete() is Resp.OK_NODATA
    record, question = told(machine, making.worker)
    assert isinstance(question, ObjectToResource)
    attach: Pending | None = None
    other = machine.context(OTHER)
    attach = machine.submit(commands.ctx_attach_resource(OTHER, 1))
    if status is Status.OK:
        with OwnedFd(os.memfd_create("object", os.MFD_ALLOW_SEALING)) as fd:
            os.ftruncate(fd.fd, SIZE)
            fcntl.fcntl(fd.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            machine.say(making.worker, Exported(question.ticket, StorageKind.MEMFD, SIZE, 0, 0, 0, 0, 1), fd)
    making.worker.complete(record.seq, status)
    _, message = told(machine, other)
    assert isinstance(message, ResourceToObject) and not attach.done
    assert message.kind is (StorageKind.MEMFD if status is Status.OK else StorageKind.MIRROR)
    machine.handle(other)[1].close()


@with_gpu
def test_a_blob_larger_than_its_object_is_the_guests_mistake(machine: Machine) -> None:
    making = Making(machine)
    making.say(width=64)
    assert making.complete() is Resp.OK_NODATA
    record, question = told(machine, making.worker)
    assert isinstance(question, ObjectToResource)
    with OwnedFd(os.memfd_create("object", os.MFD_ALLOW_SEALING)) as fd:
        os.ftruncate(fd.fd, 64)
        fcntl.fcntl(fd.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        machine.say(making.worker, Exported(question.ticket, StorageKind.MEMFD, 64, 0, 0, 0, 0, 1), fd)
    making.worker.complete(record.seq)
    mapping = machine.submit(commands.resource_map_blob(1, 0))
    machine.until(lambda: mapping.done, "the answer")
    assert not mapping.response.ok and not making.doomed() and making.resource.storage is None


def test_contexts_of_one_worker_have_one_object(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    making = Making(machine)
    monkeypatch.setattr(machine.supervisor, "take", lambda: machine.lane_worker(making.worker))
    machine.ok(commands.ctx_create(OTHER))
    told(machine, making.worker)
    attach = machine.submit(commands.ctx_attach_resource(OTHER, 1))
    _, message = told(machine, making.worker)
    assert attach.done and isinstance(message, AttachResource)  # of what is there by then


# --- mapped ---------------------------------------------------------------------------------------------------------


class PlayedChannel:
    """The front end's side of HostWindow: what it was asked, answered when the test says so."""

    closed = False

    def __init__(self) -> None:
        self.asked: list[tuple[int, OwnedFd | None]] = []
        self._replies: list[object] = []

    def request(self, request: int, _payload: bytes, *, fd: OwnedFd | None = None, on_reply: object = None) -> None:
        self.asked.append((request, fd))
        self._replies.append(on_reply)

    def reply(self, ok: bool = True) -> None:
        """To what it was asked first."""
        _, fd = self.asked.pop(0)
        if fd is not None:
            fd.close()
        on_reply = self._replies.pop(0)
        assert callable(on_reply)
        on_reply(ok)

    def read_answers(self) -> None:
        pass


@pytest.fixture
def front_end(machine: Machine) -> PlayedChannel:
    channel = PlayedChannel()
    machine.window.channel = channel  # type: ignore[assignment]
    return channel


MAP, UNMAP = 9, 10  # vhost-user's SHMEM_MAP and SHMEM_UNMAP


def test_map_and_unmap(machine: Machine, front_end: PlayedChannel) -> None:
    Making(machine).made().close()
    pending = machine.submit(commands.resource_map_blob(1, PAGE))
    ((request, _),) = front_end.asked
    assert request == MAP and not pending.done
    front_end.reply()
    response = machine.rig.gpu.wait(pending)
    assert isinstance(response, wire.MapInfo) and response.caching == 1
    assert machine.code(commands.resource_map_blob(1, 4 * PAGE)) is Resp.ERR_UNSPEC  # it is mapped
    pending = machine.submit(commands.resource_unmap_blob(1))
    assert [request for request, _ in front_end.asked] == [UNMAP] and not pending.done
    machine.ok(commands.resource_unref(1))  # as Linux does, without waiting
    front_end.reply()
    assert machine.rig.gpu.wait(pending).ok and not front_end.asked


def test_a_front_end_that_refuses(machine: Machine, front_end: PlayedChannel) -> None:
    Making(machine).made().close()
    pending = machine.submit(commands.resource_map_blob(1, 0))
    front_end.reply(ok=False)
    assert machine.rig.gpu.wait(pending).type == Resp.ERR_UNSPEC


@pytest.mark.parametrize("offset", [1, 1 << 20, 1 << 63])
def test_offsets_that_are_none(machine: Machine, front_end: PlayedChannel, offset: int) -> None:
    Making(machine).made().close()
    assert machine.code(commands.resource_map_blob(1, offset)) is Resp.ERR_INVALID_PARAMETER


def test_unref_unmaps(machine: Machine, front_end: PlayedChannel) -> None:
    Making(machine).made().close()
    pending = machine.submit(commands.resource_map_blob(1, 0))
    front_end.reply()
    assert machine.rig.gpu.wait(pending).ok
    machine.ok(commands.resource_unref(1))
    assert [request for request, _ in front_end.asked] == [UNMAP]
    front_end.reply()
    assert len(machine.window) == 0


def test_a_map_waits_for_the_blob(machine: Machine, front_end: PlayedChannel) -> None:
    making = Making(machine)
    pending = machine.submit(commands.resource_map_blob(1, 0))
    assert not front_end.asked
    making.made().close()
    machine.until(lambda: front_end.asked, "the question to the front end")
    front_end.reply()
    assert machine.rig.gpu.wait(pending).ok


def test_only_what_is_to_be_mapped_is(machine: Machine, front_end: PlayedChannel) -> None:
    Making(machine, host_blob(flags=0)).made().close()
    assert machine.code(commands.resource_map_blob(1, 0)) is Resp.ERR_INVALID_PARAMETER
    assert not front_end.asked


def test_a_reset_unmaps_nothing_by_itself(machine: Machine, front_end: PlayedChannel) -> None:
    """The device forgets the mappings first: the front end has dropped them."""
    Making(machine).made().close()
    pending = machine.submit(commands.resource_map_blob(1, 0))
    front_end.reply()
    assert machine.rig.gpu.wait(pending).ok
    machine.window.forget()
    machine.dispatcher.reset()
    assert not front_end.asked and len(machine.table) == 0
