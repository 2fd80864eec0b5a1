"""A scene whose fragment shader does not end in any time that somebody would wait."""

import struct

from tests.fake_vmm.virgl.encoder import CommandStream
from tests.fake_vmm.virgl.protocol import Shader
from tests.fake_vmm.virgl.triangle import TriangleScene

_LOOP_SHADER = 8

# The loop ends when CONST[0].x exceeds CONST[0].y, which only the renderer finds out: they are 0 and 1. Software
# renderers let a loop go round 65535 times at most; with what is done each time that makes minutes for a picture.
_WORK = "\n".join(f"  {number}: SIN TEMP[0].y, TEMP[0].yyyy" for number in range(6, 70))
LOOP_SHADER = f"""FRAG
DCL OUT[0], COLOR
DCL CONST[0]
DCL TEMP[0..1]
  0: MOV TEMP[0], CONST[0]
  1: BGNLOOP
  2:   FSLT TEMP[1].x, CONST[0].yyyy, TEMP[0].xxxx
  3:   UIF TEMP[1].xxxx :5
  4:     BRK
  5:   ENDIF
{_WORK}
 70:   ADD TEMP[0].x, TEMP[0].xxxx, CONST[0].zzzz
 71: ENDLOOP
 72: MOV OUT[0], TEMP[0]
 73: END
"""


class EndlessScene(TriangleScene):
    """Its first frame is its last."""

    def __init__(self, name: str = "endless", size: tuple[int, int] = (512, 512)) -> None:
        super().__init__(name, size)

    def setup(self) -> bytes:
        loop = (
            CommandStream()
            .create_shader(_LOOP_SHADER, Shader.FRAGMENT, LOOP_SHADER)
            .bind_shader(_LOOP_SHADER, Shader.FRAGMENT)
            .set_constants(Shader.FRAGMENT, struct.pack("<4f", 0.0, 1.0, 0.0, 0.0))
        )
        return super().setup() + bytes(loop)
