"""Ring indices that cannot be: the queue stands still until the device is reset (virtio 1.3, 2.7.13.3)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.device_lab import DeviceLab, assert_draws, until
from tests.fake_vmm import DriverQueue, QueueBroken, commands, misbehaviour
from tests.hostile.conftest import Guest, queue_of

BadChain = Callable[[DriverQueue], int]


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
    broken.queue.kick(force=True)
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
