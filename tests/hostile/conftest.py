"""One service for all of these tests; in each module one VM with a victim's objects and a neighbour that renders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.device_lab import OPTIONS, DeviceLab, assert_draws, triangle, until
from tests.fake_vmm import Bind, FakeVmm, Format, GuestContext, GuestResource, ResourceDescription, Target
from tests.fake_vmm.command_queue import CommandQueue
from tests.fake_vmm.gpu import Gpu
from tests.fake_vmm.scene_player import ScenePlayer
from tests.service_process import ServiceProcess

UNKNOWN = 4711
"""No resource, context or scanout has this id."""

TEXTURE = ResourceDescription(64, 32, last_level=2)
TEXTURE_BYTES = 4 * 64 * 32
MEBIBYTE = 1 << 20


@dataclass
class Guest:
    """A booted VM. picture: 2D, 64x64, backed. bare: 2D, 64x64, no backing. texture: TEXTURE, backed and attached to
    context. bare_texture: the same without backing. stray: backed, attached to no context. buffer: 256 bytes, backed
    and attached. lost: id of a context whose worker was killed. neighbour: a program that must not notice anything.
    """

    vmm: FakeVmm
    picture: GuestResource
    bare: GuestResource
    texture: GuestResource
    bare_texture: GuestResource
    stray: GuestResource
    buffer: GuestResource
    context: GuestContext
    lost: int
    neighbour: ScenePlayer

    @property
    def gpu(self) -> Gpu:
        return self.vmm.gpu


@pytest.fixture(scope="package")
def lab(start_service: Callable[..., ServiceProcess]) -> Iterator[DeviceLab]:
    service = start_service(OPTIONS)
    try:
        yield DeviceLab(service)
        service.check_running()
    finally:
        code = service.stop()
    assert code == 0


def kill_worker(lab: DeviceLab, ctx_id: int) -> None:
    """Ends a context's worker, and waits until the service has taken note."""
    blamed = lab.log.count("context lost")
    lab.kill(lab.worker_of(ctx_id).pid)
    until(lambda: lab.log.count("context lost") > blamed, "a blame in the log")


def furnish(lab: DeviceLab, vmm: FakeVmm) -> Guest:
    """Makes the objects of Guest."""
    gpu = vmm.gpu
    neighbour = triangle(gpu)
    context = gpu.create_context("victim")
    lost = gpu.create_context("lost")
    kill_worker(lab, lost.ctx_id)
    picture = gpu.create_resource_2d(64, 64)
    bare = GuestResource(gpu, gpu.new_resource_id(), 64, 64)
    gpu.resource_create_2d(bare.resource_id, Format.B8G8R8X8, 64, 64).check()
    texture = gpu.create_resource_3d(TEXTURE, backing_size=TEXTURE_BYTES, scattered=True)
    bare_texture = gpu.create_resource_3d(TEXTURE)
    stray = gpu.create_resource_3d(TEXTURE, backing_size=TEXTURE_BYTES)
    flat = ResourceDescription(256, format=64, bind=Bind.VERTEX_BUFFER, target=Target.BUFFER)
    buffer = gpu.create_resource_3d(flat, backing_size=256)
    for resource in (texture, bare_texture, buffer):
        context.attach(resource)
    return Guest(vmm, picture, bare, texture, bare_texture, stray, buffer, context, lost.ctx_id, neighbour)


@pytest.fixture(scope="module")
def _module_guest(lab: DeviceLab) -> Iterator[Guest]:
    before = lab.wait_until_idle()
    with lab.vmm() as vmm:
        yield furnish(lab, vmm)
    lab.wait_for_footprint(before)


@pytest.fixture
def guest(lab: DeviceLab, _module_guest: Guest) -> Iterator[Guest]:
    """The module's VM; afterwards the service must be alive and the neighbour unharmed."""
    yield _module_guest
    lab.check_running()
    assert_draws(_module_guest.neighbour)


@pytest.fixture
def throwaway(lab: DeviceLab) -> Iterator[Guest]:
    """A VM of the test's own, for what no other test could live with. Nothing of it may stay behind."""
    before = lab.wait_until_idle()
    with lab.vmm() as vmm:
        yield furnish(lab, vmm)
    lab.check_running()
    lab.wait_for_footprint(before)


def queue_of(guest: Guest, name: str) -> CommandQueue:
    """The guest's queue of that name: control or cursor."""
    return guest.gpu.control if name == "control" else guest.gpu.cursor
