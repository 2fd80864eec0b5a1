"""context_worker.denials: the launcher, the listeners of its workers, and what hostile workers send instead."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence

import pytest

from context_worker import denials, seccomp
from context_worker.sandbox_mode import SandboxMode
from ipc.errors import ChannelClosed
from ipc.messages import Denied
from native import sandbox
from native.owned_fd import OwnedFd
from native.sandbox import Rule
from tests.filter_lab import (
    BASE,
    WORKER_ID,
    Launcher,
    filtered,
    forked,
    launcher,
    numbered_call,
    system_call,
    with_base,
)

SIGKILL = int(signal.SIGKILL)


def test_the_blame_comes_before_the_end() -> None:
    outcome = filtered(with_base(), lambda: system_call("socket", 1, 1, 0))
    assert outcome.denied == (Denied(WORKER_ID, "socket", audit=False),)
    assert (outcome.result, outcome.signal) == (None, SIGKILL)


def test_the_first_denial_is_the_blame() -> None:
    def start() -> None:
        for _ in range(8):
            threading.Thread(target=lambda: system_call("socket", 1, 1, 0)).start()

    rules = with_base(Rule("clone"), Rule("clone3"), Rule("rseq"), Rule("set_robust_list"), Rule("mprotect"))

    def deed() -> int:
        start()
        return system_call("socket", 1, 1, 0)

    assert filtered(rules, deed).names == ["socket"]


def test_audit_tells_each_call_once_and_lets_it_be_made() -> None:
    def deed() -> int:
        made = [system_call("socket", 1, 1, 0) for _ in range(3)]
        made += [system_call("getppid") for _ in range(3)]
        return int(min(made) > 0)

    outcome = filtered(with_base(), deed, SandboxMode.AUDIT)
    assert (outcome.result, outcome.wait_status) == (1, 0)
    assert outcome.denied == (Denied(WORKER_ID, "socket", audit=True), Denied(WORKER_ID, "getppid", audit=True))


def without_a_filter(found: Launcher, *, ends: bool) -> int:
    """The wait status of a worker that closes its end without a word, and then ends or stays."""
    ours, theirs = denials.reporter_pair()

    def deed() -> int:
        found.master.close()
        if not ends:
            theirs.close()
            signal.pause()
        return 0

    with forked(deed) as (pid, pidfd, _):
        theirs.close()
        watch = found.denials.expect(WORKER_ID, pidfd, ours)
        while watch.reporter is not None:
            assert found.turn()
        if found.denials._mode is not SandboxMode.ENFORCE:
            os.kill(pid, signal.SIGTERM)
        _, wait_status = os.waitpid(pid, 0)
        found.denials.forget(watch)
        assert found.told() == []
        return wait_status


def test_a_worker_that_does_not_seal_itself_is_killed_and_told_of() -> None:
    with launcher() as found:
        assert os.WTERMSIG(without_a_filter(found, ends=False)) == SIGKILL
        assert found.sealed == [False]


def test_a_worker_that_ends_before_it_is_sealed_just_ends() -> None:
    with launcher() as found:
        assert without_a_filter(found, ends=True) == 0
        assert found.sealed == []


@pytest.mark.parametrize("mode", [SandboxMode.AUDIT, SandboxMode.OFF])
def test_where_no_filter_is_needed_none_is_as_good_as_one(mode: SandboxMode) -> None:
    with launcher(mode) as found:
        assert os.WTERMSIG(without_a_filter(found, ends=False)) == signal.SIGTERM
        assert found.sealed == [True]


def test_a_worker_whose_listener_came_is_sealed() -> None:
    def test(pid: int, pidfd: OwnedFd, watch: denials.Watch) -> None:
        assert found.told() == []
        assert found.sealed == [True]

    with launcher() as found:
        waiting_worker(found, lambda: system_call("socket", 1, 1, 0), test)


def test_audit_tells_of_so_many_calls_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers without a name are one call: there are billions of them."""

    def unknown() -> int:
        return int(sum(numbered_call(100_000 + index) == -errno.ENOSYS for index in range(200)))

    outcome = filtered(with_base(), unknown, SandboxMode.AUDIT)
    assert outcome.result == 200 and outcome.names == ["system call 100000"]

    def many() -> int:
        names = ("getppid", "fchdir", "getuid", "fsync", "geteuid")
        return sum(system_call(name, 2**64 - 1) <= 2**31 for name in names)

    monkeypatch.setattr(denials, "MOST_TOLD", 3)
    outcome = filtered(with_base(), many, SandboxMode.AUDIT)
    assert outcome.result == 5 and outcome.names == ["getppid", "fchdir", "getuid"]


def expect_waiting(found: Launcher, send: Callable[[socket.socket], object], *, killed: bool) -> None:
    """A worker sends something and then waits for ever; whether it is killed for that."""
    ours, theirs = denials.reporter_pair()
    hold, held = os.pipe()

    def deed() -> int:
        os.close(held)
        with theirs:
            send(theirs)
        return len(os.read(hold, 1))  # until we let go

    with forked(deed) as (pid, pidfd, _):
        theirs.close()
        watch = found.denials.expect(WORKER_ID, pidfd, ours)
        while watch.reporter is not None:
            assert found.turn()
        assert watch.listener is None
        os.close(held)
        os.close(hold)
        _, wait_status = os.waitpid(pid, 0)
        assert (os.WIFSIGNALED(wait_status) and os.WTERMSIG(wait_status) == SIGKILL) == killed
        found.denials.forget(watch)
        assert found.told() == []


def sending(data: bytes, fds: Callable[[], Sequence[int]]) -> Callable[[socket.socket], object]:
    def send(reporter: socket.socket) -> None:
        made = fds()
        if made:
            socket.send_fds(reporter, [data], made)
        else:
            reporter.send(data)

    return send


def files(count: int) -> Callable[[], Sequence[int]]:
    return lambda: [os.dup(0) for _ in range(count)]


@pytest.mark.parametrize(
    "send",
    [
        sending(b"L", files(0)),
        sending(b"L", files(1)),
        sending(b"L", files(2)),
        sending(b"L", files(3)),
        sending(b"L", files(200)),
        sending(b"M", files(1)),
        sending(b"L" * 100_000, files(0)),
        sending(b"L", lambda: [os.memfd_create("no listener")]),
        sending(b"L", lambda: [os.pidfd_open(os.getpid())]),
    ],
    ids=["no-fd", "a-file", "two", "three", "200", "another-word", "long", "memfd", "pidfd"],
)
@pytest.mark.parametrize("mode", [SandboxMode.ENFORCE, SandboxMode.AUDIT])
def test_rubbish_instead_of_a_listener_ends_the_worker_and_leaves_nothing(
    send: Callable[[socket.socket], object], mode: SandboxMode
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with launcher(mode) as found:
        expect_waiting(found, send, killed=True)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_listener_and_something_else_is_rubbish_too() -> None:
    def two(reporter: socket.socket) -> None:
        listener = sandbox.load_filter((*BASE, Rule("dup"), Rule("fcntl")))
        socket.send_fds(reporter, [seccomp.LISTENER], [listener, 0])

    with launcher() as found:
        expect_waiting(found, two, killed=True)


def test_what_is_said_behind_a_listener_is_not_heard() -> None:
    ours, theirs = denials.reporter_pair()

    def deed() -> int:
        listener = OwnedFd(sandbox.load_filter(BASE))
        socket.send_fds(theirs, [seccomp.LISTENER], [listener.fd])
        socket.send_fds(theirs, [seccomp.LISTENER], [0])
        return system_call("socket", 1, 1, 0)

    with launcher() as found, forked(deed) as (pid, pidfd, _):
        theirs.close()
        watch = found.denials.expect(WORKER_ID, pidfd, ours)
        found.until_over(pidfd)
        os.waitpid(pid, 0)
        found.denials.forget(watch)
        assert found.told() == [Denied(WORKER_ID, "socket", audit=False)]


def waiting_worker(
    found: Launcher, deed: Callable[[], int], test: Callable[[int, OwnedFd, denials.Watch], None]
) -> None:
    """A worker under BASE whose listener has come and whose deed, a denied call, waits."""
    ours, theirs = denials.reporter_pair()

    def locked_in() -> int:
        found.master.close()  # as a worker has nothing of the launcher's
        seccomp.hand_over(OwnedFd(sandbox.load_filter(BASE)), theirs)
        return deed()

    with forked(locked_in) as (pid, pidfd, _):
        theirs.close()
        watch = found.denials.expect(WORKER_ID, pidfd, ours)
        while watch.listener is None:
            assert found.turn()
        while not found.selector.select():
            pass
        test(pid, pidfd, watch)
        found.denials.forget(watch)


@pytest.mark.parametrize("mode", [SandboxMode.ENFORCE, SandboxMode.AUDIT])
def test_a_worker_that_was_killed_before_its_notice_was_read_is_not_blamed_for_it(mode: SandboxMode) -> None:
    def test(pid: int, pidfd: OwnedFd, watch: denials.Watch) -> None:
        signal.pidfd_send_signal(pidfd.fd, SIGKILL)
        os.waitpid(pid, 0)
        found.denials.attend(watch)
        found.denials.attend(watch)
        assert found.selector.select(0) == []  # and its listener does not keep the launcher busy
        assert found.told() == []

    with launcher(mode) as found:
        waiting_worker(found, lambda: system_call("socket", 1, 1, 0), test)


def test_a_worker_is_killed_even_if_nobody_is_there_to_be_told() -> None:
    def test(pid: int, pidfd: OwnedFd, watch: denials.Watch) -> None:
        found.master.close()
        with pytest.raises(ChannelClosed):
            found.denials.attend(watch)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == SIGKILL

    with launcher() as found:
        waiting_worker(found, lambda: system_call("socket", 1, 1, 0), test)


def test_a_watch_that_is_forgotten_is_over() -> None:
    def test(pid: int, pidfd: OwnedFd, watch: denials.Watch) -> None:
        found.denials.forget(watch)
        found.denials.attend(watch)
        assert list(found.selector.get_map()) == []
        assert found.told() == []

    with launcher() as found:
        waiting_worker(found, lambda: system_call("socket", 1, 1, 0), test)
