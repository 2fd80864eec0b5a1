"""master.blame: what is said of a worker that ended."""

from __future__ import annotations

import os
import signal

import pytest

from context_worker.exit_code import ExitCode
from master.blame import Cause, CauseKind, Incident, cause_of


def status_of(script: str) -> int:
    """The wait status of a process that ran a shell script."""
    pid = os.posix_spawn("/bin/sh", ["/bin/sh", "-c", "ulimit -c 0; " + script], os.environ)
    return os.waitpid(pid, 0)[1]


def incident(**more: object) -> str:
    """The text of one."""
    cause = Cause(kind=CauseKind.SIGNAL, text="killed by SIGSEGV", signal="SIGSEGV")
    what: dict[str, object] = dict(service="s", time=0.0, number=1, ctx_id=7, program="kmscube", pid=4711, cause=cause)
    return str(Incident(**what | more))  # type: ignore[arg-type]


def test_text_names_context_program_process_and_cause() -> None:
    assert incident() == "ctx 7 kmscube (worker 4711): killed by SIGSEGV"


def test_text_goes_on_with_what_is_known() -> None:
    text = incident(last_commands=("a", "b"), resources_lost=(1,), resources_lost_count=1)
    assert text == "ctx 7 kmscube (worker 4711): killed by SIGSEGV; last command: b; 1 resource lost"
    assert incident(last_commands=("a", "b"), under_way="a").endswith("SIGSEGV; last command: a")
    assert incident(resources_lost_count=70).endswith("SIGSEGV; 70 resources lost")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT, signal.SIGBUS], ids=str)
def test_real_deaths_by_signal(number: signal.Signals) -> None:
    cause = cause_of(status_of(f"kill -{int(number)} $$"))
    assert cause == Cause(kind=CauseKind.SIGNAL, text=f"killed by {number.name}", signal=number.name)


def test_a_system_call_of_another_architecture() -> None:
    cause = cause_of(status_of("kill -SYS $$"))
    assert (cause.kind, cause.signal, cause.syscall) == (CauseKind.SYSCALL, "SIGSYS", None)
    assert "sandbox forbids" in cause.text


def test_an_abort_of_a_process_that_cannot_be_ended_by_one() -> None:
    assert cause_of(status_of("exit 134")) == Cause(
        kind=CauseKind.SIGNAL, text="aborted (SIGABRT)", signal="SIGABRT"
    )


@pytest.mark.parametrize("code", [0, 1, 3, 127, 255])
def test_real_exit_codes(code: int) -> None:
    cause = cause_of(status_of(f"exit {code}"))
    assert cause.kind is CauseKind.EXIT and cause.text.startswith(f"exited with code {code}")


def test_exit_codes_of_ours_are_explained() -> None:
    assert cause_of(ExitCode.NO_ENGINE << 8).text == "exited with code 2 (its driver does not start here)"


def test_a_core_dump_is_a_signal_too() -> None:
    assert cause_of(signal.SIGSEGV | 0x80).text == "killed by SIGSEGV"


def test_signals_without_a_name() -> None:
    number = signal.SIGRTMIN + 5
    assert number not in set(signal.Signals)
    assert cause_of(status_of(f"kill -{number} $$")).text == f"killed by signal {number}"


@pytest.mark.parametrize("status", [0x7F, 0x137F, 0xFFFF, -1, -(2**31), 2**31 - 1])
def test_any_number_is_a_status(status: int) -> None:
    assert cause_of(status).text
