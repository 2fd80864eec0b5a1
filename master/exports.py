"""What workers say of their objects' storage, checked.

A worker may lie, and other workers map and import what it gives: a descriptor has to be what it is said to be, must not
shrink while somebody has it mapped, and has to hold the picture that is said to lie in it. Drivers do not check that
themselves (Mesa's software renderer takes any size for granted).
"""

import fcntl
import os
from dataclasses import replace
from typing import Final

from ipc.errors import ProtocolError
from ipc.messages import BlobObject, Exported
from master.virtio_gpu import MapInfo
from native import linux
from native.owned_fd import OwnedFd
from native.shared_formats import is_fourcc_of
from native.storage import MODIFIER_INVALID, MODIFIER_LINEAR, Layout, StorageKind
from native.texture import Texture
from resource_table import Storage

MUCH: Final = 64 << 20
"""Bytes that a driver may add to an object's size for the sake of its alignment, and then some."""
_NEEDED_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_TOGETHER: Final = 4  # a software renderer writes pixels in blocks of so many by so many
_BUFFER: Final = 0  # gallium's PIPE_BUFFER
_TEXTURE_2D: Final = 2


def storage_of(message: Exported, fd: OwnedFd, v1: Texture | None) -> Storage:
    """The storage that a worker gave for an object of these arguments, if they are known.

    Takes the descriptor over with success alone. Raises ProtocolError.
    """
    if message.map_info > max(MapInfo):
        raise ProtocolError(f"map info {message.map_info}")
    try:
        size = _checked_size(message.kind, fd)
    except OSError as error:
        raise ProtocolError(f"an object in what is no {message.kind}: {error}") from error
    layout = Layout(message.nbytes, message.offset, message.stride, message.fourcc, message.modifier)
    plain = message.kind is StorageKind.MEMFD
    contents = v1.nbytes if v1 is not None else 0
    least = contents if plain else 0  # all of it is there as it is; a driver may keep pixels in less
    if not least <= layout.nbytes <= size or size > 4 * contents + MUCH:
        raise ProtocolError(f"{layout.nbytes} bytes of {size} for an object of {contents}")
    if v1 is not None:
        check_layout(layout, v1, plain=plain)
    return Storage(fd, message.kind, layout, message.map_info)


def blob_of(message: BlobObject, nbytes: int, *, plain: bool) -> tuple[Texture, Layout]:
    """What a blob of so many bytes is, and how it lies in its storage, which is `plain` memory or not.

    Raises ProtocolError.
    """
    v1 = Texture(
        message.target,
        message.format,
        message.bind,
        message.width,
        message.height,
        message.depth,
        message.array_size,
        message.last_level,
        message.nr_samples,
        message.flags,
    )
    if not v1.is_valid():
        raise ProtocolError(f"a blob that is {v1}")
    layout = Layout(nbytes, message.offset, message.stride, message.fourcc, message.modifier)
    check_layout(layout, v1, plain=plain)
    return v1, layout


def check_layout(layout: Layout, v1: Texture, *, plain: bool) -> None:
    """Whether an object lies within its storage. `plain`: processors write it, in rows of pixels. Raises ProtocolError.

    What is not a picture of rows (stride 0, no fourcc) is nothing that a driver imports but a buffer.
    """
    if v1.target == _BUFFER:
        fits = layout.offset + v1.width <= layout.nbytes
    elif not layout.stride:
        fits = not layout.fourcc and layout.offset <= layout.nbytes
    else:
        rows = _in_blocks(v1.height) if plain else v1.height
        least = row_bytes(v1, _in_blocks(v1.width)) if plain else 0
        fits = layout.stride >= least and layout.offset + layout.stride * rows <= layout.nbytes
    if not is_fourcc_of(v1.format, layout.fourcc):
        raise ProtocolError(f"pixels {layout.fourcc:#x} of format {v1.format}")
    if plain and layout.modifier not in (MODIFIER_LINEAR, MODIFIER_INVALID):
        raise ProtocolError(f"modifier {layout.modifier:#x} in plain memory")
    if not fits:
        raise ProtocolError(f"{v1.width}x{v1.height} at {layout.offset}, stride {layout.stride} in {layout.nbytes}")


def row_bytes(v1: Texture, width: int) -> int:
    """Bytes of one row of so many pixels, or of blocks of them."""
    row = replace(v1, target=_TEXTURE_2D, width=width, height=1, depth=1, array_size=1, last_level=0, nr_samples=0)
    return row.nbytes


def _in_blocks(pixels: int) -> int:
    return -(-pixels // _TOGETHER) * _TOGETHER


def _checked_size(kind: StorageKind, fd: OwnedFd) -> int:
    """Bytes behind the descriptor. Raises ProtocolError, OSError if it is not of the kind."""
    if kind is StorageKind.DMABUF:
        if linux.fstatfs_type(fd.fd) != linux.DMA_BUF_MAGIC:
            raise ProtocolError("no dma-buf where one was announced")
    elif kind is not StorageKind.MEMFD or linux.fstatfs_type(fd.fd) != linux.TMPFS_MAGIC:
        raise ProtocolError("no shared memory where some was announced")  # huge pages may be missing when used
    elif linux.get_seals(fd.fd) & _NEEDED_SEALS != _NEEDED_SEALS:
        raise ProtocolError("no memory whose size is sealed")
    return os.lseek(fd.fd, 0, os.SEEK_END)
