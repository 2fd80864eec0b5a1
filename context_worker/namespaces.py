"""Namespaces (namespaces(7)): what the launcher and its workers cannot see.

The launcher moves into a user namespace of its own, where it has every capability over what it makes there and none
over anything else, and into mount, network, IPC and host name namespaces: no network interface but a loopback that is
down, no System V objects. Processes change their pid namespace by forking only: what was started as the launcher waits
outside, and its child, pid 1 inside, is the launcher. When pid 1 of a pid namespace ends, the kernel kills all in it.

A worker is pid 1 of yet another pid namespace, so it sees no process but its own, and has user, mount, IPC and cgroup
namespaces of its own. The user namespace is there to be counted in: what a user may have of threads and of queued
signals is counted in each by itself (since Linux 5.14).
"""

import logging
import os
import pwd
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from context_worker import linux
from native.owned_fd import OwnedFd

log = logging.getLogger(__name__)

HOST_NAME: Final = "isorend"
_USERS: Final = ("isorend", "nobody")
_NOBODY: Final = 65534  # of kernel and distributions alike, if the password file does not say

LAUNCHER_NAMESPACES: Final = (
    linux.CLONE_NEWUSER
    | linux.CLONE_NEWNS
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNET
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUTS
)
WORKER_NAMESPACES: Final = linux.CLONE_NEWNS | linux.CLONE_NEWIPC | linux.CLONE_NEWCGROUP


def workers_user() -> tuple[int, int]:
    """User and group id that root's workers have: those of the user isorend if there is one, else nobody's.

    Other services may be nobody too. They could signal the workers, and share their limits; so a user for them alone is
    better.
    """
    for name in _USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    return _NOBODY, _NOBODY


def can_become_another() -> bool:
    """Whether this is root, with what it takes to become another user."""
    effective, _, _ = linux.capget()
    needed = 1 << linux.CAP_SETUID | 1 << linux.CAP_SETGID
    return os.geteuid() == 0 and effective & needed == needed


def leave_groups(device: Path | None) -> None:
    """Of root's groups keep none but that which may use `device`. Others cannot leave theirs."""
    if can_become_another():
        try:
            os.setgroups([device.stat().st_gid] if device is not None and device.exists() else [])
        except OSError as error:  # root of a container that must not
            log.debug("groups are kept: %s", error)


def enter() -> tuple[int, int]:
    """The namespaces of the launcher, except that its pid namespace begins with the next fork. Raises OSError.

    Returns the user and group that there are inside: our own, or workers_user() for `become` if this is root. Until
    then it is still root who looks for files, though without privileges.
    """
    own = os.geteuid(), os.getegid()
    inside = workers_user() if can_become_another() else own
    # Each id stays what it is. Were it 0 inside, a program that is executed would get capabilities (none can be, but
    # nothing shall hang on that), and to map the 0 outside takes CAP_SETFCAP in the parent.
    if inside == own:
        linux.unshare(LAUNCHER_NAMESPACES)
    else:
        error = _unshare_with_ids(inside)
        if error is not None:  # root of a container without such a user; it can do little as it is
            log.warning("workers stay with user id %d: %s", own[0], error)
            inside = own
    if inside == own:
        _map_ids("self", own)
    linux.sethostname(HOST_NAME)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    return inside


def _unshare_with_ids(ids: tuple[int, int]) -> str | None:
    """Others' ids can only be mapped from outside the namespace, by who has CAP_SETUID there: by a child of before.

    Returns why they could not be mapped. Raises OSError if there is no namespace.
    """
    us = str(os.getpid())
    read, write = os.pipe()
    helper = os.fork()
    if helper == 0:
        code = 1
        try:
            os.close(write)
            if os.read(read, 1):
                _map_ids(us, ids)
                code = 0
        except OSError as error:
            code = error.errno or 1
        finally:
            os._exit(code)
    os.close(read)
    try:
        linux.unshare(LAUNCHER_NAMESPACES)
        os.write(write, b"1")
    finally:
        os.close(write)
        _, status = os.waitpid(helper, 0)
    return os.strerror(max(os.waitstatus_to_exitcode(status), 0)) if status else None


def enter_own_user_namespace(proc_fd: int) -> None:
    """A worker's: its ids stay what they are. It has every capability over what it makes there, and none over anything
    else. `proc_fd`: a /proc. To be called by a process that is dumpable, so that its files there are its own. Raises
    OSError.
    """
    ids = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER)
    _map_ids("self", ids, proc_fd)


def _map_ids(process: str, ids: tuple[int, int], proc_fd: int | None = None) -> None:
    directory = process if proc_fd is not None else f"/proc/{process}"
    _write(f"{directory}/setgroups", "deny", proc_fd)
    _write(f"{directory}/uid_map", f"{ids[0]} {ids[0]} 1", proc_fd)
    _write(f"{directory}/gid_map", f"{ids[1]} {ids[1]} 1", proc_fd)


def become(ids: tuple[int, int]) -> None:
    """In the namespace: be this user and group, for good. Raises OSError."""
    uid, gid = ids
    os.setresgid(gid, gid, gid)  # also where getegid() says so: an id that is not mapped reads as nobody's
    os.setresuid(uid, uid, uid)
    # Both are lost with the change. /proc/self is to be ours.
    linux.prctl(linux.PR_SET_DUMPABLE, 1)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)


def _write(path: str, text: str, directory: int | None = None) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"{path}: {error.strerror}") from None
    finally:
        os.close(fd)


def leave_keyring() -> None:
    """No key of the user's session can be reached any more. A container that forbids this has no such keys."""
    try:
        linux.join_session_keyring()
    except OSError as error:
        log.debug("the session keyring is kept: %s", error)


class SelfReference:
    """A process for its children: by pidfd, as a pid of one namespace says nothing in another.

    To be made before the fork, by a process with one thread.
    """

    def __init__(self) -> None:
        """Raises OSError."""
        self._pidfd = OwnedFd(os.pidfd_open(os.getpid()))

    def die_with(self) -> None:
        """In the child: have the kernel kill it when the parent ends; end at once if that has happened.

        The kernel watches the thread that forked (prctl(2), PR_SET_PDEATHSIG), and forgets when credentials change.
        """
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if poll.poll(0):
            os._exit(0)

    def fork_into_pid_namespace(self) -> int:
        """fork(2) with the child as pid 1 of a new pid namespace below ours. Raises OSError.

        unshare(2) takes it that children go into a namespace of their own only if they do not yet, so the last one's
        is left first; a pidfd stands for our own, without /proc.
        """
        linux.setns(self._pidfd.fd, linux.CLONE_NEWPID)
        linux.unshare(linux.CLONE_NEWPID)
        return os.fork()

    def close(self) -> None:
        """Let go of the pidfd."""
        self._pidfd.close()


def wait_as_outside(inside: int) -> NoReturn:
    """The life of the process outside: waits for the one inside, and ends as that ends."""
    _, status = os.waitpid(inside, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def attempt(action: Callable[[], list[str]], fork: Callable[[], int] = os.fork) -> list[str]:
    """What `action` finds missing in a child process, and the OSError that it ends with, in words.

    Of the child nothing is left. An exception of another kind is a bug, and has its traceback in the log.
    """
    read, write = os.pipe()
    try:
        pid = fork()
    except OSError as error:
        os.close(read)
        os.close(write)
        return [str(error.strerror)]
    if pid == 0:
        code = 1
        try:
            os.write(write, "\n".join(action()).encode())
            code = 0
        except OSError as error:
            os.write(write, str(error.strerror).encode())
            code = 0
        except BaseException:
            log.exception("while the sandbox was tried")
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read().decode(errors="replace")
    _, status = os.waitpid(pid, 0)
    if status:
        return [*told.splitlines(), f"the trial ended with code {os.waitstatus_to_exitcode(status)}"]
    return told.splitlines()
