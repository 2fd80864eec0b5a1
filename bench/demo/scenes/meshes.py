"""Meshes for the scenes: interleaved float32 vertices and uint16 triangle indices, front faces counter-clockwise."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Mesh:
    """``vertices``: (n, floats per vertex) float32; ``indices``: flat uint16, three per triangle."""

    vertices: npt.NDArray[np.float32]
    indices: npt.NDArray[np.uint16]

    @property
    def stride(self) -> int:
        """Bytes from one vertex to the next."""
        return int(self.vertices.shape[1]) * 4


def mesh(vertices: Floats, indices: npt.NDArray[np.int64]) -> Mesh:
    """Raises ValueError if there are more vertices than 16-bit indices reach."""
    if len(vertices) > 0x10000:
        raise ValueError(f"{len(vertices)} vertices are too many for 16-bit indices")
    return Mesh(vertices.astype("<f4"), indices.ravel().astype("<u2"))


def grid_indices(
    rows: int, columns: int, *, wrap_rows: bool = False, wrap_columns: bool = False
) -> npt.NDArray[np.int64]:
    """Two triangles per cell of a grid of rows by columns vertices, optionally closed in either direction."""
    i = np.arange(rows if wrap_rows else rows - 1)[:, None]
    j = np.arange(columns if wrap_columns else columns - 1)[None, :]
    here, right = i * columns + j, i * columns + (j + 1) % columns
    down, across = (i + 1) % rows * columns + j, (i + 1) % rows * columns + (j + 1) % columns
    return np.stack([here, down, across, here, across, right], axis=-1)


def torus_knot(
    p: int, q: int, *, radius: float, tube: float, segments: int, sides: int
) -> tuple[Floats, Floats, Floats]:
    """Positions (n, 3), normals (n, 3) and the place along the knot (n,) in 0..1, of a segments by sides grid."""
    u = np.arange(segments) / segments * 2 * np.pi

    def curve(angle: Floats) -> Floats:
        r = radius * (1.0 + 0.42 * np.cos(q * angle))
        return np.stack([r * np.cos(p * angle), r * np.sin(p * angle), radius * 0.42 * np.sin(q * angle)], axis=-1)

    step = 1e-4
    centre = curve(u)
    tangent = curve(u + step) - curve(u - step)
    tangent /= np.linalg.norm(tangent, axis=-1, keepdims=True)
    binormal = np.cross(tangent, centre)
    binormal /= np.linalg.norm(binormal, axis=-1, keepdims=True)
    normal = np.cross(binormal, tangent)
    v = -np.arange(sides) / sides * 2 * np.pi
    out = normal[:, None] * np.cos(v)[:, None] + binormal[:, None] * np.sin(v)[:, None]
    position = centre[:, None] + tube * out
    along = np.broadcast_to((u / (2 * np.pi))[:, None], (segments, sides))
    return position.reshape(-1, 3), out.reshape(-1, 3), along.reshape(-1)


def unit_sphere(rings: int, sectors: int) -> Mesh:
    """Positions only: on the unit sphere they are the normals too."""
    theta = np.linspace(0.0, np.pi, rings + 1)[:, None]
    phi = np.arange(sectors) / sectors * 2 * np.pi
    points = [np.sin(theta) * np.sin(phi), np.cos(theta) + 0 * phi, np.sin(theta) * np.cos(phi)]
    return mesh(np.stack(points, axis=-1).reshape(-1, 3), grid_indices(rings + 1, sectors, wrap_columns=True))


def fan_grid(near: float, far: float, half_angle: float, rows: int, columns: int) -> Mesh:
    """A flat (x, z) sector in front of the origin, looking down -z, whose cells grow with their distance."""
    distance = near * (far / near) ** np.linspace(0.0, 1.0, rows)[:, None]
    angle = np.linspace(-half_angle, half_angle, columns)
    points = np.stack([distance * np.tan(angle), -distance + 0 * angle], axis=-1).reshape(-1, 2)
    return mesh(points, grid_indices(rows, columns))
