"""The 2D device: from a guest's pages to the display's pixels, by every format, rectangle and display there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest

from tests.device_lab import OPTIONS, DeviceLab, until
from tests.fake_vmm import (
    Display,
    DisplayRequest,
    FakeVmm,
    Feature,
    Format,
    GuestResource,
    Rect,
    ResourceDescription,
    Resp,
    commands,
)
from tests.fake_vmm.display_protocol import CursorPos, CursorUpdate, Scanout, Update
from tests.fake_vmm.wire import ResourceUuid
from tests.service_process import ServiceProcess

Pixels = npt.NDArray[np.uint8]

# Where red, green and blue stand in a pixel's bytes: the names give the order in memory.
PLACES = {
    Format.B8G8R8A8: (2, 1, 0),
    Format.B8G8R8X8: (2, 1, 0),
    Format.A8R8G8B8: (1, 2, 3),
    Format.X8R8G8B8: (1, 2, 3),
    Format.R8G8B8A8: (0, 1, 2),
    Format.R8G8B8X8: (0, 1, 2),
    Format.X8B8G8R8: (3, 2, 1),
    Format.A8B8G8R8: (3, 2, 1),
}


@pytest.fixture(scope="module")
def lab(start_service: Callable[..., ServiceProcess]) -> Iterator[DeviceLab]:
    """No test here needs a renderer, but the capability sets must be a real one's."""
    service = start_service(OPTIONS)
    yield DeviceLab(service)
    assert service.stop() == 0


@pytest.fixture
def vmm(lab: DeviceLab) -> Iterator[FakeVmm]:
    with lab.vmm() as vmm:
        yield vmm
    lab.check_running()


def noise(width: int, height: int, seed: int = 1) -> Pixels:
    """height x width x 3: red, green, blue."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def packed(rgb: Pixels, format: Format = Format.B8G8R8X8) -> bytes:
    """As a guest would have it in memory."""
    pixels = np.full((*rgb.shape[:2], 4), 0x5A, np.uint8)
    pixels[:, :, list(PLACES[format])] = rgb
    return pixels.tobytes()


def shown(vmm: FakeVmm) -> Pixels | None:
    """Red, green, blue on scanout 0."""
    assert vmm.display is not None
    pixels = vmm.display.framebuffer()
    return None if pixels is None else pixels[:, :, 2::-1]


def wait_for_picture(vmm: FakeVmm, wanted: Pixels) -> None:
    assert vmm.display is not None
    vmm.display.wait_for(
        lambda: (now := shown(vmm)) is not None and now.shape == wanted.shape and bool((now == wanted).all()),
        "the right picture",
    )


# --- pixels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", PLACES, ids=lambda format: format.name)
def test_every_format_from_scattered_pages(vmm: FakeVmm, format: Format) -> None:
    picture = noise(123, 77)
    resource = vmm.gpu.create_resource_2d(123, 77, format, scattered=True)
    resource.upload_2d(packed(picture, format))
    resource.show()
    wait_for_picture(vmm, picture)


def test_full_size(vmm: FakeVmm) -> None:
    picture = noise(1920, 1080)
    resource = vmm.gpu.create_resource_2d(1920, 1080, scattered=True)
    resource.upload_2d(packed(picture))
    resource.show()
    wait_for_picture(vmm, picture)


def test_backing_in_two_regions_of_ram(lab: DeviceLab) -> None:
    """One entry that crosses from one region into the next, and one in high memory."""
    mib = 1 << 20
    with lab.vmm(ram=[(0, 32 * mib), (32 * mib, 16 * mib), (1 << 32, 16 * mib)]) as vmm:
        gpu, ram = vmm.gpu, vmm.memory
        picture = noise(64, 64)
        data = packed(picture)
        crossing, high = 32 * mib - 8192, 1 << 32
        ram.reserve(crossing, 12288)
        ram.reserve(high, 4096)
        resource_id = gpu.new_resource_id()
        gpu.resource_create_2d(resource_id, Format.B8G8R8X8, 64, 64).check()
        gpu.resource_attach_backing(resource_id, [(crossing, 12288), (high, 4096)]).check()
        ram.write(crossing, data[:12288])
        ram.write(high, data[12288:])
        resource = GuestResource(gpu, resource_id, 64, 64)
        resource.upload_2d()
        resource.show()
        wait_for_picture(vmm, picture)


def test_transfer_copies_its_rectangle_and_nothing_else(vmm: FakeVmm) -> None:
    """The offset is where the rectangle's first pixel lies; rows are as long as the resource's."""
    before, after = noise(40, 30), noise(40, 30, seed=2)
    resource = vmm.gpu.create_resource_2d(40, 30)
    resource.upload_2d(packed(before))
    resource.show()
    wait_for_picture(vmm, before)
    resource.pixels.write(packed(after))
    part = Rect(7, 5, x=11, y=20)
    vmm.gpu.transfer_to_host_2d(resource.resource_id, part, offset=4 * (20 * 40 + 11)).check()
    vmm.gpu.flush(resource.resource_id, resource.rect).check()
    wanted = before.copy()
    wanted[20:25, 11:18] = after[20:25, 11:18]
    wait_for_picture(vmm, wanted)


def test_flush_sends_the_damage_and_no_more(vmm: FakeVmm) -> None:
    assert vmm.display is not None
    resource = vmm.gpu.create_resource_2d(100, 80)
    resource.show()
    vmm.display.wait_for_message(DisplayRequest.UPDATE)
    vmm.display.clear_record()
    vmm.gpu.flush(resource.resource_id, Rect(10, 20, x=30, y=40)).check()
    (update,) = vmm.display.wait_for_message(DisplayRequest.UPDATE)
    assert isinstance(update, Update)
    assert update.rect == Rect(10, 20, x=30, y=40)


def test_scanout_of_a_part(vmm: FakeVmm) -> None:
    """Flushes are in the resource's coordinates, updates in the scanout's; what is outside is not sent."""
    assert vmm.display is not None
    gpu, display = vmm.gpu, vmm.display
    picture = noise(100, 80)
    resource = gpu.create_resource_2d(100, 80)
    resource.upload_2d(packed(picture))
    gpu.set_scanout(0, resource.resource_id, Rect(50, 40, x=25, y=20)).check()
    gpu.flush(resource.resource_id, resource.rect).check()
    wait_for_picture(vmm, picture[20:60, 25:75])
    display.clear_record()
    gpu.flush(resource.resource_id, Rect(25, 20)).check()  # all of it left of and above the scanout
    gpu.flush(resource.resource_id, Rect(30, 30, x=20, y=10)).check()
    (update,) = display.wait_for_message(DisplayRequest.UPDATE)
    assert isinstance(update, Update)
    assert update.rect == Rect(25, 20)


def test_page_flips_keep_the_surface(vmm: FakeVmm) -> None:
    """Two buffers of one size in turn: the display is told of its size once."""
    assert vmm.display is not None
    pictures = [noise(64, 48, seed) for seed in (1, 2)]
    buffers = [vmm.gpu.create_resource_2d(64, 48) for _ in pictures]
    for buffer, picture in zip(buffers, pictures, strict=True):
        buffer.upload_2d(packed(picture))
    for turn in range(10):
        buffers[turn % 2].show()
        wait_for_picture(vmm, pictures[turn % 2])
    assert len(vmm.display.received(DisplayRequest.SCANOUT)) == 1


def test_another_size_and_off(vmm: FakeVmm) -> None:
    assert vmm.display is not None
    for size in ((64, 48), (32, 16)):
        resource = vmm.gpu.create_resource_2d(*size)
        resource.upload_2d(packed(noise(*size)))
        resource.show()
        wait_for_picture(vmm, noise(*size))
    vmm.gpu.set_scanout(0, 0, Rect(0, 0)).check()
    vmm.display.wait_for(lambda: shown(vmm) is None, "a scanout that is off")
    sizes = [(m.width, m.height) for m in vmm.display.received(DisplayRequest.SCANOUT) if isinstance(m, Scanout)]
    assert sizes == [(64, 48), (32, 16), (0, 0)]


def test_unref_of_what_is_shown_turns_the_scanout_off(vmm: FakeVmm) -> None:
    assert vmm.display is not None
    resource = vmm.gpu.create_resource_2d(64, 48)
    resource.show()
    vmm.display.wait_for_message(DisplayRequest.UPDATE)
    resource.unref()
    vmm.display.wait_for(lambda: shown(vmm) is None, "a scanout that is off")


def test_detached_backing_leaves_what_was_transferred(vmm: FakeVmm) -> None:
    picture = noise(32, 32)
    resource = vmm.gpu.create_resource_2d(32, 32)
    resource.upload_2d(packed(picture))
    resource.detach_backing()
    assert vmm.gpu.transfer_to_host_2d(resource.resource_id, resource.rect).type == Resp.ERR_UNSPEC
    resource.show()
    wait_for_picture(vmm, picture)
    resource.attach_backing(4 * 32 * 32).write(packed(noise(32, 32, seed=2)))
    resource.upload_2d()
    resource.show()
    wait_for_picture(vmm, noise(32, 32, seed=2))


# --- displays -------------------------------------------------------------------------------------------------------


def test_stalled_display_stops_nobody_and_catches_up(lab: DeviceLab) -> None:
    display = Display(receive_buffer=4096)
    with lab.vmm(display=display) as vmm:
        gpu = vmm.gpu
        resource = gpu.create_resource_2d(640, 480)
        resource.show()
        display.wait_for_message(DisplayRequest.UPDATE)
        before = lab.resident()
        display.stall()
        for seed in range(30):
            resource.upload_2d(packed(noise(640, 480, seed)))
            assert gpu.flush(resource.resource_id, resource.rect, fenced=True).ok
        assert lab.resident() - before < 16 << 20  # one update waits, not thirty
        display.resume()
        wait_for_picture(vmm, noise(640, 480, 29))
        assert len(display.received(DisplayRequest.UPDATE)) < 10


def test_stalled_display_misses_page_flips(lab: DeviceLab) -> None:
    display = Display(receive_buffer=4096)
    with lab.vmm(display=display) as vmm:
        buffers = [vmm.gpu.create_resource_2d(320, 200) for _ in range(2)]
        buffers[0].show()
        display.wait_for_message(DisplayRequest.UPDATE)
        display.stall()
        for seed in range(11):
            buffer = buffers[seed % 2]
            buffer.upload_2d(packed(noise(320, 200, seed)))
            buffer.show()
        display.resume()
        wait_for_picture(vmm, noise(320, 200, 10))


def test_headless(lab: DeviceLab) -> None:
    with lab.vmm(display=False) as vmm:
        assert vmm.display_info is not None
        (mode,) = vmm.display_info.enabled
        assert (mode.rect.width, mode.rect.height) == (1280, 800)
        assert vmm.edids[0].edid[:8] == b"\x00\xff\xff\xff\xff\xff\xff\x00"
        resource = vmm.gpu.create_resource_2d(64, 64)
        resource.upload_2d(packed(noise(64, 64)))
        resource.show()
        vmm.gpu.update_cursor(0, 1, 1, resource.resource_id)
        vmm.gpu.flush(resource.resource_id, resource.rect, fenced=True).check()


def test_what_the_display_says_reaches_the_driver(lab: DeviceLab) -> None:
    with lab.vmm(display=Display(modes=((1600, 900),))) as vmm:
        assert vmm.display_info is not None
        assert [(m.rect.width, m.rect.height) for m in vmm.display_info.enabled] == [(1600, 900)]
        edid = vmm.edids[0]
        assert edid.size >= 128
        assert sum(edid.edid[:128]) % 256 == 0
        width = edid.edid[56] | (edid.edid[58] & 0xF0) << 4
        height = edid.edid[59] | (edid.edid[61] & 0xF0) << 4
        assert (width, height) == (1600, 900)


def test_display_that_goes_away(vmm: FakeVmm) -> None:
    """The guest goes on without one."""
    assert vmm.display is not None
    resource = vmm.gpu.create_resource_2d(64, 64)
    resource.show()
    vmm.display.disconnect()
    resource.upload_2d(packed(noise(64, 64)))
    resource.show()
    assert vmm.gpu.display_info().enabled


def test_new_display_is_shown_what_there_is(vmm: FakeVmm) -> None:
    """A VMM may hand over another socket while the device runs."""
    assert vmm.display is not None
    picture = noise(64, 64)
    resource = vmm.gpu.create_resource_2d(64, 64)
    resource.upload_2d(packed(picture))
    resource.show()
    wait_for_picture(vmm, picture)
    vmm.display.disconnect()
    vmm.display.clear_record()
    with vmm.display.new_socket() as theirs:
        vmm.front_end.gpu_set_socket(theirs.fileno())
    vmm.display.wait_for_message(DisplayRequest.UPDATE)
    wait_for_picture(vmm, picture)


# --- cursors --------------------------------------------------------------------------------------------------------


def test_cursor(vmm: FakeVmm) -> None:
    assert vmm.display is not None
    gpu, display = vmm.gpu, vmm.display
    picture = noise(64, 64)
    cursor = gpu.create_resource_2d(64, 64, Format.B8G8R8A8)
    cursor.upload_2d(packed(picture, Format.B8G8R8A8))
    gpu.update_cursor(0, 100, 200, cursor.resource_id, 3, 4)
    (update,) = display.wait_for_message(DisplayRequest.CURSOR_UPDATE)
    assert isinstance(update, CursorUpdate)
    assert (update.scanout, update.x, update.y, update.hot_x, update.hot_y) == (0, 100, 200, 3, 4)
    assert (update.image[:, :, 2::-1] == picture).all()
    assert (update.image[:, :, 3] == 0x5A).all()
    gpu.move_cursor(0, 300, 400, cursor.resource_id)
    display.wait_for(lambda: CursorPos(DisplayRequest.CURSOR_POS, 0, 300, 400) in display.messages, "the move")
    gpu.update_cursor(0, 300, 400, 0)
    display.wait_for(lambda: display.received(DisplayRequest.CURSOR_POS_HIDE), "a hidden cursor")


def test_cursors_that_are_none(lab: DeviceLab, vmm: FakeVmm) -> None:
    assert vmm.display is not None
    small = vmm.gpu.create_resource_2d(32, 32)
    vmm.gpu.update_cursor(0, 1, 1, small.resource_id)
    vmm.gpu.update_cursor(0, 1, 1, 4711)
    vmm.gpu.update_cursor(5, 1, 1, small.resource_id)
    vmm.gpu.move_cursor(0xFFFF_FFFF, 1, 1)
    vmm.gpu.display_info()
    assert not vmm.display.received(DisplayRequest.CURSOR_UPDATE)
    lab.check_running()


# --- capability sets and identities ---------------------------------------------------------------------------------

# struct virgl_caps_v2: capability_bits and capability_bits_v2
CAPABILITY_BITS, CAPABILITY_BITS_V2 = 392, 688
WITHOUT = 1 << 17 | 1 << 26 | 1 << 31  # TRANSFER, COPY_TRANSFER, ARB_BUFFER_STORAGE
WITHOUT_V2 = 1 << 3 | 1 << 7  # VIDEO_MEMORY, COPY_TRANSFER_BOTH_DIRECTIONS


def test_capsets(vmm: FakeVmm) -> None:
    gpu = vmm.gpu
    assert [capset.capset_id for capset in vmm.capsets] == [1, 2]
    for info in vmm.capsets:
        first = gpu.capset(info.capset_id, info.max_version, info.max_size).data
        again = gpu.capset(info.capset_id, info.max_version, info.max_size).data
        assert first == again
        assert len(first) == info.max_size
        assert int.from_bytes(first[:4], "little") >= 1  # max_version
        assert sum(map(bool, first)) > 32
    second = gpu.capset(2, vmm.capsets[1].max_version, vmm.capsets[1].max_size).data
    assert not int.from_bytes(second[CAPABILITY_BITS : CAPABILITY_BITS + 4], "little") & WITHOUT
    assert not int.from_bytes(second[CAPABILITY_BITS_V2 : CAPABILITY_BITS_V2 + 4], "little") & WITHOUT_V2


def test_uuids_are_stable_and_different(vmm: FakeVmm) -> None:
    one, other = (vmm.gpu.create_resource_2d(8, 8) for _ in range(2))
    answers = [vmm.gpu.resource_assign_uuid(r.resource_id) for r in (one, other, one)]
    uuids = [answer.uuid for answer in answers if isinstance(answer, ResourceUuid)]
    assert uuids[0] == uuids[2] != uuids[1]
    assert uuids[0].version == 4


def test_a_driver_without_3d_gets_none(lab: DeviceLab) -> None:
    with lab.vmm(features=Feature.EDID) as vmm:
        resource = vmm.gpu.create_resource_2d(64, 64)
        resource.upload_2d(packed(noise(64, 64)))
        resource.show()
        wait_for_picture(vmm, noise(64, 64))
        for command in (
            commands.ctx_create(1, "no"),
            commands.resource_create_3d(99, ResourceDescription(8, 8)),
            commands.resource_assign_uuid(resource.resource_id),
        ):
            assert vmm.gpu.call(command).type == Resp.ERR_UNSPEC


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("indirect", [False, True])
def test_without_ring_features(lab: DeviceLab, event_idx: bool, indirect: bool) -> None:
    with lab.vmm(event_idx=event_idx, indirect=indirect) as vmm:
        picture = noise(64, 64)
        resource = vmm.gpu.create_resource_2d(64, 64)
        for seed in range(20):
            picture = noise(64, 64, seed)
            resource.upload_2d(packed(picture))
        resource.show()
        wait_for_picture(vmm, picture)


def test_headless_again_leaves_nothing(lab: DeviceLab) -> None:
    before = lab.wait_until_idle()
    for _ in range(5):
        with lab.vmm() as vmm:
            vmm.gpu.create_resource_2d(256, 256).show()
    lab.wait_for_footprint(before)
    until(lambda: not lab.workers(), "no workers")
