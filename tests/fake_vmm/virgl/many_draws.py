"""Streams that cost the command path more than the GPU: many tiny draws, each with constants of its own."""

import struct

from tests.fake_vmm.virgl.encoder import CommandStream
from tests.fake_vmm.virgl.protocol import ClearBuffer, Primitive, Shader
from tests.fake_vmm.virgl.triangle import Color, TriangleScene


def color_of(index: int) -> Color:
    """The colour of draw ``index``; the first 4096 differ by 16 levels in one channel at least."""
    return (index & 15) / 15, (index >> 4 & 15) / 15, (index >> 8 & 15) / 15


class ManyDrawsScene(TriangleScene):
    """``draws`` triangles per frame, each in its own cell of a square grid and in its own colour.

    The upper left half of cell ``i`` (row-major from the top) is ``color_of(i + index)``, with the frame's index.
    One frame is 11 + 27 * draws words long.
    """

    def __init__(self, draws: int, name: str = "many-draws", size: tuple[int, int] = (64, 64)) -> None:
        super().__init__(name, size, background=(0.0, 0.0, 0.0))
        self.draws = draws
        self.columns = next(n for n in range(1, draws + 2) if n * n >= draws)

    def cell(self, index: int) -> tuple[float, float, float, float]:
        """Left, top, width and height of a cell, in pixels."""
        width, height = self.size[0] / self.columns, self.size[1] / self.columns
        return index % self.columns * width, index // self.columns * height, width, height

    def frame(self, t_seconds: float, index: int) -> bytes:
        stream = CommandStream().set_sub_context(1)
        stream.clear(ClearBuffer.COLOR0, (*self.background, 1.0))
        half = 1.0 / self.columns
        for draw in range(self.draws):
            x = (draw % self.columns * 2 + 1) * half - 1.0
            y = 1.0 - (draw // self.columns * 2 + 1) * half
            # The vertex shader only adds: a larger w shrinks the triangle to its cell.
            offset = struct.pack("<4f", x * self.columns, y * self.columns, 0.0, self.columns - 1.0)
            stream.set_constants(Shader.VERTEX, offset)
            stream.set_constants(Shader.FRAGMENT, struct.pack("<4f", *color_of(draw + index), 1.0))
            stream.draw(Primitive.TRIANGLES, 3)
        return bytes(stream)
