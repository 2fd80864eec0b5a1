"""What the scenes have in common: a framebuffer with depth, meshes in buffers, pipelines by name, a backdrop."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.demo.scenes.meshes import Mesh
from tests.fake_vmm.virgl.encoder import CommandStream
from tests.fake_vmm.virgl.protocol import ObjectType, Primitive, Shader
from tests.fake_vmm.virgl.resources import Resource, Upload, depth_buffer, index_buffer, render_target, vertex_buffer
from tests.fake_vmm.virgl.state import (
    BlendState,
    DepthStencilAlphaState,
    RasterizerState,
    VertexBuffer,
    VertexElement,
    Viewport,
)

SUB_CONTEXT = 1

BACKDROP = Mesh(np.array([[-1, -1], [3, -1], [-1, 3]], "<f4"), np.array([0, 1, 2], "<u2"))
"""One triangle that covers the whole picture, to be drawn at the far plane behind (and after) everything opaque."""

BACKDROP_VERTEX_SHADER = """VERT
DCL IN[0]
DCL OUT[0], POSITION
DCL OUT[1], GENERIC[0]
MOV OUT[0], IN[0].xyww
MOV OUT[1], IN[0]
END
"""


@dataclass(frozen=True, slots=True)
class MeshBuffers:
    """A mesh and the resources that hold it on the host."""

    mesh: Mesh
    vertices: Resource
    indices: Resource


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Handles of everything that a kind of draw binds."""

    elements: int
    vertex_shader: int
    fragment_shader: int
    rasterizer: int
    blend: int
    depth: int


@dataclass(slots=True)
class _Objects:
    """Handles given out, and state objects already made (a scene makes each distinct one once)."""

    handles: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    shared: dict[object, int] = field(default_factory=dict)


class SceneBase:
    """Resources and set-up of a scene; a subclass names its meshes, builds its pipelines and draws."""

    name = ""

    def __init__(self, size: tuple[int, int] = (640, 480)) -> None:
        self.size = size
        self._target: Resource | None = None
        self._depth: Resource | None = None
        self._buffers: dict[str, MeshBuffers] = {}
        self._objects = _Objects()

    @property
    def aspect(self) -> float:
        return self.size[0] / self.size[1]

    @property
    def target(self) -> Resource:
        if self._target is None:
            raise RuntimeError("resources() has not been called")
        return self._target

    # What a subclass gives

    def meshes(self) -> dict[str, Mesh]:
        """Every mesh of the scene, by name."""
        raise NotImplementedError

    def build(self, stream: CommandStream) -> None:
        """Append the creation of the scene's pipelines."""
        raise NotImplementedError

    def draw(self, stream: CommandStream, t: float) -> None:
        """Append the drawing of time ``t`` in seconds, clearing included."""
        raise NotImplementedError

    # The Scene protocol

    def resources(self, alloc_resid: Callable[[], int]) -> Sequence[Resource]:
        target = render_target(alloc_resid(), *self.size)
        depth = depth_buffer(alloc_resid(), *self.size)
        self._target, self._depth = target, depth
        self._buffers = {
            name: MeshBuffers(
                mesh,
                vertex_buffer(alloc_resid(), mesh.vertices.nbytes),
                index_buffer(alloc_resid(), mesh.indices.nbytes),
            )
            for name, mesh in self.meshes().items()
        }
        buffers = self._buffers.values()
        return [target, depth, *(b.vertices for b in buffers), *(b.indices for b in buffers)]

    def uploads(self) -> Sequence[Upload]:
        out = []
        for buffers in self._buffers.values():
            out.append(Upload(buffers.vertices, buffers.mesh.vertices.tobytes(), buffers.vertices.box))
            out.append(Upload(buffers.indices, buffers.mesh.indices.tobytes(), buffers.indices.box))
        return out

    def setup(self) -> bytes:
        if self._depth is None:
            raise RuntimeError("resources() has not been called")
        self._objects = _Objects()
        color, depth = self.handle(), self.handle()
        stream = CommandStream().create_sub_context(SUB_CONTEXT).set_sub_context(SUB_CONTEXT)
        stream.create_surface(color, self.target).create_surface(depth, self._depth)
        stream.set_framebuffer([color], depth).set_viewport(Viewport.upright(*self.size))
        self.build(stream)
        return bytes(stream)

    def frame(self, t_seconds: float, index: int) -> bytes:
        stream = CommandStream().set_sub_context(SUB_CONTEXT)
        self.draw(stream, t_seconds)
        return bytes(stream)

    # Tools for subclasses

    def handle(self) -> int:
        return next(self._objects.handles)

    def shader(self, stream: CommandStream, shader: Shader, text: str) -> int:
        """The handle of a shader, created on first use."""
        key = (shader, text)
        if key not in self._objects.shared:
            self._objects.shared[key] = self.handle()
            stream.create_shader(self._objects.shared[key], shader, text)
        return self._objects.shared[key]

    def _state(self, state: object, create: Callable[[int], object]) -> int:
        if state not in self._objects.shared:
            self._objects.shared[state] = self.handle()
            create(self._objects.shared[state])
        return self._objects.shared[state]

    def pipeline(
        self,
        stream: CommandStream,
        elements: Sequence[VertexElement],
        vertex_shader: str,
        fragment_shader: str,
        rasterizer: RasterizerState,
        blend: BlendState,
        depth: DepthStencilAlphaState,
    ) -> Pipeline:
        """Create what does not exist yet of a pipeline and give its handles."""
        layout = tuple(elements)
        return Pipeline(
            elements=self._state(layout, lambda h: stream.create_vertex_elements(h, layout)),
            vertex_shader=self.shader(stream, Shader.VERTEX, vertex_shader),
            fragment_shader=self.shader(stream, Shader.FRAGMENT, fragment_shader),
            rasterizer=self._state(rasterizer, lambda h: stream.create_rasterizer(h, rasterizer)),
            blend=self._state(blend, lambda h: stream.create_blend(h, blend)),
            depth=self._state(depth, lambda h: stream.create_depth_stencil_alpha(h, depth)),
        )

    @staticmethod
    def use(stream: CommandStream, pipeline: Pipeline) -> None:
        """Bind all of a pipeline."""
        stream.bind_object(ObjectType.VERTEX_ELEMENTS, pipeline.elements)
        stream.bind_shader(pipeline.vertex_shader, Shader.VERTEX)
        stream.bind_shader(pipeline.fragment_shader, Shader.FRAGMENT)
        stream.bind_object(ObjectType.RASTERIZER, pipeline.rasterizer)
        stream.bind_object(ObjectType.BLEND, pipeline.blend)
        stream.bind_object(ObjectType.DSA, pipeline.depth)

    def use_mesh(self, stream: CommandStream, name: str) -> None:
        """Bind a mesh's buffers."""
        buffers = self._buffers[name]
        stream.set_vertex_buffers([VertexBuffer(buffers.vertices.resid, buffers.mesh.stride)])
        stream.set_index_buffer(buffers.indices, 2)

    def draw_mesh(self, stream: CommandStream, name: str) -> None:
        """Draw the mesh whose buffers are bound."""
        mesh = self._buffers[name].mesh
        stream.draw(Primitive.TRIANGLES, len(mesh.indices), indexed=True, max_index=len(mesh.vertices) - 1)
