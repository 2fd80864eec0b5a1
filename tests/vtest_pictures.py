"""Pictures that GL programs have drawn, and whether two are of the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Picture = npt.NDArray[np.uint8]

_NEAR = 8  # of 255: virgl translates shaders, so edges and shades may come out a little different
_ODD_PIXELS = 0.005  # the share of pixels that may be farther off than that


def read_ppm(path: Path) -> Picture:
    """Rows of RGB."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def assert_same_picture(picture: Picture, wanted: Picture) -> None:
    """That both show the same, and that it is not just one colour."""
    assert picture.shape == wanted.shape
    assert len(np.unique(wanted.reshape(-1, 3), axis=0)) > 50
    far = np.abs(picture.astype(np.int16) - wanted.astype(np.int16)).max(axis=2) > _NEAR
    assert far.mean() < _ODD_PIXELS, f"{far.mean():.1%} of the pixels are wrong"
