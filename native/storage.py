"""What the bytes of a resource are, when they are behind a descriptor."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MODIFIER_LINEAR: Final = 0
MODIFIER_INVALID: Final = 0x00FF_FFFF_FFFF_FFFF
"""drm_fourcc.h: nobody said how the pixels lie."""


class StorageKind(StrEnum):
    """What a descriptor is, and so how an object comes of it."""

    DMABUF = "dmabuf"
    """A dma-buf (kernel Documentation/driver-api/dma-buf.rst), which is imported."""

    MEMFD = "memfd"
    """Sealed shared memory that an object lies in: imported like a dma-buf, or mapped for a buffer."""

    MIRROR = "mirror"
    """Sealed shared memory (native/src/mirror.h) that contents are copied to and from: the object lies elsewhere."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a picture lies in its storage: `nbytes` of the whole storage, `offset` of the first row and `stride` from row
    to row in bytes, `fourcc` and `modifier` as drm_fourcc.h has them. A buffer has fourcc 0 and stride 0."""

    nbytes: int
    offset: int = 0
    stride: int = 0
    fourcc: int = 0
    modifier: int = MODIFIER_LINEAR
