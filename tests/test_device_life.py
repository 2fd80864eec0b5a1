"""Starting, stopping, resetting and leaving: of the device, of front ends, of the service."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tests.device_lab import OPTIONS, DeviceLab, assert_draws, gone, triangle, until
from tests.fake_vmm import Bind, Box, DisplayRequest, FakeVmm, Rect, ResourceDescription, Target, commands
from tests.fake_vmm.scene_player import ScenePlayer
from tests.fake_vmm.virgl.many_draws import ManyDrawsScene
from tests.service_process import ServiceProcess

StartService = Callable[..., ServiceProcess]


@pytest.fixture(scope="module")
def lab(start_service: StartService) -> Iterator[DeviceLab]:
    service = start_service(OPTIONS)
    yield DeviceLab(service)
    assert service.stop() == 0


@pytest.fixture
def vmm(lab: DeviceLab) -> Iterator[FakeVmm]:
    with lab.guest() as vmm:
        yield vmm


# --- stopping -------------------------------------------------------------------------------------------------------


def test_stop_waits_for_work_in_flight(vmm: FakeVmm) -> None:
    """GET_VRING_BASE is answered when all that was taken is on the used ring (vhost-user, "Ring states")."""
    player = ScenePlayer(vmm.gpu, ManyDrawsScene(400))
    pending = [player.frame(0, index) for index in range(10)]
    front, queue = vmm.front_end, vmm.gpu.control.queue
    base = front.get_vring_base(0)
    vmm.gpu.reap()
    taken = len(pending) - (queue.published - base & 0xFFFF)
    assert [p.done for p in pending] == [number < taken for number in range(len(pending))]

    # What was not taken, and what comes while it is stopped, waits for its start.
    late = vmm.gpu.submit(commands.get_display_info())
    assert vmm.gpu.reap() == []
    front.set_vring_base(0, base)
    front.set_vring_kick(0, queue.kick_fd)
    queue.kick(force=True)
    assert all(response.ok for response in vmm.gpu.wait_all([*pending, late]))
    assert_draws(triangle(vmm.gpu))


def test_disabled_queue_stands_still(vmm: FakeVmm) -> None:
    front = vmm.front_end
    front.set_vring_enable(0, False)
    late = vmm.gpu.submit(commands.get_display_info())
    vmm.gpu.move_cursor(0, 1, 1)  # the other queue goes on
    assert vmm.gpu.reap() == []
    front.set_vring_enable(0, True)
    assert vmm.gpu.wait(late).ok


def test_stop_with_a_hanging_worker(start_service: StartService) -> None:
    """The VM does not wait for ever for a program of its guest's: the worker has to go."""
    service = start_service([*OPTIONS, "--engine=null", "--hang-timeout=1"])
    lab = DeviceLab(service)
    with lab.vmm() as vmm:
        context = vmm.gpu.create_context("stuck")
        stuck = context.submit(struct.pack("<II", 3, 0))
        vmm.gpu.call(commands.get_display_info()).check("what is behind it")  # so it was taken from the queue by now
        vmm.front_end.get_vring_base(0)
        vmm.gpu.reap()
        assert stuck.done
        assert not stuck.response.ok
    assert service.stop() == 0


def test_reset_with_work_in_flight(lab: DeviceLab, vmm: FakeVmm) -> None:
    player = ScenePlayer(vmm.gpu, ManyDrawsScene(800))
    worker = lab.worker_of(player.context.ctx_id).pid
    pending = [player.frame(0, index) for index in range(20)]
    vmm.reset()
    assert all(p.done or p.cancelled for p in pending)
    until(lambda: gone(worker), "the end of the worker")
    vmm.boot()
    assert_draws(triangle(vmm.gpu))


def test_reset_without_stopping_the_queues(vmm: FakeVmm) -> None:
    """RESET_DEVICE while both rings run and the guest goes on kicking: nothing may break but the guest's hopes."""
    for _ in range(5):
        with vmm.gpu.batch():
            for _ in range(60):
                vmm.gpu.submit(commands.get_display_info())
        vmm.front_end.reset_device()
        vmm.stop()
        vmm.boot()
    assert_draws(triangle(vmm.gpu))


def test_reboots(lab: DeviceLab, vmm: FakeVmm) -> None:
    """Nothing of the guest before is left: no resource, no context, no scanout, no worker."""
    assert vmm.display is not None
    for _ in range(3):
        player = triangle(vmm.gpu)
        assert player.context.ctx_id == 1  # the ids are the same again each time
        assert_draws(player)
        player.show()
        worker = lab.worker_of(1).pid
        vmm.reboot()
        until(lambda worker=worker: gone(worker), "the end of the old guest's worker")  # type: ignore[misc]
        assert not vmm.gpu.ctx_destroy(1).ok
        assert not vmm.gpu.resource_unref(1).ok


def test_memory_table_replaced_while_it_runs(vmm: FakeVmm) -> None:
    """Hotplug, or a guest's remapping of its ROMs: QEMU sends the whole table anew."""
    player = triangle(vmm.gpu)
    for _ in range(10):
        pending = [player.frame(0.0, index) for index in range(5)]
        vmm.front_end.set_mem_table(vmm.memory.regions)
        assert all(response.ok for response in vmm.gpu.wait_all(pending))
    assert_draws(player)


# --- front ends -----------------------------------------------------------------------------------------------------


def test_disconnect_without_a_word(lab: DeviceLab) -> None:
    """A VMM that crashed: nothing of its guest is left, and the next one finds the service as new."""
    before = lab.wait_until_idle()
    for _ in range(3):
        vmm = FakeVmm.connect(lab.service.socket_path)
        player = ScenePlayer(vmm.gpu, ManyDrawsScene(400))
        for index in range(10):
            player.frame(0, index)
        vmm.disconnect(graceful=False)
        with lab.vmm() as successor:
            assert_draws(triangle(successor.gpu))
    lab.wait_for_footprint(before)


def test_second_front_end_does_not_disturb_the_first(lab: DeviceLab, vmm: FakeVmm) -> None:
    player = triangle(vmm.gpu)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as intruder:
        intruder.connect(str(lab.service.socket_path))
        intruder.settimeout(30)
        with suppress(ConnectionError):
            intruder.sendall(struct.pack("<III", 1, 1, 0))  # GET_FEATURES
            assert intruder.recv(1) == b""
    assert_draws(player)


def test_garbage_from_a_front_end_ends_that_connection(lab: DeviceLab) -> None:
    before = lab.wait_until_idle()
    for message in (b"\xff" * 400, struct.pack("<III", 2, 1, 0xFFFF_FFFF)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as front_end:
            front_end.connect(str(lab.service.socket_path))
            front_end.sendall(message)
            front_end.settimeout(30)
            with suppress(ConnectionError):
                assert front_end.recv(1) == b""
    with lab.vmm() as vmm:
        vmm.gpu.display_info()
    lab.wait_for_footprint(before)


def test_serves_one_front_end_and_ends(start_service: StartService) -> None:
    """Without --keep-listening."""
    service = start_service(OPTIONS, keep_listening=False)
    lab = DeviceLab(service)
    with lab.vmm() as vmm:
        assert_draws(triangle(vmm.gpu))
        processes = [process.pid for process in lab.processes()]
        assert len(processes) >= 3
    assert service.wait() == 0
    until(lambda: all(gone(pid) for pid in processes), "the end of all processes")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_signal_ends_all_processes(start_service: StartService, number: signal.Signals) -> None:
    service = start_service(OPTIONS)
    lab = DeviceLab(service)
    vmm = FakeVmm.connect(service.socket_path)
    try:
        player = ScenePlayer(vmm.gpu, ManyDrawsScene(400))
        for index in range(10):
            player.frame(0, index)
        processes = [process.pid for process in lab.processes()]
        assert len(processes) >= 3
        os.kill(service.pid, number)
        assert service.wait() == (-number if number == signal.SIGKILL else 0)
        until(lambda: all(gone(pid) for pid in processes), "the end of all processes")
    finally:
        vmm.disconnect(graceful=False)
    service.stop()


def test_sigterm_while_nobody_is_there(start_service: StartService) -> None:
    service = start_service(OPTIONS)
    assert service.stop() == 0
    assert not service.socket_path.exists()


# --- 3D on the display ----------------------------------------------------------------------------------------------


def test_rendered_pictures_reach_the_display(vmm: FakeVmm) -> None:
    """Readbacks are in order with the context's submits, also when it draws on while they are under way."""
    assert vmm.display is not None
    display = vmm.display
    player = triangle(vmm.gpu)
    player.show()
    for index in range(10):
        pending = [player.frame(1.0, 0), player.frame(0.0, index), player.flush()]
        assert all(response.ok for response in vmm.gpu.wait_all(pending))
    red, blue = (0, 0, 255), (255, 0, 0)  # B, G, R

    def is_there() -> bool:
        pixels = display.framebuffer()
        return pixels is not None and tuple(pixels[2, 2, :3]) == red and tuple(pixels[61, 61, :3]) == blue

    display.wait_for(is_there, "the triangle")
    assert display.received(DisplayRequest.UPDATE)


def test_last_picture_of_a_dead_worker_stays(lab: DeviceLab, vmm: FakeVmm) -> None:
    assert vmm.display is not None
    display = vmm.display
    player = triangle(vmm.gpu, "late")
    player.show()
    vmm.gpu.wait_all([player.frame(0.0, 0), player.flush()])
    display.wait_for(lambda: (p := display.framebuffer()) is not None and p[2, 2, 2] == 255, "the triangle")
    lab.kill(lab.worker_of(player.context.ctx_id).pid)
    until(lambda: "late" in lab.log.split("context lost")[-1], "a blame")
    assert vmm.gpu.flush(player.scene.target.resid, Rect(64, 64), fenced=True).ok
    pixels = display.framebuffer()
    assert pixels is not None
    assert pixels[2, 2, 2] == 255


def test_transfers_as_large_as_staging_memory(vmm: FakeVmm) -> None:
    """Also behind a small one, which leaves no contiguous room for it until it is done."""
    gpu = vmm.gpu
    context = gpu.create_context("large")
    what = ResourceDescription(60 << 20, format=64, bind=Bind.VERTEX_BUFFER, target=Target.BUFFER)
    buffer = gpu.create_resource_3d(what, backing_size=60 << 20)
    context.attach(buffer)
    for _ in range(2):
        pending = [
            gpu.submit(commands.transfer_to_host_3d(context.ctx_id, buffer.resource_id, Box(size)), fenced=True)
            for size in (10 << 20, 60 << 20)
        ]
        assert all(response.ok for response in gpu.wait_all(pending))
    too_large = ResourceDescription(65 << 20, format=64, bind=Bind.VERTEX_BUFFER, target=Target.BUFFER)
    other = gpu.create_resource_3d(too_large, backing_size=65 << 20)
    context.attach(other)
    assert gpu.transfer_to_host_3d(context.ctx_id, other.resource_id, Box(65 << 20)).type == 0x1201
