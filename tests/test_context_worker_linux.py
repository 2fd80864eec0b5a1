"""context_worker.linux: each wrapper does what it is named after, and says which call failed."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from context_worker import linux
from tests.in_child import in_child


def test_namespaces_by_unshare_and_setns() -> None:
    def outer() -> tuple[str, int, list[int]]:
        linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWUTS | linux.CLONE_NEWPID)
        linux.sethostname("somewhere")
        return socket.gethostname(), linux.capget()[0], in_child(first)

    def first() -> list[int]:
        own = os.pidfd_open(os.getpid())
        pids = [os.getpid()]
        for _ in range(2):
            linux.setns(own, linux.CLONE_NEWPID)
            linux.unshare(linux.CLONE_NEWPID)
            pids.append(in_child(os.getpid))
        linux.setns(own, linux.CLONE_NEWPID)
        return [*pids, in_child(os.getpid)]

    name, capabilities, pids = in_child(outer)
    assert name == "somewhere" and capabilities
    assert pids[:3] == [1, 1, 1] and pids[3] > 1


def test_mounts(tmp_path: Path) -> None:
    def child() -> tuple[list[str], bool, bool]:
        linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
        tree = linux.open_tree("/usr", linux.OPEN_TREE_CLONE | linux.AT_RECURSIVE)
        linux.mount_setattr(tree, "", linux.AT_EMPTY_PATH | linux.AT_RECURSIVE, linux.MOUNT_ATTR_RDONLY)
        linux.move_mount(tree, str(tmp_path))
        found = os.listdir(tmp_path)
        read_only = bool(os.statvfs(tmp_path).f_flag & os.ST_RDONLY)
        linux.umount2(str(tmp_path), linux.MNT_DETACH)
        return found, read_only, os.listdir(tmp_path) == []

    found, read_only, gone = in_child(child)
    assert sorted(found) == sorted(os.listdir("/usr"))
    assert read_only and gone


def test_capabilities() -> None:
    def child() -> tuple[int, int, int]:
        linux.unshare(linux.CLONE_NEWUSER)
        linux.capset(1 << 21, 1 << 21 | 1 << 8, 0)
        return linux.capget()

    assert in_child(child) == (1 << 21, 1 << 21 | 1 << 8, 0)


@pytest.mark.parametrize(
    ("call", "name", "number"),
    [
        (lambda: linux.setns(-1, 0), "setns", errno.EBADF),
        (lambda: linux.mount("x", "/nowhere-at-all", "tmpfs", 0), "mount /nowhere-at-all", errno.ENOENT),
        (lambda: linux.umount2("/nowhere-at-all", 0), "umount2", errno.ENOENT),
        (lambda: linux.open_tree("/nowhere-at-all", 0), "open_tree /nowhere-at-all", errno.ENOENT),
        (lambda: linux.move_mount(-1, "/"), "move_mount /", errno.EBADF),
        (lambda: linux.mount_setattr(-1, "", linux.AT_EMPTY_PATH, 1), "mount_setattr", errno.EBADF),
        (lambda: linux.pivot_root("/nowhere-at-all", "/"), "pivot_root", errno.ENOENT),
        (lambda: linux.prctl(-1), "prctl -1", errno.EINVAL),
        (lambda: linux.landlock_restrict_self(-1), "landlock_restrict_self", errno.EBADF),
        (lambda: linux.landlock_add_rule(-1, 1, 0), "landlock_add_rule", errno.EBADF),
        (lambda: linux.landlock_create_ruleset(b"\xff" * 8), "landlock_create_ruleset", errno.EINVAL),
    ],
)
def test_a_failure_has_the_name_of_the_call(call: Callable[[], object], name: str, number: int) -> None:
    def child() -> tuple[int | None, str]:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        if os.geteuid() != 0:
            linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
        try:
            call()
        except OSError as error:
            return error.errno, error.strerror or ""
        return None, ""

    found, text = in_child(child)
    assert found == number and text.startswith(name)


def test_a_new_session_keyring() -> None:
    def child() -> bool:
        before = Path("/proc/keys").read_text()
        linux.join_session_keyring()
        return Path("/proc/keys").read_text() != before

    assert in_child(child)
