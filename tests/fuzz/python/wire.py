"""Guest commands as Python gets them: decoded and done by the real dispatcher, with its table, contexts and scanouts.

Every request is answered exactly once, and nothing is left open when the device is reset.
"""

import struct

from ipc.errors import ProtocolError
from master import wire
from master.virtio_gpu import CONTROL_QUEUE, CURSOR_QUEUE, CommandType
from native.dataplane import Command, Event, TooLarge, WorkDone
from tests.dispatch_lab import Machine
from tests.fuzz.python.choices import Choices, open_fds
from tests.fuzz.python.small_rig import NotingPlane, close, small_machine

TYPES = [int(kind) for kind in CommandType]
LONGEST = 40  # words behind a header
SMALL = 8  # contexts and resources that there may be


def run(data: bytes) -> None:
    before = open_fds()
    machine, plane = small_machine()
    try:
        _run(machine, plane, Choices(data))
    finally:
        close(machine, plane)
    assert open_fds() == before


def _run(machine: Machine, plane: NotingPlane, choices: Choices) -> None:
    requests = 0
    while choices.more():
        what = choices.byte()
        if what < 200:
            requests += 1
            queue = CURSOR_QUEUE if what % 8 == 7 else CONTROL_QUEUE
            machine.dispatcher.run(Command(requests, queue, _command(choices)))
        elif what < 210:
            machine.display.late = bool(what & 1)
        elif what < 220:
            _answer_question(machine)
        elif what < 240:
            _lose_worker(machine, choices)
        else:
            machine.supervisor.exhausted = bool(what & 1)
        _pump(machine, plane)
    machine.dispatcher.reset()
    assert list(machine.table) == []
    for worker in machine.supervisor.taken:  # their work's ends answer what still waits
        plane.lose_lane(worker.lane)
    _pump(machine, plane)
    machine.dispatcher.answer_open_questions()
    wrong = {request: plane.answers[request] for request in range(1, requests + 1) if plane.answers[request] != 1}
    assert not wrong, f"request: answers {wrong}"


def _command(choices: Choices) -> bytes:
    """A command, right in its type mostly; numbers are small mostly, so that what they name is there."""
    kind = choices.byte()
    number = TYPES[kind % len(TYPES)] if kind < 250 else choices.number()
    ctx_id = choices.byte() % SMALL
    words = [choices.number() for _ in range(choices.byte() % LONGEST)]
    header = wire.HEADER.pack(number, kind >> 1 & 3, 1, ctx_id, 0)
    return header + struct.pack(f"<{len(words)}I", *words)


def _answer_question(machine: Machine) -> None:
    if machine.display.answers:
        machine.display.answers.pop(0)()


def _lose_worker(machine: Machine, choices: Choices) -> None:
    workers = [worker for worker in machine.supervisor.taken if not worker.dead]
    if workers:
        worker = choices.of(workers)
        worker.dead = True
        machine.rig.plane.lose_lane(worker.lane)
        machine.contexts.worker_gone(worker)


def _pump(machine: Machine, plane: NotingPlane) -> None:
    while (event := plane.take()) is not None:
        _handle(machine, event)
    machine.scanouts.settle()


def _handle(machine: Machine, event: Event) -> None:
    if isinstance(event, WorkDone):
        assert machine.contexts.work_done(event.token, event.status) or machine.pictures.work_done(event)
    elif isinstance(event, TooLarge):
        machine.contexts.too_large(event)
    else:
        raise ProtocolError(f"{event} of a plane that stands still")
