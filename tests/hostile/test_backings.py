"""Backings of many and of odd entries, and memory that changes under the device's hands."""

from __future__ import annotations

import numpy as np

from tests.fake_vmm import PAGE_SIZE, Box, Format, GuestResource, ResourceDescription, Resp, commands
from tests.hostile.conftest import TEXTURE_BYTES, Guest


def make_2d(guest: Guest, width: int, height: int) -> GuestResource:
    """Without backing."""
    resource = GuestResource(guest.gpu, guest.gpu.new_resource_id(), width, height)
    guest.gpu.resource_create_2d(resource.resource_id, Format.B8G8R8X8, width, height).check()
    return resource


def test_100000_entries_of_four_bytes(guest: Guest) -> None:
    """Each pixel of a picture in an entry of its own, backwards."""
    count = 100_000
    resource = make_2d(guest, count // 100, 100)
    area = guest.vmm.memory.allocate(4 * count)
    guest.vmm.memory.write(area, np.arange(count, dtype="<u4").tobytes())
    entries = [(area + 4 * (count - 1 - i), 4) for i in range(count)]
    guest.gpu.resource_attach_backing(resource.resource_id, entries).check()
    resource.upload_2d()
    resource.show()
    assert guest.vmm.display is not None
    display = guest.vmm.display
    display.wait_for(
        lambda: (p := display.framebuffer()) is not None and p.shape[:2] == (100, count // 100) and p[99, -1, 0] == 0
        and int.from_bytes(p[0, 0, :3].tobytes(), "little") == count - 1,
        "the picture backwards",
    )  # fmt: skip
    resource.unref()


def test_entries_that_overlap(guest: Guest) -> None:
    """The same page a thousand times: the guest's own affair. Transfers to it write it over and over."""
    resource = guest.gpu.create_resource_3d(_large_texture())
    page = guest.vmm.memory.allocate(PAGE_SIZE)
    guest.gpu.resource_attach_backing(resource.resource_id, [(page, PAGE_SIZE)] * 1024).check()
    guest.context.attach(resource)
    guest.vmm.memory.write(page, b"\x11\x22\x33\x44" * 1024)
    box = Box(1024, 1024)
    guest.gpu.transfer_to_host_3d(guest.context.ctx_id, resource.resource_id, box).check()
    guest.vmm.memory.write(page, bytes(PAGE_SIZE))
    guest.gpu.transfer_from_host_3d(guest.context.ctx_id, resource.resource_id, box).check()
    assert guest.vmm.memory.read(page, PAGE_SIZE) == b"\x11\x22\x33\x44" * 1024
    resource.unref()


def _large_texture() -> ResourceDescription:
    return ResourceDescription(1024, 1024)


def test_all_of_ram_as_a_backing_the_rings_included(guest: Guest) -> None:
    """A guest may have its own virtqueues overwritten; here it only has them read."""
    resource = make_2d(guest, 4096, 2048)
    entries = [(region.gpa, region.size) for region in guest.vmm.memory.regions]
    guest.gpu.resource_attach_backing(resource.resource_id, entries).check()
    guest.gpu.transfer_to_host_2d(resource.resource_id, resource.rect).check()
    resource.unref()


def test_attach_and_detach_in_every_wrong_order(guest: Guest) -> None:
    gpu = guest.gpu
    resource = make_2d(guest, 32, 32)
    attach = [(guest.vmm.memory.allocate(PAGE_SIZE), PAGE_SIZE)]
    for _ in range(3):
        assert gpu.resource_detach_backing(resource.resource_id).type == Resp.ERR_UNSPEC
        assert gpu.resource_attach_backing(resource.resource_id, attach).ok
        assert gpu.resource_attach_backing(resource.resource_id, attach).type == Resp.ERR_UNSPEC
        assert gpu.transfer_to_host_2d(resource.resource_id, resource.rect).ok
        assert gpu.resource_detach_backing(resource.resource_id).ok
        assert gpu.transfer_to_host_2d(resource.resource_id, resource.rect).type == Resp.ERR_UNSPEC
    resource.unref()
    assert gpu.resource_detach_backing(resource.resource_id).type == Resp.ERR_INVALID_RESOURCE_ID
    assert gpu.resource_attach_backing(resource.resource_id, attach).type == Resp.ERR_INVALID_RESOURCE_ID


def test_backing_taken_away_while_transfers_are_under_way(guest: Guest) -> None:
    """What was placed before keeps its pages; what comes behind is refused."""
    gpu, ctx_id = guest.gpu, guest.context.ctx_id
    resource = gpu.create_resource_3d(_large_texture(), backing_size=4 << 20)
    guest.context.attach(resource)
    box = Box(1024, 1024)
    with gpu.batch():
        before = [
            gpu.submit(commands.transfer_from_host_3d(ctx_id, resource.resource_id, box), fenced=True)
            for _ in range(30)
        ]
        detach = gpu.submit(commands.resource_detach_backing(resource.resource_id))
        after = gpu.submit(commands.transfer_from_host_3d(ctx_id, resource.resource_id, box), fenced=True)
        gone = gpu.submit(commands.resource_unref(resource.resource_id))
        last = gpu.submit(commands.transfer_from_host_3d(ctx_id, resource.resource_id, box), fenced=True)
    assert all(response.ok for response in gpu.wait_all([*before, detach, gone]))
    assert gpu.wait(after).type == Resp.ERR_UNSPEC
    assert gpu.wait(last).type == Resp.ERR_INVALID_RESOURCE_ID


def test_neighbours_texture_is_as_it_was(guest: Guest) -> None:
    data = bytes(range(256)) * (TEXTURE_BYTES // 256)
    guest.texture.pixels.write(data)
    guest.gpu.transfer_to_host_3d(guest.context.ctx_id, guest.texture.resource_id, Box(64, 32)).check()
    guest.texture.pixels.clear()
    assert guest.texture.read_back(guest.context, TEXTURE_BYTES) == data
