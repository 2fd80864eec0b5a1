"""Memory that the table makes: sealed, so that nobody who gets a descriptor of it can cut it short under the others."""

import fcntl
import os
from typing import Final

from native.linux import PAGE_BYTES, add_seals, memfd_create
from native.owned_fd import OwnedFd
from native.shared_formats import TARGET_BUFFER, is_image, linear_layout
from native.storage import Layout
from native.texture import Texture

SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

_Y_0_TOP: Final = 1 << 0  # virgl_hw.h


def whole_pages(nbytes: int) -> int:
    """So many bytes, and what is left of the last page."""
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES


def layout_in_memory(texture: Texture) -> Layout | None:
    """How the texture lies in memory that is made for it; None if drivers can put none of its kind there.

    One that is upside down (Y_0_TOP) could be shared but not looked at: only transfers turn its rows around.
    """
    if texture.target == TARGET_BUFFER:
        return Layout(whole_pages(texture.width))
    importable = is_image(
        texture.target,
        texture.format,
        last_level=texture.last_level,
        array_size=texture.array_size,
        nr_samples=texture.nr_samples,
    )
    if not importable or texture.flags & _Y_0_TOP:
        return None
    return linear_layout(texture.format, texture.width, texture.height)


def sealed_memory(name: str, nbytes: int) -> OwnedFd:
    """A memfd of whole pages, all zero, whose size stays. It takes memory where it is written. Raises OSError."""
    memory = OwnedFd(memfd_create(name))
    try:
        os.ftruncate(memory.fd, whole_pages(nbytes))
        add_seals(memory.fd, SEALS)
    except OSError:
        memory.close()
        raise
    return memory
