"""Descriptor chains and ring indices that no honest driver makes (virtio 1.3, 2.7)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.device_lab import assert_draws, until
from tests.fake_vmm import DriverQueue, QueueBroken, commands, misbehaviour
from tests.fake_vmm.command_queue import CommandQueue
from tests.fake_vmm.misbehaviour import BAD_CHAINS
from tests.fake_vmm.virtqueue import F_NEXT, F_WRITE, Descriptor
from tests.hostile.conftest import DeviceLab, Guest

BadChain = Callable[[DriverQueue], int]


def queue_of(guest: Guest, name: str) -> CommandQueue:
    return guest.gpu.control if name == "control" else guest.gpu.cursor


@pytest.mark.parametrize("name", ["control", "cursor"])
@pytest.mark.parametrize("make", BAD_CHAINS, ids=lambda make: make.__name__)
def test_bad_chain_comes_back_and_costs_that_request_only(guest: Guest, make: BadChain, name: str) -> None:
    commands_queue = queue_of(guest, name)
    try:
        head = make(commands_queue.queue)
    except misbehaviour_too_large():
        pytest.skip(f"the {name} queue has too few descriptors for it")
    commands_queue.queue.kick(force=True)
    commands_queue.wait_used(head)
    assert not commands_queue.queue.broken
    guest.gpu.display_info()
    guest.gpu.move_cursor(0, 1, 2)


def misbehaviour_too_large() -> type[Exception]:
    """What a chain raises that is longer than a small ring."""
    from tests.fake_vmm.virtqueue import QueueFull

    return QueueFull


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


def test_the_same_chain_twice_is_two_commands(guest: Guest) -> None:
    """A driver that offers a descriptor again while the device has it: both uses complete."""
    control = guest.gpu.control
    queue = control.queue
    gpa = queue.memory.allocate(4096)
    queue.memory.write(gpa, (0x0100).to_bytes(4, "little") + bytes(4092))
    used = queue._used_words[1]
    head = misbehaviour.raw_chain(queue, [Descriptor(gpa, 24, F_NEXT, 1), Descriptor(gpa + 1024, 1024, F_WRITE)])
    queue.push_available(head)
    queue.kick(force=True)
    until(lambda: (queue._used_words[1] - used) & 0xFFFF == 2, "two used elements")
    control.wait_used(head)
    queue._chains[head] = ()  # the second use of it, which the driver's books do not know
    control.wait_used(head)
    guest.gpu.display_info()


@pytest.mark.parametrize("name", ["control", "cursor"])
@pytest.mark.parametrize("make", [misbehaviour.available_index_jump, misbehaviour.head_out_of_range])
def test_impossible_index_stops_that_queue_until_reset(
    lab: DeviceLab, throwaway: Guest, make: BadChain, name: str
) -> None:
    broken = queue_of(throwaway, name)
    make(broken.queue)
    broken.queue.kick(force=True)
    until(lambda: broken.queue.broken, "the error eventfd")
    if name == "cursor":  # the other queue goes on
        assert_draws(throwaway.neighbour)
    pending = broken.submit(commands.move_cursor(0, 1, 1) if name == "cursor" else commands.get_display_info())
    os_kicks = broken.queue.kicks
    broken.queue.kick(force=True)
    assert broken.queue.kicks == os_kicks + 1
    throwaway.vmm.config()  # the service has had time to look, and answers the front end
    assert not pending.done
    throwaway.vmm.reset()
    assert pending.cancelled
    throwaway.vmm.boot()
    throwaway.gpu.display_info()
    throwaway.gpu.move_cursor(0, 3, 4)
    assert "it stands still until reset" in lab.log


def test_waiting_for_a_broken_queue_is_told(throwaway: Guest) -> None:
    """A front end that watches the error eventfd need not wait for a time-out."""
    misbehaviour.available_index_jump(throwaway.gpu.control.queue)
    with pytest.raises(QueueBroken):
        throwaway.gpu.display_info()


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
