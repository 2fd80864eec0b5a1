"""State objects of the virgl protocol, as frozen descriptions that know their words on the wire.

The layouts are those of virglrenderer's ``virgl_protocol.h`` (VIRGL_OBJ_BLEND_*, VIRGL_OBJ_DSA_*, VIRGL_OBJ_RS_*,
VIRGL_OBJ_SAMPLER_STATE_*). ``words()`` gives the payload that follows the handle in CREATE_OBJECT.
"""

import struct
from dataclasses import dataclass

from tests.fake_vmm.virgl.protocol import (
    MAX_COLOR_BUFFERS,
    BlendFactor,
    BlendFunc,
    ColorMask,
    Compare,
    Face,
    Format,
    ImageFilter,
    MipFilter,
    PolygonMode,
    Wrap,
)


def float_word(value: float) -> int:
    """The 32-bit word that holds ``value`` as an IEEE single."""
    word: int = struct.unpack("<I", struct.pack("<f", value))[0]
    return word


@dataclass(frozen=True, slots=True)
class BlendState:
    """Blending of every render target. The default replaces what is there."""

    enable: bool = False
    rgb_func: BlendFunc = BlendFunc.ADD
    rgb_src: BlendFactor = BlendFactor.ONE
    rgb_dst: BlendFactor = BlendFactor.ZERO
    alpha_func: BlendFunc = BlendFunc.ADD
    alpha_src: BlendFactor = BlendFactor.ONE
    alpha_dst: BlendFactor = BlendFactor.ZERO
    color_mask: ColorMask = ColorMask.RGBA
    dither: bool = False

    def words(self) -> list[int]:
        target = (
            int(self.enable)
            | self.rgb_func << 1
            | self.rgb_src << 4
            | self.rgb_dst << 9
            | self.alpha_func << 14
            | self.alpha_src << 17
            | self.alpha_dst << 22
            | self.color_mask << 27
        )
        return [int(self.dither) << 2, 0, *[target] * MAX_COLOR_BUFFERS]


OPAQUE = BlendState()
ALPHA_BLEND = BlendState(
    enable=True,
    rgb_src=BlendFactor.SRC_ALPHA,
    rgb_dst=BlendFactor.INV_SRC_ALPHA,
    alpha_dst=BlendFactor.INV_SRC_ALPHA,
)
ADDITIVE = BlendState(enable=True, rgb_src=BlendFactor.SRC_ALPHA, rgb_dst=BlendFactor.ONE, alpha_dst=BlendFactor.ONE)


@dataclass(frozen=True, slots=True)
class DepthStencilAlphaState:
    """Depth test; stencil and alpha tests stay off. The default tests and writes depth."""

    depth_test: bool = True
    depth_write: bool = True
    depth_func: Compare = Compare.LESS

    def words(self) -> list[int]:
        return [int(self.depth_test) | int(self.depth_write) << 1 | self.depth_func << 2, 0, 0, float_word(0.0)]


DEPTH_TEST = DepthStencilAlphaState()
DEPTH_TEST_ONLY = DepthStencilAlphaState(depth_write=False, depth_func=Compare.LEQUAL)
DEPTH_OFF = DepthStencilAlphaState(depth_test=False, depth_write=False, depth_func=Compare.ALWAYS)


@dataclass(frozen=True, slots=True)
class RasterizerState:
    """Rasterization with GL's conventions: pixel centres at .5, clip z from -w to w.

    With Viewport.upright, ``front_ccw`` counts as GL does: counter-clockwise with y upwards is the front.
    """

    cull: Face = Face.NONE
    front_ccw: bool = True
    fill: PolygonMode = PolygonMode.FILL
    scissor: bool = False
    flat_shade: bool = False
    multisample: bool = False
    point_size: float = 1.0
    line_width: float = 1.0

    def words(self) -> list[int]:
        bits = (
            int(self.flat_shade)
            | 1 << 1  # depth clip
            | self.cull << 8
            | self.fill << 10
            | self.fill << 12
            | int(self.scissor) << 14
            | int(self.front_ccw) << 15
            | int(self.multisample) << 25
            | 1 << 29  # half-pixel centre
            | 1 << 30  # bottom edge rule
        )
        no_offset = float_word(0.0)
        return [bits, float_word(self.point_size), 0, 0, float_word(self.line_width), no_offset, no_offset, no_offset]


@dataclass(frozen=True, slots=True)
class SamplerState:
    """How a texture is filtered and wrapped."""

    wrap: Wrap = Wrap.REPEAT
    min_filter: ImageFilter = ImageFilter.LINEAR
    mag_filter: ImageFilter = ImageFilter.LINEAR
    mip_filter: MipFilter = MipFilter.NONE
    min_lod: float = 0.0
    max_lod: float = 0.0
    border: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def words(self) -> list[int]:
        bits = (
            self.wrap
            | self.wrap << 3
            | self.wrap << 6
            | self.min_filter << 9
            | self.mip_filter << 11
            | self.mag_filter << 13
            | Compare.ALWAYS << 16
        )
        floats = (0.0, self.min_lod, self.max_lod, *self.border)
        return [bits, *map(float_word, floats)]


@dataclass(frozen=True, slots=True)
class VertexElement:
    """One vertex attribute: where it lies in its vertex buffer (``offset`` in bytes) and how it is fetched."""

    offset: int
    format: Format
    buffer: int = 0
    instance_divisor: int = 0

    def words(self) -> list[int]:
        return [self.offset, self.instance_divisor, self.buffer, self.format]


@dataclass(frozen=True, slots=True)
class VertexBuffer:
    """A binding of a vertex buffer: ``stride`` and ``offset`` in bytes."""

    resid: int
    stride: int
    offset: int = 0

    def words(self) -> list[int]:
        return [self.stride, self.offset, self.resid]


@dataclass(frozen=True, slots=True)
class Viewport:
    """Scale and translation from clip space (-1..1) to window space, y counted from the first row in memory."""

    scale: tuple[float, float, float]
    translate: tuple[float, float, float]

    @classmethod
    def upright(cls, width: int, height: int) -> "Viewport":
        """The first row in memory is the top of the picture (y = +1), as a scanout needs it."""
        return cls((width / 2, -height / 2, 0.5), (width / 2, height / 2, 0.5))

    @classmethod
    def gl(cls, width: int, height: int) -> "Viewport":
        """The first row in memory is y = -1, as in a GL framebuffer object."""
        return cls((width / 2, height / 2, 0.5), (width / 2, height / 2, 0.5))

    def words(self) -> list[int]:
        return [float_word(value) for value in (*self.scale, *self.translate)]
