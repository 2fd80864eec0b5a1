"""Guest programs that share resources: what one of them draws the others have to see, in the order of the queue."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tests.fake_vmm import commands
from tests.fake_vmm.command_queue import Pending
from tests.fake_vmm.gpu import Gpu
from tests.fake_vmm.memory import GuestBuffer
from tests.fake_vmm.virgl.encoder import CommandStream
from tests.fake_vmm.virgl.protocol import (
    Bind,
    ClearBuffer,
    Format,
    ImageFilter,
    ObjectType,
    Primitive,
    Shader,
    Target,
    Wrap,
)
from tests.fake_vmm.virgl.resources import Box as VirglBox
from tests.fake_vmm.virgl.resources import Resource
from tests.fake_vmm.virgl.state import (
    DEPTH_OFF,
    OPAQUE,
    RasterizerState,
    SamplerState,
    VertexBuffer,
    VertexElement,
    Viewport,
)
from tests.fake_vmm.wire import Box, ResourceDescription

SIDE = 16
"""Pixels of a canvas, each way, unless a test wants another."""

PICTURE = Bind.RENDER_TARGET | Bind.SAMPLER_VIEW
SHARED_PICTURE = PICTURE | Bind.SHARED
"""What a guest's driver says when it knows that others will have it, too."""

Pixels = npt.NDArray[np.uint8]
"""(rows, columns, 4), bytes as they lie in guest memory."""


def shade(number: int) -> tuple[int, int, int, int]:
    """One of 65536 colours, as the bytes of a pixel."""
    return number & 255, number >> 8 & 255, 0x5A, 0xFF


DRAW = bytes(CommandStream().draw(Primitive.TRIANGLE_STRIP, 4))
"""What Program.prepare_to_draw() has prepared."""

_CORNERS = struct.pack("<16f", -1, -1, 0, 1, 1, -1, 0, 1, -1, 1, 0, 1, 1, 1, 0, 1)
_VERTEX = """VERT
DCL IN[0]
DCL OUT[0], POSITION
DCL OUT[1], GENERIC[0]
IMM[0] FLT32 { 0.5, 0.5, 0.5, 0.5 }
  MOV OUT[0], IN[0]
  MAD OUT[1], IN[0], IMM[0], IMM[0]
  END
"""
_FRAGMENT = """FRAG
DCL IN[0], GENERIC[0], LINEAR
DCL OUT[0], COLOR
DCL SAMP[0]
DCL SVIEW[0], 2D, FLOAT
  TEX OUT[0], IN[0], SAMP[0], 2D
  END
"""


@dataclass(frozen=True)
class Canvas:
    """A resource with guest memory behind it. `what` describes it."""

    gpu: Gpu
    what: Resource
    backing: GuestBuffer

    @property
    def resource_id(self) -> int:
        return self.what.resid

    def pixels(self) -> Pixels:
        """What lies in guest memory."""
        return np.frombuffer(self.backing.read(), np.uint8).reshape(-1, self.what.width, 4)

    def unref(self) -> None:
        """The guest has no use for it any more."""
        self.gpu.resource_unref(self.resource_id).check("RESOURCE_UNREF")
        self.backing.free()


def create(gpu: Gpu, what: Resource, backing_size: int = 0) -> Canvas:
    """A resource of these arguments, whatever its id is there. Backing for level 0, or of so many bytes."""
    resid = gpu.new_resource_id()
    described = Resource(
        resid, what.target, what.format, what.bind, what.width, what.height, what.depth, what.array_size,
        what.last_level, what.nr_samples, what.flags,
    )  # fmt: skip
    arguments = ResourceDescription(
        width=what.width, height=what.height, format=what.format, bind=what.bind, target=what.target, depth=what.depth,
        array_size=what.array_size, last_level=what.last_level, nr_samples=what.nr_samples, flags=what.flags,
    )  # fmt: skip
    gpu.resource_create_3d(resid, arguments).check("RESOURCE_CREATE_3D")
    backing = gpu.memory.buffer(backing_size or described.backing_size, scattered=True)
    gpu.resource_attach_backing(resid, backing.segments()).check("RESOURCE_ATTACH_BACKING")
    return Canvas(gpu, described, backing)


def canvas(gpu: Gpu, width: int = SIDE, height: int = SIDE, bind: Bind = SHARED_PICTURE) -> Canvas:
    """A picture of 32-bit pixels."""
    return create(gpu, Resource(0, Target.TEXTURE_2D, Format.B8G8R8A8_UNORM, bind, width, height))


def buffer(gpu: Gpu, nbytes: int, bind: Bind = Bind.VERTEX_BUFFER) -> Canvas:
    """A row of bytes."""
    return create(gpu, Resource(0, Target.BUFFER, Format.R8_UNORM, bind, nbytes))


class Program:
    """A context that draws and copies. It sends unfenced and waits for nothing but what it reads."""

    def __init__(self, gpu: Gpu, name: str, *canvases: Canvas) -> None:
        """`canvases`: those that it has from the beginning."""
        self.gpu = gpu
        self.context = gpu.create_context(name)
        self.ctx_id = self.context.ctx_id
        self._surfaces: dict[int, int] = {}
        self._framebuffer = 0
        self.submit(CommandStream().create_sub_context(1).set_sub_context(1))
        self.attach(*canvases)

    def attach(self, *canvases: Canvas) -> None:
        """Waits for no answer: what comes next is behind it."""
        for each in canvases:
            self.gpu.submit(commands.ctx_attach_resource(self.ctx_id, each.resource_id))

    def detach(self, each: Canvas) -> None:
        """As attach()."""
        self._surfaces.pop(each.resource_id, None)
        self.gpu.submit(commands.ctx_detach_resource(self.ctx_id, each.resource_id))

    def submit(self, stream: CommandStream, *, fenced: bool = False) -> Pending:
        """Not waited for."""
        return self.context.submit(bytes(stream), fenced=fenced)

    def paint(self, target: Canvas, color: tuple[int, int, int, int]) -> None:
        """All of it in one colour; bytes as in B8G8R8A8."""
        stream = CommandStream()
        surface = self._surfaces.get(target.resource_id)
        if surface is None:
            surface = self._surfaces[target.resource_id] = len(self._surfaces) + 1
            stream.create_surface(surface, target.what)
        if self._framebuffer != surface:
            self._framebuffer = surface
            stream.set_framebuffer([surface])
        blue, green, red, alpha = (part / 255 for part in color)
        self.submit(stream.clear(ClearBuffer.COLOR0, (red, green, blue, alpha)))

    def copy_row(self, to: Canvas, row: int, of: Canvas, source_row: int = 0) -> None:
        """One row of pixels from the left."""
        box = VirglBox(0, source_row, 0, to.what.width, 1, 1)
        self.submit(CommandStream().copy_region(to.what, of.what, box, (0, row, 0)))

    def copy(self, to: Canvas, of: Canvas) -> None:
        """All of it."""
        self.submit(CommandStream().copy_region(to.what, of.what))

    def blit(self, to: Canvas, of: Canvas) -> None:
        """All of it, several samples of a pixel made one."""
        self.submit(CommandStream().blit(to.what, of.what))

    def prepare_to_draw(self, to: Canvas, of: Canvas) -> None:
        """Whatever is drawn from now on (DRAW) is all of one picture as a texture, over all of the other."""
        corners = buffer(self.gpu, 64)
        self.attach(corners)
        stream = CommandStream().inline_write(corners.what, _CORNERS).create_surface(100, to.what)
        stream.set_framebuffer([100]).set_viewport(Viewport.gl(to.what.width, to.what.height))
        stream.create_blend(101, OPAQUE).bind_object(ObjectType.BLEND, 101)
        stream.create_depth_stencil_alpha(102, DEPTH_OFF).bind_object(ObjectType.DSA, 102)
        stream.create_rasterizer(103, RasterizerState()).bind_object(ObjectType.RASTERIZER, 103)
        stream.create_vertex_elements(104, [VertexElement(0, Format.R32G32B32A32_FLOAT)])
        stream.bind_object(ObjectType.VERTEX_ELEMENTS, 104).set_vertex_buffers([VertexBuffer(corners.resource_id, 16)])
        stream.create_shader(105, Shader.VERTEX, _VERTEX).bind_shader(105, Shader.VERTEX)
        stream.create_shader(106, Shader.FRAGMENT, _FRAGMENT).bind_shader(106, Shader.FRAGMENT)
        nearest = SamplerState(Wrap.CLAMP_TO_EDGE, ImageFilter.NEAREST, ImageFilter.NEAREST)
        stream.create_sampler_state(107, nearest).bind_sampler_states(Shader.FRAGMENT, [107])
        stream.create_sampler_view(108, of.what).set_sampler_views(Shader.FRAGMENT, [108])
        self.submit(stream)

    def write(self, target: Canvas, data: bytes, at: int = 0) -> None:
        """Bytes in a buffer, in the stream."""
        self.submit(CommandStream().inline_write(target.what, data, VirglBox(at, 0, 0, len(data), 1, 1)))

    def copy_bytes(self, to: Canvas, at: int, of: Canvas, source_at: int, nbytes: int) -> None:
        """From buffer to buffer."""
        box = VirglBox(source_at, 0, 0, nbytes, 1, 1)
        self.submit(CommandStream().copy_region(to.what, of.what, box, (at, 0, 0)))

    def upload(self, target: Canvas, data: bytes) -> None:
        """TRANSFER_TO_HOST_3D of all of level 0, waited for."""
        target.backing.write(data)
        self.transfer(target, to_host=True)

    def read(self, source: Canvas) -> bytes:
        """TRANSFER_FROM_HOST_3D of all of level 0, over zeros."""
        source.backing.write(bytes(source.backing.size))
        self.transfer(source, to_host=False)
        return source.backing.read()

    def picture(self, source: Canvas) -> Pixels:
        """The same as pixels."""
        self.read(source)
        return source.pixels()

    def transfer(self, of: Canvas, *, to_host: bool, level: int = 0, box: Box | None = None, stride: int = 0) -> None:
        """Between guest memory from its beginning and a box, by default all of level 0. Waited for."""
        whole = of.what.box
        box = box or Box(whole.width, whole.height, whole.depth)
        call = self.gpu.transfer_to_host_3d if to_host else self.gpu.transfer_from_host_3d
        call(self.ctx_id, of.resource_id, box, level=level, stride=stride).check(f"a transfer of {of.what}")

    def finish(self) -> None:
        """Until all that it has sent is done."""
        self.gpu.wait(self.context.submit(b"")).check("a fence")

    def leave(self) -> None:
        """Its end."""
        self.context.destroy()


@contextmanager
def cleaned_up(gpu: Gpu) -> Iterator[Gpu]:
    """In the end the contexts and resources that were made meanwhile are taken away."""
    others = set(gpu.contexts)
    first = gpu.new_resource_id()
    yield gpu
    for ctx_id in set(gpu.contexts) - others:
        gpu.contexts[ctx_id].destroy()
    for resource_id in range(first, gpu.new_resource_id()):
        gpu.resource_unref(resource_id)


def assert_rows(pixels: Pixels, numbers: list[int]) -> None:
    """Each row is of one colour, the shade of its number."""
    wanted = np.array([shade(number) for number in numbers], np.uint8)[:, np.newaxis, :]
    wrong = np.flatnonzero((pixels != wanted).any(axis=(1, 2)))
    assert not len(wrong), (
        f"{len(wrong)} of {len(numbers)} rows, first {wrong[0]}: {pixels[wrong[0]].tolist()}, not {wanted[wrong[0]]}"
    )


def assert_all(pixels: Pixels, number: int) -> None:
    """Everything is of one shade."""
    assert_rows(pixels, [number] * len(pixels))
