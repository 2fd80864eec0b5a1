"""native.sandbox: the filter, its listener, and abort()."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial

import pytest

from context_worker.sandbox_mode import SandboxMode
from native import sandbox
from native.owned_fd import OwnedFd
from native.sandbox import Condition, ListenerEnded, Rule
from tests.filter_lab import BASE, filtered, forked, number, numbered_call, system_call, with_base

SIGSYS = int(signal.SIGSYS)
SIGKILL = int(signal.SIGKILL)
ABORTED = 134
X86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="another way into the kernel on x86-64 only")


def test_what_is_allowed_is_done() -> None:
    outcome = filtered(with_base(Rule("getppid")), lambda: int(system_call("getppid") == os.getppid()))
    assert (outcome.result, outcome.wait_status, outcome.denied) == (1, 0, ())


def test_what_is_not_is_never_done_and_told_by_its_name() -> None:
    outcome = filtered(with_base(), lambda: system_call("getppid"))
    assert (outcome.result, outcome.signal, outcome.names) == (None, SIGKILL, ["getppid"])


def test_a_rule_can_be_an_error() -> None:
    rule = Rule("getppid", error=errno.ENOSYS)
    assert filtered(with_base(rule), lambda: system_call("getppid")).result == -errno.ENOSYS


@pytest.mark.parametrize(
    ("value", "mask", "argument", "allowed"),
    [
        (5, sandbox.ALL_BITS, 5, True),
        (5, sandbox.ALL_BITS, 4, False),
        (5, sandbox.ALL_BITS, 5 | 1 << 32, False),
        (5, sandbox.ALL_BITS, 5 | 1 << 63, False),
        (5, (1 << 32) - 1, 5 | 1 << 32, True),
        (5, (1 << 32) - 1, 4 | 1 << 32, False),
        (0x6400, 0xFF00, 0xC0106442, True),
        (0x6400, 0xFF00, 0xC0646442, True),
        (0x6400, 0xFF00, 0x7500, False),
        (0x6400, 0xFF00, 0x64, False),
        (0x6400, 0xFF00, 0x640000, False),
        (0x6400, 0xFF00, 0x6500, False),
        (0x6400, 0xFF00, 0xFFFFFFFF, False),
        (1 << 40, 1 << 40, 3 << 40, True),
        (1 << 40, 1 << 40, 2 << 40, False),
    ],
)
def test_conditions(value: int, mask: int, argument: int, allowed: bool) -> None:
    rule = Rule("madvise", (Condition(0, value, mask),))
    rules = (*(rule for rule in BASE if rule.name != "madvise"), rule)
    # Of advice that there is not, the kernel says EINVAL, whatever memory it is for.
    outcome = filtered(lambda pid: rules, lambda: system_call("madvise", argument, 0, 1 << 20))
    assert outcome.names == ([] if allowed else ["madvise"])
    assert outcome.result == (-errno.EINVAL if allowed else None)


def test_conditions_of_a_rule_hold_together_and_rules_are_alternatives() -> None:
    rules = [
        Rule("getpriority", (Condition(0, 0), Condition(1, 0))),
        Rule("getpriority", (Condition(0, 1), Condition(1, 0))),
    ]
    for which, who, allowed in ((0, 0, True), (1, 0, True), (0, 1, False), (2, 0, False)):
        outcome = filtered(with_base(*rules), partial(system_call, "getpriority", which, who))
        assert outcome.names == ([] if allowed else ["getpriority"])


def test_threads_that_were_there_before_are_under_it_too() -> None:
    go = threading.Event()

    def start() -> None:
        threading.Thread(target=lambda: (go.wait(), system_call("getppid"))).start()

    def release() -> int:
        go.set()
        return int.from_bytes(os.read(os.pipe()[0], 1), "little")  # for ever

    outcome = filtered(with_base(Rule("pipe2")), release, before=start)
    assert (outcome.result, outcome.signal, outcome.names) == (None, SIGKILL, ["getppid"])


def test_a_process_loads_one_filter() -> None:
    def again() -> int:
        try:
            sandbox.load_filter(BASE)
        except sandbox.FilterError as error:
            return -(error.errno or 0)
        return 0

    assert filtered(with_base(), again).result == -errno.EEXIST


@X86_64
def test_int_80_kills() -> None:
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("b8 14000000 cd80 c3".replace(" ", "")))  # mov $20 (getpid), %eax; int $0x80; ret
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    assert filtered(with_base(), function, SandboxMode.AUDIT).signal == SIGSYS


@X86_64
@pytest.mark.parametrize("name", ["getpid", "getppid"])
def test_the_x32_interface_kills(name: str) -> None:
    outcome = filtered(with_base(), lambda: numbered_call(0x40000000 | number(name)), SandboxMode.AUDIT)
    assert (outcome.signal, outcome.denied) == (SIGSYS, ())


def test_a_call_that_does_not_exist_is_denied_and_told_by_its_number() -> None:
    outcome = filtered(with_base(), lambda: numbered_call(0x3FFFFFFF))
    assert (outcome.result, outcome.names) == (None, ["system call 1073741823"])


@pytest.mark.parametrize("mode", [SandboxMode.ENFORCE, SandboxMode.AUDIT])
def test_nobody_takes_the_filter_off_or_puts_another_over_it(mode: SandboxMode) -> None:
    program = struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)  # return SECCOMP_RET_ALLOW
    buffer = ctypes.create_string_buffer(program)
    description = struct.pack("<HxxxxxxQ", 1, ctypes.addressof(buffer))
    new_listener = 1 << 3

    outcome = filtered(with_base(), lambda: system_call("seccomp", 1, new_listener, description), mode)
    assert outcome.names == ["seccomp"]
    # Even if it is let through, the kernel has one listener for all filters of a process.
    assert outcome.result == (-errno.EBUSY if mode is SandboxMode.AUDIT else None)


@pytest.mark.parametrize(
    "rule", [Rule("no_such_call"), Rule("close", (Condition(6, 0),)), Rule("close", (Condition(0, 0), Condition(0, 1)))]
)
def test_a_rule_that_cannot_be_is_an_error(rule: Rule) -> None:
    def load() -> int:
        try:
            sandbox.load_filter((*BASE, rule))
        except ValueError:
            return 1
        return 0

    with forked(load) as (_, _, results):
        assert os.read(results.fd, 8) == struct.pack("<q", 1)
    with pytest.raises(ValueError, match="too many"):
        sandbox.load_filter([Rule("close", (Condition(0, 0),) * 7)])


def test_another_machine_s_call_is_passed_over() -> None:
    absent = {"x86_64": "s390_pci_mmio_read"}.get(platform.machine(), "arch_prctl")
    assert sandbox.number_of(absent) is None
    assert filtered(with_base(Rule(absent)), lambda: 5).result == 5


def test_names_and_numbers() -> None:
    assert sandbox.name_of(number("socket")) == "socket"
    assert sandbox.number_of("socket", "x86_64") == 41
    assert sandbox.number_of("socket", "aarch64") == 198
    assert sandbox.number_of("open", "aarch64") is None
    assert sandbox.name_of(-1) == "system call -1"
    for name, machine in (("no_such_call", None), ("close", "pdp11")):
        with pytest.raises(ValueError):
            sandbox.number_of(name, machine)


# ---- listeners


def listener_of(send: socket.socket) -> int:
    """In the child: a filter, its listener sent away; then a call that waits."""
    listener = sandbox.load_filter(BASE)
    socket.send_fds(send, [b"x"], [listener])
    os.close(listener)
    return system_call("getppid")


def with_listener(test: Callable[[int, OwnedFd, OwnedFd, OwnedFd], None]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, forked(lambda: listener_of(theirs)) as (pid, pidfd, results):
        _, (fd, *_), _, _ = socket.recv_fds(ours, 1, 1)
        with OwnedFd(fd) as listener:
            test(pid, pidfd, listener, results)


def receive_soon(listener: OwnedFd) -> sandbox.Notice:
    """The notice that is about to come."""
    while (notice := sandbox.receive(listener.fd)) is None:
        os.sched_yield()
    return notice


def test_a_listener_says_who_wants_what_and_lets_it_go_on() -> None:
    def test(pid: int, pidfd: OwnedFd, listener: OwnedFd, results: OwnedFd) -> None:
        notice = receive_soon(listener)
        assert (notice.pid, notice.number) == (pid, number("getppid"))
        assert len(notice.arguments) == 6
        assert sandbox.receive(listener.fd) is None  # and does not wait for another
        assert sandbox.let_continue(listener.fd, notice.id)
        assert os.read(results.fd, 8) == struct.pack("<q", os.getpid())
        os.waitpid(pid, 0)
        assert not sandbox.let_continue(listener.fd, notice.id)
        with pytest.raises(ListenerEnded):
            sandbox.receive(listener.fd)

    with_listener(test)


def test_a_notice_of_one_who_is_gone_is_none() -> None:
    def test(pid: int, pidfd: OwnedFd, listener: OwnedFd, results: OwnedFd) -> None:
        notice = receive_soon(listener)
        signal.pidfd_send_signal(pidfd.fd, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert not sandbox.let_continue(listener.fd, notice.id)

    with_listener(test)


def test_only_a_listener_is_one() -> None:
    def test(pid: int, pidfd: OwnedFd, listener: OwnedFd, results: OwnedFd) -> None:
        assert sandbox.is_listener(listener.fd)
        others = [results.fd, pidfd.fd, os.memfd_create("other"), os.eventfd(0), os.open("/dev/null", os.O_RDWR)]
        with socket.socket(socket.AF_UNIX) as unix:
            assert [fd for fd in [*others, unix.fileno(), 9999, -1] if sandbox.is_listener(fd)] == []
        for fd in others[2:]:
            os.close(fd)

    with_listener(test)


def test_what_is_no_descriptor_is_an_error() -> None:
    with pytest.raises(OSError) as caught:
        sandbox.receive(9999)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError):
        sandbox.let_continue(9999, 1)


# ---- abort

_ABORT = f"import os; from native import sandbox; sandbox.install_abort_handler({ABORTED}); "


def test_abort_ends_with_the_code() -> None:
    assert subprocess.run([sys.executable, "-c", _ABORT + "os.abort()"], check=False).returncode == ABORTED


def test_abort_ends_the_first_process_of_a_pid_namespace_with_threads() -> None:
    """Without the handler such a process ignores SIGABRT, and dies of the next instruction."""
    code = _ABORT + (
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start(); "
        "print(os.getpid(), flush=True); os.abort()"
    )
    namespaces = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    done = subprocess.run([*namespaces, sys.executable, "-c", code], check=False, stdout=subprocess.PIPE)
    assert (done.stdout, done.returncode) == (b"1\n", ABORTED)
