"""The lightest scene: one triangle of one colour on a cleared background, with pixels known in advance."""

import struct
from collections.abc import Callable, Sequence

from tests.fake_vmm.virgl.encoder import CommandStream
from tests.fake_vmm.virgl.protocol import ClearBuffer, Format, ObjectType, Primitive, Shader
from tests.fake_vmm.virgl.resources import Resource, Upload, render_target, vertex_buffer
from tests.fake_vmm.virgl.state import DEPTH_OFF, OPAQUE, RasterizerState, VertexBuffer, VertexElement, Viewport

VERTEX_SHADER = """VERT
DCL IN[0]
DCL OUT[0], POSITION
DCL CONST[0]
  0: ADD OUT[0], IN[0], CONST[0]
  1: END
"""

FRAGMENT_SHADER = """FRAG
DCL OUT[0], COLOR
DCL CONST[0]
  0: MOV OUT[0], CONST[0]
  1: END
"""

Color = tuple[float, float, float]
"""Red, green and blue from 0 to 1."""

# Top left, bottom left and top right of the picture: a wrong orientation shows at once.
_CORNERS = ((-1.0, 1.0), (-1.0, -1.0), (1.0, 1.0))

_SURFACE, _BLEND, _DSA, _RASTERIZER, _ELEMENTS, _VERTEX, _FRAGMENT = range(1, 8)


class TriangleScene:
    """Fills the upper left half of the picture with ``color``; ``background`` stays in the lower right half.

    With ``t_seconds`` the triangle moves to the right by that many pictures' widths, so that at 0 it covers the upper
    left half exactly and at 1 nothing is left of it.
    """

    def __init__(
        self,
        name: str = "triangle",
        size: tuple[int, int] = (64, 64),
        color: Color = (1.0, 0.0, 0.0),
        background: Color = (0.0, 0.0, 1.0),
        format: Format = Format.B8G8R8X8_UNORM,
    ) -> None:
        self.name = name
        self.size = size
        self.color = color
        self.background = background
        self.format = format
        self._target: Resource | None = None
        self._vertices: Resource | None = None

    @property
    def target(self) -> Resource:
        if self._target is None:
            raise RuntimeError("resources() has not been called")
        return self._target

    @property
    def vertices(self) -> Resource:
        """The vertex buffer."""
        if self._vertices is None:
            raise RuntimeError("resources() has not been called")
        return self._vertices

    def resources(self, alloc_resid: Callable[[], int]) -> Sequence[Resource]:
        self._target = render_target(alloc_resid(), *self.size, self.format)
        self._vertices = vertex_buffer(alloc_resid(), len(self._vertex_data()))
        return [self._target, self._vertices]

    @staticmethod
    def _vertex_data() -> bytes:
        return b"".join(struct.pack("<4f", x, y, 0.0, 1.0) for x, y in _CORNERS)

    def uploads(self) -> Sequence[Upload]:
        return [Upload(self.vertices, self._vertex_data(), self.vertices.box)]

    def setup(self) -> bytes:
        elements = [VertexElement(0, Format.R32G32B32A32_FLOAT)]
        stream = (
            CommandStream()
            .create_sub_context(1)
            .set_sub_context(1)
            .create_surface(_SURFACE, self.target)
            .create_blend(_BLEND, OPAQUE)
            .create_depth_stencil_alpha(_DSA, DEPTH_OFF)
            .create_rasterizer(_RASTERIZER, RasterizerState())
            .create_vertex_elements(_ELEMENTS, elements)
            .create_shader(_VERTEX, Shader.VERTEX, VERTEX_SHADER)
            .create_shader(_FRAGMENT, Shader.FRAGMENT, FRAGMENT_SHADER)
            .bind_object(ObjectType.BLEND, _BLEND)
            .bind_object(ObjectType.DSA, _DSA)
            .bind_object(ObjectType.RASTERIZER, _RASTERIZER)
            .bind_object(ObjectType.VERTEX_ELEMENTS, _ELEMENTS)
            .bind_shader(_VERTEX, Shader.VERTEX)
            .bind_shader(_FRAGMENT, Shader.FRAGMENT)
            .set_framebuffer([_SURFACE])
            .set_viewport(Viewport.upright(*self.size))
            .set_vertex_buffers([VertexBuffer(self.vertices.resid, stride=16)])
            .set_constants(Shader.FRAGMENT, struct.pack("<4f", *self.color, 1.0))
        )
        return bytes(stream)

    def frame(self, t_seconds: float, index: int) -> bytes:
        stream = CommandStream().set_sub_context(1)
        stream.clear(ClearBuffer.COLOR0, (*self.background, 1.0))
        stream.set_constants(Shader.VERTEX, struct.pack("<4f", 2.0 * t_seconds, 0.0, 0.0, 0.0))
        stream.draw(Primitive.TRIANGLES, 3)
        return bytes(stream)
