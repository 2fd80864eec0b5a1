"""What a worker gives up on its way to the first guest byte.

The stages, in their order, and what may still be done after each (worker.py walks through them):

BORN        Forked from the launcher. No driver is loaded and there is one thread. The worker holds its own
            descriptors and no others, and dies with the launcher.
RESTRICTED  No new privileges, no core files, not dumpable. Files can still be opened, memory mapped, threads started.
CONFINED    The place of namespaces, a read-only root, resource limits and Landlock, which must come before a driver
            starts threads, since it binds the calling thread and its later children only. Nothing is done here yet.
LOADED      The driver is loaded, the engine runs and has drawn once: files are opened, threads started, code generated.
SEALED      The place of the system call filter, for all threads at once. Nothing is done here yet. Only now may the
            ring be looked at, so that no guest's byte meets a worker with more rights than it keeps.
"""

import ctypes
import enum
import os
import resource
import signal

WORKER_ENVIRONMENT: dict[str, str] = {
    # PyOpenGL takes its functions from EGL, never from GLX.
    "PYOPENGL_PLATFORM": "egl",
    # PyOpenGL may load numpy, whose BLAS starts threads; the launcher forks and must have none.
    "OPENBLAS_NUM_THREADS": "1",
}
"""What the launcher's environment has to hold when it is executed; libraries read it too early to be set later."""

# include/uapi/linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


class Stage(enum.IntEnum):
    """How far a worker has locked itself down; see the module."""

    BORN = 1
    RESTRICTED = 2
    CONFINED = 3
    LOADED = 4
    SEALED = 5


def prctl(option: int, argument: int) -> None:
    """prctl(2). Raises OSError."""
    zero = ctypes.c_ulong(0)
    if _libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero):
        error = ctypes.get_errno()
        raise OSError(error, f"prctl {option}: {os.strerror(error)}")


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when `parent_pid`, its parent, ends. Ends at once if that has happened.

    The kernel watches the thread that forked (prctl(2), PR_SET_PDEATHSIG), which in the launcher is the only one.
    """
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(0)


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor that is not in `keep`. Whoever owns a closed one must not close it again."""
    first = 0
    for fd in [*sorted(keep), os.sysconf("SC_OPEN_MAX")]:
        if first < fd:  # an empty range would close everything (close_range(2) up to fd - 1, unsigned)
            os.closerange(first, fd)
        first = fd + 1


def reset_signals() -> None:
    """Default dispositions, nothing blocked. SIGPIPE stays ignored: a closed peer is an error, not a death."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def restrict() -> None:
    """The stage RESTRICTED. Raises OSError."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def confine() -> None:
    """The stage CONFINED: see the module; nothing yet."""


def seal() -> None:
    """The stage SEALED: see the module; nothing yet."""
