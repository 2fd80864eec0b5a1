"""Builds virgl command streams: the 32-bit little-endian words that a guest sends in VIRTIO_GPU_CMD_SUBMIT_3D.

Each command is one header word ``command | object type << 8 | length << 16`` followed by ``length`` payload words
(virglrenderer's ``virgl_protocol.h``). A method of CommandStream appends one command, or several when the data does not
fit one; every method returns the stream, so that calls chain. Object handles are chosen by the caller, as in a guest
driver; they live per sub-context and zero means "none".
"""

import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Self

from tests.fake_vmm.virgl.protocol import (
    MAX_COMMAND_WORDS,
    SHADER_CONTINUATION,
    ClearBuffer,
    Command,
    Format,
    ImageFilter,
    ObjectType,
    Primitive,
    QueryType,
    Shader,
    Swizzle,
    TransferDirection,
)
from tests.fake_vmm.virgl.resources import Box, Resource
from tests.fake_vmm.virgl.state import (
    BlendState,
    DepthStencilAlphaState,
    RasterizerState,
    SamplerState,
    VertexBuffer,
    VertexElement,
    Viewport,
    float_word,
)

SHADER_CHUNK_BYTES = 16 * 1024
"""Shader text per CREATE_OBJECT; longer texts continue in further ones, as in a guest's small buffers."""

INLINE_CHUNK_BYTES = 128 * 1024
"""Data per RESOURCE_INLINE_WRITE, below what 16 bits of length allow."""

_IDENTITY_SWIZZLE = (Swizzle.RED, Swizzle.GREEN, Swizzle.BLUE, Swizzle.ALPHA)


def _token_bound(text: str) -> int:
    """An upper bound of the binary TGSI tokens that ``text`` parses into; the host sizes its buffer by it.

    An instruction with a destination and three two-dimensional sources takes 9, a declaration or immediate 5.
    """
    return 16 + 10 * text.count("\n")


class CommandStream:
    """A growing command stream. ``bytes(stream)`` is what goes into SUBMIT_3D."""

    __slots__ = ("_words",)

    def __init__(self) -> None:
        self._words = array("I")

    def __len__(self) -> int:
        """Length in words."""
        return len(self._words)

    def __bytes__(self) -> bytes:
        if sys.byteorder == "little":
            return self._words.tobytes()
        swapped = array("I", self._words)
        swapped.byteswap()
        return swapped.tobytes()

    def emit(self, command: int, payload: Iterable[int], object_type: int = ObjectType.NULL) -> Self:
        """Append one command of any kind. Raises ValueError if the payload is longer than a header can say."""
        words = array("I", [word & 0xFFFF_FFFF for word in payload])
        return self._emit_array(command, words, object_type)

    def _emit_array(self, command: int, words: "array[int]", object_type: int = ObjectType.NULL) -> Self:
        if len(words) > MAX_COMMAND_WORDS:
            raise ValueError(f"{len(words)} words do not fit one virgl command")
        self._words.append(command | object_type << 8 | len(words) << 16)
        self._words.extend(words)
        return self

    def raw(self, words: Iterable[int]) -> Self:
        """Append words as they are, header included; meant for streams that are wrong on purpose."""
        self._words.extend(words)
        return self

    # Sub-contexts

    def create_sub_context(self, sub_context: int) -> Self:
        return self.emit(Command.CREATE_SUB_CTX, [sub_context])

    def set_sub_context(self, sub_context: int) -> Self:
        return self.emit(Command.SET_SUB_CTX, [sub_context])

    def destroy_sub_context(self, sub_context: int) -> Self:
        return self.emit(Command.DESTROY_SUB_CTX, [sub_context])

    # Objects

    def _create(self, object_type: ObjectType, handle: int, words: Iterable[int]) -> Self:
        return self.emit(Command.CREATE_OBJECT, [handle, *words], object_type)

    def bind_object(self, object_type: ObjectType, handle: int) -> Self:
        return self.emit(Command.BIND_OBJECT, [handle], object_type)

    def destroy_object(self, object_type: ObjectType, handle: int) -> Self:
        return self.emit(Command.DESTROY_OBJECT, [handle], object_type)

    def create_blend(self, handle: int, state: BlendState) -> Self:
        return self._create(ObjectType.BLEND, handle, state.words())

    def create_depth_stencil_alpha(self, handle: int, state: DepthStencilAlphaState) -> Self:
        return self._create(ObjectType.DSA, handle, state.words())

    def create_rasterizer(self, handle: int, state: RasterizerState) -> Self:
        return self._create(ObjectType.RASTERIZER, handle, state.words())

    def create_vertex_elements(self, handle: int, elements: Sequence[VertexElement]) -> Self:
        return self._create(ObjectType.VERTEX_ELEMENTS, handle, [w for element in elements for w in element.words()])

    def create_sampler_state(self, handle: int, state: SamplerState) -> Self:
        return self._create(ObjectType.SAMPLER_STATE, handle, state.words())

    def create_sampler_view(
        self,
        handle: int,
        resource: Resource,
        *,
        format: Format | None = None,
        swizzle: tuple[Swizzle, Swizzle, Swizzle, Swizzle] = _IDENTITY_SWIZZLE,
    ) -> Self:
        """A view of all levels and layers of a texture; ``format`` defaults to the texture's own."""
        layers = (max(resource.array_size, 1) - 1) << 16
        levels = resource.last_level << 8
        swizzle_word = sum(channel << 3 * index for index, channel in enumerate(swizzle))
        words = [resource.resid, resource.format if format is None else format, layers, levels, swizzle_word]
        return self._create(ObjectType.SAMPLER_VIEW, handle, words)

    def create_surface(
        self, handle: int, resource: Resource, *, format: Format | None = None, level: int = 0, layer: int = 0
    ) -> Self:
        """A surface of one level and layer of a texture, to be used in a framebuffer."""
        words = [resource.resid, resource.format if format is None else format, level, layer | layer << 16]
        return self._create(ObjectType.SURFACE, handle, words)

    def create_query(self, handle: int, query_type: QueryType, result: Resource) -> Self:
        """A query; the host writes struct virgl_host_query_state to the start of the backing of ``result``."""
        return self._create(ObjectType.QUERY, handle, [query_type, 0, result.resid])

    # Shaders

    def create_shader(self, handle: int, shader: Shader, text: str) -> Self:
        """A shader from TGSI text, in pieces if it is long.

        The first piece says the length of the whole, NUL included; each further one its offset and a continuation bit.
        """
        data = text.encode("ascii") + b"\0"
        tokens = _token_bound(text)
        for offset in range(0, len(data), SHADER_CHUNK_BYTES):
            position = offset | SHADER_CONTINUATION if offset else len(data)
            words = array("I", [handle, shader, position, tokens, 0])
            words.extend(_words_of(data[offset : offset + SHADER_CHUNK_BYTES]))
            self._emit_array(Command.CREATE_OBJECT, words, ObjectType.SHADER)
        return self

    def bind_shader(self, handle: int, shader: Shader) -> Self:
        return self.emit(Command.BIND_SHADER, [handle, shader])

    # State

    def set_framebuffer(self, color_surfaces: Sequence[int], depth_surface: int = 0) -> Self:
        return self.emit(Command.SET_FRAMEBUFFER_STATE, [len(color_surfaces), depth_surface, *color_surfaces])

    def set_viewport(self, viewport: Viewport) -> Self:
        return self.emit(Command.SET_VIEWPORT_STATE, [0, *viewport.words()])

    def set_scissor(self, x: int, y: int, width: int, height: int) -> Self:
        return self.emit(Command.SET_SCISSOR_STATE, [0, x | y << 16, (x + width) | (y + height) << 16])

    def set_vertex_buffers(self, buffers: Sequence[VertexBuffer]) -> Self:
        return self.emit(Command.SET_VERTEX_BUFFERS, [word for buffer in buffers for word in buffer.words()])

    def set_index_buffer(self, resource: Resource, index_size: int, offset: int = 0) -> Self:
        """``index_size`` is 1, 2 or 4 bytes; ``offset`` is in bytes."""
        return self.emit(Command.SET_INDEX_BUFFER, [resource.resid, index_size, offset])

    def set_constants(self, shader: Shader, data: bytes) -> Self:
        """Constant buffer 0 of a shader stage, in the stream: ``data`` holds vectors of 16 bytes (CONST[0], ...)."""
        if len(data) % 16:
            raise ValueError("shader constants come in vectors of 16 bytes")
        words = array("I", [shader, 0])
        words.extend(_words_of(data))
        return self._emit_array(Command.SET_CONSTANT_BUFFER, words)

    def set_uniform_buffer(self, shader: Shader, index: int, resource: Resource, offset: int, length: int) -> Self:
        """Constant buffer ``index`` of a shader stage, from a buffer resource (offset and length in bytes)."""
        return self.emit(Command.SET_UNIFORM_BUFFER, [shader, index, offset, length, resource.resid])

    def set_sampler_views(self, shader: Shader, handles: Sequence[int], start_slot: int = 0) -> Self:
        return self.emit(Command.SET_SAMPLER_VIEWS, [shader, start_slot, *handles])

    def bind_sampler_states(self, shader: Shader, handles: Sequence[int], start_slot: int = 0) -> Self:
        return self.emit(Command.BIND_SAMPLER_STATES, [shader, start_slot, *handles])

    # Drawing

    def clear(
        self,
        buffers: ClearBuffer,
        color: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
        depth: float = 1.0,
        stencil: int = 0,
    ) -> Self:
        depth_words = struct.unpack("<2I", struct.pack("<d", depth))
        return self.emit(Command.CLEAR, [buffers, *map(float_word, color), *depth_words, stencil])

    def draw(
        self,
        primitive: Primitive,
        count: int,
        *,
        start: int = 0,
        indexed: bool = False,
        index_bias: int = 0,
        instances: int = 1,
        max_index: int = 0xFFFF_FFFF,
    ) -> Self:
        """DRAW_VBO of ``count`` vertices, or of ``count`` indices of the bound index buffer."""
        words = [start, count, primitive, int(indexed), instances, index_bias, 0, 0, 0, 0, max_index, 0]
        return self.emit(Command.DRAW_VBO, words)

    # Data

    def inline_write(self, resource: Resource, data: bytes, box: Box | None = None, *, level: int = 0) -> Self:
        """Write tightly packed ``data`` to a box of a resource (its whole level 0 by default), split as needed.

        Raises ValueError if ``data`` does not fill the box, or if one row of a texture is too long for one command.
        """
        box = resource.box if box is None else box
        texel = resource.format.size
        row = box.width * texel
        if len(data) != row * box.height * box.depth:
            raise ValueError(f"{len(data)} bytes do not fill {box}")
        if box.height * box.depth == 1:
            step = INLINE_CHUNK_BYTES // texel
            pieces = [Box(box.x + x, box.y, box.z, min(step, box.width - x), 1, 1) for x in range(0, box.width, step)]
        else:
            rows = INLINE_CHUNK_BYTES // row
            if rows == 0:
                raise ValueError(f"a row of {row} bytes does not fit one inline write")
            pieces = [
                Box(box.x, box.y + y, box.z + z, box.width, min(rows, box.height - y), 1)
                for z in range(box.depth)
                for y in range(0, box.height, rows)
            ]
        offset = 0
        for piece in pieces:
            size = piece.width * piece.height * texel
            words = array("I", [resource.resid, level, 0, piece.width * texel, size, *piece])
            words.extend(_words_of(data[offset : offset + size]))
            self._emit_array(Command.RESOURCE_INLINE_WRITE, words)
            offset += size
        return self

    def transfer(
        self,
        resource: Resource,
        direction: TransferDirection,
        box: Box | None = None,
        *,
        level: int = 0,
        offset: int = 0,
    ) -> Self:
        """TRANSFER3D in the stream, between a resource and its own backing (``offset`` bytes into it)."""
        box = resource.box if box is None else box
        words = [resource.resid, level, 0, resource.stride, resource.layer_stride, *box, offset, direction]
        return self.emit(Command.TRANSFER3D, words)

    def copy_region(
        self,
        destination: Resource,
        source: Resource,
        source_box: Box | None = None,
        to: tuple[int, int, int] = (0, 0, 0),
    ) -> Self:
        """RESOURCE_COPY_REGION of level 0."""
        x, y, z, width, height, depth = source.box if source_box is None else source_box
        words = [destination.resid, 0, *to, source.resid, 0, x, y, z, width, height, depth]
        return self.emit(Command.RESOURCE_COPY_REGION, words)

    def blit(
        self,
        destination: Resource,
        source: Resource,
        destination_box: Box | None = None,
        source_box: Box | None = None,
        *,
        filter: ImageFilter = ImageFilter.NEAREST,
    ) -> Self:
        """BLIT of the colours of level 0, scaled from one box to the other."""
        to = destination.box if destination_box is None else destination_box
        of = source.box if source_box is None else source_box
        state = 0xF | filter << 8
        words = [state, 0, 0, destination.resid, 0, destination.format, *to, source.resid, 0, source.format, *of]
        return self.emit(Command.BLIT, words)

    # Blobs

    def create_pipe_resource(self, blob_id: int, description: Resource) -> Self:
        """PIPE_RESOURCE_CREATE: an object of the context's own, of which RESOURCE_CREATE_BLOB with that blob id makes a
        resource. The description's id is not used.
        """
        what = description
        words: list[int] = [what.target, what.format, what.bind, what.width, what.height, what.depth, what.array_size]
        words += [what.last_level, what.nr_samples, what.flags, blob_id]
        return self.emit(Command.PIPE_RESOURCE_CREATE, words)

    def set_resource_type(
        self, resource: Resource, *, stride: int | None = None, offset: int = 0, usage: int = 0, modifier: int = 0
    ) -> Self:
        """PIPE_RESOURCE_SET_TYPE: a blob without a type becomes this picture of one plane (bytes from row to row, and
        of the first row).
        """
        words: list[int] = [resource.resid, resource.format, resource.bind, resource.width, resource.height, usage]
        words += [modifier & 0xFFFF_FFFF, modifier >> 32, resource.stride if stride is None else stride, offset]
        return self.emit(Command.PIPE_RESOURCE_SET_TYPE, words)

    # Queries

    def begin_query(self, handle: int) -> Self:
        return self.emit(Command.BEGIN_QUERY, [handle])

    def end_query(self, handle: int) -> Self:
        return self.emit(Command.END_QUERY, [handle])

    def get_query_result(self, handle: int, *, wait: bool = False) -> Self:
        """Ask the host to write the result to the query's resource when it has it."""
        return self.emit(Command.GET_QUERY_RESULT, [handle, int(wait)])


def _words_of(data: bytes) -> "array[int]":
    """``data`` as words, padded with zeros to a multiple of four bytes."""
    words = array("I")
    words.frombytes(data + bytes(-len(data) % 4))
    if sys.byteorder != "little":
        words.byteswap()
    return words
