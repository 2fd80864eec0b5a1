"""master.worker: what a worker may say of itself, and when."""

import os
import signal
import subprocess

import pytest

from ipc import messages
from ipc.channel import Channel, channel_pair
from ipc.errors import ProtocolError
from ipc.messages import Capability, Capset, CapsetsDone, EngineName, Fault, Message, Ready
from master.blame import Cause, CauseKind
from master.process_memory import ProcessMemory
from master.worker import FAULT_RATE, FAULTS_KEPT, MAX_CAPSETS, Worker
from native.owned_fd import OwnedFd

READY = Ready(EngineName.NULL, Capability(0), "renderer", "version")
CAPSET = Capset(2, 2, b"caps")


@pytest.fixture
def worker() -> Worker:
    ours, theirs = channel_pair()
    theirs.close()
    return Worker(1, Channel(ours, messages.FROM_WORKER))


def test_an_introduction(worker: Worker) -> None:
    worker.was_sealed()
    for message in (READY, CAPSET, CAPSET, CapsetsDone()):
        assert not worker.serving
        worker.hear(message)
    assert worker.serving and worker.ready == READY and len(worker.capsets) == 2


def test_a_worker_serves_when_the_launcher_says_that_it_is_sealed_and_not_before(worker: Worker) -> None:
    done: list[str] = []
    worker.once_sealed(lambda: done.append("waited"))
    for message in (READY, CapsetsDone()):
        worker.hear(message)
    assert not worker.serving and not done
    with pytest.raises(ProtocolError):
        worker.hear(READY)
    worker.was_sealed()
    worker.once_sealed(lambda: done.append("at once"))
    assert worker.serving and done == ["waited", "at once"]


def test_a_worker_that_never_seals_itself_is_to_blame(worker: Worker) -> None:
    worker.never_sealed = True
    assert end(worker, KILLED).text == "did not seal itself"
    assert not worker.ended_as_it_should()
    assert end(worker, SEGFAULT).text == "killed by SIGSEGV"


@pytest.mark.parametrize(
    "said",
    [
        (CAPSET,),
        (CapsetsDone(),),
        (READY, READY),
        (READY, CapsetsDone(), CapsetsDone()),
        (READY, CapsetsDone(), CAPSET),
        (READY, CapsetsDone(), READY),
        (READY, *[CAPSET] * (MAX_CAPSETS + 1)),
    ],
    ids=str,
)
def test_what_comes_at_the_wrong_time_breaks_the_channel(worker: Worker, said: tuple[Message, ...]) -> None:
    for message in said[:-1]:
        worker.hear(message)
    with pytest.raises(ProtocolError):
        worker.hear(said[-1])


def test_complaints_may_come_at_any_time_and_the_latest_are_kept(worker: Worker) -> None:
    for number in range(FAULTS_KEPT + 3):
        worker.hear(Fault(1, str(number)))
    assert worker.faults == [str(number) for number in range(3, FAULTS_KEPT + 3)]


def test_complaints_are_printable(worker: Worker) -> None:
    worker.hear(Fault(1, "red: \x1b[31m\n"))
    assert worker.faults == [r"red: \x1b[31m\x0a"]


# --- what ended it --------------------------------------------------------------------------------------------------

KILLED, SEGFAULT, ABORTED, FAILED = int(signal.SIGKILL), int(signal.SIGSEGV), 134 << 8, 1 << 8
HANG = Cause(kind=CauseKind.HANG, text="made no progress")
LIMIT = 1 << 30


def end(worker: Worker, wait_status: int | None) -> Cause:
    worker.dead, worker.wait_status = True, wait_status
    return worker.cause()


@pytest.fixture
def serving(worker: Worker) -> Worker:
    worker.serving = True
    worker.memory_limit = LIMIT
    return worker


def test_what_the_kernel_says(serving: Worker) -> None:
    assert end(serving, SEGFAULT) == Cause(kind=CauseKind.SIGNAL, text="killed by SIGSEGV", signal="SIGSEGV")
    assert end(serving, None).text == "ended"


def test_what_we_killed_it_for(serving: Worker) -> None:
    serving.kill(HANG)
    serving.kill(Cause(kind=CauseKind.OPERATOR, text="killed by the operator"))  # too late to be the reason
    assert end(serving, KILLED) == HANG
    assert end(serving, SEGFAULT).text == "made no progress (killed by SIGSEGV)"
    assert not serving.ended_as_it_should()


def test_a_forbidden_system_call(serving: Worker) -> None:
    serving.denied = "ptrace"
    cause = end(serving, KILLED)
    assert (cause.kind, cause.syscall) == (CauseKind.SYSCALL, "ptrace")
    assert cause.text == "made a system call that the sandbox forbids: ptrace"
    serving.dismissed = True
    assert not serving.ended_as_it_should()


def test_memory_as_the_launcher_says(serving: Worker) -> None:
    serving.out_of_memory = True
    cause = end(serving, KILLED)
    assert (cause.kind, cause.text, cause.signal) == (CauseKind.MEMORY, "out of memory (killed by SIGKILL)", "SIGKILL")


@pytest.mark.parametrize(
    ("data", "wait_status", "kind"),
    [
        (LIMIT * 95 // 100, SEGFAULT, CauseKind.MEMORY),
        (LIMIT * 95 // 100, ABORTED, CauseKind.MEMORY),
        (LIMIT * 95 // 100, FAILED, CauseKind.MEMORY),
        (LIMIT * 95 // 100, KILLED, CauseKind.SIGNAL),
        (LIMIT * 95 // 100, 0, CauseKind.EXIT),
        (LIMIT // 2, SEGFAULT, CauseKind.SIGNAL),
    ],
)
def test_memory_as_it_was_when_last_looked_at(serving: Worker, data: int, wait_status: int, kind: CauseKind) -> None:
    serving.memory = ProcessMemory(1, data)
    cause = end(serving, wait_status)
    assert cause.kind is kind
    assert ("probably out of memory: it used 972 of 1024 MiB" in cause.text) == (kind is CauseKind.MEMORY)


def test_one_that_never_served(worker: Worker) -> None:
    cause = end(worker, 2 << 8)
    assert cause.kind is CauseKind.STARTUP and cause.text.startswith("did not start: exited with code 2")
    assert end(worker, SEGFAULT).kind is CauseKind.SIGNAL


def test_the_last_complaint_goes_with_it(serving: Worker) -> None:
    serving.hear(Fault(1, "no memory"))
    assert end(serving, SEGFAULT).text == "killed by SIGSEGV; its last complaint: no memory"


@pytest.mark.parametrize(
    ("dismissed", "wait_status", "well"),
    [(False, 0, True), (False, KILLED, False), (True, KILLED, True), (True, 0, True), (True, SEGFAULT, False)],
)
def test_ends_that_are_nobodys_fault(serving: Worker, dismissed: bool, wait_status: int, well: bool) -> None:
    if dismissed:
        serving.dismiss()
    end(serving, wait_status)
    assert serving.ended_as_it_should() == well


def test_kill_hits_the_process_and_what_it_used_is_remembered(worker: Worker) -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        worker.pid, worker.pidfd = process.pid, OwnedFd(os.pidfd_open(process.pid))
        worker.sample_memory()
        assert worker.memory.resident > 0 and not worker.has_ended()
        worker.kill(HANG)
        assert process.wait(30) == -signal.SIGKILL and worker.has_ended()
        used = worker.memory
        worker.sample_memory()
        assert worker.memory == used
        worker.close()


def test_complaints_without_end_break_the_channel(worker: Worker) -> None:
    for number in range(FAULT_RATE.count):
        worker.hear(Fault(1, str(number)))
    with pytest.raises(ProtocolError, match="complaints"):
        worker.hear(Fault(1, "one more"))
