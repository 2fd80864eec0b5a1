"""What the master gives up, because it needs none of it: what a guest that got into it would find.

From the start (begin): no privileges may be gained by executing a file (PR_SET_NO_NEW_PRIVS), files that it makes are
its own (umask), and it leaves no core file, in which guest memory would be.

Once it listens and the first launcher has been started (drop_capabilities), a master that is root keeps three:

CAP_KILL           workers are another user's then, and have to be ended.
CAP_SETUID/SETGID  a launcher that has ended is replaced, and becomes that other user. Only what is executed has these
                   two in effect; the master itself would have to raise them.

It stays root: without capabilities that is the owner of root's files, and nothing more. To run it as an ordinary user
is better. PR_SET_DUMPABLE stays as it is: processes of the same user may do to it what that user may, as to all others
of theirs, and workers, which may not, do not see it.
"""

import ctypes
import logging
import os
import resource
from pathlib import Path
from typing import Final

# include/uapi/linux/capability.h and prctl.h
CAP_KILL: Final = 5
CAP_SETGID: Final = 6
CAP_SETUID: Final = 7
_CAPABILITY_VERSION_3: Final = 0x20080522
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

KEPT: Final = frozenset({CAP_KILL, CAP_SETGID, CAP_SETUID})
IN_EFFECT: Final = frozenset({CAP_KILL})

log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None, use_errno=True)


def begin() -> None:
    """To be called before anything is opened. Raises OSError."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def drop_capabilities() -> None:
    """Gives up all but KEPT, of which only IN_EFFECT stay in effect. Nothing happens to who has none.

    Capabilities belong to threads: this is to be called before there are others, which inherit what is left. Raises
    OSError.
    """
    if not _permitted():
        return
    if (others := len(os.listdir("/proc/self/task")) - 1) > 0:
        log.warning("%d threads of something loaded into this process keep their capabilities", others)
    for capability in range(_last_capability() + 1):
        if capability not in KEPT:
            _drop_from_bounding_set(capability)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    kept = _permitted() & _mask(KEPT)
    _capset(effective=kept & _mask(IN_EFFECT), permitted=kept)


def _permitted() -> int:
    status = Path("/proc/self/status").read_text("ascii", "replace")
    return next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapPrm:"))


def _last_capability() -> int:
    return int(Path("/proc/sys/kernel/cap_last_cap").read_text("ascii"))


def _drop_from_bounding_set(capability: int) -> None:
    try:
        _prctl(_PR_CAPBSET_DROP, capability)
    except PermissionError:  # without CAP_SETPCAP the set stays; who has not that either can do less than root
        return


def _mask(capabilities: frozenset[int]) -> int:
    return sum(1 << capability for capability in capabilities)


def _prctl(option: int, argument: int) -> None:
    zero = ctypes.c_ulong(0)
    if _libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero):
        _fail(f"prctl {option}")


def _capset(effective: int, permitted: int) -> None:
    """capset(2) of this thread, with nothing inheritable."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = (1 << 32) - 1, 32
    words = (effective & low, permitted & low, 0, effective >> high, permitted >> high, 0)
    if _libc.capset(header, (ctypes.c_uint32 * 6)(*words)):
        _fail("capset")


def _fail(what: str) -> None:
    error = ctypes.get_errno()
    raise OSError(error, f"{what}: {os.strerror(error)}")
