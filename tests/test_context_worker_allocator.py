"""Memory that is freed stays with the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Frees 24 MiB and says how much smaller the process has become.
PROGRAM = """
import ctypes, sys
from context_worker.allocator import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
piece = libc.malloc(24 << 20)
ctypes.memset(piece, 1, 24 << 20)
full = resident()
libc.free(piece)
print(full - resident())
"""


def given_back(how: str) -> int:
    """Bytes."""
    command = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def test_freed_memory_is_kept() -> None:
    assert given_back("keep") < 4 << 20 < 16 << 20 < given_back("default")
