"""master.turns: transfers to 2D resources that contexts have, among what the contexts are sent; workers are played."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from native.texture import MIRROR_HEADER_BYTES
from tests.dispatch_lab import SIZE, Machine, dispatch_machine
from tests.fake_vmm import Format, GpuCommand, Rect, Resp, commands
from tests.fake_vmm.command_queue import Pending
from tests.plane_rig import Record

ONE = 1
PICTURE = 1
NBYTES = 4 * SIZE * SIZE
SUBMIT, FENCE, COPY_OUT, COPY_IN = 1, 4, 5, 6


class Dumb:
    """A 2D resource, all zeros, which context ONE has; the worker has used it and is at work."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        machine.ok(commands.resource_create_2d(PICTURE, Format.B8G8R8X8, SIZE, SIZE))
        self.gpa = machine.backed(PICTURE)
        self.worker = machine.context(ONE)
        machine.ok(commands.ctx_attach_resource(ONE, PICTURE))
        machine.pump()
        _, self.mirror = machine.handle(self.worker)
        attach = self.worker.wait()
        self.worker.complete(attach.seq)
        self.busy = self.at_work()

    def at_work(self) -> Record:
        """A submit that has not been finished."""
        self.machine.rig.gpu.submit(commands.submit_3d(ONE, bytes(8)), fenced=True)
        copy, submit = self.worker.wait(), self.worker.wait()
        assert (copy.type, submit.type) == (COPY_IN, SUBMIT)
        return submit

    def transfer(self, byte: int, rect: Rect | None = None) -> Pending:
        """What guest memory holds then is what counts: the guest may not write there before the answer."""
        self.machine.rig.memory.write(self.gpa, bytes([byte]) * NBYTES)
        return self.machine.submit(commands.transfer_to_host_2d(PICTURE, rect or Rect(SIZE, SIZE)))

    def first_byte(self) -> int:
        return os.pread(self.mirror.fd, 1, MIRROR_HEADER_BYTES)[0]

    def version(self) -> int:
        return int.from_bytes(os.pread(self.mirror.fd, 8, 0), "little")

    def finish(self, *records: Record) -> None:
        for record in records:
            self.worker.complete(record.seq)

    def types(self) -> list[int]:
        """What the worker has been sent since."""
        self.machine.pump()
        found = []
        while (record := self.worker.take()) is not None:
            found.append(record.type)
        return found


@pytest.fixture
def machine() -> Iterator[Machine]:
    with dispatch_machine() as machine:
        yield machine


@pytest.fixture
def dumb(machine: Machine) -> Iterator[Dumb]:
    dumb = Dumb(machine)
    yield dumb
    dumb.mirror.close()


def test_a_transfer_waits_for_what_was_sent_before(dumb: Dumb) -> None:
    version = dumb.version()
    pending = dumb.transfer(7)
    out, point = dumb.worker.wait(), dumb.worker.wait()
    assert (out.type, point.type) == (COPY_OUT, FENCE)
    assert not pending.done and dumb.first_byte() == 0
    dumb.finish(dumb.busy, point)
    dumb.machine.until(lambda: pending.done, "the transfer")
    assert pending.response.ok and dumb.first_byte() == 7 and dumb.version() > version


def test_what_is_sent_later_waits_for_the_transfer(dumb: Dumb) -> None:
    pending = dumb.transfer(7)
    out, point = dumb.worker.wait(), dumb.worker.wait()
    dumb.machine.rig.gpu.submit(commands.submit_3d(ONE, bytes(8)))
    assert dumb.types() == [] and out.type == COPY_OUT
    dumb.finish(dumb.busy, point)
    dumb.machine.until(lambda: pending.done, "the transfer")
    assert dumb.types() == [COPY_IN, SUBMIT]


def test_transfers_are_done_in_their_order(dumb: Dumb) -> None:
    """Also if contexts were sent nothing between them, small ones that the plane would do, and refused ones."""
    first = dumb.transfer(7)
    second = dumb.transfer(8, Rect(1, 1))
    refused = dumb.machine.submit(commands.transfer_to_host_2d(PICTURE, Rect(SIZE, SIZE), 1))
    third = dumb.transfer(9, Rect(1, 1, x=1))
    _out, point = dumb.worker.wait(), dumb.worker.wait()
    assert not any(pending.done for pending in (first, second, refused, third))
    dumb.finish(dumb.busy, point)
    dumb.machine.until(lambda: third.done, "the last transfer")
    assert [pending.response.type for pending in (first, second, refused, third)] == [
        Resp.OK_NODATA, Resp.OK_NODATA, Resp.ERR_INVALID_PARAMETER, Resp.OK_NODATA
    ]  # fmt: skip


def test_the_plane_does_small_ones_when_nobody_is_at_it(machine: Machine) -> None:
    machine.ok(commands.resource_create_2d(PICTURE, Format.B8G8R8X8, SIZE, SIZE))
    gpa = machine.backed(PICTURE)
    worker = machine.context(ONE)
    machine.ok(commands.ctx_attach_resource(ONE, PICTURE))
    machine.rig.memory.write(gpa, b"\x05" * NBYTES)
    placed = machine.placed()
    machine.ok(commands.transfer_to_host_2d(PICTURE, Rect(1, 1)))
    assert machine.placed() == placed
    _, mirror = machine.handle(worker)
    with mirror:
        assert os.pread(mirror.fd, 1, MIRROR_HEADER_BYTES) == b"\x05"


@pytest.mark.parametrize("how", ["dies", "is destroyed", "gives it back"])
def test_the_context_goes_away_meanwhile(dumb: Dumb, how: str) -> None:
    pending = dumb.transfer(7)
    _out, point = dumb.worker.wait(), dumb.worker.wait()
    if how == "dies":
        dumb.machine.lose(ONE)
    else:
        away = commands.ctx_destroy(ONE) if how == "is destroyed" else commands.ctx_detach_resource(ONE, PICTURE)
        dumb.machine.submit(away)
        dumb.finish(dumb.busy, point)
    dumb.machine.until(lambda: pending.done, "the transfer")
    assert pending.response.ok and dumb.first_byte() == 7


@pytest.mark.parametrize(
    "command",
    [commands.resource_unref(PICTURE), commands.resource_detach_backing(PICTURE)],
    ids=lambda command: command.name.lower(),
)
def test_the_guest_takes_it_away_meanwhile(dumb: Dumb, command: GpuCommand) -> None:
    pending = dumb.transfer(7)
    _out, point = dumb.worker.wait(), dumb.worker.wait()
    taking = dumb.machine.submit(command)
    dumb.machine.until(lambda: pending.done and taking.done, "both")
    assert pending.response.ok and taking.response.ok and dumb.first_byte() == 7, "done before, though not in its turn"
    dumb.finish(dumb.busy, point)
    dumb.types()
    assert dumb.first_byte() == 7


def test_a_reset_meanwhile(dumb: Dumb) -> None:
    pending = dumb.transfer(7)
    dumb.machine.dispatcher.reset()
    dumb.machine.until(lambda: pending.done, "the transfer")
    assert not pending.response.ok
    dumb.machine.ok(commands.resource_create_2d(PICTURE, Format.B8G8R8X8, SIZE, SIZE))
