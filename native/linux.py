"""Memory that has a descriptor, as Linux has it: sealed memory, dma-bufs and udmabufs. Constants, and one short
function for each call, named as the call. Header or man page are named where they are; what each call is good for is
said where it is used.

All raise OSError.
"""

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from typing import Final

PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")

# linux/memfd.h, since Linux 6.3
_MFD_NOEXEC_SEAL: Final = 0x0008

# linux/magic.h
TMPFS_MAGIC: Final = 0x0102_1994
DMA_BUF_MAGIC: Final = 0x444D_4142

# linux/dma-buf.h: _IOW('b', 0, struct dma_buf_sync)
_DMA_BUF_IOCTL_SYNC: Final = 0x4008_6200
DMA_BUF_SYNC_READ: Final = 1 << 0
DMA_BUF_SYNC_START: Final = 0 << 2
DMA_BUF_SYNC_END: Final = 1 << 2

# linux/udmabuf.h: _IOW('u', 0x43, struct udmabuf_create_list)
_UDMABUF_CREATE_LIST: Final = 0x4008_7543
_UDMABUF_FLAGS_CLOEXEC: Final = 1 << 0
_UDMABUF_HEAD: Final = struct.Struct("=II")  # flags, count
_UDMABUF_ITEM: Final = struct.Struct("=I4xQQ")  # memfd, offset, size

_STATFS_BYTES: Final = 256  # struct statfs is 120 bytes on 64-bit machines, and begins with f_type

_libc = ctypes.CDLL(None, use_errno=True)


def memfd_create(name: str) -> int:
    """memfd_create(2): empty, close-on-exec, open to seals, not to be executed where the kernel knows how to say so."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.memfd_create(name, flags)


def add_seals(fd: int, seals: int) -> None:
    """fcntl(2), F_ADD_SEALS."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)


def get_seals(fd: int) -> int:
    """fcntl(2), F_GET_SEALS. EINVAL for a file that can have none."""
    return fcntl.fcntl(fd, fcntl.F_GET_SEALS)


def fstatfs_type(fd: int) -> int:
    """fstatfs(2), f_type: which file system the file is of."""
    block = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.fstatfs(fd, block):
        error = ctypes.get_errno()
        raise OSError(error, f"fstatfs: {os.strerror(error)}")
    return int(ctypes.c_long.from_buffer(block).value)


def dma_buf_ioctl_sync(fd: int, flags: int) -> None:
    """ioctl(2), DMA_BUF_IOCTL_SYNC: before (START) and after (END) the processor looks at a mapping."""
    fcntl.ioctl(fd, _DMA_BUF_IOCTL_SYNC, struct.pack("=Q", flags))


def udmabuf_create_list(device: int, parts: Sequence[tuple[int, int, int]]) -> int:
    """ioctl(2), UDMABUF_CREATE_LIST: a dma-buf, close-on-exec, of parts of memfds, each (memfd, offset, bytes)."""
    head = _UDMABUF_HEAD.pack(_UDMABUF_FLAGS_CLOEXEC, len(parts))
    # A mutable argument may be as long as it likes; bytes are limited to 1024.
    argument = bytearray(head + b"".join(_UDMABUF_ITEM.pack(*part) for part in parts))
    return int(fcntl.ioctl(device, _UDMABUF_CREATE_LIST, argument, True))
