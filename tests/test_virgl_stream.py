"""The virgl streams that tests, demo and benches send, checked on libvirglrenderer: real pixels and queries."""

import itertools
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bench.demo.scenes import demo_scenes
from tests.fake_vmm.virgl.direct import Rendering, VirglError, render_in_subprocess
from tests.fake_vmm.virgl.encoder import INLINE_CHUNK_BYTES, SHADER_CHUNK_BYTES, CommandStream
from tests.fake_vmm.virgl.many_draws import ManyDrawsScene, color_of
from tests.fake_vmm.virgl.protocol import (
    SHADER_CONTINUATION,
    Bind,
    ClearBuffer,
    Command,
    Format,
    ImageFilter,
    ObjectType,
    Primitive,
    QueryState,
    QueryType,
    Shader,
    Target,
    Wrap,
)
from tests.fake_vmm.virgl.resources import (
    Box,
    Resource,
    Upload,
    query_buffer,
    readback_texture,
    render_target,
    texture,
    vertex_buffer,
)
from tests.fake_vmm.virgl.state import (
    DEPTH_OFF,
    OPAQUE,
    RasterizerState,
    SamplerState,
    VertexBuffer,
    VertexElement,
    Viewport,
)
from tests.fake_vmm.virgl.triangle import TriangleScene

RED, BLUE = (255, 0, 0), (0, 0, 255)

Render = Callable[..., Rendering]


@pytest.fixture
def render(tmp_path: Path) -> Render:
    """Render a scene of this module or another in a fresh process."""
    files = itertools.count()

    def run(spec: str, *times: float) -> Rendering:
        return render_in_subprocess(spec, times, tmp_path / f"{next(files)}.npz")

    return run


def words_of(stream: CommandStream) -> list[int]:
    data = bytes(stream)
    return list(struct.unpack(f"<{len(data) // 4}I", data))


def commands_of(data: bytes) -> list[tuple[int, int, bytes]]:
    """(command, object type, payload) of each command of a stream."""
    out, position = [], 0
    while position < len(data):
        header = int.from_bytes(data[position : position + 4], "little")
        end = position + 4 + 4 * (header >> 16)
        assert end <= len(data)
        out.append((header & 0xFF, header >> 8 & 0xFF, data[position + 4 : end]))
        position = end
    return out


# Words


def test_draw_is_thirteen_words() -> None:
    stream = CommandStream().draw(Primitive.TRIANGLES, 3, start=6)
    assert words_of(stream) == [8 | 12 << 16, 6, 3, 4, 0, 1, 0, 0, 0, 0, 0, 0xFFFF_FFFF, 0]


def test_clear_sends_depth_as_a_double() -> None:
    stream = CommandStream().clear(ClearBuffer.COLOR0 | ClearBuffer.DEPTH, (1.0, 0.0, 0.5, 1.0), 1.0, 7)
    one, half = 0x3F80_0000, 0x3F00_0000
    assert words_of(stream) == [7 | 8 << 16, 5, one, 0, half, one, 0, 0x3FF0_0000, 7]


def test_blobs_have_an_object_and_a_type() -> None:
    picture = Resource(7, Target.TEXTURE_2D, Format.B8G8R8A8_UNORM, Bind.RENDER_TARGET, 64, 32)
    created = words_of(CommandStream().create_pipe_resource(9, picture))
    assert created == [48 | 11 << 16, 2, 1, 2, 64, 32, 1, 1, 0, 0, 0, 9]
    typed = words_of(CommandStream().set_resource_type(picture, stride=512, offset=64, modifier=0x0100_0000_0000_0001))
    assert typed == [49 | 10 << 16, 7, 1, 2, 64, 32, 0, 1, 0x0100_0000, 512, 64]


def test_long_shader_continues_by_offset() -> None:
    text = "FRAG\n" + "x" * (2 * SHADER_CHUNK_BYTES)
    pieces = commands_of(bytes(CommandStream().create_shader(9, Shader.FRAGMENT, text)))
    assert [(command, kind) for command, kind, _ in pieces] == [(Command.CREATE_OBJECT, ObjectType.SHADER)] * 3
    heads = [struct.unpack("<5I", payload[:20]) for _, _, payload in pieces]
    assert [head[:2] for head in heads] == [(9, 1)] * 3
    continued = SHADER_CONTINUATION | SHADER_CHUNK_BYTES
    assert [head[2] for head in heads] == [len(text) + 1, continued, continued + SHADER_CHUNK_BYTES]
    assert b"".join(payload[20:] for _, _, payload in pieces).rstrip(b"\0").decode() == text


def test_inline_write_is_split_by_bytes_or_rows() -> None:
    buffer = vertex_buffer(5, 2 * INLINE_CHUNK_BYTES + 3)
    pieces = commands_of(bytes(CommandStream().inline_write(buffer, bytes(buffer.width))))
    spans = [struct.unpack("<11I", payload[:44])[5::3][:2] for _, _, payload in pieces]
    assert spans == [(0, INLINE_CHUNK_BYTES), (INLINE_CHUNK_BYTES, INLINE_CHUNK_BYTES), (2 * INLINE_CHUNK_BYTES, 3)]

    image = texture(6, 1024, 40)
    pieces = commands_of(bytes(CommandStream().inline_write(image, bytes(image.backing_size))))
    rows = [struct.unpack("<11I", payload[:44])[6::3][:2] for _, _, payload in pieces]
    assert rows == [(0, 32), (32, 8)]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: CommandStream().emit(Command.NOP, [0] * 0x10000),
        lambda: CommandStream().set_constants(Shader.VERTEX, bytes(12)),
        lambda: CommandStream().inline_write(texture(1, 4, 4), bytes(63)),
        lambda: CommandStream().inline_write(texture(1, 40000, 2), bytes(40000 * 8)),
        lambda: vertex_buffer(1, 0),
    ],
)
def test_what_cannot_be_said_is_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        wrong()


# Pixels


def test_triangle_has_its_colours_where_they_belong(render: Render) -> None:
    still, moved, gone = render("tests.fake_vmm.virgl.triangle:TriangleScene", 0.0, 0.5, 1.0).pictures
    assert still.shape == (64, 64, 3)
    y, x = np.mgrid[0:64, 0:64]
    assert (still[x + y < 62] == RED).all(), "the upper left half, with the first row in memory on top"
    assert (still[x + y > 64] == BLUE).all()
    assert (moved[:, :32] == BLUE).all()
    assert tuple(moved[1, 33]) == RED
    assert (gone == BLUE).all()


def test_triangle_in_rgba_memory(render: Render) -> None:
    (picture,) = render("tests.test_virgl_stream:rgba_triangle", 0.0).pictures
    assert tuple(picture[0, 0]) == (51, 102, 204)
    assert tuple(picture[-1, -1]) == BLUE


def rgba_triangle() -> TriangleScene:
    return TriangleScene(color=(0.2, 0.4, 0.8), format=Format.R8G8B8A8_UNORM)


def many_draws() -> ManyDrawsScene:
    return ManyDrawsScene(1000, size=(256, 256))


def test_every_small_draw_lands_in_its_cell(render: Render) -> None:
    scene = many_draws()
    pictures = render("tests.test_virgl_stream:many_draws", 0.0, 0.0).pictures
    for frame, picture in enumerate(pictures):
        for draw in range(scene.draws):
            left, top, _, _ = scene.cell(draw)
            expected = np.array(color_of(draw + frame)) * 255
            assert np.allclose(picture[int(top) + 2, int(left) + 2], expected, atol=1.0), (frame, draw)
    scene.resources(itertools.count(1).__next__)
    assert len(scene.frame(0.0, 0)) == 4 * (11 + 27 * scene.draws)


class TextureScene:
    """Everything the lit scenes do not use: textures, inline writes, copies, blits, queries and a shader in pieces.

    A 4 by 4 texture is written inline and drawn over the upper half of ``canvas`` under an occlusion query. All of the
    canvas is blitted to the left half of ``target``, and a quarter of it copied to the target's lower right.
    """

    name = "texture"
    size = (64, 64)

    image: Resource
    canvas: Resource
    target: Resource
    counter: Resource
    corners: Resource

    @staticmethod
    def texels() -> npt.NDArray[np.uint8]:
        """(4, 4, 4): red by column, green by row."""
        level = np.arange(4) * 80
        out = np.zeros((4, 4, 4), np.uint8)
        out[:, :, 0], out[:, :, 1], out[:, :, 3] = level[None, :], level[:, None], 255
        return out

    def resources(self, alloc_resid: Callable[[], int]) -> Sequence[Resource]:
        width, height = self.size
        self.image = texture(alloc_resid(), 4, 4)
        self.canvas = render_target(alloc_resid(), width, height, scanout=False)
        self.target = readback_texture(alloc_resid(), width, height)
        self.counter = query_buffer(alloc_resid())
        self.corners = vertex_buffer(alloc_resid(), 64)
        return [self.image, self.canvas, self.target, self.counter, self.corners]

    def uploads(self) -> Sequence[Upload]:
        return []

    def setup(self) -> bytes:
        padding = "  MOV TEMP[0], IN[0]\n" * (SHADER_CHUNK_BYTES // 16)
        fragment = (
            "FRAG\nDCL IN[0], GENERIC[0], LINEAR\nDCL OUT[0], COLOR\nDCL TEMP[0]\n"
            "DCL SAMP[0]\nDCL SVIEW[0], 2D, FLOAT\n"
            f"{padding}  TEX OUT[0], TEMP[0], SAMP[0], 2D\n  END\n"
        )
        vertex = (
            "VERT\nDCL IN[0]\nDCL OUT[0], POSITION\nDCL OUT[1], GENERIC[0]\nIMM[0] FLT32 { 0.5, -0.5, 0.5, 0.5 }\n"
            "  MOV OUT[0], IN[0]\n  MAD OUT[1], IN[0], IMM[0], IMM[0].xxxx\n  END\n"
        )
        corners = np.array([[-1, 1, 0, 1], [-1, -1, 0, 1], [1, 1, 0, 1], [1, -1, 0, 1]], "<f4")
        stream = CommandStream().create_sub_context(1).set_sub_context(1)
        stream.inline_write(self.image, self.texels().tobytes()).inline_write(self.corners, corners.tobytes())
        stream.create_surface(1, self.canvas).set_framebuffer([1]).set_viewport(Viewport.upright(*self.size))
        stream.create_blend(2, OPAQUE).bind_object(ObjectType.BLEND, 2)
        stream.create_depth_stencil_alpha(3, DEPTH_OFF).bind_object(ObjectType.DSA, 3)
        stream.create_rasterizer(4, RasterizerState(scissor=True)).bind_object(ObjectType.RASTERIZER, 4)
        stream.create_vertex_elements(5, [VertexElement(0, Format.R32G32B32A32_FLOAT)])
        stream.bind_object(ObjectType.VERTEX_ELEMENTS, 5).set_vertex_buffers([VertexBuffer(self.corners.resid, 16)])
        stream.create_shader(6, Shader.VERTEX, vertex).bind_shader(6, Shader.VERTEX)
        stream.create_shader(7, Shader.FRAGMENT, fragment).bind_shader(7, Shader.FRAGMENT)
        nearest = SamplerState(Wrap.CLAMP_TO_EDGE, ImageFilter.NEAREST, ImageFilter.NEAREST)
        stream.create_sampler_state(8, nearest).bind_sampler_states(Shader.FRAGMENT, [8])
        stream.create_sampler_view(9, self.image).set_sampler_views(Shader.FRAGMENT, [9])
        stream.create_query(10, QueryType.OCCLUSION_COUNTER, self.counter)
        return bytes(stream)

    def frame(self, t_seconds: float, index: int) -> bytes:
        width, height = self.size
        stream = CommandStream().set_sub_context(1).clear(ClearBuffer.COLOR0, (0.0, 0.0, 1.0, 1.0))
        stream.set_scissor(0, 0, width, height // 2)
        stream.begin_query(10).draw(Primitive.TRIANGLE_STRIP, 4).end_query(10).get_query_result(10)
        stream.blit(self.target, self.canvas, Box(0, 0, 0, width // 2, height, 1))
        quarter = Box(width // 2, 0, 0, width // 2, height // 2, 1)
        stream.copy_region(self.target, self.canvas, quarter, (width // 2, height // 2, 0))
        return bytes(stream)


def test_textures_copies_blits_and_queries(render: Render) -> None:
    rendering = render("tests.test_virgl_stream:TextureScene", 0.0)
    (picture,) = rendering.pictures
    texels = TextureScene.texels()[:, :, :3]
    # The draw was cut at half height: rows 0 and 1 of the texture, 16 pixels each, then the blue of the clear.
    for row, column in itertools.product(range(2), range(4)):
        assert tuple(picture[row * 16 + 8, column * 8 + 4]) == tuple(texels[row, column]), (row, column)
    assert (picture[32:, :32] == BLUE).all()
    for row, column in itertools.product(range(2), range(2)):
        assert tuple(picture[32 + row * 16 + 8, 32 + column * 16 + 8]) == tuple(texels[row, 2 + column])
    state, size, samples = struct.unpack("<IIQ", rendering.buffers[4])
    assert (state, size, samples & 0xFFFF_FFFF) == (QueryState.DONE, 4, 64 * 32)


def test_a_wrong_stream_is_reported(render: Render) -> None:
    with pytest.raises(VirglError, match=r"submit_cmd|context error"):
        render("tests.test_virgl_stream:WrongScene", 0.0)


class WrongScene(TriangleScene):
    """Draws with a vertex buffer that does not exist."""

    def frame(self, t_seconds: float, index: int) -> bytes:
        return super().frame(t_seconds, index) + bytes(CommandStream().emit(Command.DRAW_VBO, [0] * 5))


# The demo's scenes

SCENES = {scene.name: f"{type(scene).__module__}:{type(scene).__name__}" for scene in demo_scenes()}


def test_there_are_three_scenes() -> None:
    assert sorted(SCENES) == ["knot", "marbles", "sea"]


@pytest.mark.parametrize("name", SCENES)
def test_scene_is_lit_animated_and_repeatable(name: str, render: Render) -> None:
    first, second, again = render(SCENES[name], 0.4, 2.0, 0.4).pictures
    assert first.shape == (480, 640, 3)
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 5000, "shading and highlights give many colours"
    moved = np.abs(first.astype(int) - second.astype(int)).max(axis=2) > 16
    assert 0.03 < moved.mean() < 0.95
    assert (first == again).all(), "a picture depends on its time alone"
    assert np.max(first) >= 240, "a highlight"
    assert first[:40].mean() != pytest.approx(first[-40:].mean(), abs=1.0), "top and bottom differ"


@pytest.mark.parametrize("name", SCENES)
def test_scene_gives_the_same_picture_in_another_process(name: str, render: Render) -> None:
    (first,) = render(SCENES[name], 1.25).pictures
    (second,) = render(SCENES[name], 1.25).pictures
    assert (first == second).all()


def test_streams_depend_on_time_alone() -> None:
    for one, other in zip(demo_scenes(), demo_scenes(), strict=True):
        for scene in (one, other):
            scene.resources(itertools.count(1).__next__)
        assert one.setup() == other.setup()
        assert one.uploads() == other.uploads()
        assert one.frame(0.7, 3) == other.frame(0.7, 42)
        assert one.frame(0.7, 3) != one.frame(0.8, 3)


def test_the_sky_is_above_the_sea(render: Render) -> None:
    (picture,) = render(SCENES["sea"], 0.5).pictures
    sun = picture[100:118, 155:173].reshape(-1, 3).mean(axis=0)
    assert (sun > (240, 215, 170)).all()
    assert picture[-60:, 400:].mean() < 80, "deep water at the bottom"


def test_no_command_of_the_scenes_is_malformed() -> None:
    for scene in demo_scenes():
        scene.resources(itertools.count(1).__next__)
        for stream in (scene.setup(), scene.frame(0.0, 0)):
            assert len(stream) % 4 == 0
            assert {command for command, _, _ in commands_of(stream)} <= set(Command)
