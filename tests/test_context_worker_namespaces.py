"""context_worker.namespaces: what a process inside sees, who it is, and who dies with whom."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from context_worker import linux, namespaces
from context_worker.namespaces import SelfReference, attempt
from tests.in_child import in_child
from tests.ring_producer import wait_readable, wait_until

NAMES = ("user", "mnt", "net", "ipc", "uts")


def of_self() -> dict[str, str]:
    """The namespaces of this process."""
    return {name: os.readlink(f"/proc/self/ns/{name}") for name in NAMES}


def inside(function: Callable[[], Any]) -> Any:
    """What a function returns in the first process of the launcher's namespaces."""

    def outside() -> Any:
        namespaces.become(namespaces.enter())
        return in_child(function)

    return in_child(outside)


def test_all_namespaces_are_new() -> None:
    before = of_self()
    after = inside(of_self)
    assert all(after[name] != before[name] for name in NAMES)
    assert inside(os.getpid) == 1
    assert inside(socket.gethostname) == namespaces.HOST_NAME


def test_the_network_is_a_loopback_that_is_down() -> None:
    def connect() -> str:
        try:
            socket.create_connection(("127.0.0.1", 9))
        except OSError as error:
            return type(error).__name__ + str(error.errno)
        return ""

    assert inside(socket.if_nameindex) == [(1, "lo")]
    assert inside(connect) == "OSError101"  # ENETUNREACH


def test_who_it_is_inside() -> None:
    def ids() -> tuple[Any, ...]:
        return os.getresuid(), os.getresgid(), Path("/proc/self/uid_map").read_text().split()

    uid, gid = namespaces.workers_user() if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    user, group, mapped = inside(ids)
    assert set(user) == {uid} and set(group) == {gid}
    assert mapped == [str(uid), str(uid), "1"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another")
def test_root_keeps_the_device_s_group_alone(tmp_path: Path) -> None:
    node = tmp_path / "renderD128"
    node.touch()
    os.chown(node, 0, 12345)

    def groups() -> list[int]:
        os.setgroups([0, 4, 5])
        namespaces.leave_groups(node)
        return os.getgroups()

    assert in_child(groups) == [12345]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another")
def test_root_s_files_are_out_of_reach(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("text")
    secret.chmod(0o600)

    def read() -> str:
        try:
            return secret.read_text()
        except PermissionError:
            return "denied"

    assert inside(read) == "denied"


def test_children_are_alone_each_in_a_pid_namespace() -> None:
    def launcher() -> list[tuple[int, bool]]:
        reference = SelfReference()
        return [in_child(child, reference.fork_into_pid_namespace) for _ in range(3)]

    def child() -> tuple[int, bool]:
        try:
            os.kill(2, 0)
        except ProcessLookupError:
            return os.getpid(), True
        return os.getpid(), False

    assert inside(launcher) == [(1, True)] * 3


@pytest.mark.parametrize("early", [False, True])
def test_a_child_dies_with_who_forked_it(early: bool) -> None:
    """`early`: it looks after its parent has ended already."""
    go_read, go_write = os.pipe()
    pid_read, pid_write = os.pipe()
    alive_read, alive_write = os.pipe()
    parent = os.fork()
    if parent == 0:
        reference = SelfReference()
        child = os.fork()
        if child == 0:
            os.close(alive_read)
            if early:
                os.read(go_read, 1)
            reference.die_with()
            os.write(pid_write, b"1")
            time.sleep(1000)
        os.close(alive_write)
        if not early:
            os.read(go_read, 1)
        os._exit(0)
    os.close(alive_write)
    if early:
        os.waitpid(parent, 0)
        os.write(go_write, b"1")
    else:
        assert os.read(pid_read, 1)
        os.write(go_write, b"1")
        os.waitpid(parent, 0)
    wait_readable(alive_read, "the end of the child, which has the pipe's other end")
    for fd in (go_read, go_write, pid_read, pid_write, alive_read):
        os.close(fd)


@pytest.mark.parametrize(
    ("end", "code"),
    [(lambda: os._exit(5), 5), (lambda: os.kill(os.getpid(), signal.SIGKILL), 128 + signal.SIGKILL)],
)
def test_who_waits_outside_ends_as_the_inside_does(end: Callable[[], None], code: int) -> None:
    outside = os.fork()
    if outside == 0:
        child = os.fork()
        if child == 0:
            end()
        namespaces.wait_as_outside(child)
    _, status = os.waitpid(outside, 0)
    assert os.waitstatus_to_exitcode(status) == code


def test_the_end_of_the_first_process_ends_all() -> None:
    read, write = os.pipe()

    def outside() -> None:
        namespaces.enter()
        first = os.fork()
        if first == 0:
            for _ in range(3):
                if os.fork() == 0:
                    time.sleep(1000)
            os.write(write, b"1")
            time.sleep(1000)
        namespaces.wait_as_outside(first)

    pid = os.fork()
    if pid == 0:
        outside()
    assert os.read(read, 1)
    family = psutil.Process(pid).children(recursive=True)
    assert len(family) == 4
    family[0].kill()
    os.waitpid(pid, 0)
    wait_until(lambda: not any(process.is_running() for process in family), "the end of all")
    os.close(read)
    os.close(write)


def test_attempts() -> None:
    def fail() -> list[str]:
        raise OSError(1, "it: not permitted")

    assert attempt(list) == []
    assert attempt(lambda: ["one", "two"]) == ["one", "two"]
    assert attempt(fail) == ["it: not permitted"]
    assert attempt(lambda: os._exit(3)) == ["the trial ended with code 3"]

    def no_fork() -> int:
        raise OSError(11, "fork: try again")

    assert attempt(list, no_fork) == ["fork: try again"]


def test_without_the_right_to_it_there_is_an_error() -> None:
    def child() -> str:
        linux.unshare(linux.CLONE_NEWUSER)
        linux.capset(0, 0, 0)  # an id that is not mapped, and no privilege: no user namespace below this one
        with pytest.raises(OSError, match="unshare"):
            namespaces.enter()
        return "told"

    assert in_child(child) == "told"


@pytest.mark.parametrize(
    ("users", "expected"),
    [
        ({"isorend": (990, 991), "nobody": (65534, 65533)}, (990, 991)),
        ({"nobody": (65534, 65533)}, (65534, 65533)),
        ({}, (65534, 65534)),
    ],
)
def test_roots_workers_have_a_user_of_their_own_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, users: dict[str, tuple[int, int]], expected: tuple[int, int]
) -> None:
    def getpwnam(name: str) -> SimpleNamespace:
        uid, gid = users[name]
        return SimpleNamespace(pw_uid=uid, pw_gid=gid)

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    assert namespaces.workers_user() == expected
