"""Descriptor chains and ring indices that no honest driver makes (virtio 1.3, 2.7)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fake_vmm import DriverQueue, commands, misbehaviour
from tests.fake_vmm.misbehaviour import BAD_CHAINS
from tests.fake_vmm.virtqueue import F_NEXT, F_WRITE, Descriptor, QueueFull
from tests.hostile.conftest import Guest, queue_of

BadChain = Callable[[DriverQueue], int]


@pytest.mark.parametrize("name", ["control", "cursor"])
@pytest.mark.parametrize("make", BAD_CHAINS, ids=lambda make: make.__name__)
def test_bad_chain_comes_back_and_costs_that_request_only(guest: Guest, make: BadChain, name: str) -> None:
    commands_queue = queue_of(guest, name)
    try:
        head = make(commands_queue.queue)
    except QueueFull:
        pytest.skip(f"the {name} queue has too few descriptors for it")
    commands_queue.queue.kick(force=True)
    commands_queue.wait_used(head)
    assert not commands_queue.queue.broken
    guest.gpu.display_info()
    guest.gpu.move_cursor(0, 1, 2)


@pytest.mark.parametrize("make", BAD_CHAINS, ids=lambda make: make.__name__)
def test_bad_chain_between_good_commands(guest: Guest, make: BadChain) -> None:
    control = guest.gpu.control
    with guest.gpu.batch():
        before = [guest.gpu.submit(commands.get_display_info(), fenced=True) for _ in range(4)]
        head = make(control.queue)
        after = [guest.gpu.submit(commands.get_edid(0), fenced=True) for _ in range(4)]
    assert all(response.ok for response in guest.gpu.wait_all([*before, *after]))
    control.wait_used(head)


def test_chain_as_long_as_the_ring(guest: Guest) -> None:
    """The longest direct chain there can be is still a command."""
    control = guest.gpu.control
    queue = control.queue
    gpa = queue.memory.allocate(4096)
    queue.memory.write(gpa, (0x0100).to_bytes(4, "little") + bytes(4092))
    count = queue.free_descriptors
    chain = [Descriptor(gpa + min(i, 24), 1 if i < 24 else 0, F_NEXT, i + 1) for i in range(count - 1)]
    head = misbehaviour.raw_chain(queue, [*chain, Descriptor(gpa + 1024, 1024, F_WRITE)])
    queue.kick(force=True)
    control.wait_used(head)
    assert queue.memory.read(gpa + 1024, 4) == (0x1101).to_bytes(4, "little")


def test_two_chains_with_a_descriptor_in_common_are_two_commands(guest: Guest) -> None:
    control = guest.gpu.control
    queue = control.queue
    gpa = queue.memory.allocate(4096)
    queue.memory.write(gpa, (0x0100).to_bytes(4, "little") + bytes(4092))
    one, other, tail = queue.take_descriptors(3)
    for head in (one, other):
        queue.write_descriptor(head, Descriptor(gpa, 24, F_NEXT, tail))
    queue.write_descriptor(tail, Descriptor(gpa + 1024, 1024, F_WRITE))
    queue.push(one, (one,))
    queue.push(other, (other, tail))
    queue.kick(force=True)
    control.wait_used(one)
    control.wait_used(other)
    assert queue.memory.read(gpa + 1024, 4) == (0x1101).to_bytes(4, "little")


def test_cursor_commands_on_the_control_queue_and_the_other_way_round(guest: Guest) -> None:
    picture = guest.picture.resource_id
    wrong = guest.gpu.call(commands.update_cursor(0, 1, 1, picture)._replace(response_size=24))
    assert wrong.type == 0x1200
    for command in (commands.get_display_info(), commands.resource_unref(picture), commands.submit_3d(1, bytes(4))):
        pending = guest.gpu.cursor.wait(guest.gpu.cursor.submit(command._replace(response_size=64)))
        assert pending.response.type == 0x1200
    guest.gpu.transfer_to_host_2d(picture, guest.picture.rect).check()


def test_more_commands_in_flight_than_the_ring_is_long(guest: Guest) -> None:
    """Heads are given back out of turn: 10000 commands in batches that fill the ring."""
    total = 0
    while total < 10_000:
        with guest.gpu.batch():
            pending = [guest.gpu.submit(commands.get_capset_info(0)) for _ in range(guest.gpu.control.queue.size)]
        guest.gpu.wait_all(pending)
        assert all(p.response.ok for p in pending)
        total += len(pending)
