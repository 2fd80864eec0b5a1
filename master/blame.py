"""Whose fault it was: what is published when a guest context is lost."""

import os
import signal
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Blame:
    """A context was lost. `program` is the guest's debug_name for it; `cause` is words for a person."""

    ctx_id: int
    program: str
    pid: int
    cause: str

    def __str__(self) -> str:
        return f"ctx {self.ctx_id} {self.program} (worker {self.pid}): {self.cause}"


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
