"""A guest program: plays a virgl scene (virgl/scene.py) in a context of its own on a Gpu."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tests.fake_vmm import commands
from tests.fake_vmm.command_queue import Pending
from tests.fake_vmm.gpu import Gpu
from tests.fake_vmm.memory import GuestBuffer
from tests.fake_vmm.virgl.direct import pixels_of
from tests.fake_vmm.virgl.resources import Box as VirglBox
from tests.fake_vmm.virgl.resources import Resource
from tests.fake_vmm.virgl.scene import Scene
from tests.fake_vmm.wire import Box, Rect, ResourceDescription


class ScenePlayer:
    """Creates the scene's context, resources and objects at once; then `frame` for every picture.

    backings: guest memory of each resource by id, in scattered pages unless `scattered` is False.
    Raises CommandFailed when the device refuses any of it.
    """

    def __init__(self, gpu: Gpu, scene: Scene, *, scattered: bool = True) -> None:
        self.gpu = gpu
        self.scene = scene
        self.context = gpu.create_context(scene.name)
        self.resources = tuple(scene.resources(gpu.new_resource_id))
        self.backings: dict[int, GuestBuffer] = {}
        for resource in self.resources:
            self._create(resource, scattered)
        for resource, data, box in scene.uploads():
            self.backings[resource.resid].write(data)
            response = gpu.transfer_to_host_3d(
                self.context.ctx_id, resource.resid, _box(box), stride=_stride(resource), layer_stride=0
            )
            response.check(f"TRANSFER_TO_HOST_3D of {scene.name}")
        self.context.run(scene.setup()).check(f"set-up of {scene.name}")

    def _create(self, resource: Resource, scattered: bool) -> None:
        what = ResourceDescription(
            width=resource.width, height=resource.height, format=resource.format, bind=resource.bind,
            target=resource.target, depth=resource.depth, array_size=resource.array_size,
            last_level=resource.last_level, nr_samples=resource.nr_samples, flags=resource.flags,
        )  # fmt: skip
        self.gpu.resource_create_3d(resource.resid, what).check("RESOURCE_CREATE_3D")
        backing = self.gpu.memory.buffer(resource.backing_size, scattered=scattered)
        self.backings[resource.resid] = backing
        self.gpu.resource_attach_backing(resource.resid, backing.segments()).check("RESOURCE_ATTACH_BACKING")
        self.gpu.ctx_attach_resource(self.context.ctx_id, resource.resid).check("CTX_ATTACH_RESOURCE")

    @property
    def name(self) -> str:
        return self.scene.name

    def frame(self, t_seconds: float, index: int, *, fenced: bool = True) -> Pending:
        """Submit the picture of time `t_seconds`; done when it is drawn (if fenced)."""
        return self.context.submit(self.scene.frame(t_seconds, index), fenced=fenced)

    def show(self, scanout: int = 0) -> None:
        """Make the scene's target the scanout's content."""
        target = self.scene.target
        self.gpu.set_scanout(scanout, target.resid, Rect(target.width, target.height)).check("SET_SCANOUT")

    def flush(self) -> Pending:
        """Present the target on its scanout, fenced as Linux does; not waited for."""
        target = self.scene.target
        return self.gpu.submit(commands.resource_flush(target.resid, Rect(target.width, target.height)), fenced=True)

    def picture(self) -> npt.NDArray[np.uint8]:
        """The target's pixels, (height, width, 3) red, green, blue, by TRANSFER_FROM_HOST_3D."""
        target = self.scene.target
        response = self.gpu.transfer_from_host_3d(
            self.context.ctx_id, target.resid, _box(target.box), stride=_stride(target)
        )
        response.check(f"TRANSFER_FROM_HOST_3D of {self.name}")
        return pixels_of(target, self.backings[target.resid].read())

    def destroy(self) -> None:
        """Destroy the context, then the resources, and give their memory back."""
        self.context.destroy()
        for resource in self.resources:
            self.gpu.resource_unref(resource.resid).check("RESOURCE_UNREF")
            self.backings.pop(resource.resid).free()


def _box(box: VirglBox) -> Box:
    return Box(box.width, box.height, box.depth, x=box.x, y=box.y, z=box.z)


def _stride(resource: Resource) -> int:
    """Rows are tightly packed; buffers have none."""
    return resource.stride if resource.height > 1 else 0
