"""A boat on an evening sea: a height field moved in the vertex shader, the sky reflected in the fragment shader."""

import numpy as np

from bench.demo.scenes.base import BACKDROP, BACKDROP_VERTEX_SHADER, SceneBase
from bench.demo.scenes.boat import boat
from bench.demo.scenes.geometry import (
    Matrix,
    Vector,
    constants,
    look_at,
    normalized,
    perspective,
    rotation,
    scaling,
    translation,
    vector,
)
from bench.demo.scenes.meshes import Floats, Mesh, fan_grid
from bench.demo.scenes.tgsi import DITHER_IMMEDIATES, assemble, dither, normalize, square, transform
from tests.fake_vmm.virgl.encoder import CommandStream
from tests.fake_vmm.virgl.protocol import ClearBuffer, Format, Shader
from tests.fake_vmm.virgl.state import DEPTH_TEST, DEPTH_TEST_ONLY, OPAQUE, RasterizerState, VertexElement

_SUN = normalized(vector(-0.27, 0.155, -1.0))
_FOV = np.radians(46)

# Four long waves move the mesh, four short ones only bend the light. Length, direction, amplitude, speed.
_LONG = np.array(
    [(7.5, 0.5, 0.15, 1.0), (4.3, -0.45, 0.085, 1.0), (2.6, 1.1, 0.045, 1.1), (1.7, -1.2, 0.028, 1.2)]
)
_SHORT = np.array(
    [(1.05, 0.3, 0.012, 1.0), (0.71, -0.8, 0.009, 1.1), (0.47, 0.9, 0.006, 1.2), (0.36, -0.2, 0.0045, 1.2)]
)


def _wave_rows(waves: Floats, t: float) -> list[Vector]:
    """Wave numbers in x and z, phases at ``t`` (deep water: angular speed = sqrt(g k)), amplitudes; four of each."""
    length, direction, amplitude, speed = waves.T
    k = 2 * np.pi / length
    phase = -np.sqrt(9.81 * k) * speed * t % (2 * np.pi)
    return [k * np.sin(direction), k * np.cos(direction), phase, amplitude]


# The sky: a gradient, a glow and a disc round the sun. Used for what is seen and for what is reflected.
_SKY_IMMEDIATES = """
    IMM[2] FLT32 { 0.93, 0.52, 0.36, 1.0 }      # at the horizon
    IMM[3] FLT32 { 0.20, 0.27, 0.50, 1.0 }      # above
    IMM[4] FLT32 { 0.42, 0.21, 0.02, 1.0 }      # glow
    IMM[5] FLT32 { 1.0, 0.96, 0.80, 1.0 }       # sun
    IMM[6] FLT32 { 0.0, 1.0, 2.0, 2.1 }         # last: how soon the horizon ends
"""


def _sky(color: str, direction: str, scratch: str) -> str:
    """``color.xyz`` of the sky in a direction, without the disc; leaves the cosine to the sun in scratch.x."""
    return f"""
        MUL_SAT {scratch}.y, {direction}.yyyy, IMM[6].wwww
        ADD {scratch}.y, IMM[6].yyyy, -{scratch}.yyyy
        MUL {scratch}.y, {scratch}.yyyy, {scratch}.yyyy
        LRP {color}.xyz, {scratch}.yyyy, IMM[2], IMM[3]
        DP3_SAT {scratch}.x, {direction}, CONST[0]
        MUL {scratch}.y, {scratch}.xxxx, {scratch}.xxxx
        MUL {scratch}.y, {scratch}.yyyy, {scratch}.yyyy
        MUL {scratch}.z, {scratch}.yyyy, {scratch}.yyyy
        MUL {scratch}.z, {scratch}.zzzz, {scratch}.yyyy
        MAD {color}.xyz, {scratch}.zzzz, IMM[4], {color}
    """


_WATER_VERTEX_SHADER = assemble(
    f"""VERT
    DCL IN[0]                   # x and z
    DCL OUT[0], POSITION
    DCL OUT[1], GENERIC[0]      # slopes in x and z, height, distance
    DCL OUT[2], GENERIC[1]      # position
    DCL CONST[0..7]             # to clip space; wave numbers in x and z, phases, amplitudes
    DCL TEMP[0..4]
    IMM[0] FLT32 {{ 0.0, 1.0, 0.0011, 0.0 }}
    MAD $p, IN[0].xxxx, CONST[4], CONST[6]
    MAD $p, IN[0].yyyy, CONST[5], $p
    SIN $s.x, $p.xxxx
    SIN $s.y, $p.yyyy
    SIN $s.z, $p.zzzz
    SIN $s.w, $p.wwww
    COS $c.x, $p.xxxx
    COS $c.y, $p.yyyy
    COS $c.z, $p.zzzz
    COS $c.w, $p.wwww
    # the mesh is too coarse for the waves far away: let them fade
    DP2 $d.x, IN[0], IN[0]
    MAD $d.y, $d.xxxx, IMM[0].zzzz, IMM[0].yyyy
    RCP $d.y, $d.yyyy
    SQRT $d.x, $d.xxxx
    MUL $s, $s, CONST[7]
    MUL $c, $c, CONST[7]
    DP4 $o.z, $s, IMM[0].yyyy
    DP4 $o.x, $c, CONST[4]
    DP4 $o.y, $c, CONST[5]
    MUL $o.xyz, $o, $d.yyyy
    MOV $o.w, $d.xxxx
    MOV OUT[1], $o
    MOV $p.x, IN[0].xxxx
    MOV $p.y, $o.zzzz
    MOV $p.z, IN[0].yyyy
    MOV $p.w, IMM[0].yyyy
    {transform("OUT[0]", "$p", 0)}
    MOV OUT[2], $p
    END
""",
    p="TEMP[0]", s="TEMP[1]", c="TEMP[2]", d="TEMP[3]", o="TEMP[4]",
)

_WATER_FRAGMENT_SHADER = assemble(
    f"""FRAG
    DCL IN[0], GENERIC[0], PERSPECTIVE
    DCL IN[1], GENERIC[1], PERSPECTIVE
    DCL OUT[0], COLOR
    DCL CONST[0..5]             # sun; eye; short waves: numbers in x and z, phases, amplitudes
    DCL TEMP[0..5]
    IMM[0] FLT32 {{ 0.010, 0.050, 0.085, 0.02 }}    # deep water; reflectance straight down
    IMM[1] FLT32 {{ 0.05, 0.20, 0.20, 0.16 }}       # light through the crests; height of a trough
    {_SKY_IMMEDIATES}
    IMM[7] FLT32 {{ 34.0, 1.6, 0.85, 1.08 }}        # distance of half haze; glint; sky dimmed; most haze
    IMM[8] FLT32 {{ 0.004, 0.0, 0.0, 0.0 }}         # fading of short waves
    # slopes of the short waves, less far away
    MAD $p, IN[1].xxxx, CONST[2], CONST[4]
    MAD $p, IN[1].zzzz, CONST[3], $p
    COS $c.x, $p.xxxx
    COS $c.y, $p.yyyy
    COS $c.z, $p.zzzz
    COS $c.w, $p.wwww
    MUL $c, $c, CONST[5]
    MUL $p.x, IN[0].wwww, IN[0].wwww
    MAD $p.x, $p.xxxx, IMM[8].xxxx, IMM[6].yyyy
    RCP $p.x, $p.xxxx
    MUL $c, $c, $p.xxxx
    DP4 $n.x, $c, CONST[2]
    DP4 $n.z, $c, CONST[3]
    ADD $n.xz, -$n, -IN[0].xxyy
    MOV $n.y, IMM[6].yyyy
    {normalize("$n", "$n")}
    ADD $v.xyz, CONST[1], -IN[1]
    {normalize("$v", "$v")}
    DP3_SAT $p.x, $n, $v
    MUL $p.y, $p.xxxx, IMM[6].zzzz
    MAD $c.xyz, $p.yyyy, $n, -$v
    MOV $c.y, |$c.yyyy|
    ADD $p.y, IMM[6].yyyy, -$p.xxxx
    MUL $p.z, $p.yyyy, $p.yyyy
    MUL $p.z, $p.zzzz, $p.zzzz
    MUL $p.z, $p.zzzz, $p.yyyy
    ADD $p.w, IMM[6].yyyy, -IMM[0].wwww
    MAD $p.w, $p.zzzz, $p.wwww, IMM[0].wwww
    {_sky("$k", "$c", "$s")}
    MUL $k.xyz, $k, IMM[7].zzzz
    ADD_SAT $p.x, IN[0].zzzz, IMM[1].wwww
    MAD $c.xyz, $p.xxxx, IMM[1], IMM[0]
    LRP $k.xyz, $p.wwww, $k, $c
    {square("$s.x", 8)}
    MUL $s.x, $s.xxxx, IMM[7].yyyy
    MAD $k.xyz, $s.xxxx, IMM[5], $k
    # haze
    ADD $s.x, IN[0].wwww, IMM[7].xxxx
    RCP $s.x, $s.xxxx
    MUL $s.x, $s.xxxx, IN[0].wwww
    MUL_SAT $s.x, $s.xxxx, IMM[7].wwww
    MUL $c.xyz, IMM[2], IMM[7].zzzz
    LRP $k.xyz, $s.xxxx, $c, $k
    MOV $k.w, IMM[6].yyyy
    MOV_SAT OUT[0], $k
    END
""",
    p="TEMP[0]", c="TEMP[1]", n="TEMP[2]", v="TEMP[3]", k="TEMP[4]", s="TEMP[5]",
)

_BACKDROP_FRAGMENT_SHADER = assemble(
    f"""FRAG
    DCL IN[0], GENERIC[0], LINEAR
    DCL IN[1], POSITION, LINEAR
    DCL OUT[0], COLOR
    DCL CONST[0..3]             # sun; camera: right, up, forward, scaled to the edges of the picture
    DCL TEMP[0..3]
    {DITHER_IMMEDIATES}
    {_SKY_IMMEDIATES}
    IMM[7] FLT32 {{ 1400.0, -1398.9, 9.0, 23.0 }}    # disc: sharpness, edge; hills: frequencies
    IMM[8] FLT32 {{ 0.030, 0.016, 0.012, 260.0 }}   # hills: heights, base, sharpness
    IMM[9] FLT32 {{ 0.40, 0.22, 0.32, 0.9 }}        # hills: colour, phase
    MAD $d.xyz, IN[0].xxxx, CONST[1], CONST[3]
    MAD $d.xyz, IN[0].yyyy, CONST[2], $d
    {normalize("$d", "$d")}
    {_sky("$k", "$d", "$s")}
    MAD_SAT $s.x, $s.xxxx, IMM[7].xxxx, IMM[7].yyyy
    LRP $k.xyz, $s.xxxx, IMM[5], $k
    # hills on the horizon
    MUL $h.xy, $d.xxxx, IMM[7].zwww
    ADD $h.xy, $h, IMM[9].wwww
    SIN $h.x, $h.xxxx
    SIN $h.y, $h.yyyy
    DP2 $h.x, $h, IMM[8]
    ADD $h.x, $h.xxxx, -IMM[8].zzzz
    ADD $h.x, $h.xxxx, -$d.yyyy
    MUL_SAT $h.x, $h.xxxx, IMM[8].wwww
    LRP $k.xyz, $h.xxxx, IMM[9], $k
    {dither("$k", "IN[1]", "$s")}
    MOV $k.w, IMM[6].yyyy
    MOV_SAT OUT[0], $k
    END
""",
    d="TEMP[0]", k="TEMP[1]", s="TEMP[2]", h="TEMP[3]",
)

_BOAT_VERTEX_SHADER = assemble(f"""VERT
    DCL IN[0]                   # position
    DCL IN[1]                   # normal
    DCL IN[2]                   # colour
    DCL OUT[0], POSITION
    DCL OUT[1], GENERIC[0]
    DCL OUT[2], GENERIC[1]
    DCL CONST[0..7]             # to clip space, to world space
    {transform("OUT[0]", "IN[0]", 0)}
    DP3 OUT[1].x, IN[1], CONST[4]
    DP3 OUT[1].y, IN[1], CONST[5]
    DP3 OUT[1].z, IN[1], CONST[6]
    MOV OUT[2], IN[2]
    END
""")

# Lit from both sides, as thin cloth is; light from the sky by the height of the normal.
_BOAT_FRAGMENT_SHADER = assemble(
    f"""FRAG
    DCL IN[0], GENERIC[0], PERSPECTIVE
    DCL IN[1], GENERIC[1], PERSPECTIVE
    DCL OUT[0], COLOR
    DCL CONST[0]                # sun
    DCL TEMP[0..2]
    IMM[0] FLT32 {{ 0.30, 0.31, 0.42, 0.5 }}    # sky
    IMM[1] FLT32 {{ 1.15, 0.72, 0.42, 1.0 }}    # sun
    IMM[2] FLT32 {{ 0.62, 0.30, 0.0, 0.0 }}     # how much the lit and the far side take
    {normalize("$n", "IN[0]")}
    MAD $k.x, $n.yyyy, IMM[0].wwww, IMM[1].wwww
    MUL $c.xyz, $k.xxxx, IMM[0]
    DP3 $k.y, $n, CONST[0]
    MUL $k.z, |$k.yyyy|, IMM[2].yyyy
    MOV_SAT $k.y, $k.yyyy
    MAD $k.z, $k.yyyy, IMM[2].xxxx, $k.zzzz
    MAD $c.xyz, $k.zzzz, IMM[1], $c
    MUL OUT[0].xyz, $c, IN[1]
    MOV OUT[0].w, IMM[1].wwww
    END
""",
    n="TEMP[0]", k="TEMP[1]", c="TEMP[2]",
)


class SeaScene(SceneBase):
    """The boat on the sea."""

    name = "sea"

    def meshes(self) -> dict[str, Mesh]:
        return {"water": fan_grid(0.8, 240.0, 0.66, 110, 76), "boat": boat(), "backdrop": BACKDROP}

    def build(self, stream: CommandStream) -> None:
        flat = [VertexElement(0, Format.R32G32_FLOAT)]
        solid = [VertexElement(12 * index, Format.R32G32B32_FLOAT) for index in range(3)]
        both = RasterizerState()
        self._water = self.pipeline(
            stream, flat, _WATER_VERTEX_SHADER, _WATER_FRAGMENT_SHADER, both, OPAQUE, DEPTH_TEST
        )
        self._boat = self.pipeline(stream, solid, _BOAT_VERTEX_SHADER, _BOAT_FRAGMENT_SHADER, both, OPAQUE, DEPTH_TEST)
        self._backdrop = self.pipeline(
            stream, flat, BACKDROP_VERTEX_SHADER, _BACKDROP_FRAGMENT_SHADER, both, OPAQUE, DEPTH_TEST_ONLY
        )

    def draw(self, stream: CommandStream, t: float) -> None:
        eye = vector(0.0, 1.75 + 0.08 * np.sin(0.9 * t), 0.0)
        view = rotation(2, 0.012 * np.sin(0.7 * t)) @ look_at(eye, eye + vector(0.0, -0.075, -1.0))
        clip = perspective(_FOV, self.aspect, 0.3, 400.0) @ view
        stream.clear(ClearBuffer.DEPTH)

        self.use(stream, self._boat)
        self.use_mesh(stream, "boat")
        world = self._boat_pose(t)
        stream.set_constants(Shader.VERTEX, constants(clip @ world, world))
        stream.set_constants(Shader.FRAGMENT, constants(_SUN))
        self.draw_mesh(stream, "boat")

        self.use(stream, self._water)
        self.use_mesh(stream, "water")
        stream.set_constants(Shader.VERTEX, constants(clip, *_wave_rows(_LONG, t)))
        stream.set_constants(Shader.FRAGMENT, constants(_SUN, eye, *_wave_rows(_SHORT, t)))
        self.draw_mesh(stream, "water")

        self.use(stream, self._backdrop)
        self.use_mesh(stream, "backdrop")
        tangent = np.tan(_FOV / 2)
        right, up, forward = view[0, :3] * tangent * self.aspect, view[1, :3] * tangent, -view[2, :3]
        stream.set_constants(Shader.FRAGMENT, constants(_SUN, right, up, forward))
        self.draw_mesh(stream, "backdrop")

    @staticmethod
    def _boat_pose(t: float) -> Matrix:
        """The boat rides the long waves: it takes their height, and leans with their slope."""
        x, z = 1.5 + 0.9 * np.sin(0.22 * t), -8.2 + 0.5 * np.cos(0.3 * t)
        kx, kz, phase, amplitude = _wave_rows(_LONG, t)
        angle = kx * x + kz * z + phase
        height = float(amplitude @ np.sin(angle))
        slope_x, slope_z = float((amplitude * kx) @ np.cos(angle)), float((amplitude * kz) @ np.cos(angle))
        lean = rotation(2, 0.8 * slope_x - 0.09) @ rotation(0, -0.8 * slope_z)
        return translation(x, height, z) @ lean @ rotation(1, 1.05 + 0.1 * np.sin(0.5 * t)) @ scaling(1.15, 1.15, 1.15)
