"""Typed face of native._sandbox: a system call filter for this process, and the listener that hears of what it denies.

seccomp(2), seccomp_unotify(2). The filter is an allow-list: what no rule lets through waits until the reader of the
listener has decided about it. System calls of another architecture (int 0x80) or of the x32 interface end the process
with SIGSYS.
"""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from native._sandbox import ffi, lib

ALL_BITS = (1 << 64) - 1


@dataclass(frozen=True)
class Condition:
    """argument & mask == value, for one of the six arguments (0 to 5) of a system call.

    The kernel looks at the lower half only of what it declares as an int: the mask has to leave out the rest.
    """

    argument: int
    value: int
    mask: int = ALL_BITS


@dataclass(frozen=True)
class Rule:
    """A system call by its name, let through if all conditions hold (one an argument), or answered with an errno."""

    name: str
    conditions: tuple[Condition, ...] = ()
    error: int = 0


@dataclass(frozen=True)
class Notice:
    """A system call that waits for a decision. `pid`: the thread that makes it, as the listener's reader sees it."""

    id: int
    pid: int
    number: int
    arguments: tuple[int, ...]


class FilterError(OSError):
    """The filter cannot be loaded."""


class ListenerEnded(Exception):
    """No process is left under the filter."""


def load_filter(rules: Sequence[Rule]) -> int:
    """Put all threads of this process under the filter, for good. Returns the listener, the caller's to close.

    A rule for a system call that this machine does not have is passed over. Raises FilterError, ValueError for a rule
    that cannot be.
    """
    return _load(lib.iso_filter_load, rules)


def forbid(rules: Sequence[Rule]) -> None:
    """Put this thread and all it will start under another filter, for good, before that of load_filter and besides it.

    What a rule names is answered with its errno, ENOSYS without one; the rest is let through. When load_filter's denies
    it too, its listener hears of it. Raises as load_filter.
    """
    _load(lib.iso_filter_forbid, rules)


def _load(load: Any, rules: Sequence[Rule]) -> int:
    names = [ffi.new("char[]", rule.name.encode()) for rule in rules]
    raw: Any = ffi.new("struct iso_rule[]", len(rules))
    for entry, name, rule in zip(raw, names, rules, strict=True):
        if len(rule.conditions) > lib.ISO_FILTER_CONDITIONS:
            raise ValueError(f"{rule}: too many conditions")
        entry.name, entry.error, entry.count = name, rule.error, len(rule.conditions)
        for slot, condition in zip(entry.conditions, rule.conditions, strict=False):
            slot.argument, slot.mask, slot.value = condition.argument, condition.mask, condition.value
    failed = ffi.new("size_t *")
    result: int = load(raw, len(rules), failed)
    if result >= 0:
        return result
    if failed[0] < len(rules):
        raise ValueError(f"{rules[failed[0]]}: {os.strerror(-result)}")
    known = {
        errno.EOPNOTSUPP: "system call filters with a listener need Linux 5.7 and libseccomp 2.5",
        errno.EEXIST: "this process has a system call filter already",
        errno.ESRCH: "a thread has a system call filter of its own",
    }
    raise FilterError(-result, known.get(-result, os.strerror(-result)))


def is_listener(fd: int) -> bool:
    """Whether the descriptor is the listener of a system call filter."""
    return bool(lib.iso_filter_is_listener(fd))


def receive(fd: int) -> Notice | None:
    """What waits at a listener; None if nothing does, or whoever waited is gone. Never blocks.

    Raises ListenerEnded, OSError.
    """
    notice: Any = ffi.new("struct iso_notice *")
    result = lib.iso_filter_receive(fd, notice)
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    if result == lib.ISO_RECEIVED_END:
        raise ListenerEnded
    if result == lib.ISO_RECEIVED_NOTHING:
        return None
    return Notice(notice.id, notice.pid, notice.number, tuple(notice.arguments))


def let_continue(fd: int, notice_id: int) -> bool:
    """Let a system call that waits take its course; False if whoever made it is gone. Raises OSError."""
    result = lib.iso_filter_continue(fd, notice_id)
    if result < 0 and result != -errno.ENOENT:
        raise OSError(-result, os.strerror(-result))
    return bool(result == 0)


def name_of(number: int) -> str:
    """The name of this machine's system call; its number in words if libseccomp knows none."""
    return known_name_of(number) or f"system call {number}"


def known_name_of(number: int) -> str | None:
    """The name of this machine's system call, None if libseccomp knows none."""
    name = ffi.new("char[64]")
    if lib.iso_filter_name(number, name, ffi.sizeof(name)) < 0:
        return None
    return bytes(ffi.buffer(name)).partition(b"\0")[0].decode("ascii", "replace")


def number_of(name: str, machine: str | None = None) -> int | None:
    """The number of a system call on a machine (os.uname().machine; default: this one), None if it has none.

    Raises ValueError for a name that no machine has, and for a machine that libseccomp does not know.
    """
    number: int = lib.iso_filter_number((machine or os.uname().machine).encode(), name.encode())
    if number == -errno.ENOENT:
        return None
    if number < 0:
        raise ValueError(f"no such system call or machine: {name}, {machine}")
    return number


def install_abort_handler(code: int) -> None:
    """Have abort(3) end the process with this exit code. Raises OSError.

    Process 1 of a pid namespace ignores signals that it has no handler for, so that SIGABRT would not end it.
    """
    result = lib.iso_install_abort_handler(code)
    if result < 0:
        raise OSError(-result, os.strerror(-result))
