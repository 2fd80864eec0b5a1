"""Pixels come when what was drawn is complete, whoever lives by then: a real dispatcher and plane, played workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from master.picture_source import MAX_SYNCS
from master.wire import Rect
from native.dataplane import Status
from native.texture import Texture
from resource_table import Abilities, Policy
from tests.dispatch_lab import PIXEL_BYTES, SIZE, Machine, dispatch_machine
from tests.fake_vmm import Format, ResourceDescription, commands
from tests.fake_vmm import Rect as GuestRect
from tests.plane_rig import PlayedWorker, Record
from tests.scanout_lab import RecordingDisplay

ONE = 1
SHARED, RENDER_TARGET = 1 << 20, 1 << 1
WHOLE = GuestRect(SIZE, SIZE)
DRAWN = ResourceDescription(SIZE, SIZE, format=Format.B8G8R8X8, bind=SHARED | RENDER_TARGET)
LOCAL = ResourceDescription(SIZE, SIZE, format=Format.B8G8R8X8, bind=RENDER_TARGET)


class Watched:
    """A machine with a display."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.display = RecordingDisplay()
        machine.scanouts.use(self.display)

    def draws(self, worker: PlayedWorker, ctx_id: int) -> int:
        """A context is sent work that its worker has not finished; the record's number."""
        self.machine.rig.gpu.submit(commands.submit_3d(ctx_id, bytes(4)), fenced=True)
        return self.record(worker).seq

    def record(self, worker: PlayedWorker) -> Record:
        """The next record that the worker is sent."""
        records: list[Record] = []

        def has_come() -> bool:
            records.extend(filter(None, [worker.take()]))
            return bool(records)

        self.machine.until(has_come, "a record")
        return records[0]

    def shows(self, resource_id: int) -> None:
        """The guest shows the whole of it."""
        self.machine.ok(commands.set_scanout(0, resource_id, WHOLE), commands.resource_flush(resource_id, WHOLE))

    def attached(self, what: ResourceDescription) -> PlayedWorker:
        """Resource 1 and context ONE, which has it; its worker."""
        worker = self.machine.context(ONE)
        self.machine.ok(commands.resource_create_3d(1, what), commands.ctx_attach_resource(ONE, 1))
        worker.complete(self.record(worker).seq)
        return worker

    def until(self, condition: Callable[[], bool], awaited: str, worker: PlayedWorker | None = None) -> None:
        """The worker, if there is one, finishes all it is sent meanwhile."""

        def is_so() -> bool:
            while worker is not None and (record := worker.take()) is not None:
                worker.complete(record.seq)
            return condition()

        self.machine.until(is_so, awaited)

    def until_shown(self, worker: PlayedWorker | None = None, count: int = 1) -> bytes:
        """The pixels of the latest update."""
        self.until(lambda: len(self.display.updates) >= count, "a picture", worker)
        return self.display.by_scanout[0][-1]


@pytest.fixture
def watched() -> Iterator[Watched]:
    with dispatch_machine(Abilities(memfd_images=True)) as machine:
        yield Watched(machine)
        machine.table.clear()


def paint(watched: Watched, resource_id: int, value: int) -> bytes:
    """What a worker draws into storage; the picture."""
    storage = watched.machine.table.get(resource_id).storage
    assert storage is not None
    data = bytes([value]) * PIXEL_BYTES
    os.pwrite(storage.fd.fd, data, storage.layout.offset)
    return data


def test_shared_memory_is_looked_at_when_it_is_drawn(watched: Watched) -> None:
    machine = watched.machine
    worker = watched.attached(DRAWN)
    assert machine.table.get(1).policy is Policy.MASTER_ALLOCATED
    drawing = watched.draws(worker, ONE)
    watched.shows(1)
    machine.pump()
    assert watched.display.updates == []
    picture = paint(watched, 1, 0x11)
    worker.complete(drawing)
    assert watched.until_shown(worker) == picture


def test_what_a_context_drew_before_it_let_go(watched: Watched) -> None:
    machine = watched.machine
    worker = watched.attached(DRAWN)
    drawing = watched.draws(worker, ONE)
    machine.ok(commands.ctx_detach_resource(ONE, 1))
    watched.shows(1)
    machine.pump()
    assert watched.display.updates == []
    picture = paint(watched, 1, 0x22)
    worker.complete(drawing)
    assert watched.until_shown(worker) == picture


def test_storage_survives_who_drew_it(watched: Watched) -> None:
    machine = watched.machine
    worker = watched.attached(DRAWN)
    watched.draws(worker, ONE)
    watched.shows(1)
    machine.lose(ONE)
    picture = paint(watched, 1, 0x33)
    watched.until_shown()
    machine.ok(commands.resource_flush(1, WHOLE))
    assert watched.until_shown(count=2) == picture
    assert not machine.table.get(1).lost


def test_a_picture_that_only_the_dead_had_stays_as_it_was(watched: Watched) -> None:
    machine = watched.machine
    worker = watched.attached(LOCAL)
    watched.shows(1)
    record = watched.record(worker)
    transfer = worker.transfer(record)
    worker.staging[transfer.offset : transfer.offset + transfer.length] = bytes([0x44]) * transfer.length
    worker.complete(record.seq)
    assert watched.until_shown() == bytes([0x44]) * PIXEL_BYTES
    machine.ok(commands.resource_flush(1, GuestRect(8, 8)))
    machine.lose(ONE)
    machine.ok(commands.resource_flush(1, WHOLE))
    machine.pump()
    assert len(watched.display.updates) == 1
    assert watched.display.sizes == [(SIZE, SIZE)]


def test_only_the_damage_is_read_back(watched: Watched) -> None:
    machine = watched.machine
    worker = watched.attached(LOCAL)
    machine.ok(commands.set_scanout(0, 1, WHOLE), commands.resource_flush(1, GuestRect(5, 6, x=7, y=8)))
    record = watched.record(worker)
    transfer = worker.transfer(record)
    assert (transfer.x, transfer.y, transfer.w, transfer.h, transfer.length) == (7, 8, 5, 6, 4 * 5 * 6)
    worker.complete(record.seq, Status.FAILED)
    machine.ok(commands.resource_flush(1, GuestRect(1, 1)))
    record = watched.record(worker)
    worker.complete(record.seq)
    watched.until_shown()
    assert watched.display.updates == [Rect(0, 0, 1, 1)]


def test_a_guest_blob_is_shown_without_a_transfer(watched: Watched) -> None:
    machine = watched.machine
    gpa = machine.rig.memory.allocate(PIXEL_BYTES)
    create = commands.resource_create_blob(1, 1, 0, PIXEL_BYTES, segments=[(gpa, PIXEL_BYTES)])
    machine.ok(create, commands.set_scanout_blob(0, 1, WHOLE, (SIZE, SIZE), Format.B8G8R8X8, [4 * SIZE]))
    for count, value in ((1, 0x55), (2, 0x66)):
        machine.rig.memory.write(gpa, bytes([value]) * PIXEL_BYTES)
        machine.ok(commands.resource_flush(1, WHOLE))
        assert watched.until_shown(count=count) == bytes([value]) * PIXEL_BYTES


def test_so_much_is_waited_for_and_no_more(watched: Watched) -> None:
    machine = watched.machine
    worker = watched.attached(DRAWN)
    drawing = watched.draws(worker, ONE)
    resource = machine.table.get(1)
    heard: list[bool] = []
    for _ in range(MAX_SYNCS):
        machine.pictures.complete(resource, heard.append)
    assert heard == []
    machine.pictures.complete(resource, heard.append)
    assert heard == [False]
    worker.complete(drawing)
    watched.until(lambda: len(heard) > MAX_SYNCS, "the end of all of them", worker)
    assert heard == [False] + [True] * MAX_SYNCS


def test_what_the_plane_does_not_know_is_not_waited_for(watched: Watched) -> None:
    heard: list[bool] = []
    texture = Texture(2, Format.B8G8R8X8, SHARED, 8, 8, 1, 1, 0, 0, 0)
    resource = watched.machine.table.create_3d(2, texture, Abilities(memfd_images=True))
    watched.machine.pictures.complete(resource, heard.append)
    assert heard == [False]
