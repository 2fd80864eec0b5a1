"""Looking at screendumps: how many colours, which is the background, what differs from it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]


def load(path: Path) -> Pixels:
    """A PNG as an array of shape (height, width, 3), R G B."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def colours(pixels: Pixels) -> Counter[tuple[int, int, int]]:
    """How often each colour occurs."""
    values, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    return Counter({(int(r), int(g), int(b)): int(n) for (r, g, b), n in zip(values, counts, strict=True)})


def foreground_fraction(pixels: Pixels) -> float:
    """Share of the pixels that do not have the most frequent colour, 0 to 1."""
    ((_, most),) = colours(pixels).most_common(1)
    return 1.0 - most / float(pixels.shape[0] * pixels.shape[1])
