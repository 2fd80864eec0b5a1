"""Numbers of the virgl command stream, as a guest driver uses them.

Sources: virglrenderer's ``virgl_protocol.h`` (commands, objects, word layouts), ``virgl_hw.h`` (formats, binds,
resource flags, query state) and gallium's ``p_defines.h`` (targets, primitives, compare functions, ...).
Only what the scenes, tests and benches use is listed; the values are wire ABI and never change.
"""

from enum import IntEnum, IntFlag

MAX_COMMAND_WORDS = 0xFFFF
"""Most payload words of one command: the length field of a command header has 16 bits."""

MAX_COLOR_BUFFERS = 8
"""Render targets described by a blend object (VIRGL_MAX_COLOR_BUFS)."""

SHADER_CONTINUATION = 1 << 31
"""Set in the offset word of every piece of a shader's text but the first (VIRGL_OBJ_SHADER_OFFSET_CONT)."""


class Command(IntEnum):
    """enum virgl_context_cmd."""

    NOP = 0
    CREATE_OBJECT = 1
    BIND_OBJECT = 2
    DESTROY_OBJECT = 3
    SET_VIEWPORT_STATE = 4
    SET_FRAMEBUFFER_STATE = 5
    SET_VERTEX_BUFFERS = 6
    CLEAR = 7
    DRAW_VBO = 8
    RESOURCE_INLINE_WRITE = 9
    SET_SAMPLER_VIEWS = 10
    SET_INDEX_BUFFER = 11
    SET_CONSTANT_BUFFER = 12
    SET_STENCIL_REF = 13
    SET_BLEND_COLOR = 14
    SET_SCISSOR_STATE = 15
    BLIT = 16
    RESOURCE_COPY_REGION = 17
    BIND_SAMPLER_STATES = 18
    BEGIN_QUERY = 19
    END_QUERY = 20
    GET_QUERY_RESULT = 21
    SET_POLYGON_STIPPLE = 22
    SET_CLIP_STATE = 23
    SET_SAMPLE_MASK = 24
    SET_STREAMOUT_TARGETS = 25
    SET_RENDER_CONDITION = 26
    SET_UNIFORM_BUFFER = 27
    SET_SUB_CTX = 28
    CREATE_SUB_CTX = 29
    DESTROY_SUB_CTX = 30
    BIND_SHADER = 31
    SET_TESS_STATE = 32
    SET_MIN_SAMPLES = 33
    SET_SHADER_BUFFERS = 34
    SET_SHADER_IMAGES = 35
    MEMORY_BARRIER = 36
    LAUNCH_GRID = 37
    SET_FRAMEBUFFER_STATE_NO_ATTACH = 38
    TEXTURE_BARRIER = 39
    SET_ATOMIC_BUFFERS = 40
    SET_DEBUG_FLAGS = 41
    GET_QUERY_RESULT_QBO = 42
    TRANSFER3D = 43
    END_TRANSFERS = 44
    COPY_TRANSFER3D = 45
    SET_TWEAKS = 46
    CLEAR_TEXTURE = 47
    PIPE_RESOURCE_CREATE = 48
    PIPE_RESOURCE_SET_TYPE = 49


class ObjectType(IntEnum):
    """enum virgl_object_type."""

    NULL = 0
    BLEND = 1
    RASTERIZER = 2
    DSA = 3
    SHADER = 4
    VERTEX_ELEMENTS = 5
    SAMPLER_VIEW = 6
    SAMPLER_STATE = 7
    SURFACE = 8
    QUERY = 9
    STREAMOUT_TARGET = 10


class Format(IntEnum):
    """enum virgl_formats (excerpt). Names give the order of the channels in memory."""

    B8G8R8A8_UNORM = 1
    B8G8R8X8_UNORM = 2
    Z16_UNORM = 16
    Z32_FLOAT = 18
    S8_UINT_Z24_UNORM = 20
    Z24X8_UNORM = 21
    R32_FLOAT = 28
    R32G32_FLOAT = 29
    R32G32B32_FLOAT = 30
    R32G32B32A32_FLOAT = 31
    R8_UNORM = 64
    R8G8B8A8_UNORM = 67
    R8G8B8X8_UNORM = 134

    @property
    def size(self) -> int:
        """Bytes of one pixel or vertex attribute of this format."""
        return _FORMAT_SIZES[self]


_FORMAT_SIZES = {
    Format.B8G8R8A8_UNORM: 4,
    Format.B8G8R8X8_UNORM: 4,
    Format.Z16_UNORM: 2,
    Format.Z32_FLOAT: 4,
    Format.S8_UINT_Z24_UNORM: 4,
    Format.Z24X8_UNORM: 4,
    Format.R32_FLOAT: 4,
    Format.R32G32_FLOAT: 8,
    Format.R32G32B32_FLOAT: 12,
    Format.R32G32B32A32_FLOAT: 16,
    Format.R8_UNORM: 1,
    Format.R8G8B8A8_UNORM: 4,
    Format.R8G8B8X8_UNORM: 4,
}


class Bind(IntFlag):
    """VIRGL_BIND_*: what a resource may be used for. Buffer binds are mutually exclusive in practice."""

    DEPTH_STENCIL = 1 << 0
    RENDER_TARGET = 1 << 1
    SAMPLER_VIEW = 1 << 3
    VERTEX_BUFFER = 1 << 4
    INDEX_BUFFER = 1 << 5
    CONSTANT_BUFFER = 1 << 6
    DISPLAY_TARGET = 1 << 7
    QUERY_BUFFER = 1 << 15
    CURSOR = 1 << 16
    CUSTOM = 1 << 17
    SCANOUT = 1 << 18
    STAGING = 1 << 19
    SHARED = 1 << 20
    LINEAR = 1 << 22


class Target(IntEnum):
    """enum pipe_texture_target."""

    BUFFER = 0
    TEXTURE_1D = 1
    TEXTURE_2D = 2
    TEXTURE_3D = 3
    TEXTURE_CUBE = 4
    TEXTURE_RECT = 5
    TEXTURE_1D_ARRAY = 6
    TEXTURE_2D_ARRAY = 7


class ResourceFlag(IntFlag):
    """VIRGL_RESOURCE_* flags of RESOURCE_CREATE_3D."""

    Y_0_TOP = 1 << 0
    MAP_PERSISTENT = 1 << 1
    MAP_COHERENT = 1 << 2


class Shader(IntEnum):
    """PIPE_SHADER_*."""

    VERTEX = 0
    FRAGMENT = 1
    GEOMETRY = 2


class Primitive(IntEnum):
    """PIPE_PRIM_*."""

    POINTS = 0
    LINES = 1
    LINE_LOOP = 2
    LINE_STRIP = 3
    TRIANGLES = 4
    TRIANGLE_STRIP = 5
    TRIANGLE_FAN = 6


class Compare(IntEnum):
    """PIPE_FUNC_*."""

    NEVER = 0
    LESS = 1
    EQUAL = 2
    LEQUAL = 3
    GREATER = 4
    NOTEQUAL = 5
    GEQUAL = 6
    ALWAYS = 7


class Face(IntFlag):
    """PIPE_FACE_*: which faces a rasterizer culls."""

    NONE = 0
    FRONT = 1
    BACK = 2


class PolygonMode(IntEnum):
    """PIPE_POLYGON_MODE_*."""

    FILL = 0
    LINE = 1
    POINT = 2


class BlendFunc(IntEnum):
    """PIPE_BLEND_*."""

    ADD = 0
    SUBTRACT = 1
    REVERSE_SUBTRACT = 2
    MIN = 3
    MAX = 4


class BlendFactor(IntEnum):
    """PIPE_BLENDFACTOR_*."""

    ONE = 0x01
    SRC_COLOR = 0x02
    SRC_ALPHA = 0x03
    DST_ALPHA = 0x04
    DST_COLOR = 0x05
    ZERO = 0x11
    INV_SRC_COLOR = 0x12
    INV_SRC_ALPHA = 0x13
    INV_DST_ALPHA = 0x14
    INV_DST_COLOR = 0x15


class ColorMask(IntFlag):
    """PIPE_MASK_*."""

    NONE = 0
    R = 1
    G = 2
    B = 4
    A = 8
    RGBA = 15


class ClearBuffer(IntFlag):
    """PIPE_CLEAR_*."""

    DEPTH = 1 << 0
    STENCIL = 1 << 1
    COLOR0 = 1 << 2


class Wrap(IntEnum):
    """PIPE_TEX_WRAP_*."""

    REPEAT = 0
    CLAMP_TO_EDGE = 2
    CLAMP_TO_BORDER = 3
    MIRROR_REPEAT = 4


class ImageFilter(IntEnum):
    """PIPE_TEX_FILTER_*."""

    NEAREST = 0
    LINEAR = 1


class MipFilter(IntEnum):
    """PIPE_TEX_MIPFILTER_*."""

    NEAREST = 0
    LINEAR = 1
    NONE = 2


class Swizzle(IntEnum):
    """PIPE_SWIZZLE_*."""

    RED = 0
    GREEN = 1
    BLUE = 2
    ALPHA = 3
    ZERO = 4
    ONE = 5


class QueryType(IntEnum):
    """PIPE_QUERY_*."""

    OCCLUSION_COUNTER = 0
    OCCLUSION_PREDICATE = 1
    TIMESTAMP = 2
    TIME_ELAPSED = 4
    PRIMITIVES_GENERATED = 5


class QueryState(IntEnum):
    """VIRGL_QUERY_STATE_*: first word of struct virgl_host_query_state {u32 state; u32 result_size; u64 result}."""

    NEW = 0
    DONE = 1
    WAIT_HOST = 2


class TransferDirection(IntEnum):
    """Direction word of the in-stream TRANSFER3D command."""

    TO_HOST = 1
    FROM_HOST = 2
