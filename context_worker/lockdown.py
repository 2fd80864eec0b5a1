"""What a worker gives up on its way to the first guest byte.

The launcher goes first (context_worker.namespaces, context_worker.root): what it has left, no worker has. Then the
stages of a worker, in their order, and what may still be done after each (worker.py walks through them):

BORN        Forked from the launcher, as pid 1 of a pid namespace. No driver is loaded and there is one thread. The
            worker holds its own descriptors and no others, its standard streams too, and dies with the launcher. It is
            in a user namespace of its own and has all capabilities over what it makes there: it can make namespaces
            and mount.
RESTRICTED  No new privileges, no core files, not dumpable, so many threads and no more, no urgency above others; the
            memory that RLIMIT_DATA counts is bounded (of the rest see below). Files of the launcher's tree (drivers)
            can still be opened, memory mapped, processes started.
CONFINED    A mount namespace with a small file system that nobody else sees, no System V object of others, no
            capabilities, and Landlock: of files only the driver's can be read, only that file system (or the shaders
            that workers share) written, none executed. No process, program, socket or namespace can be made any more
            (seccomp.forbid). All of it comes before a driver starts threads, since it binds the calling thread and its
            later children only.
LOADED      The driver is loaded, the engine runs and has drawn once: files were opened, threads started, code
            made.
SEALED      Of system calls, those that drawing takes (context_worker.seccomp), in all threads at once: no file is
            opened that the profile does not need late, no socket made, no process started. Only now may the ring be
            looked at, so that no guest's byte meets a worker with more rights than it keeps.

The launcher tells the master when it has the listener of a worker's filter: only then does the worker count as SEALED,
whatever it says itself. The commands of a guest may lie in its ring before that, which it is to read when it is sealed.
Who takes a worker over while it loads its driver sees those of that one guest program. Workers that share a shader
cache trust each other for that reason.

Memory: RLIMIT_DATA counts private memory that can be written, RLIMIT_FSIZE bounds each file and memfd, and the filter
leaves no other way to make large memory but by many of those, which vtest workers and the null engine's can, and by
page tables. The master ends a worker that it sees pass its limit, once a second. Only a cgroup bounds what hostile code
takes in between.

With --sandbox=off there are no namespaces and no limits, and CONFINED and SEALED add nothing to RESTRICTED. With
--sandbox=audit what cannot be had is left out; the launcher has said so when it started.
"""

import enum
import os
import resource
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from context_worker import capabilities, landlock, linux, namespaces, seccomp
from context_worker.profiles import DriverProfile
from context_worker.root import SCRATCH, Root, mount_scratch
from context_worker.sandbox_mode import SandboxMode

SCRATCH_BYTES = 96 << 20
"""Of a worker's own file system: the shader cache, which keeps to 64 MiB, and what drivers put beside it."""

MAX_THREADS = 256 + 4 * (os.cpu_count() or 1)
"""Of a worker. llvmpipe has one for each processor and context, Mesa's queues some more."""

MAX_QUEUED_SIGNALS = 64

MAX_FDS_UNSEALED = 4096
MAX_FDS = 1024
MAX_LOCKED_BYTES = 64 << 10

_COUNTED_BY_NAMESPACE = 5, 14
"""The kernel since which a user's threads and signals are counted in each user namespace by itself; before, all workers
would be counted together."""


class Stage(enum.IntEnum):
    """How far a worker has locked itself down; see the module."""

    BORN = 1
    RESTRICTED = 2
    CONFINED = 3
    LOADED = 4
    SEALED = 5


@dataclass(frozen=True)
class Confinement:
    """How workers of this launcher are locked in.

    inside: the launcher is in namespaces of its own, and can make more. rooted: `root`, what of the file tree drivers
    need, is all there is. memory_limit: bytes of data that a worker may have, None for any number.
    """

    mode: SandboxMode
    inside: bool = False
    rooted: bool = False
    root: Root = field(default_factory=lambda: Root(()))
    memory_limit: int | None = None


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor that is not in `keep`. Whoever owns a closed one must not close it again."""
    first = 0
    for fd in [*sorted(keep), os.sysconf("SC_OPEN_MAX")]:
        if first < fd:  # an empty range would close everything (close_range(2) up to fd - 1, unsigned)
            os.closerange(first, fd)
        first = fd + 1


def leave_streams(output_fd: int) -> None:
    """Write to `output_fd`, whose owner reads it with care, and read nothing.

    The launcher's own streams are the service's: a terminal, whose keys could be read and whose screen be written, or a
    file that could be truncated. Raises OSError.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.close(writing)
    os.dup2(reading, 0)  # at its end from the start, as /dev/null is, which the root of a sandbox does not have
    os.close(reading)
    os.dup2(output_fd, 1)
    os.dup2(output_fd, 2)


def reset_signals() -> None:
    """Default dispositions, nothing blocked. SIGPIPE stays ignored: a closed peer is an error, not a death."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def be_killed_first(proc_fd: int) -> None:
    """By the kernel, when the machine's memory is used up: before the launcher, the service and everybody else. That
    may be said without a privilege. `proc_fd`: a /proc. Raises OSError."""
    fd = os.open("self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        os.write(fd, b"1000")
    finally:
        os.close(fd)


def separate(confinement: Confinement, proc_fd: int) -> list[str]:
    """Of the stage BORN: what takes a /proc, which `proc_fd` is. Returns what could not be had, where it may be left
    out. Raises OSError where not."""
    linux.prctl(linux.PR_SET_DUMPABLE, 1)  # else a process' files there are root's; restrict() takes it back
    be_killed_first(proc_fd)
    if not confinement.inside:
        return []
    return _take([lambda: namespaces.enter_own_user_namespace(proc_fd)], confinement.mode)


def restrict(confinement: Confinement, *, for_vtest: bool) -> None:
    """The stage RESTRICTED. Raises OSError."""
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    _limit(resource.RLIMIT_CORE, 0)
    if confinement.mode is SandboxMode.OFF:
        return
    _limit(resource.RLIMIT_MEMLOCK, MAX_LOCKED_BYTES)
    for what in (resource.RLIMIT_RTPRIO, resource.RLIMIT_NICE, resource.RLIMIT_MSGQUEUE):
        _limit(what, 0)
    _limit(resource.RLIMIT_SIGPENDING, MAX_QUEUED_SIGNALS)
    _limit(resource.RLIMIT_NOFILE, MAX_FDS_UNSEALED)  # see limit_descriptors
    if confinement.inside and linux.kernel_version() >= _COUNTED_BY_NAMESPACE:
        _limit(resource.RLIMIT_NPROC, MAX_THREADS)
    if confinement.memory_limit is not None:
        # Not RLIMIT_AS: drivers reserve addresses by the gigabyte and use few of them.
        _limit(resource.RLIMIT_DATA, confinement.memory_limit)
    if for_vtest:  # a buffer that is shared with a client is a file
        if confinement.memory_limit is not None:
            _limit(resource.RLIMIT_FSIZE, confinement.memory_limit)
    else:
        _limit(resource.RLIMIT_FSIZE, SCRATCH_BYTES)


def limit_descriptors(pid: int) -> None:
    """A sealed worker's, set by the launcher when it has the listener of its filter.

    The limit is also that of descriptors under way in messages, which are counted for all processes of a user together
    (unix(7), ETOOMANYREFS). So a worker that floods a socket with them gets no further than MAX_FDS, and whoever has
    yet to send its listener, the launcher and the master may go further. Raises OSError.
    """
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (MAX_FDS, MAX_FDS))


def _limit(what: int, most: int) -> None:
    """At most `most`, for good; less if it is less already."""
    hard = resource.getrlimit(what)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def confine(confinement: Confinement, shader_cache: Path) -> list[str]:
    """The stage CONFINED. Returns what could not be had, where it may be left out. Raises OSError where not."""
    if confinement.mode is SandboxMode.OFF:
        return []
    return _take(_steps(confinement, shader_cache), confinement.mode)


def _take(steps: list[Callable[[], None]], mode: SandboxMode) -> list[str]:
    missing: list[str] = []
    for step in steps:
        try:
            step()
        except OSError as error:
            if mode is SandboxMode.ENFORCE:
                raise
            missing.append(f"{error.strerror}")
    return missing


def _steps(confinement: Confinement, shader_cache: Path) -> list[Callable[[], None]]:
    root = confinement.root
    writable = [shader_cache]
    steps: list[Callable[[], None]] = []
    if confinement.inside:
        steps.append(lambda: linux.unshare(namespaces.WORKER_NAMESPACES))
    if confinement.rooted:
        steps.append(lambda: mount_scratch(SCRATCH_BYTES))
        writable.append(SCRATCH)
    steps.append(capabilities.drop_all)
    steps.append(lambda: landlock.restrict(root.read_only, writable, root.devices))
    steps.append(lambda: seccomp.forbid(confinement.mode))
    return steps


def seal(confinement: Confinement, profile: DriverProfile, reporter: socket.socket) -> None:
    """The stage SEALED, for a driver. Takes over `reporter`. Raises OSError, if it may not be left out."""
    try:
        listener = seccomp.seal(profile, confinement.mode)
    except OSError:
        if confinement.mode is SandboxMode.ENFORCE:
            raise
        listener = None
    if listener is not None:
        seccomp.hand_over(listener, reporter)
    reporter.close()
