"""master.dispatch: every command's answer, given by a real dispatcher through a real plane to a played driver.

Workers are played too: what they answer is part of what is tested.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator

import pytest

from ipc.messages import (
    CONTROL,
    AttachResource,
    CreateContext,
    DestroyContext,
    DetachResource,
    Message,
    ResourceToObject,
    decode,
)
from master.dispatch import Dispatcher
from master.virtio_gpu import CONTROL_QUEUE, CURSOR_QUEUE, Feature
from native.dataplane import Command, Status
from native.texture import Rect as NativeRect
from tests.dispatch_lab import CAPSETS, PIXEL_BYTES, SIZE, Machine, control, dispatch_machine
from tests.fake_vmm import Format, GpuCommand, Rect, ResourceDescription, Resp, commands, wire
from tests.fake_vmm.command_queue import Pending
from tests.plane_rig import LIMIT, PlayedWorker

WHOLE = Rect(SIZE, SIZE)
OUTSIDE = Rect(SIZE, SIZE, x=1)
PICTURE = ResourceDescription(SIZE, SIZE)
UNKNOWN = 4711
ONE, OTHER = 1, 2
CONTROL_RECORD = 16  # ring.h


@pytest.fixture
def machine() -> Iterator[Machine]:
    with dispatch_machine() as machine:
        yield machine


def controls(worker: PlayedWorker, count: int) -> list[type[Message]]:
    """What the next control messages are; whatever else the worker is sent, it does."""
    kinds: list[type[Message]] = []
    while len(kinds) < count:
        record = worker.wait()
        if record.type == CONTROL_RECORD:
            kinds.append(type(decode(record.payload, CONTROL)))
        elif record.flags:
            worker.complete(record.seq)
    return kinds


def picture_2d(resource_id: int) -> GpuCommand:
    return commands.resource_create_2d(resource_id, Format.B8G8R8X8, SIZE, SIZE)


# --- what is no command ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 0x0FF, 0x10E, 0x20A, 0x302, 0x1100, 0xFFFFFFFF], ids=hex)
def test_unknown_types(machine: Machine, number: int) -> None:
    assert machine.code(GpuCommand(number, bytes(64))) is Resp.ERR_UNSPEC
    machine.ok(picture_2d(1))  # and all goes on


def test_cut_off_commands(machine: Machine) -> None:
    for request in (picture_2d(1), commands.ctx_create(ONE), commands.set_scanout(0, 0, WHOLE)):
        assert machine.code(request._replace(body=request.body[:-1])) is Resp.ERR_UNSPEC
    assert len(machine.table) == len(machine.contexts) == 0


def test_cursor_commands_on_the_control_queue(machine: Machine) -> None:
    for command in (commands.update_cursor(0, 1, 2, 0), commands.move_cursor(0, 1, 2)):
        assert machine.code(command._replace(response_size=wire.NO_DATA_SIZE)) is Resp.ERR_UNSPEC
    assert not machine.display.cursor


def test_control_commands_on_the_cursor_queue(machine: Machine) -> None:
    pending = machine.rig.gpu.cursor.submit(picture_2d(1))
    machine.until(lambda: machine.placed() == 1, "the command")
    machine.rig.gpu.cursor.reap()
    assert pending.response.type == Resp.ERR_UNSPEC and 1 not in machine.table
    queues = [event.queue for event in machine.rig.events if isinstance(event, Command)]
    assert queues == [CURSOR_QUEUE] != [CONTROL_QUEUE]


# --- questions to the display ---------------------------------------------------------------------------------------

QUESTIONS = [(commands.get_display_info(), Resp.OK_DISPLAY_INFO), (commands.get_edid(0), Resp.OK_EDID)]


@pytest.mark.parametrize(("question", "good"), QUESTIONS, ids=["display info", "EDID"])
def test_the_display_answers_at_once(machine: Machine, question: GpuCommand, good: Resp) -> None:
    assert machine.code(question) is good


def test_what_the_display_said(machine: Machine) -> None:
    info, edid = machine.answer(commands.get_display_info()), machine.answer(commands.get_edid(0))
    assert isinstance(info, wire.DisplayInfo) and [mode.rect for mode in info.enabled] == [Rect(1280, 800)]
    assert isinstance(edid, wire.Edid) and edid.edid == b"edid" * 32
    assert machine.code(commands.get_edid(1)) is Resp.ERR_INVALID_SCANOUT_ID


@pytest.mark.parametrize(("question", "good"), QUESTIONS, ids=["display info", "EDID"])
def test_the_display_answers_late(machine: Machine, question: GpuCommand, good: Resp) -> None:
    machine.display.late = True
    pending = machine.submit(question)
    machine.ok(picture_2d(1))  # nobody waits for the display
    assert not pending.done and len(machine.display.answers) == 1
    queue = machine.rig.gpu.control.queue
    queue.clear_interrupt()
    assert queue.enable_interrupt()
    interrupts = queue.interrupts
    machine.display.answers.pop()()
    assert select.select([queue.call_fd], [], [], LIMIT)[0]  # the guest is told, and does not poll
    queue.clear_interrupt()
    assert queue.interrupts == interrupts + 1
    assert machine.rig.gpu.wait(pending).type == good


@pytest.mark.parametrize("give_up", [Dispatcher.answer_open_questions, Dispatcher.reset])
def test_questions_that_are_given_up(machine: Machine, give_up: Callable[[Dispatcher], None]) -> None:
    machine.display.late = True
    pending = [machine.submit(question) for question, _ in QUESTIONS]
    give_up(machine.dispatcher)
    assert [machine.rig.gpu.wait(each).type for each in pending] == [Resp.ERR_UNSPEC] * 2
    for answer in machine.display.answers:  # too late
        answer()
    give_up(machine.dispatcher)
    assert machine.rig.plane.statistics().responses == 2


# --- capability sets ------------------------------------------------------------------------------------------------


def test_capsets(machine: Machine) -> None:
    for index, capset in enumerate(CAPSETS):
        info = machine.answer(commands.get_capset_info(index))
        assert isinstance(info, wire.CapsetInfo)
        assert (info.capset_id, info.max_version, info.max_size) == (capset.capset_id, capset.version, len(capset.data))
        for version in range(capset.version + 1):
            answer = machine.answer(commands.get_capset(capset.capset_id, version, info.max_size))
            assert isinstance(answer, wire.Capset) and answer.data == capset.data
        newer = commands.get_capset(capset.capset_id, capset.version + 1, info.max_size)
        assert machine.code(newer) is Resp.ERR_INVALID_PARAMETER
    assert machine.code(commands.get_capset_info(len(CAPSETS))) is Resp.ERR_INVALID_PARAMETER
    assert machine.code(commands.get_capset(UNKNOWN, 0, 8)) is Resp.ERR_INVALID_PARAMETER


# --- resources ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (picture_2d(2), Resp.OK_NODATA),
        (picture_2d(0), Resp.ERR_INVALID_RESOURCE_ID),
        (picture_2d(1), Resp.ERR_INVALID_RESOURCE_ID),
        (commands.resource_create_2d(2, 5, SIZE, SIZE), Resp.ERR_INVALID_PARAMETER),
        (commands.resource_create_2d(2, Format.B8G8R8X8, 0, SIZE), Resp.ERR_INVALID_PARAMETER),
        (commands.resource_create_2d(2, Format.B8G8R8X8, SIZE, 0xFFFFFFFF), Resp.ERR_INVALID_PARAMETER),
        (commands.resource_create_3d(2, PICTURE), Resp.OK_NODATA),
        (commands.resource_create_3d(0, PICTURE), Resp.ERR_INVALID_RESOURCE_ID),
        (commands.resource_create_3d(1, PICTURE), Resp.ERR_INVALID_RESOURCE_ID),
        (commands.resource_create_3d(2, ResourceDescription(0)), Resp.ERR_INVALID_PARAMETER),
        (commands.resource_create_3d(2, ResourceDescription(SIZE, target=99)), Resp.ERR_INVALID_PARAMETER),
        (commands.resource_unref(1), Resp.OK_NODATA),
        (commands.resource_unref(0), Resp.ERR_INVALID_RESOURCE_ID),
        (commands.resource_unref(UNKNOWN), Resp.ERR_INVALID_RESOURCE_ID),
        (commands.resource_attach_backing(UNKNOWN, [(0x10000, 4096)]), Resp.ERR_INVALID_RESOURCE_ID),
        (commands.resource_attach_backing(1, [(0x10000, 4096)]), Resp.OK_NODATA),
        (commands.resource_attach_backing(1, []), Resp.ERR_INVALID_PARAMETER),
        (commands.resource_attach_backing(1, [(0x10000, 0)]), Resp.ERR_INVALID_PARAMETER),
        (commands.resource_attach_backing(1, [(1 << 40, 4096)]), Resp.ERR_INVALID_PARAMETER),
        (commands.resource_detach_backing(UNKNOWN), Resp.ERR_INVALID_RESOURCE_ID),
        (commands.resource_detach_backing(1), Resp.ERR_UNSPEC),
        (commands.resource_assign_uuid(1), Resp.OK_RESOURCE_UUID),
        (commands.resource_assign_uuid(UNKNOWN), Resp.ERR_INVALID_RESOURCE_ID),
        (commands.transfer_to_host_2d(UNKNOWN, WHOLE), Resp.ERR_INVALID_RESOURCE_ID),
        (commands.transfer_to_host_2d(1, WHOLE), Resp.ERR_UNSPEC),  # no backing
        (commands.transfer_to_host_2d(1, OUTSIDE), Resp.ERR_INVALID_PARAMETER),
        (commands.set_scanout(0, 1, WHOLE), Resp.OK_NODATA),
        (commands.set_scanout(0, 0, Rect(0, 0)), Resp.OK_NODATA),
        (commands.set_scanout(1, 0, WHOLE), Resp.ERR_INVALID_SCANOUT_ID),
        (commands.set_scanout(1, 1, WHOLE), Resp.ERR_INVALID_SCANOUT_ID),
        (commands.set_scanout(0, UNKNOWN, WHOLE), Resp.ERR_INVALID_RESOURCE_ID),
        (commands.set_scanout(0, 1, OUTSIDE), Resp.ERR_INVALID_PARAMETER),
        (commands.set_scanout(0, 1, Rect(0, SIZE)), Resp.ERR_INVALID_PARAMETER),
        (commands.set_scanout(0, 1, Rect(2, SIZE, x=0xFFFFFFFF)), Resp.ERR_INVALID_PARAMETER),
        (commands.resource_flush(1, WHOLE), Resp.OK_NODATA),
        (commands.resource_flush(1, OUTSIDE), Resp.ERR_INVALID_PARAMETER),
        (commands.resource_flush(UNKNOWN, WHOLE), Resp.ERR_INVALID_RESOURCE_ID),
        (commands.ctx_create(0), Resp.ERR_INVALID_CONTEXT_ID),
        (commands.ctx_create(ONE, context_init=99), Resp.ERR_INVALID_PARAMETER),
        (commands.ctx_destroy(ONE), Resp.ERR_INVALID_CONTEXT_ID),
        (commands.ctx_attach_resource(ONE, 1), Resp.ERR_INVALID_CONTEXT_ID),
        (commands.ctx_detach_resource(ONE, 1), Resp.ERR_INVALID_CONTEXT_ID),
    ],
    ids=lambda value: value.name.lower() if isinstance(value, GpuCommand | Resp) else None,
)
def test_answers_with_one_2d_resource(machine: Machine, command: GpuCommand, code: Resp) -> None:
    machine.ok(picture_2d(1))
    assert machine.code(command) is code


def test_backing_is_attached_once(machine: Machine) -> None:
    machine.ok(picture_2d(1))
    gpa = machine.backed(1)
    attach, detach = commands.resource_attach_backing(1, [(gpa, 4096)]), commands.resource_detach_backing(1)
    assert machine.code(attach) is Resp.ERR_UNSPEC
    machine.ok(detach)
    assert machine.code(detach) is Resp.ERR_UNSPEC
    machine.ok(attach, commands.resource_unref(1))
    assert len(machine.table) == 0


def test_backing_without_guest_memory(machine: Machine) -> None:
    machine.ok(picture_2d(2))
    machine.guest.memory = None
    assert machine.code(commands.resource_attach_backing(2, [(0x10000, 4096)])) is Resp.ERR_UNSPEC


def test_backing_with_fewer_entries_than_counted(machine: Machine) -> None:
    machine.ok(picture_2d(1))
    whole = commands.resource_attach_backing(1, [(0x10000, 4096), (0x20000, 4096)])
    assert isinstance(whole.payload, bytes)
    assert machine.code(whole._replace(payload=whole.payload[:-1])) is Resp.ERR_UNSPEC
    assert machine.table.get(1).iov is None


def test_transfer_2d(machine: Machine) -> None:
    machine.ok(picture_2d(1), commands.resource_create_3d(2, PICTURE))
    gpa = machine.backed(1)
    machine.rig.memory.write(gpa, b"\x11\x22\x33\x44" * (SIZE * SIZE))
    machine.ok(commands.transfer_to_host_2d(1, WHOLE))
    shadow = machine.table.get(1).shadow
    assert shadow is not None
    one_pixel = shadow.to_xrgb(Format.B8G8R8X8, NativeRect(SIZE - 1, SIZE - 1, 1, 1))
    assert bytes(one_pixel)[:3] == b"\x11\x22\x33"
    past = commands.transfer_to_host_2d(1, WHOLE, offset=4)
    assert machine.code(past) is Resp.ERR_INVALID_PARAMETER
    far = commands.transfer_to_host_2d(1, WHOLE, offset=(1 << 64) - 4)
    assert machine.code(far) is Resp.ERR_INVALID_PARAMETER
    assert machine.code(commands.transfer_to_host_2d(2, WHOLE)) is Resp.ERR_INVALID_PARAMETER  # it is not 2D


def test_out_of_memory(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.table, "_max_resources", 1)
    monkeypatch.setattr(machine.table, "_shadow_bytes", PIXEL_BYTES - 1)
    assert machine.code(picture_2d(1)) is Resp.ERR_OUT_OF_MEMORY
    machine.ok(commands.resource_create_3d(1, PICTURE))
    assert machine.code(commands.resource_create_3d(2, PICTURE)) is Resp.ERR_OUT_OF_MEMORY
    machine.supervisor.exhausted = True
    assert machine.code(commands.ctx_create(ONE)) is Resp.ERR_OUT_OF_MEMORY
    machine.supervisor.exhausted = False
    machine.context(ONE)


def test_uuids(machine: Machine) -> None:
    machine.ok(picture_2d(1), picture_2d(2))
    answers = [machine.answer(commands.resource_assign_uuid(number)) for number in (1, 1, 2)]
    assert all(isinstance(answer, wire.ResourceUuid) for answer in answers)
    first, again, other = (answer.uuid for answer in answers if isinstance(answer, wire.ResourceUuid))
    assert first == again != other


def test_what_has_no_pixels_cannot_be_shown(machine: Machine) -> None:
    machine.ok(commands.resource_create_3d(1, ResourceDescription(4096, target=0, format=Format.R8G8B8A8, bind=16)))
    assert machine.code(commands.set_scanout(0, 1, WHOLE)) is Resp.ERR_INVALID_PARAMETER
    assert machine.code(commands.resource_flush(1, WHOLE)) is Resp.ERR_INVALID_PARAMETER


def test_unref_of_what_is_shown(machine: Machine) -> None:
    machine.ok(picture_2d(1), commands.set_scanout(0, 1, WHOLE), commands.resource_unref(1))
    assert machine.display.shown == [(SIZE, SIZE), (0, 0)]


@pytest.mark.parametrize(
    ("feature", "command"),
    [
        (Feature.VIRGL, commands.resource_create_3d(1, PICTURE)),
        (Feature.VIRGL, commands.ctx_create(ONE)),
        (Feature.RESOURCE_UUID, commands.resource_assign_uuid(1)),
    ],
    ids=lambda value: value.name.lower(),
)
def test_what_was_not_negotiated(machine: Machine, feature: Feature, command: GpuCommand) -> None:
    machine.guest.features &= ~feature
    assert machine.code(command) is Resp.ERR_UNSPEC
    assert len(machine.table) == len(machine.contexts) == 0


# --- cursors --------------------------------------------------------------------------------------------------------


def test_cursor_commands(machine: Machine) -> None:
    machine.ok(picture_2d(1), commands.resource_create_2d(2, Format.B8G8R8A8, 32, 32))
    sent = [
        commands.update_cursor(0, 1, 2, 1),
        commands.update_cursor(0, 3, 4, 2),  # not 64x64
        commands.update_cursor(0, 5, 6, UNKNOWN),
        commands.update_cursor(1, 7, 8, 1),  # no such scanout
        commands.move_cursor(1, 9, 10),
        commands.move_cursor(0, 11, 12),
        commands.update_cursor(0, 13, 14, 0),
    ]
    for number, command in enumerate(sent, machine.placed() + 1):
        pending = machine.rig.gpu.cursor.submit(command)
        machine.until(lambda placed=number: machine.placed() == placed, "the command")  # type: ignore[misc]
        machine.rig.gpu.cursor.reap()
        assert pending.done
    assert machine.display.cursor == [("defined", 1, 2), ("moved", 11, 12), ("hidden", 13, 14)]


# --- contexts -------------------------------------------------------------------------------------------------------


def test_ctx_create(machine: Machine) -> None:
    machine.ok(commands.ctx_create(ONE, "glxgears", context_init=2))
    assert control(machine.supervisor.played[0])[1] == CreateContext(ONE, 2, "glxgears")
    machine.ok(commands.ctx_create(OTHER))
    assert control(machine.supervisor.played[1])[1] == CreateContext(OTHER, 0, "unnamed")
    assert machine.code(commands.ctx_create(ONE)) is Resp.ERR_INVALID_CONTEXT_ID
    machine.guest.features &= ~Feature.CONTEXT_INIT
    assert machine.code(commands.ctx_create(3, context_init=2)) is Resp.ERR_INVALID_PARAMETER
    assert len(machine.contexts) == 2


def test_ctx_destroy(machine: Machine) -> None:
    worker = machine.context(ONE)
    machine.ok(commands.ctx_destroy(ONE))
    assert control(worker)[1] == DestroyContext()
    assert machine.code(commands.ctx_destroy(ONE)) is Resp.ERR_INVALID_CONTEXT_ID


@pytest.mark.parametrize("create", [picture_2d(1), commands.resource_create_3d(1, PICTURE)], ids=["2D", "3D"])
def test_attach_and_detach_are_answered_when_placed(machine: Machine, create: GpuCommand) -> None:
    worker = machine.context(ONE)
    machine.ok(create, commands.ctx_attach_resource(ONE, 1), commands.ctx_attach_resource(ONE, 1))
    _, message = control(worker)
    assert isinstance(message, AttachResource | ResourceToObject)
    assert (message.resource_id, message.target, message.width, message.height) == (1, 2, SIZE, SIZE)
    machine.ok(commands.ctx_detach_resource(ONE, 1))
    assert control(worker)[1] == DetachResource(1)  # and no second attach before it
    assert machine.code(commands.ctx_detach_resource(ONE, 1)) is Resp.ERR_INVALID_RESOURCE_ID
    for command in (commands.ctx_attach_resource(ONE, UNKNOWN), commands.ctx_detach_resource(ONE, UNKNOWN)):
        assert machine.code(command) is Resp.ERR_INVALID_RESOURCE_ID


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (Status.OK, Resp.OK_NODATA),
        (Status.FAILED, Resp.ERR_UNSPEC),
        (Status.INVALID_PARAMETER, Resp.ERR_INVALID_PARAMETER),
        (Status.INVALID_RESOURCE, Resp.ERR_INVALID_RESOURCE_ID),
        (Status.OUT_OF_MEMORY, Resp.ERR_OUT_OF_MEMORY),
        (Status.LOST, Resp.ERR_UNSPEC),
        (99, Resp.ERR_UNSPEC),
    ],
    ids=str,
)
def test_fenced_ones_are_answered_as_the_worker_says(machine: Machine, status: int, code: Resp) -> None:
    worker = machine.context(ONE)
    machine.ok(commands.resource_create_3d(1, PICTURE))
    pending = machine.submit(commands.ctx_attach_resource(ONE, 1), fenced=True)
    record, message = control(worker)
    assert isinstance(message, AttachResource) and not pending.done
    worker.complete(record.seq, status)
    machine.until(lambda: pending.done, "the worker's answer")
    assert pending.response.type == code and pending.response.fenced


def test_fenced_ones_that_are_done_already_are_answered_at_once(machine: Machine) -> None:
    machine.context(ONE)
    machine.ok(commands.resource_create_3d(1, PICTURE), commands.ctx_attach_resource(ONE, 1))
    assert machine.submit(commands.ctx_attach_resource(ONE, 1), fenced=True).done
    assert machine.submit(commands.resource_create_3d(2, PICTURE), fenced=True).done


def test_a_lost_context(machine: Machine) -> None:
    worker = machine.context(ONE)
    machine.ok(commands.resource_create_3d(1, PICTURE), commands.resource_create_3d(2, PICTURE))
    machine.ok(commands.ctx_attach_resource(ONE, 1))
    pending = machine.submit(commands.ctx_detach_resource(ONE, 1), fenced=True)
    machine.lose(ONE)
    machine.until(lambda: pending.done, "the fence of a dead worker")
    assert pending.response.type == Resp.ERR_UNSPEC
    for command in (commands.ctx_attach_resource(ONE, 2), commands.ctx_detach_resource(ONE, 2)):
        assert machine.code(command) is Resp.ERR_UNSPEC
    assert machine.code(commands.ctx_create(ONE)) is Resp.ERR_INVALID_CONTEXT_ID
    machine.ok(commands.resource_unref(1), commands.ctx_destroy(ONE))
    assert machine.context(ONE) is not worker


def test_a_full_ring_holds_answers_back_and_loses_none(machine: Machine) -> None:
    worker = machine.context(ONE)
    machine.ok(commands.resource_create_3d(1, PICTURE))
    held: list[Pending] = []
    attach, detach = commands.ctx_attach_resource(ONE, 1), commands.ctx_detach_resource(ONE, 1)
    sent = 0
    while len(held) < 4:  # the worker takes nothing
        pending = machine.submit((attach, detach)[sent % 2])
        sent += 1
        if not pending.done:
            held.append(pending)
        assert sent < 100_000
    for number in range(sent):
        record, message = control(worker)
        assert isinstance(message, DetachResource if number % 2 else AttachResource)
        worker.complete(record.seq)
        machine.pump()
    machine.until(lambda: all(pending.done for pending in held), "the answers that were held back")
    assert {pending.response.type for pending in held} == {Resp.OK_NODATA}


def test_unref_detaches_everywhere(machine: Machine) -> None:
    workers = [machine.context(ONE), machine.context(OTHER)]
    machine.ok(commands.resource_create_3d(1, PICTURE))
    machine.ok(commands.ctx_attach_resource(ONE, 1), commands.ctx_attach_resource(OTHER, 1), commands.resource_unref(1))
    assert controls(workers[0], 3) == [AttachResource, ResourceToObject, DetachResource]
    assert controls(workers[1], 2) == [ResourceToObject, DetachResource]
    machine.ok(commands.resource_create_3d(1, PICTURE))
    assert machine.code(commands.ctx_detach_resource(ONE, 1)) is Resp.ERR_INVALID_RESOURCE_ID


def test_reset_leaves_nothing_the_guest_made(machine: Machine) -> None:
    machine.context(ONE)
    machine.ok(picture_2d(1), commands.resource_create_3d(2, PICTURE), commands.ctx_attach_resource(ONE, 2))
    machine.ok(commands.set_scanout(0, 1, WHOLE))
    machine.dispatcher.reset()
    assert len(machine.table) == len(machine.contexts) == 0
    assert machine.display.shown[-1] == (0, 0)
    assert [(worker.dismissed, worker.doom) for worker in machine.supervisor.taken] == [(True, None)]
    machine.ok(picture_2d(2), commands.resource_create_3d(1, PICTURE))  # the plane has forgotten the ids too
    machine.context(ONE)
    machine.ok(commands.ctx_attach_resource(ONE, 1))
