"""Whose fault it was: what is published when a guest context is lost."""

import os
import signal
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from context_worker.exit_code import ExitCode
from master.events import Event

MAX_RESOURCES_LISTED: Final = 64
_ABORTED: Final = 128 + signal.SIGABRT  # a worker is pid 1 of its namespace, where abort() alone would not end it


class CauseKind(StrEnum):
    """What kind of end a worker had."""

    SIGNAL = "signal"  # a crash, or somebody's kill
    SYSCALL = "syscall"  # it did what the sandbox forbids
    HANG = "hang"  # it made no progress
    MEMORY = "memory"  # out of memory, its own limit or the machine's
    PROTOCOL = "protocol"  # it said what no worker may
    EXIT = "exit"  # it ended by itself
    STARTUP = "startup"  # it never came up
    LAUNCHER = "launcher"  # the launcher ended, and every worker with it
    OPERATOR = "operator"  # isorend kill


NOT_THE_PROGRAMS: Final = frozenset({CauseKind.STARTUP, CauseKind.LAUNCHER, CauseKind.OPERATOR})
"""Ends that no guest program brought about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """kind, and `text` for a person. signal: its name, like SIGSEGV; syscall: the name of the forbidden system call."""

    kind: CauseKind
    text: str
    signal: str | None = None
    syscall: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident(Event):
    """A guest program lost its context. number counts from 1 since the service's start; last_commands: the latest
    records its worker was sent, oldest first; under_way: what it was at, "" if nothing; resources_lost: ids of what
    only it held (at most MAX_RESOURCES_LISTED, resources_lost_count is of all); fences: how many retired with it."""

    KIND = "incident"
    number: int
    ctx_id: int
    program: str
    pid: int
    cause: Cause
    under_way: str = ""
    last_commands: tuple[str, ...] = ()
    resources_lost: tuple[int, ...] = ()
    resources_lost_count: int = 0
    fences: int = 0

    def __str__(self) -> str:
        line = f"ctx {self.ctx_id} {self.program} (worker {self.pid}): {self.cause.text}"
        latest = self.under_way or (self.last_commands[-1] if self.last_commands else "")
        if latest:
            line += f"; last command: {latest}"
        if self.resources_lost_count:
            line += f"; {self.resources_lost_count} resource{'s' if self.resources_lost_count > 1 else ''} lost"
        return line


_EXIT_WORDS: Final = {
    ExitCode.OK: "as if told to",
    ExitCode.BUG: "an error that nobody expected; the log above has it",
    ExitCode.NO_ENGINE: "its driver does not start here",
    ExitCode.PROTOCOL: "what came through its ring made no sense to it",
    ExitCode.CLIENT: "its client broke the protocol",
}


def cause_of(wait_status: int) -> Cause:
    """What ended a process, from the status that waitpid gives; any number is one."""
    if os.WIFSIGNALED(wait_status):
        name = _signal_name(os.WTERMSIG(wait_status))
        if name == "SIGSYS":
            text = "made a system call that the sandbox forbids (SIGSYS)"
            return Cause(kind=CauseKind.SYSCALL, text=text, signal=name)
        return Cause(kind=CauseKind.SIGNAL, text=f"killed by {name}", signal=name)
    if not os.WIFEXITED(wait_status):
        return Cause(kind=CauseKind.EXIT, text=f"ended with the wait status {wait_status:#x}")
    code = os.WEXITSTATUS(wait_status)
    if code == _ABORTED:
        return Cause(kind=CauseKind.SIGNAL, text="aborted (SIGABRT)", signal="SIGABRT")
    words = next((f" ({text})" for known, text in _EXIT_WORDS.items() if known == code), "")
    return Cause(kind=CauseKind.EXIT, text=f"exited with code {code}{words}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
