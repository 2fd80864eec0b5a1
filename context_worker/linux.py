"""Linux system calls that Python has no functions for: their constants, and one short function for each, named as the
call. Man page and kernel header are named where they are; what each call is good for is said where it is used.

All raise OSError with the call's name.
"""

import ctypes
import os
import platform
import re
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

# sched.h, for unshare(2), setns(2)
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# sys/mount.h and linux/mount.h, for mount(2), umount2(2), open_tree(2), move_mount(2), mount_setattr(2)
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4
MOUNT_ATTR_NOEXEC = 8

# linux/prctl.h and linux/securebits.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECURE_ALL_LOCKED = 0xEF  # SECBIT_NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE with locks, and KEEP_CAPS' lock

# linux/capability.h
CAP_SETGID = 6
CAP_SETUID = 7
CAP_SETPCAP = 8
CAP_SYS_ADMIN = 21
_CAPABILITY_VERSION_3 = 0x20080522

# linux/keyctl.h
_KEYCTL_JOIN_SESSION_KEYRING = 1

# linux/landlock.h
LANDLOCK_CREATE_RULESET_VERSION = 1
LANDLOCK_RULE_PATH_BENEATH = 1

# asm/unistd.h: numbers from 424 on are those of every architecture.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_SYS_LANDLOCK_CREATE_RULESET = 444
_SYS_LANDLOCK_ADD_RULE = 445
_SYS_LANDLOCK_RESTRICT_SELF = 446
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219}.get(platform.machine(), -1)  # -1: ENOSYS


def _checked(name: str, result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def kernel_version() -> tuple[int, int]:
    """Of the kernel that runs (uname(2)), like (6, 12); (0, 0) if it does not say."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _long(value: int) -> ctypes.c_long:
    return ctypes.c_long(value)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked("unshare", _libc.unshare(flags))


def setns(fd: int, flags: int) -> None:
    """setns(2); `fd` may be a pidfd."""
    _checked("setns", _libc.setns(fd, flags))


def sethostname(name: str) -> None:
    """sethostname(2)."""
    data = name.encode()
    _checked("sethostname", _libc.sethostname(data, ctypes.c_size_t(len(data))))


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    encoded = [os.fsencode(text) if text is not None else None for text in (source, target, kind, data)]
    result = _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    _checked(f"mount {target}", result)


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    _checked(f"umount2 {target}", _libc.umount2(os.fsencode(target), flags))


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    _checked("pivot_root", _libc.pivot_root(os.fsencode(new_root), os.fsencode(put_old)))


def open_tree(path: str, flags: int) -> int:
    """open_tree(2); the descriptor of the mount, close-on-exec."""
    result = _libc.syscall(
        _long(_SYS_OPEN_TREE), _long(AT_FDCWD), os.fsencode(path), ctypes.c_ulong(flags | os.O_CLOEXEC)
    )
    return _checked(f"open_tree {path}", result)


def move_mount(fd: int, target: str) -> None:
    """move_mount(2): attach the mount behind `fd`."""
    result = _libc.syscall(
        _long(_SYS_MOVE_MOUNT), _long(fd), b"", _long(AT_FDCWD), os.fsencode(target), _long(MOVE_MOUNT_F_EMPTY_PATH)
    )
    _checked(f"move_mount {target}", result)


def mount_setattr(fd: int, path: str, flags: int, attributes: int) -> None:
    """mount_setattr(2): set `attributes`, MOUNT_ATTR_*; none is cleared."""
    block = ctypes.create_string_buffer(struct.pack("=QQQQ", attributes, 0, 0, 0), 32)
    result = _libc.syscall(
        _long(_SYS_MOUNT_SETATTR), _long(fd), os.fsencode(path), ctypes.c_ulong(flags), block, ctypes.c_size_t(32)
    )
    _checked(f"mount_setattr {path}".rstrip(), result)


def prctl(option: int, argument: int = 0) -> int:
    """prctl(2) with one argument."""
    zero = ctypes.c_ulong(0)
    result = _libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero)
    return _checked(f"prctl {option}", result)


def prctl_ambient_clear() -> None:
    """prctl(2), PR_CAP_AMBIENT_CLEAR_ALL."""
    zero = ctypes.c_ulong(0)
    result = _libc.prctl(PR_CAP_AMBIENT, ctypes.c_ulong(PR_CAP_AMBIENT_CLEAR_ALL), zero, zero, zero)
    _checked("prctl PR_CAP_AMBIENT", result)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) of the calling thread; each a mask of capabilities."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    sets = (effective, permitted, inheritable)
    low, high = (struct.pack("=III", *(mask >> shift & 0xFFFFFFFF for mask in sets)) for shift in (0, 32))
    _checked("capset", _libc.capset(header, low + high))


def capget() -> tuple[int, int, int]:
    """capget(2) of the calling thread: the masks effective, permitted, inheritable."""
    data = ctypes.create_string_buffer(24)
    _checked("capget", _libc.capget(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), data))
    words = struct.unpack("=6I", data.raw)
    return words[0] | words[3] << 32, words[1] | words[4] << 32, words[2] | words[5] << 32


def join_session_keyring() -> None:
    """keyctl(2), KEYCTL_JOIN_SESSION_KEYRING: a new session keyring without a name, instead of the inherited one."""
    result = _libc.syscall(_long(_SYS_KEYCTL), _long(_KEYCTL_JOIN_SESSION_KEYRING), None)
    _checked("keyctl", result)


def landlock_create_ruleset(attributes: bytes, flags: int = 0) -> int:
    """landlock_create_ruleset(2): the ruleset's descriptor, or the ABI version for LANDLOCK_CREATE_RULESET_VERSION."""
    size = ctypes.c_size_t(len(attributes))
    number = _long(_SYS_LANDLOCK_CREATE_RULESET)
    return _checked("landlock_create_ruleset", _libc.syscall(number, attributes or None, size, ctypes.c_ulong(flags)))


def landlock_add_rule(ruleset: int, access: int, parent: int) -> None:
    """landlock_add_rule(2), LANDLOCK_RULE_PATH_BENEATH: `access` below the directory (or to the file) `parent`."""
    rule = struct.pack("=Qi", access, parent)
    number, kind = _long(_SYS_LANDLOCK_ADD_RULE), _long(LANDLOCK_RULE_PATH_BENEATH)
    _checked("landlock_add_rule", _libc.syscall(number, _long(ruleset), kind, rule, ctypes.c_ulong(0)))


def landlock_restrict_self(ruleset: int) -> None:
    """landlock_restrict_self(2)."""
    result = _libc.syscall(_long(_SYS_LANDLOCK_RESTRICT_SELF), _long(ruleset), ctypes.c_ulong(0))
    _checked("landlock_restrict_self", result)
