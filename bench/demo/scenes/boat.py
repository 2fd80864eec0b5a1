"""The mesh of a small sailing boat, bow towards -z, water line at y = 0: position, normal and colour per vertex."""

import numpy as np
import numpy.typing as npt

from bench.demo.scenes.meshes import Floats, Mesh, grid_indices, mesh

_HULL = (0.62, 0.13, 0.11)
_DECK = (0.78, 0.56, 0.34)
_MAST = (0.42, 0.27, 0.16)
_SAIL = (0.97, 0.94, 0.86)

Part = tuple[Floats, npt.NDArray[np.int64], tuple[float, float, float]]
"""Points (rows, columns, 3), triangle indices into them, colour."""


def _patch(points: Floats, color: tuple[float, float, float]) -> Part:
    return points, grid_indices(points.shape[0], points.shape[1]), color


def _hull() -> list[Part]:
    along = np.linspace(0.0, 1.0, 15)[:, None]
    girth = np.linspace(1.0, -1.0, 11)[None, :]
    beam = 0.36 * np.sin(np.pi * 0.82 * along) ** 0.75
    sheer = 0.26 + 0.16 * (1 - along) ** 2
    keel = -0.22 * np.sin(np.pi * (0.02 + 0.8 * along)) ** 0.5
    z = -1.0 + 1.9 * along
    rise = np.abs(girth) ** 2.4
    width = beam * np.sign(girth) * np.abs(girth) ** 0.6
    side = np.stack([width, keel + (sheer - keel) * rise, z + 0 * girth], axis=-1)
    across = np.linspace(-1.0, 1.0, 3)[None, :]
    deck = np.stack([beam * across * 0.96, sheer - 0.03 + 0 * across, z + 0 * across], axis=-1)
    stern = np.stack([side[-1], side[-1] * (0.0, 1.0, 1.0)])
    return [_patch(side, _HULL), _patch(stern, _HULL), _patch(deck, _DECK)]


def _mast() -> Part:
    angle = np.linspace(0.0, 2 * np.pi, 7)[None, :]
    height = np.array([0.2, 2.45])[:, None]
    radius = np.array([0.035, 0.02])[:, None]
    points = np.stack([radius * np.cos(angle), height + 0 * angle, -0.15 + radius * np.sin(angle)], axis=-1)
    return _patch(points, _MAST)


def _sail(luff: tuple[float, float], foot: tuple[float, float], belly: float) -> Part:
    """A sheet from y = luff[0] to luff[1] at its mast, from z = foot[0] to foot[1] at its foot, filled by wind."""
    up = np.linspace(0.0, 1.0, 9)[:, None]
    out = np.linspace(0.0, 1.0, 7)[None, :]
    width = 1.0 - up
    x = belly * np.sin(np.pi * out) * np.sin(np.pi * (0.15 + 0.85 * up)) * width**0.5 + 0.10 * out * width
    y = luff[0] + (luff[1] - luff[0]) * up + 0 * out
    z = foot[0] + (foot[1] - foot[0]) * out * width
    return _patch(np.stack([x, y, z], axis=-1), _SAIL)


def _shaded(part: Part, offset: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Vertices (n, 9) with normals averaged over the triangles around each, and indices shifted by ``offset``."""
    points, indices, color = part
    position = points.reshape(-1, 3)
    triangles = indices.reshape(-1, 3)
    a, b, c = (position[triangles[:, corner]] for corner in range(3))
    faces = np.cross(b - a, c - a)
    normals = np.zeros_like(position)
    for corner in range(3):
        np.add.at(normals, triangles[:, corner], faces)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
    colors = np.broadcast_to(color, position.shape)
    return np.concatenate([position, normals, colors], axis=1), triangles + offset


def boat() -> Mesh:
    """The whole boat. Sails are one sheet: draw with both faces and light them from both sides."""
    parts = [*_hull(), _mast(), _sail((0.55, 2.35), (-0.12, 0.78), 0.16), _sail((0.5, 2.05), (-0.18, -0.95), 0.12)]
    vertices, indices = [], []
    offset = 0
    for part in parts:
        part_vertices, part_indices = _shaded(part, offset)
        vertices.append(part_vertices)
        indices.append(part_indices)
        offset += len(part_vertices)
    return mesh(np.concatenate(vertices), np.concatenate(indices))
