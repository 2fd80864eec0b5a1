"""Descriptions of virtio-gpu 3D resources: the arguments of RESOURCE_CREATE_3D, and the guest memory they need.

Nothing here talks to a device: a transport creates the resource, attaches ``backing_size`` bytes of guest memory to it
and moves boxes of it (virtio 1.3, 5.7.6.8, "VIRTIO_GPU_CMD_RESOURCE_CREATE_3D" and the 3D transfer commands).
"""

from dataclasses import dataclass
from typing import NamedTuple

from tests.fake_vmm.virgl.protocol import Bind, Format, ResourceFlag, Target

NO_FLAGS = ResourceFlag(0)


class Box(NamedTuple):
    """A region of a resource, in texels; for buffers x and width count bytes (struct virtio_gpu_box)."""

    x: int
    y: int
    z: int
    width: int
    height: int
    depth: int


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource, with its id and the fields of struct virtio_gpu_resource_create_3d in wire order."""

    resid: int
    target: Target
    format: Format
    bind: Bind
    width: int
    height: int = 1
    depth: int = 1
    array_size: int = 1
    last_level: int = 0
    nr_samples: int = 0
    flags: ResourceFlag = NO_FLAGS

    @property
    def stride(self) -> int:
        """Bytes from one row of level 0 to the next in tightly packed guest memory."""
        return self.width * self.format.size

    @property
    def layer_stride(self) -> int:
        """Bytes from one layer (or depth slice) of level 0 to the next in tightly packed guest memory."""
        return self.stride * self.height

    @property
    def backing_size(self) -> int:
        """Bytes of guest memory that hold level 0 of every layer, tightly packed."""
        return self.layer_stride * max(self.depth, self.array_size)

    @property
    def box(self) -> Box:
        """All of level 0."""
        return Box(0, 0, 0, self.width, self.height, max(self.depth, self.array_size))


class Upload(NamedTuple):
    """Data that a guest writes to the backing of a resource and then transfers to the host before the first frame.

    ``data`` is tightly packed and starts at offset 0 of the backing when ``box`` is the whole resource.
    """

    resource: Resource
    data: bytes
    box: Box


def _buffer(resid: int, size: int, bind: Bind) -> Resource:
    if size <= 0:
        raise ValueError(f"a buffer needs a positive size, not {size}")
    return Resource(resid, Target.BUFFER, Format.R8_UNORM, bind, width=size)


def vertex_buffer(resid: int, size: int) -> Resource:
    """A buffer of ``size`` bytes for vertices."""
    return _buffer(resid, size, Bind.VERTEX_BUFFER)


def index_buffer(resid: int, size: int) -> Resource:
    """A buffer of ``size`` bytes for indices."""
    return _buffer(resid, size, Bind.INDEX_BUFFER)


def constant_buffer(resid: int, size: int) -> Resource:
    """A buffer of ``size`` bytes for shader constants (SET_UNIFORM_BUFFER)."""
    return _buffer(resid, size, Bind.CONSTANT_BUFFER)


def query_buffer(resid: int) -> Resource:
    """A buffer for one struct virgl_host_query_state (16 bytes).

    The host writes the result of a query into the backing of this resource. Mesa's guest driver asks for
    VIRGL_BIND_CUSTOM here: such a resource has no GL object behind it, only the guest's memory.
    """
    return _buffer(resid, 16, Bind.CUSTOM)


def render_target(
    resid: int, width: int, height: int, format: Format = Format.B8G8R8X8_UNORM, *, scanout: bool = True
) -> Resource:
    """A colour texture to draw to, which can also be sampled; ``scanout`` says that a display will show it."""
    bind = Bind.RENDER_TARGET | Bind.SAMPLER_VIEW
    if scanout:
        bind |= Bind.SCANOUT
    return Resource(resid, Target.TEXTURE_2D, format, bind, width, height)


def depth_buffer(resid: int, width: int, height: int, format: Format = Format.S8_UINT_Z24_UNORM) -> Resource:
    """A depth (and stencil) texture."""
    return Resource(resid, Target.TEXTURE_2D, format, Bind.DEPTH_STENCIL, width, height)


def texture(resid: int, width: int, height: int, format: Format = Format.R8G8B8A8_UNORM) -> Resource:
    """A texture to be sampled by shaders."""
    return Resource(resid, Target.TEXTURE_2D, format, Bind.SAMPLER_VIEW, width, height)


def readback_texture(resid: int, width: int, height: int, format: Format = Format.B8G8R8A8_UNORM) -> Resource:
    """A texture into which a guest copies (RESOURCE_COPY_REGION, BLIT) what it then transfers from the host."""
    return Resource(resid, Target.TEXTURE_2D, format, Bind.RENDER_TARGET | Bind.SAMPLER_VIEW, width, height)
