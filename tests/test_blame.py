"""master.blame: what is said of a worker that ended."""

from __future__ import annotations

import os
import signal

import pytest

from master.blame import Blame, cause_of


def status_of(script: str) -> int:
    """The wait status of a process that ran a shell script."""
    pid = os.posix_spawn("/bin/sh", ["/bin/sh", "-c", "ulimit -c 0; " + script], os.environ)
    return os.waitpid(pid, 0)[1]


def test_text_names_context_program_process_and_cause() -> None:
    assert str(Blame(7, "kmscube", 4711, "killed by SIGSEGV")) == "ctx 7 kmscube (worker 4711): killed by SIGSEGV"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT, signal.SIGSYS], ids=str)
def test_real_deaths_by_signal(number: signal.Signals) -> None:
    assert cause_of(status_of(f"kill -{int(number)} $$")) == f"killed by {number.name}"


@pytest.mark.parametrize("code", [0, 1, 3, 127, 255])
def test_real_exit_codes(code: int) -> None:
    assert cause_of(status_of(f"exit {code}")) == f"exited with code {code}"


def test_a_core_dump_is_a_signal_too() -> None:
    assert cause_of(signal.SIGSEGV | 0x80) == "killed by SIGSEGV"


def test_signals_without_a_name() -> None:
    number = signal.SIGRTMIN + 5
    assert number not in set(signal.Signals)
    assert cause_of(status_of(f"kill -{number} $$")) == f"killed by signal {number}"
