"""Whose fault it was: what is published when a guest context is lost."""

import os
import signal
from dataclasses import dataclass
from enum import StrEnum

from master.events import Event


@dataclass(frozen=True, slots=True)
class Blame:
    """A context was lost. `program` is the guest's debug_name for it; `cause` is words for a person."""

    ctx_id: int
    program: str
    pid: int
    cause: str

    def __str__(self) -> str:
        return f"ctx {self.ctx_id} {self.program} (worker {self.pid}): {self.cause}"


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
        return f"ctx {self.ctx_id} {self.program} (worker {self.pid}): {self.cause.text}"


def cause_of(wait_status: int) -> str:
    """What ended a process, from the status that waitpid gives."""
    if os.WIFSIGNALED(wait_status):
        number = os.WTERMSIG(wait_status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return f"killed by {name}"
    return f"exited with code {os.waitstatus_to_exitcode(wait_status)}"
