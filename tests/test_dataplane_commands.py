"""Commands as the plane takes them in: far longer than any is, and with no memory behind them any more."""

from __future__ import annotations

import select
import struct
from collections.abc import Iterator

import pytest

from native.dataplane import Command
from tests.fake_vmm import GpuCommand, Rect, commands
from tests.fake_vmm.virtqueue import F_NEXT, F_WRITE, Descriptor
from tests.plane_rig import LIMIT, MEBIBYTE, PlaneRig, plane_rig

OUT_OF_MEMORY = 0x1201
WHOLE = Rect(64, 64)
LONG = 8 * MEBIBYTE  # three times this is more than any command is

# What the plane does itself if all is well with it, and hands on if not; and one that it always hands on.
HANDED_ON = [
    commands.resource_flush(1, WHOLE),
    commands.transfer_to_host_2d(1, WHOLE),
    commands.set_scanout(0, 1, WHOLE),
    commands.get_display_info(),
]


@pytest.fixture
def rig() -> Iterator[PlaneRig]:
    with plane_rig() as rig:
        yield rig


def offer_long(rig: PlaneRig, command: GpuCommand) -> tuple[int, int]:
    """A command whose readable part goes over the same memory again and again. (head, where its answer goes)."""
    queue = rig.gpu.control.queue
    gpa = rig.memory.allocate(4096)
    data = struct.pack("<IIQII", command.type, 0, 0, 0, 0) + command.body
    rig.memory.write(gpa, data)
    numbers = queue.take_descriptors(5)
    pieces = [(gpa, len(data)), (0, LONG), (0, LONG), (0, LONG)]
    for number, following, piece in zip(numbers, numbers[1:], pieces, strict=False):
        queue.write_descriptor(number, Descriptor(*piece, F_NEXT, following))
    queue.write_descriptor(numbers[-1], Descriptor(gpa + 2048, 24, F_WRITE))
    queue.push(numbers[0], tuple(numbers))
    queue.kick(force=True)
    return numbers[0], gpa + 2048


@pytest.mark.parametrize("command", HANDED_ON, ids=lambda command: command.name)
def test_a_command_that_is_too_long_for_python_is_not_handed_to_it(rig: PlaneRig, command: GpuCommand) -> None:
    head, answer = offer_long(rig, command)
    rig.gpu.control.wait_used(head)
    assert rig.memory.read(answer, 4) == struct.pack("<I", OUT_OF_MEMORY)
    assert not rig.pump()


def test_memory_goes_away_under_a_command_that_waits(rig: PlaneRig) -> None:
    """A submit behind a command that Python has not placed, when the front end takes all memory."""
    rig.worker(1)
    with rig.gpu.batch():
        rig.gpu.submit(commands.get_display_info())
        rig.gpu.submit(commands.submit_3d(1, bytes(64)), fenced=True)
    assert select.select([rig.plane], [], [], LIMIT)[0]
    rig.plane.set_memory(None)
    assert not [event for event in rig.pump() if isinstance(event, Command)]
    rig.plane.set_memory(rig.native_memory)
    rig.gpu.submit(commands.get_display_info())
    rig.wait_for(lambda events: any(isinstance(event, Command) for event in events), "a command in memory again")
