"""A glossy trefoil knot that turns in front of a violet backdrop."""

import numpy as np

from bench.demo.scenes.base import BACKDROP, BACKDROP_VERTEX_SHADER, SceneBase
from bench.demo.scenes.geometry import constants, look_at, normalized, perspective, rotation, vector
from bench.demo.scenes.meshes import Floats, Mesh, grid_indices, mesh, torus_knot
from bench.demo.scenes.tgsi import DITHER_IMMEDIATES, assemble, dither, normalize, transform
from tests.fake_vmm.virgl.encoder import CommandStream
from tests.fake_vmm.virgl.protocol import ClearBuffer, Face, Format, Shader
from tests.fake_vmm.virgl.state import DEPTH_TEST, DEPTH_TEST_ONLY, OPAQUE, RasterizerState, VertexElement

_SEGMENTS, _SIDES = 288, 24

_VERTEX_SHADER = assemble(f"""VERT
    DCL IN[0]                   # position
    DCL IN[1]                   # normal
    DCL IN[2]                   # colour
    DCL OUT[0], POSITION
    DCL OUT[1], GENERIC[0]
    DCL OUT[2], GENERIC[1]
    DCL OUT[3], GENERIC[2]
    DCL CONST[0..7]             # to clip space, to world space
    {transform("OUT[0]", "IN[0]", 0)}
    DP3 OUT[1].x, IN[1], CONST[4]
    DP3 OUT[1].y, IN[1], CONST[5]
    DP3 OUT[1].z, IN[1], CONST[6]
    {transform("OUT[2]", "IN[0]", 4)}
    MOV OUT[3], IN[2]
    END
""")

# Two lights, a hot highlight, and the reflection of a bright strip above that grows towards grazing angles.
_FRAGMENT_SHADER = assemble(
    f"""FRAG
    DCL IN[0], GENERIC[0], PERSPECTIVE
    DCL IN[1], GENERIC[1], PERSPECTIVE
    DCL IN[2], GENERIC[2], PERSPECTIVE
    DCL OUT[0], COLOR
    DCL CONST[0..4]             # eye, direction to key light, its colour, direction to fill light, its colour
    DCL TEMP[0..5]
    IMM[0] FLT32 {{ 0.0, 1.0, 2.0, 90.0 }}
    IMM[1] FLT32 {{ 0.10, 0.09, 0.15, 0.9 }}    # ambient; strength of the highlight
    IMM[2] FLT32 {{ 0.85, 0.80, 1.0, 0.05 }}    # colour of the strip; reflectance straight on
    IMM[3] FLT32 {{ 5.0, -2.2, 0.18, 0.75 }}    # edges of the strip; dim sky; reflectance at grazing angles
    {normalize("$n", "IN[0]")}
    ADD $v.xyz, CONST[0], -IN[1]
    {normalize("$v", "$v")}
    DP3_SAT $k.x, $n, CONST[1]
    DP3_SAT $k.z, $n, CONST[3]
    ADD $h.xyz, $v, CONST[1]
    {normalize("$h", "$h")}
    DP3_SAT $k.y, $n, $h
    POW $k.y, $k.yyyy, IMM[0].wwww
    MUL $k.y, $k.yyyy, IMM[1].wwww
    # diffuse
    MAD $c.xyz, $k.xxxx, CONST[2], IMM[1]
    MAD $c.xyz, $k.zzzz, CONST[4], $c
    MUL $c.xyz, $c, IN[2]
    # reflection: r = 2 (n.v) n - v
    DP3_SAT $k.w, $n, $v
    MUL $r.x, $k.wwww, IMM[0].zzzz
    MAD $r.xyz, $r.xxxx, $n, -$v
    MAD_SAT $r.w, $r.yyyy, IMM[3].xxxx, IMM[3].yyyy
    MAD_SAT $r.z, $r.yyyy, IMM[3].zzzz, IMM[3].zzzz
    ADD $r.w, $r.wwww, $r.zzzz
    ADD $k.w, IMM[0].yyyy, -$k.wwww
    MUL $k.w, $k.wwww, $k.wwww
    MUL $k.w, $k.wwww, $k.wwww
    MAD $k.w, $k.wwww, IMM[3].wwww, IMM[2].wwww
    MUL $r.w, $r.wwww, $k.wwww
    MAD $c.xyz, $r.wwww, IMM[2], $c
    MAD $c.xyz, $k.yyyy, CONST[2], $c
    MOV $c.w, IMM[0].yyyy
    MOV_SAT OUT[0], $c
    END
""",
    n="TEMP[0]", v="TEMP[1]", k="TEMP[2]", h="TEMP[3]", c="TEMP[4]", r="TEMP[5]",
)

_BACKDROP_FRAGMENT_SHADER = assemble(f"""FRAG
    DCL IN[0], GENERIC[0], LINEAR
    DCL IN[1], POSITION, LINEAR
    DCL OUT[0], COLOR
    DCL TEMP[0..1]
    {DITHER_IMMEDIATES}
    IMM[2] FLT32 {{ 0.0, 0.15, -0.42, 1.0 }}
    IMM[3] FLT32 {{ 0.035, 0.025, 0.075, 1.0 }}  # corners
    IMM[4] FLT32 {{ 0.36, 0.22, 0.52, 1.0 }}     # centre
    ADD TEMP[0].xy, IN[0], IMM[2]
    DP2 TEMP[0].z, TEMP[0], TEMP[0]
    MAD_SAT TEMP[0].z, TEMP[0].zzzz, IMM[2].zzzz, IMM[2].wwww
    MUL TEMP[0].z, TEMP[0].zzzz, TEMP[0].zzzz
    LRP TEMP[1], TEMP[0].zzzz, IMM[4], IMM[3]
    {dither("TEMP[1]", "IN[1]", "TEMP[0]")}
    MOV OUT[0], TEMP[1]
    END
""")


def _palette(along: Floats) -> Floats:
    """Colours (n, 3) that run once round teal, blue, magenta and gold."""
    phase = np.array([0.02, 0.38, 0.62])
    return np.asarray(0.52 + 0.46 * np.cos(2 * np.pi * (along[:, None] + phase)), np.float64)


class KnotScene(SceneBase):
    """The torus knot."""

    name = "knot"

    def meshes(self) -> dict[str, Mesh]:
        position, normal, along = torus_knot(2, 3, radius=1.25, tube=0.36, segments=_SEGMENTS, sides=_SIDES)
        vertices = np.concatenate([position, normal, _palette(along)], axis=1)
        indices = grid_indices(_SEGMENTS, _SIDES, wrap_rows=True, wrap_columns=True)
        return {"knot": mesh(vertices, indices), "backdrop": BACKDROP}

    def build(self, stream: CommandStream) -> None:
        layout = [VertexElement(12 * index, Format.R32G32B32_FLOAT) for index in range(3)]
        self._knot = self.pipeline(
            stream, layout, _VERTEX_SHADER, _FRAGMENT_SHADER, RasterizerState(cull=Face.BACK), OPAQUE, DEPTH_TEST
        )
        flat = [VertexElement(0, Format.R32G32_FLOAT)]
        self._backdrop = self.pipeline(
            stream, flat, BACKDROP_VERTEX_SHADER, _BACKDROP_FRAGMENT_SHADER, RasterizerState(), OPAQUE, DEPTH_TEST_ONLY
        )

    def draw(self, stream: CommandStream, t: float) -> None:
        stream.clear(ClearBuffer.DEPTH)
        eye = vector(0.0, 0.6, 7.2)
        world = rotation(1, 0.7 * t) @ rotation(0, 0.5 + 0.45 * np.sin(0.4 * t)) @ rotation(2, 0.3 * t)
        clip = perspective(np.radians(36), self.aspect, 1.0, 20.0) @ look_at(eye, vector(0.0, 0.0, 0.0)) @ world
        key, fill = normalized(vector(0.5, 0.8, 0.65)), normalized(vector(-0.9, -0.25, 0.3))
        self.use(stream, self._knot)
        self.use_mesh(stream, "knot")
        stream.set_constants(Shader.VERTEX, constants(clip, world))
        lights = constants(eye, key, vector(0.95, 0.9, 0.82), fill, vector(0.25, 0.2, 0.5))
        stream.set_constants(Shader.FRAGMENT, lights)
        self.draw_mesh(stream, "knot")
        self.use(stream, self._backdrop)
        self.use_mesh(stream, "backdrop")
        self.draw_mesh(stream, "backdrop")
