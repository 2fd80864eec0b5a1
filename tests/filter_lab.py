"""Processes under a system call filter, each forked for one deed, and the launcher's side of their listeners."""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from context_worker import denials, seccomp
from context_worker.denials import Denials, Watch
from context_worker.sandbox_mode import SandboxMode
from context_worker.system_calls import anyhow
from ipc import messages
from ipc.channel import Channel, channel_pair
from ipc.messages import Denied, Sealed
from native import sandbox
from native.owned_fd import OwnedFd
from native.sandbox import Rule

WORKER_ID = 7
LIMIT_S = 60.0

_MACHINE = os.uname().machine

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

BASE = anyhow(
    *("read", "write", "close", "sendmsg", "recvfrom", "exit_group", "exit", "futex", "getpid", "gettid"),
    *("mmap", "munmap", "brk", "madvise", "rt_sigprocmask", "rt_sigreturn", "rt_sigaction"),
)
"""What any deed needs to be done in Python and to be told."""


def system_call(name: str, *arguments: int | bytes) -> int:
    """A bare system call: what the kernel answers, an errno as a negative number."""
    return numbered_call(number(name), *arguments)


def number(name: str) -> int:
    """This machine's number of a system call."""
    found = sandbox.number_of(name, _MACHINE)
    assert found is not None, name
    return found


def numbered_call(number: int, *arguments: int | bytes) -> int:
    """As system_call(), by number."""
    words = [ctypes.c_ulong(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    ctypes.set_errno(0)
    result: int = _libc.syscall(ctypes.c_ulong(number), *words)
    return -ctypes.get_errno() if result == -1 else result


@dataclass(frozen=True)
class Outcome:
    """How a deed ended: what it returned (None if it did not), its process' wait status, what was denied."""

    result: int | None
    wait_status: int
    denied: tuple[Denied, ...]

    @property
    def names(self) -> list[str]:
        return [message.name for message in self.denied]

    @property
    def signal(self) -> int:
        return os.WTERMSIG(self.wait_status) if os.WIFSIGNALED(self.wait_status) else 0


class Launcher:
    """Denials with a selector, and the master's end of the channel."""

    def __init__(self, mode: SandboxMode) -> None:
        ours, masters = channel_pair()
        self.master = Channel(masters, messages.FROM_LAUNCHER)
        self.selector = selectors.DefaultSelector()
        self.channel = Channel(ours, messages.TO_LAUNCHER)
        self.sealed: list[bool] = []
        """What the master was told of that, as of the last told()."""
        self.denials = Denials(self.selector, self.channel, mode)

    def turn(self, timeout: float = LIMIT_S) -> bool:
        """Attend to what has come, or wait for it; whether it was a watch's."""
        events = self.selector.select(timeout)
        assert events or not timeout, "nothing happened"
        watches = [key.data for key, _ in events if isinstance(key.data, Watch)]
        for watch in watches:
            self.denials.attend(watch)
        return bool(watches)

    def until_over(self, pidfd: OwnedFd) -> None:
        """Attend until a process is over."""
        self.selector.register(pidfd, selectors.EVENT_READ)
        while pidfd.fd not in [key.fd for key, _ in self.selector.select(0)]:
            self.turn()
        self.selector.unregister(pidfd)

    def told(self) -> list[Denied]:
        """What the master was told since the last time."""
        found = []
        while (received := self.master.recv_nowait()) is not None:
            if isinstance(received[0], Sealed):
                self.sealed.append(received[0].sealed)
            else:
                assert isinstance(received[0], Denied)
                found.append(received[0])
        return found

    def close(self) -> None:
        self.selector.close()
        self.channel.close()
        self.master.close()


@contextmanager
def launcher(mode: SandboxMode = SandboxMode.ENFORCE) -> Iterator[Launcher]:
    """A Launcher that is closed."""
    found = Launcher(mode)
    try:
        yield found
    finally:
        found.close()


@contextmanager
def forked(deed: Callable[[], int]) -> Iterator[tuple[int, OwnedFd, OwnedFd]]:
    """A process that does a deed: its id, its pidfd, a pipe that brings the deed's result (8 bytes). Not reaped, unless
    it still runs at the end: it is killed then."""
    reading, writing = (OwnedFd(fd) for fd in os.pipe())
    pid = os.fork()
    if not pid:
        try:
            os.write(writing.fd, struct.pack("<q", deed()))
            os._exit(0)
        finally:
            os._exit(1)
    writing.close()
    with OwnedFd(os.pidfd_open(pid)) as pidfd, reading:
        try:
            yield pid, pidfd, reading
        finally:
            try:
                signal.pidfd_send_signal(pidfd.fd, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass  # it was reaped


def confined(
    lock: Callable[[], OwnedFd | None],
    deed: Callable[[], int],
    mode: SandboxMode = SandboxMode.ENFORCE,
    before: Callable[[], object] = lambda: None,
) -> Outcome:
    """Does a deed in a process behind a filter, as the launcher sees it.

    lock: loads the filter, there, and returns the listener; before: what the process does before.
    """
    ours, theirs = denials.reporter_pair()

    def locked_in() -> int:
        before()
        listener = lock()
        assert listener is not None
        seccomp.hand_over(listener, theirs)
        return deed()

    with launcher(mode) as found, forked(locked_in) as (pid, pidfd, results):
        theirs.close()
        watch = found.denials.expect(WORKER_ID, pidfd, ours)
        found.until_over(pidfd)
        _, wait_status = os.waitpid(pid, 0)
        found.denials.forget(watch)
        data = os.read(results.fd, 8)
        return Outcome(struct.unpack("<q", data)[0] if data else None, wait_status, tuple(found.told()))


def filtered(
    rules: Callable[[int], Sequence[Rule]],
    deed: Callable[[], int],
    mode: SandboxMode = SandboxMode.ENFORCE,
    before: Callable[[], object] = lambda: None,
) -> Outcome:
    """As confined(), by the rules for the process' id."""
    return confined(lambda: OwnedFd(sandbox.load_filter(rules(os.getpid()))), deed, mode, before)


def with_base(*rules: Rule) -> Callable[[int], Sequence[Rule]]:
    """These rules and BASE."""
    return lambda pid: (*BASE, *rules)
