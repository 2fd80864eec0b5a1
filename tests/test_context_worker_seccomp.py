"""context_worker.seccomp: sealing a process and giving the listener away; what a driver goes on doing under it."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from context_worker import denials, seccomp
from context_worker.profiles import LLVMPIPE, NULL
from context_worker.sandbox_mode import SandboxMode
from ipc.messages import Denied
from native import sandbox
from native.owned_fd import OwnedFd
from tests.filter_lab import WORKER_ID, Outcome, confined, forked, system_call


def sealed(deed: Callable[[], int], mode: SandboxMode = SandboxMode.ENFORCE) -> Outcome:
    """A deed in a process that is sealed as a worker of llvmpipe is."""
    return confined(lambda: seccomp.seal(LLVMPIPE, mode), deed, mode)


def seccomp_mode() -> int:
    """This process' Seccomp: line; 2 is a filter (proc_pid_status(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Seccomp:")).split()[1])


def test_off_does_nothing() -> None:
    before = seccomp_mode()
    assert seccomp.seal(NULL, SandboxMode.OFF) is None
    assert seccomp_mode() == before


def outcome_in_child(deed: Callable[[], int]) -> int:
    with forked(deed) as (_, _, results):
        (result,) = struct.unpack("<q", os.read(results.fd, 8))
        return int(result)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *(("fork", ()), ("vfork", ()), ("clone", (17, 0)), ("clone3", (0, 0)), ("execve", (b"/bin/true", 0, 0))),
        *(("socket", (1, 1, 0)), ("unshare", (0,)), ("ptrace", (0,)), ("mount", (0,) * 5), ("bpf", (0, 0, 0))),
        *(("io_uring_setup", (1, 0)), ("keyctl", (0, -3 % 2**64, 0)), ("userfaultfd", (0,)), ("kill", (0, 0))),
    ],
)
def test_what_no_driver_needs_to_start_is_gone_before_it_starts(name: str, arguments: tuple[int | bytes, ...]) -> None:
    if sandbox.number_of(name) is None:
        pytest.skip("another machine's")

    def deed() -> int:
        seccomp.forbid(SandboxMode.ENFORCE)
        return system_call(name, *arguments)

    assert outcome_in_child(deed) == -errno.ENOSYS


def test_threads_and_files_are_left_before_it_starts() -> None:
    def deed() -> int:
        seccomp.forbid(SandboxMode.ENFORCE)
        thread = threading.Thread(target=lambda: Path("/proc/self/status").read_text())
        thread.start()
        thread.join()
        return seccomp_mode()

    assert outcome_in_child(deed) == 2


@pytest.mark.parametrize("mode", [SandboxMode.AUDIT, SandboxMode.OFF])
def test_nothing_is_taken_where_nobody_could_tell(mode: SandboxMode) -> None:
    def deed() -> int:
        seccomp.forbid(mode)
        return seccomp_mode()

    assert outcome_in_child(deed) == seccomp_mode()


def test_the_listener_is_told_of_what_was_forbidden_before() -> None:
    def lock() -> OwnedFd | None:
        seccomp.forbid(SandboxMode.ENFORCE)
        return seccomp.seal(LLVMPIPE, SandboxMode.ENFORCE)

    for name in ("unshare", "socket", "execve"):
        assert confined(lock, partial(system_call, name, 0, 0, 0)).names == [name]


@pytest.mark.parametrize("mode", [SandboxMode.ENFORCE, SandboxMode.AUDIT])
def test_the_filter_is_the_same_whether_it_is_enforced_or_not(mode: SandboxMode) -> None:
    assert sealed(seccomp_mode, mode) == Outcome(2, 0, ())


def test_nothing_of_the_listener_stays_behind() -> None:
    """Who has taken over a worker has neither the listener nor a way to send another."""

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with forked(descriptors) as (_, _, results):
        (before,) = struct.unpack("<q", os.read(results.fd, 8))
    ours, theirs = denials.reporter_pair()

    def count() -> int:
        ours.close()
        listener = seccomp.seal(LLVMPIPE, SandboxMode.ENFORCE)
        assert listener is not None
        seccomp.hand_over(listener, theirs)
        return descriptors()

    with ours, theirs, forked(count) as (_, _, results):
        ours.send(seccomp.RECEIVED)
        assert struct.unpack("<q", os.read(results.fd, 8)) == (before,)


def test_audit_and_enforce_differ_in_the_end_alone() -> None:

    def make() -> int:
        return int(system_call("socket", 1, 1, 0) >= 0)

    outcome = sealed(make, SandboxMode.AUDIT)
    assert (outcome.result, outcome.denied) == (1, (Denied(WORKER_ID, "socket", audit=True),))
    outcome = sealed(make)
    assert (outcome.result, outcome.denied) == (None, (Denied(WORKER_ID, "socket", audit=False),))


def test_what_a_worker_does_all_day_is_allowed(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    doorbell = os.eventfd(0)

    def work() -> int:
        path = tmp_path / "shader"
        path.write_bytes(b"code")
        os.rename(path, path.with_suffix(".tmp"))
        assert path.with_suffix(".tmp").read_bytes() == b"code"
        path.with_suffix(".tmp").unlink()
        threads = [threading.Thread(target=bytearray, args=(1 << 20,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        theirs.sendall(b"ping")
        socket.send_fds(theirs, [b"x"], [doorbell])
        os.eventfd_write(doorbell, 1)
        try:
            raise RuntimeError("shown in the log")
        except RuntimeError:
            return int("shown in the log" in traceback.format_exc())

    assert sealed(work) == Outcome(1, 0, ())
    assert os.eventfd_read(doorbell) == 1
    assert ours.recv(4) == b"ping"
    os.close(doorbell)
    ours.close()
    theirs.close()


def test_a_thread_that_ends_the_process_ends_it() -> None:
    def leave() -> int:
        threading.Thread(target=lambda: os._exit(4)).start()
        threading.Event().wait()
        return 0

    assert os.waitstatus_to_exitcode(sealed(leave).wait_status) == 4
