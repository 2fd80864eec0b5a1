"""Glossy striped balls that bounce in rings on a reflecting chequered floor."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.demo.scenes.base import BACKDROP, BACKDROP_VERTEX_SHADER, Pipeline, SceneBase
from bench.demo.scenes.geometry import (
    Matrix,
    Vector,
    constants,
    look_at,
    normalized,
    perspective,
    rotation,
    scaling,
    vector,
)
from bench.demo.scenes.meshes import Mesh, unit_sphere
from bench.demo.scenes.tgsi import DITHER_IMMEDIATES, assemble, dither, normalize, transform
from tests.fake_vmm.virgl.encoder import CommandStream
from tests.fake_vmm.virgl.protocol import ClearBuffer, Face, Format, Shader
from tests.fake_vmm.virgl.state import (
    ALPHA_BLEND,
    DEPTH_OFF,
    DEPTH_TEST,
    DEPTH_TEST_ONLY,
    OPAQUE,
    RasterizerState,
    VertexElement,
)

_FLOOR_SIZE = 11.0
_KEY = normalized(vector(0.45, 0.85, 0.35))
_SLANT = float(_KEY[0] / _KEY[1]), float(_KEY[2] / _KEY[1])

_Pose = tuple[list[float], list[float]]
"""Centre of a ball, and the axis of its stripe."""

_BALL_VERTEX_SHADER = assemble(f"""VERT
    DCL IN[0]                   # position on the unit sphere, which is the normal too
    DCL OUT[0], POSITION
    DCL OUT[1], GENERIC[0]
    DCL OUT[2], GENERIC[1]
    DCL CONST[0..4]             # to clip space; centre and radius
    DCL TEMP[0]
    MAD TEMP[0].xyz, IN[0], CONST[4].wwww, CONST[4]
    MOV TEMP[0].w, IN[0].wwww
    {transform("OUT[0]", "TEMP[0]", 0)}
    MOV OUT[1], IN[0]
    MOV OUT[2], TEMP[0]
    END
""")

# A white stripe round the ball's axis; key light, highlight, light from the floor, and the room's reflection.
_BALL_FRAGMENT_SHADER = assemble(
    f"""FRAG
    DCL IN[0], GENERIC[0], PERSPECTIVE
    DCL IN[1], GENERIC[1], PERSPECTIVE
    DCL OUT[0], COLOR
    DCL CONST[0..3]             # eye, direction to key light, colour of the ball, axis of the stripe
    DCL TEMP[0..5]
    IMM[0] FLT32 {{ 0.0, 1.0, 2.0, 120.0 }}
    IMM[1] FLT32 {{ 0.36, 40.0, 0.5, 0.95 }}    # stripe: half width, sharpness; half; strength of the highlight
    IMM[2] FLT32 {{ 0.98, 0.97, 0.93, 0.05 }}   # stripe and reflected room; reflectance straight on
    IMM[3] FLT32 {{ 0.62, 0.60, 0.58, 0.55 }}   # light from above; reflectance at grazing angles
    IMM[4] FLT32 {{ 0.26, 0.24, 0.25, 0.0 }}    # light from below
    IMM[5] FLT32 {{ 3.0, -1.2, 0.35, 0.45 }}    # edges of the window; room
    {normalize("$n", "IN[0]")}
    DP3 $k.x, $n, CONST[3]
    ADD $k.x, IMM[1].xxxx, -|$k.xxxx|
    MUL_SAT $k.x, $k.xxxx, IMM[1].yyyy
    LRP $a.xyz, $k.xxxx, IMM[2], CONST[2]
    ADD $v.xyz, CONST[0], -IN[1]
    {normalize("$v", "$v")}
    # light from the room, by the height of the normal, and the key light
    MAD $k.y, $n.yyyy, IMM[1].zzzz, IMM[1].zzzz
    LRP $c.xyz, $k.yyyy, IMM[3], IMM[4]
    DP3_SAT $k.z, $n, CONST[1]
    MUL $k.z, $k.zzzz, IMM[1].zzzz
    ADD $c.xyz, $c, $k.zzzz
    MUL $c.xyz, $c, $a
    # highlight
    ADD $h.xyz, $v, CONST[1]
    {normalize("$h", "$h")}
    DP3_SAT $k.z, $n, $h
    POW $k.z, $k.zzzz, IMM[0].wwww
    MAD $c.xyz, $k.zzzz, IMM[1].wwww, $c
    # reflection of the room: r = 2 (n.v) n - v, brighter upwards
    DP3_SAT $k.w, $n, $v
    MUL $r.x, $k.wwww, IMM[0].zzzz
    MAD $r.xyz, $r.xxxx, $n, -$v
    MAD_SAT $r.w, $r.yyyy, IMM[5].xxxx, IMM[5].yyyy
    MAD_SAT $r.z, $r.yyyy, IMM[5].zzzz, IMM[5].wwww
    MAD $r.w, $r.wwww, IMM[1].zzzz, $r.zzzz
    ADD $k.w, IMM[0].yyyy, -$k.wwww
    MUL $k.w, $k.wwww, $k.wwww
    MUL $k.w, $k.wwww, $k.wwww
    MAD $k.w, $k.wwww, IMM[3].wwww, IMM[2].wwww
    MUL $r.w, $r.wwww, $k.wwww
    MAD $c.xyz, $r.wwww, IMM[2], $c
    MOV $c.w, IMM[0].yyyy
    MOV_SAT OUT[0], $c
    END
""",
    n="TEMP[0]", v="TEMP[1]", k="TEMP[2]", h="TEMP[3]", c="TEMP[4]", r="TEMP[5]", a="TEMP[3]",
)

_FLAT_VERTEX_SHADER = assemble(f"""VERT
    DCL IN[0]                   # -1..1 in x and z
    DCL OUT[0], POSITION
    DCL OUT[1], GENERIC[0]
    DCL CONST[0..4]             # to clip space; centre and radius on the floor
    DCL TEMP[0]
    MUL TEMP[0].xyz, IN[0].xzyy, CONST[4].wwww
    ADD TEMP[0].xyz, TEMP[0], CONST[4]
    MOV TEMP[0].w, IN[0].wwww
    {transform("OUT[0]", "TEMP[0]", 0)}
    MOV OUT[1], IN[0]
    END
""")

# Chequers that let the mirrored balls through and fade into the backdrop.
_FLOOR_FRAGMENT_SHADER = assemble("""FRAG
    DCL IN[0], GENERIC[0], PERSPECTIVE
    DCL OUT[0], COLOR
    DCL TEMP[0..1]
    IMM[0] FLT32 { 5.5, 0.5, 2.0, 0.0 }         # squares per half side of the floor, halved
    IMM[1] FLT32 { 0.93, 0.93, 0.94, 0.80 }
    IMM[2] FLT32 { 0.55, 0.66, 0.72, 0.70 }
    IMM[3] FLT32 { -2.2, 1.9, 0.0, 0.0 }
    MUL TEMP[0].xy, IN[0], IMM[0].xxxx
    FRC TEMP[0].xy, TEMP[0]
    SLT TEMP[0].xy, TEMP[0], IMM[0].yyyy
    ADD TEMP[0].x, TEMP[0].xxxx, -TEMP[0].yyyy
    MUL TEMP[0].x, TEMP[0].xxxx, TEMP[0].xxxx
    LRP TEMP[1], TEMP[0].xxxx, IMM[1], IMM[2]
    DP2 TEMP[0].y, IN[0], IN[0]
    MAD_SAT TEMP[0].y, TEMP[0].yyyy, IMM[3].xxxx, IMM[3].yyyy
    MUL TEMP[1].w, TEMP[1].wwww, TEMP[0].yyyy
    MOV OUT[0], TEMP[1]
    END
""")

_SHADOW_FRAGMENT_SHADER = assemble("""FRAG
    DCL IN[0], GENERIC[0], PERSPECTIVE
    DCL OUT[0], COLOR
    DCL CONST[0]                # colour and strength
    DCL TEMP[0]
    IMM[0] FLT32 { 1.0, 0.0, 0.0, 0.0 }
    DP2 TEMP[0].x, IN[0], IN[0]
    ADD_SAT TEMP[0].x, IMM[0].xxxx, -TEMP[0].xxxx
    MUL TEMP[0].x, TEMP[0].xxxx, TEMP[0].xxxx
    MOV OUT[0].xyz, CONST[0]
    MUL OUT[0].w, TEMP[0].xxxx, CONST[0].wwww
    END
""")

_BACKDROP_FRAGMENT_SHADER = assemble(f"""FRAG
    DCL IN[0], GENERIC[0], LINEAR
    DCL IN[1], POSITION, LINEAR
    DCL OUT[0], COLOR
    DCL TEMP[0..1]
    {DITHER_IMMEDIATES}
    IMM[2] FLT32 {{ 0.5, 0.5, 0.0, 0.0 }}
    IMM[3] FLT32 {{ 0.90, 0.88, 0.84, 1.0 }}    # below
    IMM[4] FLT32 {{ 0.30, 0.56, 0.66, 1.0 }}    # above
    MAD_SAT TEMP[0].x, IN[0].yyyy, IMM[2].xxxx, IMM[2].yyyy
    LRP TEMP[1], TEMP[0].xxxx, IMM[4], IMM[3]
    {dither("TEMP[1]", "IN[1]", "TEMP[0]")}
    MOV OUT[0], TEMP[1]
    END
""")


@dataclass(frozen=True, slots=True)
class _Ball:
    """How one ball moves: a place on a ring, and a bounce of its own."""

    ring: float
    angle: float
    radius: float
    height: float
    rate: float
    phase: float
    color: tuple[float, float, float]

    def pose(self, t: float) -> _Pose:
        turn = self.angle + t * (0.25 if self.ring > 2 else -0.4)
        beat = (t * self.rate + self.phase) % 1.0
        y = self.radius + self.height * 4 * beat * (1 - beat)
        spin, tumble = 0.9 * t + self.angle, 1.3 * t * self.rate + self.phase * 6
        axis = [-math.cos(spin) * math.sin(tumble), math.cos(tumble), math.sin(spin) * math.sin(tumble)]
        return [self.ring * math.cos(turn), y, self.ring * math.sin(turn)], axis


_COLORS = [
    (0.92, 0.26, 0.21), (0.98, 0.66, 0.15), (0.18, 0.62, 0.42), (0.16, 0.44, 0.82),
    (0.55, 0.27, 0.68), (0.94, 0.42, 0.55), (0.13, 0.66, 0.70), (0.98, 0.82, 0.22),
]


def _balls() -> list[_Ball]:
    outer = [
        _Ball(3.2, i * 2 * np.pi / 8, 0.62, 1.5, 0.62, i / 8, _COLORS[i]) for i in range(8)
    ]
    inner = [
        _Ball(1.3, i * 2 * np.pi / 3, 0.45, 2.3, 0.5, i / 3, _COLORS[(3 * i + 1) % 8]) for i in range(3)
    ]
    return outer + inner


_SQUARE = Mesh(np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], "<f4"), np.array([0, 1, 2, 0, 2, 3], "<u2"))


class MarblesScene(SceneBase):
    """The bouncing balls: many small draws per frame, blending, a mirrored pass."""

    name = "marbles"

    def __init__(self, size: tuple[int, int] = (640, 480)) -> None:
        super().__init__(size)
        self._balls = _balls()

    def meshes(self) -> dict[str, Mesh]:
        near, mirrored = unit_sphere(18, 30), unit_sphere(11, 18)
        return {"ball": near, "mirrored ball": mirrored, "square": _SQUARE, "backdrop": BACKDROP}

    def build(self, stream: CommandStream) -> None:
        solid = [VertexElement(0, Format.R32G32B32_FLOAT)]
        flat = [VertexElement(0, Format.R32G32_FLOAT)]
        front, mirrored, both = RasterizerState(cull=Face.BACK), RasterizerState(cull=Face.FRONT), RasterizerState()
        ball = _BALL_VERTEX_SHADER, _BALL_FRAGMENT_SHADER
        self._ball = self.pipeline(stream, solid, *ball, front, OPAQUE, DEPTH_TEST)
        self._mirrored = self.pipeline(stream, solid, *ball, mirrored, OPAQUE, DEPTH_TEST)
        self._floor = self.pipeline(
            stream, flat, _FLAT_VERTEX_SHADER, _FLOOR_FRAGMENT_SHADER, both, ALPHA_BLEND, DEPTH_OFF
        )
        self._shadow = self.pipeline(
            stream, flat, _FLAT_VERTEX_SHADER, _SHADOW_FRAGMENT_SHADER, both, ALPHA_BLEND, DEPTH_OFF
        )
        self._backdrop = self.pipeline(
            stream, flat, BACKDROP_VERTEX_SHADER, _BACKDROP_FRAGMENT_SHADER, both, OPAQUE, DEPTH_TEST_ONLY
        )

    def draw(self, stream: CommandStream, t: float) -> None:
        stream.clear(ClearBuffer.DEPTH)
        poses = [ball.pose(t) for ball in self._balls]
        eye = (rotation(1, 0.15 * t) @ np.array([0.0, 3.6, 10.5, 1.0]))[:3]
        clip = perspective(np.radians(38), self.aspect, 1.0, 40.0) @ look_at(eye, vector(0.0, 0.75, 0.0))
        # Below the floor the same balls are seen from the mirrored eye.
        mirrored = clip @ scaling(1, -1, 1)
        self._draw_balls(stream, self._mirrored, "mirrored ball", mirrored, eye * vector(1, -1, 1), poses)
        self.use(stream, self._backdrop)
        self.use_mesh(stream, "backdrop")
        self.draw_mesh(stream, "backdrop")
        self._draw_floor(stream, clip, poses)
        self._draw_balls(stream, self._ball, "ball", clip, eye, poses)

    def _draw_balls(
        self, stream: CommandStream, pipeline: Pipeline, mesh: str, clip: Matrix, eye: Vector, poses: Sequence[_Pose]
    ) -> None:
        self.use(stream, pipeline)
        self.use_mesh(stream, mesh)
        view, light = constants(clip), constants(eye, _KEY)
        for ball, (centre, axis) in zip(self._balls, poses, strict=True):
            stream.set_constants(Shader.VERTEX, view + struct.pack("<4f", *centre, ball.radius))
            stream.set_constants(Shader.FRAGMENT, light + struct.pack("<8f", *ball.color, 0.0, *axis, 0.0))
            self.draw_mesh(stream, mesh)

    def _draw_floor(self, stream: CommandStream, clip: Matrix, poses: Sequence[_Pose]) -> None:
        self.use_mesh(stream, "square")
        self.use(stream, self._floor)
        view = constants(clip)
        stream.set_constants(Shader.VERTEX, view + struct.pack("<4f", 0.0, 0.0, 0.0, _FLOOR_SIZE))
        self.draw_mesh(stream, "square")
        self.use(stream, self._shadow)
        for ball, ((x, y, z), _) in zip(self._balls, poses, strict=True):
            lift = y - ball.radius
            # The key light is slanted: the higher the ball, the further, wider and fainter its shadow.
            at = x - _SLANT[0] * y, 0.0, z - _SLANT[1] * y, ball.radius * (1.35 + 0.45 * lift)
            stream.set_constants(Shader.VERTEX, view + struct.pack("<4f", *at))
            stream.set_constants(Shader.FRAGMENT, struct.pack("<4f", 0.12, 0.15, 0.22, 0.62 / (1 + 0.8 * lift)))
            self.draw_mesh(stream, "square")
