"""What somebody who has taken over a worker may try, and what is to come of it: a table.

Each attempt is made in the stage SEALED, once with the system call filter in place and once without it, to see what
namespaces, root, capabilities and Landlock are worth alone.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from context_worker.worker import WorkerStart
from native import sandbox

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_BUFFER = ctypes.create_string_buffer(16)
_MACHINE = os.uname().machine  # now: later it is denied

NOTHING_THERE = frozenset({"ENOENT", "ENOTDIR"})
NOT_PERMITTED = frozenset({"EPERM", "EACCES"})
READ_ONLY = frozenset({"EROFS", "EACCES", "EXDEV"})
_ABSENT = 12345  # more than a worker has threads
NOBODY_THERE = frozenset({"ESRCH", "EPERM", "EINVAL"})


@dataclass(frozen=True)
class World:
    """What an attacker is told of the host, so that he has something to look for. hub: the socket by which he is told
    what to do. libc: a file of the driver set."""

    start: WorkerStart
    hub: int
    file: str
    socket_path: str
    abstract: str
    master: int
    checkout: str
    libc: str


@dataclass(frozen=True)
class Attempt:
    """One attempt: `action` returns "allowed", or the error that it met.

    denied: the system call that the filter ends the worker for, "" if the filter has no say. errors: what is met
    without the filter, and with it if it has no say; None where only the filter stands against it. signal: what ends
    the worker instead.
    """

    name: str
    action: Callable[[World], str]
    denied: str = ""
    errors: frozenset[str] | None = None
    signal: str = ""


def call(name: str, *arguments: int | bytes | None) -> str:
    """A raw system call's outcome."""
    number = sandbox.number_of(name, _MACHINE)
    if number is None:
        return "ENOSYS"
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    if _libc.syscall(ctypes.c_long(number), *words) >= 0:
        return "allowed"
    return errno.errorcode[ctypes.get_errno()]


def raw(name: str, *arguments: int | bytes | None) -> Callable[[World], str]:
    return lambda _: call(name, *arguments)


def opening(path: str, flags: int = os.O_RDONLY) -> Attempt:
    """A file of the host that is not the driver's."""
    return Attempt(f"open {path}", lambda _: call("openat", -100, path.encode(), flags, 0o600), errors=NOTHING_THERE)


def _files() -> Iterator[Attempt]:
    for path in (
        *("/etc/passwd", "/etc/shadow", "/root", "/home", "/var/log", "/usr/bin", "/bin/sh", "/run", "/boot"),
        *("/proc", "/proc/self/status", "/proc/1/mem", "/proc/self/fd/0", "/proc/self/exe", "/sys/kernel", "/sys/fs"),
        *("/dev/null", "/dev/mem", "/dev/kvm", "/dev/tty", "/dev/shm", "/dev/pts/0", "/dev/vhost-vsock"),
        "/../../../etc/passwd",
    ):
        yield opening(path)
    yield Attempt("open the checkout", lambda w: call("openat", -100, w.checkout.encode(), 0), errors=NOTHING_THERE)
    yield Attempt("open a file in /tmp", lambda w: call("openat", -100, w.file.encode(), 0), errors=NOTHING_THERE)
    yield Attempt("list the root", raw("openat", -100, b"/", os.O_RDONLY | os.O_DIRECTORY), errors=NOT_PERMITTED)
    handle = struct.pack("=Ii", 8, 1) + bytes(8)
    yield Attempt("open by handle", raw("open_by_handle_at", -100, handle, 0), "open_by_handle_at", NOT_PERMITTED)


def _writing() -> Iterator[Attempt]:
    """To the driver set."""
    write, create = os.O_WRONLY, os.O_WRONLY | os.O_CREAT

    def beside(world: World) -> bytes:
        return (Path(world.libc).parent / "new").as_posix().encode()

    yield Attempt("write a library", lambda w: call("openat", -100, w.libc.encode(), write), errors=READ_ONLY)
    yield Attempt("add a library", lambda w: call("openat", -100, beside(w), create, 0o700), errors=READ_ONLY)
    yield Attempt("remove a library", lambda w: call("unlink", w.libc.encode()), errors=READ_ONLY)
    yield Attempt("move a library", lambda w: call("rename", w.libc.encode(), b"/tmp/libc"), errors=READ_ONLY)
    yield Attempt("make a directory", raw("mkdir", b"/new", 0o700), errors=READ_ONLY)
    yield Attempt("link to a library", lambda w: call("link", w.libc.encode(), b"/tmp/libc"), "link", READ_ONLY)
    yield Attempt("change a mode", lambda w: call("chmod", w.libc.encode(), 0o777), "chmod", READ_ONLY | NOT_PERMITTED)
    device = os.makedev(1, 1)
    yield Attempt("make a device", raw("mknod", b"/tmp/mem", 0o020600, device), "mknod", NOT_PERMITTED)


def _sockets() -> Iterator[Attempt]:
    for name in ("UNIX", "INET", "INET6", "NETLINK", "PACKET", "VSOCK", "ALG", "BLUETOOTH", "XDP"):
        family = {"XDP": 44}.get(name, int(getattr(socket, f"AF_{name}", -1)))
        errors = NOT_PERMITTED if name == "PACKET" else None
        yield Attempt(f"socket AF_{name}", raw("socket", family, socket.SOCK_RAW, 0), "socket", errors)
    unreachable = frozenset({"ENETUNREACH", "EACCES", "EADDRNOTAVAIL"})

    def to(family: int, kind: int, address: bytes) -> str:
        try:
            with socket.socket(family, kind) as made:
                return call("connect", made.fileno(), address, len(address))
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    loopback = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", 22, bytes([127, 0, 0, 1]))
    yield Attempt("TCP to the loopback", lambda _: to(2, 1, loopback), "socket", unreachable)
    yield Attempt("UDP to the loopback", lambda _: to(2, 2, loopback), "socket", unreachable)

    def unix(path: bytes) -> bytes:
        return struct.pack("=H", socket.AF_UNIX) + path

    yield Attempt("a Unix socket", lambda w: to(1, 5, unix(w.socket_path.encode() + b"\0")), "socket", NOTHING_THERE)
    yield Attempt(
        "an abstract socket",
        lambda w: to(1, 1, unix(b"\0" + w.abstract.encode())),
        "socket",
        frozenset({"ECONNREFUSED", "EPERM"}),
    )
    yield Attempt("listen", lambda w: call("listen", w.start.channel_fd, 5), "listen", frozenset({"EINVAL"}))
    yield Attempt(
        "accept", lambda w: call("accept4", w.start.channel_fd, None, None, 0), "accept4", frozenset({"EINVAL"})
    )


def _processes() -> Iterator[Attempt]:
    def kill_all(_world: World) -> str:
        there = [pid for pid in range(2, 2000) if call("kill", pid, 0) == "allowed"]
        others = [pid for pid in there if call("tgkill", 1, pid, 0) != "allowed"]  # or a thread of this process
        return f"allowed: {others}" if others else "ESRCH"

    absent = NOBODY_THERE
    yield Attempt("kill every pid", kill_all, "kill", absent)
    yield Attempt("kill -1", raw("kill", -1, signal.SIGKILL), "kill", absent)
    yield Attempt("kill the master", lambda w: call("kill", w.master, signal.SIGKILL), "kill", absent)
    yield Attempt("tgkill another", raw("tgkill", _ABSENT, _ABSENT, signal.SIGKILL), "tgkill", absent)
    yield Attempt("tkill another", raw("tkill", _ABSENT, signal.SIGKILL), "tkill", absent)
    yield Attempt("pidfd_open", lambda w: call("pidfd_open", w.master, 0), "pidfd_open", absent)
    yield Attempt("pidfd_getfd", raw("pidfd_getfd", 0, 0, 0), "pidfd_getfd", frozenset({"EBADF"}))
    yield Attempt(
        "pidfd_send_signal", raw("pidfd_send_signal", 0, 9, None, 0), "pidfd_send_signal", frozenset({"EBADF"})
    )
    yield Attempt("ptrace the master", lambda w: call("ptrace", 16, w.master, 0, 0), "ptrace", absent)
    vector = struct.pack("=QQ", ctypes.addressof(_BUFFER), len(_BUFFER))

    def vm(name: str) -> Callable[[World], str]:
        return lambda world: call(name, world.master, vector, 1, vector, 1, 0)

    for name in ("process_vm_readv", "process_vm_writev"):
        yield Attempt(name, vm(name), name, absent)
    yield Attempt("kcmp", lambda w: call("kcmp", 1, w.master, 0, 0, 0), "kcmp", absent)
    yield Attempt("priority of all", raw("setpriority", 2, 0, -20), "setpriority", absent | NOT_PERMITTED)
    yield Attempt("more urgent than others", raw("setpriority", 0, 0, -20), errors=NOT_PERMITTED)
    real_time = struct.pack("=i", 50)
    yield Attempt("real time", raw("sched_setscheduler", 0, 1, real_time), "sched_setscheduler", NOT_PERMITTED)
    yield Attempt("threads without end", lambda _: _threads(), errors=frozenset({"EAGAIN"}))
    yield Attempt("affinity of another", raw("sched_setaffinity", _ABSENT, 8, b"\1" + bytes(7)), errors=absent)
    for name, arguments in {"fork": (), "vfork": (), "clone": (signal.SIGCHLD, 0, 0, 0, 0)}.items():
        yield Attempt(f"new process by {name}", raw(name, *arguments), name)
    vectors = (ctypes.c_char_p * 2)(b"sh", None)
    pointer = ctypes.addressof(vectors)
    yield Attempt("exec a shell", raw("execve", b"/bin/sh", pointer, 0), "execve", NOTHING_THERE)
    yield Attempt("exec a library", lambda w: call("execve", w.libc.encode(), pointer, 0), "execve", NOT_PERMITTED)
    yield Attempt("exec a descriptor", raw("execveat", 0, b"", pointer, 0, 0x1000), "execveat", NOT_PERMITTED)


def _privileges() -> Iterator[Attempt]:
    yield Attempt("mount", raw("mount", b"none", b"/tmp", b"tmpfs", 0, None), "mount", NOT_PERMITTED)
    yield Attempt("mount proc", raw("mount", b"none", b"/tmp", b"proc", 0, None), "mount", NOT_PERMITTED)
    yield Attempt("unmount", raw("umount2", b"/tmp", 2), "umount2", NOT_PERMITTED)
    yield Attempt(
        "remount by attributes", raw("mount_setattr", -100, b"/", 0, bytes(32), 32), "mount_setattr", NOT_PERMITTED
    )
    yield Attempt("open_tree", raw("open_tree", -100, b"/", 1), "open_tree", NOT_PERMITTED)
    yield Attempt("fsopen", raw("fsopen", b"tmpfs", 0), "fsopen", NOT_PERMITTED)
    yield Attempt("pivot_root", raw("pivot_root", b"/", b"/"), "pivot_root", NOT_PERMITTED)
    yield Attempt("chroot", raw("chroot", b"/tmp"), "chroot", NOT_PERMITTED)
    yield Attempt("a new user namespace", raw("unshare", 0x10000000), "unshare")
    yield Attempt("a new mount namespace", raw("unshare", 0x00020000), "unshare", NOT_PERMITTED)
    yield Attempt("setns", raw("setns", 0, 0), "setns", frozenset({"EINVAL", "EBADF", "EPERM"}))
    yield Attempt("become root", raw("setuid", 0), "setuid", NOT_PERMITTED | {"EINVAL"})
    yield Attempt("other groups", raw("setgroups", 0, None), "setgroups", NOT_PERMITTED)
    header = struct.pack("=Ii", 0x20080522, 0)
    yield Attempt("capset", raw("capset", header, b"\xff" * 24), "capset", NOT_PERMITTED)
    yield Attempt("prctl: dumpable", raw("prctl", 4, 1, 0, 0, 0), "prctl")
    yield Attempt("another filter", raw("seccomp", 1, 0, None), "seccomp")
    yield Attempt("personality", raw("personality", 0x0040000), "personality")
    yield Attempt(
        "more memory", raw("prlimit64", 0, 7, struct.pack("=QQ", 1 << 20, 1 << 20), None), "prlimit64", NOT_PERMITTED
    )
    yield Attempt("host name", raw("sethostname", b"x", 1), "sethostname", NOT_PERMITTED)
    yield Attempt("clock", raw("settimeofday", bytes(16), None), "settimeofday", NOT_PERMITTED)
    yield Attempt("module", raw("init_module", b"", 0, b""), "init_module", NOT_PERMITTED)
    yield Attempt("reboot", raw("reboot", 0, 0, 0, None), "reboot", NOT_PERMITTED)
    yield Attempt("kernel log", raw("syslog", 3, b"", 0), "syslog")
    yield Attempt("bpf", raw("bpf", 0, bytes(120), 120), "bpf", NOT_PERMITTED | {"EINVAL"})
    for name, arguments in {
        "keyctl": (0, -3, 0),
        "add_key": (b"user", b"x", b"y", 1, -3),
        "request_key": (b"user", b"x", None, 0),
        "io_uring_setup": (8, bytes(120)),
        "userfaultfd": (0,),
        "perf_event_open": (bytes(128), 0, -1, -1, 0),
        "shmget": (0, 4096, 0o1600),
        "msgget": (0, 0o1600),
        "mq_open": (b"x", os.O_CREAT, 0o600, None),
        "memfd_secret": (0,),
        "fanotify_init": (0, 0),
        "lookup_dcookie": (0, b"", 0),
    }.items():
        yield Attempt(name, raw(name, *arguments), name)
    yield Attempt("type into the terminal", raw("ioctl", 0, 0x5412, b"x"), "ioctl")
    yield Attempt("KVM by ioctl", raw("ioctl", 0, 0xAE01, 0), "ioctl")


def _memory() -> Iterator[Attempt]:
    def beyond(fd: int) -> str:
        size = os.fstat(fd).st_size
        with mmap.mmap(fd, size) as inside:
            assert len(inside) == size
        address = _libc.mmap(None, ctypes.c_size_t(size + mmap.PAGESIZE), 1, 1, fd, ctypes.c_long(0))
        if address in (-1, (1 << 64) - 1):
            return errno.errorcode[ctypes.get_errno()]
        ctypes.string_at(address + size, 1)
        return "allowed"

    _libc.mmap.restype = ctypes.c_size_t

    def ring(world: World) -> int:
        assert world.start.ring is not None
        return world.start.ring.ring

    def staging(world: World) -> int:
        assert world.start.ring is not None
        return world.start.ring.staging

    yield Attempt("read behind the ring", lambda w: beyond(ring(w)), signal="SIGBUS")
    yield Attempt("read behind the staging memory", lambda w: beyond(staging(w)), signal="SIGBUS")
    sealed = frozenset({"EPERM"})

    def resize(memory: Callable[[World], int], size: int) -> Callable[[World], str]:
        return lambda world: call("ftruncate", memory(world), size)

    for name, memory in {"ring": ring, "staging memory": staging}.items():
        yield Attempt(f"grow the {name}", resize(memory, 1 << 40), errors=sealed | {"EFBIG"})
        yield Attempt(f"shrink the {name}", resize(memory, 0), errors=sealed)

    def other_descriptors(world: World) -> str:
        """Another memory than these two, if there is one."""
        known = {ring(world), staging(world)}
        large = [fd for fd in range(1024) if fd not in known and _size(fd)]
        return f"allowed: {large}" if large else "EBADF"

    yield Attempt("other memory by descriptor", other_descriptors, errors=frozenset({"EBADF"}))

    def other_sockets(world: World) -> str:
        """Another socket than that of the master, from which somebody else might send descriptors."""
        known = {world.start.channel_fd, world.hub}
        found = [fd for fd in range(1024) if fd not in known and _is_socket(fd)]
        return f"allowed: {found}" if found else "EBADF"

    yield Attempt("descriptors of others by a socket", other_sockets, errors=frozenset({"EBADF"}))


def _unbounded() -> Iterator[Attempt]:
    """Memory that no limit of a process counts."""
    size = 1 << 40
    none = (1 << 64) - 1
    for name, flags in {
        "shared memory without a file": 0x21,
        "a stack that grows": 0x122,
        "huge pages": 0x40022,
        "droppable memory": 0x28,
    }.items():
        yield Attempt(name, raw("mmap", 0, size, 3, flags, none, 0), "mmap")
    yield Attempt("a file in memory", raw("memfd_create", b"x", 3), "memfd_create")
    yield Attempt("a file of huge pages", raw("memfd_create", b"x", 4), "memfd_create")
    yield Attempt("merged pages", raw("madvise", 0, 0, 12), "madvise")

    def fill() -> str:
        fd = os.open("/tmp/large", os.O_CREAT | os.O_WRONLY)
        try:
            for _ in range(1024):
                os.write(fd, bytes(1 << 20))
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        finally:
            os.close(fd)
            os.unlink("/tmp/large")
        return "allowed"

    yield Attempt("a gigabyte of files", lambda _: fill(), errors=frozenset({"EFBIG", "ENOSPC"}))


def _threads() -> str:
    """What keeps this process from having threads without end."""
    ended = threading.Event()
    started = []
    try:
        for _ in range(10_000):
            started.append(threading.Thread(target=ended.wait, daemon=True))
            started[-1].start()
    except RuntimeError:  # CPython's word for EAGAIN of pthread_create(3)
        return "EAGAIN"
    finally:
        ended.set()
        for thread in started[:-1]:
            thread.join()
    return "allowed"


def _is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False


def _size(fd: int) -> int:
    try:
        return os.fstat(fd).st_size if fd > 2 else 0
    except OSError:
        return 0


ATTEMPTS = {
    each.name: each
    for part in (_files, _writing, _sockets, _processes, _privileges, _memory, _unbounded)
    for each in part()
}
