"""master.memory_watch with played lanes and real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from ipc import messages
from ipc.channel import Channel, channel_pair
from master import memory_watch
from master import worker as worker_module
from master.blame import CauseKind
from master.lane_worker import LaneWorker
from master.memory_watch import IDLE_LOOKS, MemoryWatch
from native.owned_fd import OwnedFd
from tests.event_loop import loop_driver
from tests.fake_vmm import Box, commands
from tests.plane_rig import MEBIBYTE, PlaneRig, PlayedWorker, plane_rig
from tests.test_dataplane_history import ONE, give_buffer, pages_of


@pytest.fixture
def rig() -> Iterator[PlaneRig]:
    with plane_rig() as rig:
        yield rig


def lane_worker(rig: PlaneRig, played: PlayedWorker) -> LaneWorker:
    ours, theirs = channel_pair()
    theirs.close()
    loop = asyncio.new_event_loop()
    return LaneWorker(1, Channel(ours, messages.FROM_WORKER), plane=rig.plane, lane=played.lane, loop=loop)


def transfer(rig: PlaneRig, played: PlayedWorker) -> None:
    pending = rig.gpu.submit(commands.transfer_to_host_3d(ONE, 7, Box(20 * MEBIBYTE)))
    played.complete(played.wait().seq)
    assert rig.gpu.wait(pending).ok


def test_only_lanes_that_have_been_idle_for_a_while_give_memory_back(
    rig: PlaneRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = rig.worker(ONE, 64 * MEBIBYTE)
    give_buffer(rig, 20 * MEBIBYTE)
    worker = lane_worker(rig, played)
    with loop_driver() as driver:
        watch = MemoryWatch(driver.loop, lambda: [worker])
        for _ in range(3):
            transfer(rig, played)
            for _ in range(IDLE_LOOKS):
                watch._look()
            assert pages_of(played) >= 20 * MEBIBYTE
        for _ in range(4):
            watch._look()
        assert pages_of(played) <= MEBIBYTE
        watch.stop()
        monkeypatch.setattr(memory_watch, "INTERVAL", 0.0)
        transfer(rig, played)
        watch.start()
        driver.until(lambda: pages_of(played) <= MEBIBYTE, "that it looks by itself")
        watch.stop()
    worker.channel.close()


def test_a_worker_that_uses_too_much_is_ended(rig: PlaneRig, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = lane_worker(rig, rig.worker(ONE))
    with subprocess.Popen(["sleep", "1000"]) as process, loop_driver() as driver:
        worker.pid, worker.pidfd = process.pid, OwnedFd(os.pidfd_open(process.pid))
        watch = MemoryWatch(driver.loop, lambda: [worker])
        worker.memory_limit = 0
        watch._look()
        assert worker.doom is None and worker.memory.used() > 0  # what is not its own is allowed for
        monkeypatch.setattr(worker_module, "NOT_ITS_OWN", 0)
        watch._look()
        watch.stop()
        assert process.wait() == -signal.SIGKILL
    assert worker.doom is not None and worker.doom.kind is CauseKind.MEMORY
    worker.wait_status = int(signal.SIGKILL)
    assert "out of memory: it used" in worker.cause().text
    worker.close()


def test_what_workers_use_is_looked_at(rig: PlaneRig) -> None:
    worker = lane_worker(rig, rig.worker(ONE))
    with subprocess.Popen(["sleep", "1000"]) as process, loop_driver() as driver:
        worker.pid = process.pid
        watch = MemoryWatch(driver.loop, lambda: [worker])
        watch._look()
        watch.stop()
        process.kill()
    assert worker.memory.resident >= os.sysconf("SC_PAGESIZE")
    worker.channel.close()
