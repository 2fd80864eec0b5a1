"""The fake VMM against a back end that is not ours: QEMU's C vhost-user-gpu, in 2D."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest

from tests.fake_vmm import (
    BackEndProcess,
    Disconnected,
    Display,
    DisplayRequest,
    FakeVmm,
    Feature,
    ProtocolFeature,
    Rect,
    Request,
    Resp,
    commands,
    misbehaviour,
)
from tests.fake_vmm.back_end_process import QEMU_BACK_END_PACKAGE, find_qemu_back_end
from tests.fake_vmm.display_protocol import CursorPos, CursorUpdate, Scanout, Update

BINARY = find_qemu_back_end()
GIB = 1 << 30
pytestmark = pytest.mark.skipif(
    BINARY is None, reason=f"no QEMU back end: install Debian's {QEMU_BACK_END_PACKAGE} or set QEMU_VHOST_USER_GPU"
)


@pytest.fixture
def back_end() -> Iterator[BackEndProcess]:
    assert BINARY is not None
    with BackEndProcess([BINARY]) as process:
        yield process


@pytest.fixture
def vmm(back_end: BackEndProcess) -> Iterator[FakeVmm]:
    with FakeVmm.connect(back_end.socket_path) as machine:
        yield machine


def noise(width: int, height: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(4 * width * height)


def wait_for_pixels(vmm: FakeVmm, expected: bytes) -> None:
    display = vmm.display
    assert display is not None

    def arrived() -> bool:
        framebuffer = display.framebuffer()
        return framebuffer is not None and framebuffer.tobytes() == expected

    display.wait_for(arrived, "the expected pixels")


def test_boot_negotiates_what_is_offered(vmm: FakeVmm) -> None:
    assert vmm.features & Feature.EDID == vmm.offered & Feature.EDID  # QEMU 7.2's back end has none, later ones do
    assert vmm.queue_num == 2
    assert vmm.front_end.has(ProtocolFeature.REPLY_ACK)
    assert vmm.display_info is not None
    assert [mode.rect for mode in vmm.display_info.enabled] == [Rect(1280, 800)]


def test_order_of_messages_is_that_of_qemu_11(vmm: FakeVmm) -> None:
    names = [Request(request).name for request in vmm.front_end.log]
    realize = ["GET_FEATURES", "GET_PROTOCOL_FEATURES", "SET_PROTOCOL_FEATURES", "GET_QUEUE_NUM", "GET_MAX_MEM_SLOTS"]
    realize += ["SET_BACKEND_REQ_FD", "SET_OWNER", "GET_FEATURES", *["SET_VRING_CALL", "SET_VRING_ERR"] * 2]
    assert names[: len(realize)] == realize
    probe = [name for name in names[len(realize) :] if name != "GET_CONFIG"]
    ring = ["SET_VRING_NUM", "SET_VRING_BASE", "SET_VRING_ADDR", "SET_VRING_KICK"]
    calls = ["SET_VRING_CALL"] * 2
    assert probe == [
        "GPU_SET_SOCKET", *calls, "SET_FEATURES", "ADD_MEM_REG", *ring, *ring, *["SET_VRING_ENABLE"] * 2, *calls
    ]  # fmt: skip


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("scattered", [False, True])
def test_pixels_reach_the_display(back_end: BackEndProcess, event_idx: bool, indirect: bool, scattered: bool) -> None:
    with FakeVmm.connect(back_end.socket_path, event_idx=event_idx, indirect=indirect) as vmm:
        picture = vmm.gpu.create_resource_2d(200, 100, scattered=scattered)
        pixels = noise(200, 100)
        picture.upload_2d(pixels)
        picture.show()
        wait_for_pixels(vmm, pixels)


@pytest.mark.parametrize("slots", [False, True])
def test_backing_in_high_memory_and_across_a_gap(back_end: BackEndProcess, slots: bool) -> None:
    features = sum(1 << bit for bit in ProtocolFeature if slots or bit != ProtocolFeature.CONFIGURE_MEM_SLOTS)
    layout = [(0, 64 << 20), (4 * GIB, 64 << 20)]
    with FakeVmm.connect(back_end.socket_path, ram=layout, protocol_features=features) as vmm:
        assert (Request.ADD_MEM_REG in vmm.front_end.log) is slots
        picture = vmm.gpu.create_resource_2d(1024, 768, scattered=True)
        assert {gpa >= 4 * GIB for gpa, _ in picture.pixels.extents} == {False, True}
        pixels = noise(1024, 768)
        picture.upload_2d(pixels)
        picture.show()
        wait_for_pixels(vmm, pixels)


def test_partial_transfer_and_flush(vmm: FakeVmm) -> None:
    picture = vmm.gpu.create_resource_2d(64, 64)
    picture.show()
    picture.pixels.write(noise(64, 64))
    part = Rect(10, 5, x=20, y=30)
    vmm.gpu.transfer_to_host_2d(picture.resource_id, part, 4 * (64 * 30 + 20)).check()
    assert vmm.display is not None
    vmm.display.wait_for_message(DisplayRequest.UPDATE)  # show's flush may be answered before its update is here
    vmm.gpu.flush(picture.resource_id, part, fenced=True).check()
    (_, update) = vmm.display.wait_for_message(DisplayRequest.UPDATE, 2)
    assert isinstance(update, Update)
    assert update.rect == part
    expected = np.zeros((64, 64, 4), np.uint8)
    expected[30:35, 20:30] = np.frombuffer(noise(64, 64), np.uint8).reshape(64, 64, 4)[30:35, 20:30]
    wait_for_pixels(vmm, expected.tobytes())


def test_errors_come_back_as_responses(vmm: FakeVmm) -> None:
    gpu = vmm.gpu
    assert gpu.resource_unref(4711).type == Resp.ERR_INVALID_RESOURCE_ID
    assert gpu.resource_create_2d(0, 1, 8, 8).type == Resp.ERR_INVALID_RESOURCE_ID
    assert gpu.resource_create_2d(1, 9999, 8, 8).type == Resp.ERR_INVALID_PARAMETER
    assert gpu.set_scanout(99, 1, Rect(8, 8)).type == Resp.ERR_INVALID_SCANOUT_ID


def test_cursor(vmm: FakeVmm) -> None:
    shape = vmm.gpu.create_resource_2d(64, 64, 1)
    image = noise(64, 64, seed=3)
    shape.upload_2d(image)
    vmm.gpu.update_cursor(0, 100, 50, shape.resource_id, 3, 4)
    vmm.gpu.move_cursor(0, 120, 60, shape.resource_id)
    assert vmm.display is not None
    (update,) = vmm.display.wait_for_message(DisplayRequest.CURSOR_UPDATE)
    assert isinstance(update, CursorUpdate)
    assert (update.x, update.y, update.hot_x, update.hot_y) == (100, 50, 3, 4)
    assert update.image.tobytes() == image
    position = vmm.display.wait_for_message(DisplayRequest.CURSOR_POS)[-1]
    assert isinstance(position, CursorPos)
    assert (position.x, position.y) == (120, 60)


@pytest.mark.parametrize("indirect", [False, True])
def test_many_commands_in_batches(back_end: BackEndProcess, indirect: bool) -> None:
    """More commands than the ring holds, twice round its 16-bit indices' low byte, all answered in order."""
    with FakeVmm.connect(back_end.socket_path, indirect=indirect, control_size=64) as vmm:
        gpu = vmm.gpu
        for _ in range(20):
            ids = [gpu.new_resource_id() for _ in range(100)]
            with gpu.batch():
                made = [gpu.submit(commands.resource_create_2d(i, 1, 8, 8)) for i in ids]
                dropped = [gpu.submit(commands.resource_unref(i), fenced=True) for i in ids]
            assert all(response.ok for response in gpu.wait_all(made + dropped))
        assert gpu.control.queue.outstanding == 0
        assert gpu.control.queue.kicks < 2 * 2000


def test_split_requests(vmm: FakeVmm) -> None:
    request = (0x0101).to_bytes(4, "little") + bytes(20) + b"".join(n.to_bytes(4, "little") for n in (77, 1, 8, 8))
    pending = vmm.gpu.submit_bytes(request, 24, request_split=[3, 13, 9], response_split=[5, 7])
    assert vmm.gpu.wait(pending).type == Resp.OK_NODATA
    assert vmm.gpu.resource_unref(77).ok


def test_reboot_on_one_connection(back_end: BackEndProcess) -> None:
    """With one display socket for all starts: the C back end refuses a second one."""
    with FakeVmm.connect(back_end.socket_path, keep_display_socket=True) as vmm:
        for seed in (1, 2, 3):
            picture = vmm.gpu.create_resource_2d(64, 32)
            pixels = noise(64, 32, seed)
            picture.upload_2d(pixels)
            picture.show()
            wait_for_pixels(vmm, pixels)
            picture.unref()
            vmm.reboot()
        assert vmm.front_end.log.count(Request.SET_OWNER) == 1
        assert vmm.front_end.log.count(Request.GET_VRING_BASE) == 2 * 3


def test_scanout_off(vmm: FakeVmm) -> None:
    picture = vmm.gpu.create_resource_2d(64, 32)
    picture.show()
    vmm.gpu.set_scanout(0, 0, Rect(0, 0)).check()
    assert vmm.display is not None
    (shown, off) = vmm.display.wait_for_message(DisplayRequest.SCANOUT, 2)
    assert isinstance(shown, Scanout) and isinstance(off, Scanout)
    assert [(message.width, message.height) for message in (shown, off)] == [(64, 32), (0, 0)]
    assert vmm.display.framebuffer() is None


def test_a_killed_back_end_is_noticed(back_end: BackEndProcess) -> None:
    machine = FakeVmm.connect(back_end.socket_path)
    os.kill(back_end.pid, signal.SIGSTOP)
    pending = machine.gpu.submit(commands.get_display_info())
    with pytest.raises(TimeoutError, match="GET_DISPLAY_INFO"):
        machine.gpu.wait(pending, timeout=0.05)
    os.kill(back_end.pid, signal.SIGKILL)
    with pytest.raises(Disconnected, match="GET_DISPLAY_INFO"):
        machine.gpu.wait(pending)
    machine.disconnect(graceful=False)


def test_back_end_ends_with_the_connection_and_nothing_leaks(back_end: BackEndProcess) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with FakeVmm.connect(back_end.socket_path, display=Display([(800, 600)])) as vmm:
        assert vmm.display_info is not None
        assert vmm.display_info.enabled[0].rect == Rect(800, 600)
    assert back_end.wait() == 0
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_loop_is_refused_by_the_peer(back_end: BackEndProcess) -> None:
    """The C back end gives the queue up: it never comes back, and the VMM says so within its time limit."""
    machine = FakeVmm.connect(back_end.socket_path)
    head = misbehaviour.loop(machine.gpu.control.queue)
    machine.gpu.control.queue.kick(force=True)
    with pytest.raises((TimeoutError, Disconnected), match=f"chain {head}"):
        machine.gpu.control.wait_used(head, timeout=1)
    machine.disconnect(graceful=False)
