"""How malloc treats what is freed.

A renderer takes and gives back megabytes in every frame. By its defaults glibc returns them to the kernel each time,
and every page of the next frame is a fault: several hundred a frame with many small draws, a third of the time. So
workers keep more of what they had. It costs a worker at most KEPT bytes that it once needed and no longer does.
"""

import ctypes

KEPT = 64 << 20

# malloc.h
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3

_SETTINGS = {
    _M_TRIM_THRESHOLD: KEPT,
    _M_TOP_PAD: 4 << 20,
    _M_MMAP_THRESHOLD: 32 << 20,  # glibc's own upper bound; what is larger is mapped and unmapped on its own
}


def keep_freed_memory() -> bool:
    """Set this for the process and those it forks; mallopt(3). False for a malloc that has no such settings, as
    AddressSanitizer's."""
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(parameter, value) == 1 for parameter, value in _SETTINGS.items()])
