"""Matrices for the scenes: row-major float64 for column vectors, packed as float32 shader constants."""

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
"""(4, 4), row-major."""

Vector = npt.NDArray[np.float64]
"""(3,)."""


def vector(*values: float) -> Vector:
    return np.array(values, np.float64)


def normalized(value: Vector) -> Vector:
    return value / np.linalg.norm(value)


def perspective(fov_y: float, aspect: float, near: float, far: float) -> Matrix:
    """GL's projection: clip z from -w (near) to w (far). ``fov_y`` in radians."""
    f = 1.0 / np.tan(fov_y / 2)
    out = np.zeros((4, 4))
    out[0, 0] = f / aspect
    out[1, 1] = f
    out[2, 2] = (far + near) / (near - far)
    out[2, 3] = 2 * far * near / (near - far)
    out[3, 2] = -1.0
    return out


def look_at(eye: Vector, center: Vector) -> Matrix:
    """View of ``center`` from ``eye`` with +y up."""
    forward = normalized(center - eye)
    side = normalized(np.cross(forward, vector(0.0, 1.0, 0.0)))
    up = np.cross(side, forward)
    out = np.eye(4)
    out[:3, :3] = side, up, -forward
    out[:3, 3] = -out[:3, :3] @ eye
    return out


def translation(x: float, y: float, z: float) -> Matrix:
    out = np.eye(4)
    out[:3, 3] = x, y, z
    return out


def scaling(x: float, y: float, z: float) -> Matrix:
    return np.diag([x, y, z, 1.0])


def rotation(axis: int, angle: float) -> Matrix:
    """About coordinate axis 0, 1 or 2, by ``angle`` radians."""
    out = np.eye(4)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    c, s = np.cos(angle), np.sin(angle)
    out[a, a], out[a, b], out[b, a], out[b, b] = c, -s, s, c
    return out


def constants(*rows: npt.ArrayLike) -> bytes:
    """Matrices (4, 4) and vectors (3 or 4 components) as float32 vectors of four, short ones padded by 0."""
    parts = []
    for value in rows:
        part = np.asarray(value, np.float64).reshape(-1, np.shape(value)[-1])
        parts.append(np.pad(part, ((0, 0), (0, 4 - part.shape[1]))))
    return np.concatenate(parts).astype("<f4").tobytes()
