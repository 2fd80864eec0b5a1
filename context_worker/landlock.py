"""Landlock (landlock(7)): what of the file tree a worker may touch, whatever is mounted where.

It binds the calling thread and those that it starts later, so it comes before a driver starts any. Each kernel knows
the rights up to its own ABI version; all of those are taken away, and few given back.
"""

import os
import struct
from collections.abc import Iterable
from pathlib import Path

from context_worker import linux

# linux/landlock.h
_EXECUTE = 1 << 0
_WRITE_FILE = 1 << 1
_READ_FILE = 1 << 2
_READ_DIR = 1 << 3
_REFER = 1 << 13
_TRUNCATE = 1 << 14
_IOCTL_DEV = 1 << 15
_FS_OF_ABI = {1: (1 << 13) - 1, 2: _REFER, 3: _TRUNCATE, 5: _IOCTL_DEV}
_NET_OF_ABI = {4: 0b11}  # bind and connect of TCP
_SCOPED_OF_ABI = {6: 0b11}  # abstract Unix sockets, signals

_READ = _READ_FILE | _READ_DIR
_FILE_ONLY = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
"""The rights that make sense for something that is no directory; others are refused there."""


def abi() -> int:
    """The kernel's version of Landlock, 0 without (not built in, or not among the boot parameter lsm=)."""
    try:
        return linux.landlock_create_ruleset(b"", linux.LANDLOCK_CREATE_RULESET_VERSION)
    except OSError:
        return 0


def _up_to(version: int, table: dict[int, int]) -> int:
    return sum(rights for since, rights in table.items() if since <= version)


def restrict(read_only: Iterable[Path], read_write: Iterable[Path], devices: Iterable[Path]) -> None:
    """Below `read_only` files may be read, below `read_write` all may be done but executing, `devices` may be read,
    written and asked by ioctl. Nothing else: no other file, no execution, no TCP, no signal and no abstract socket to
    whom is not confined with us. Paths that do not exist are left out. A driver is loaded by reading it.

    no_new_privs has to be set. Raises OSError, ENOSYS or EOPNOTSUPP on a kernel without Landlock.
    """
    version = linux.landlock_create_ruleset(b"", linux.LANDLOCK_CREATE_RULESET_VERSION)
    handled = _up_to(version, _FS_OF_ABI)
    words = [handled]
    if version >= 4:
        words.append(_up_to(version, _NET_OF_ABI))
    if version >= 6:
        words.append(_up_to(version, _SCOPED_OF_ABI))
    ruleset = linux.landlock_create_ruleset(struct.pack(f"={len(words)}Q", *words))
    try:
        for paths, rights in (
            (read_only, _READ),
            (read_write, handled & ~_EXECUTE & ~_IOCTL_DEV),
            (devices, _READ | _WRITE_FILE | _IOCTL_DEV),
        ):
            for path in paths:
                _allow(ruleset, path, rights & handled)
        linux.landlock_restrict_self(ruleset)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        linux.landlock_add_rule(ruleset, rights if os.path.isdir(fd) else rights & _FILE_ONLY, fd)
    finally:
        os.close(fd)
