"""The ends that workers are put to, and what the master has to say of each."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass

from tests.rogue.deeds import KERNEL_REFUSES_FDS
from tests.rogue.hub import RogueWorker


@dataclass(frozen=True)
class End:
    """One way for a worker to end, or to deserve it.

    deed, argument: what it is ordered to do (tests.rogue.deeds); or signal: what is sent to it from outside. cause:
    what the log must say, a regular expression. certain: it ends in any case, if only when it is asked for something.
    """

    name: str
    cause: str
    deed: str = ""
    argument: str = ""
    signal: int = 0
    certain: bool = True

    def befall(self, worker: RogueWorker) -> None:
        """Puts the worker to it. It may be gone already."""
        if self.deed:
            worker.order(self.deed, self.argument)
        elif not worker.gone:
            with suppress(ProcessLookupError):
                os.kill(worker.pid, self.signal)


_HANG = r"made no progress|owed an answer"
_LIED = r"broke the rules of its ring"
_SAID = r"broke the channel"
# A lie may be found by the master, or it confuses its own worker, which then finds its ring broken or stands still.
_CONFUSED = rf"{_LIED}|{_SAID}|{_HANG}|could not create the context|exited with code 3|killed by SIG(SEGV|BUS|ABRT)"

CRASHES = (
    End("killed", "killed by SIGKILL", signal=signal.SIGKILL),
    End("null-read", "killed by SIGSEGV", "null-read"),
    End("bus-error", "killed by SIGBUS", "bus-error"),
    End("abort", "SIGABRT", "abort"),
    End("exit-0", "exited with code 0", "exit-with", "0"),
    End("exit-1", "exited with code 1", "exit-with", "1"),
)
"""It is over at once."""

SANDBOX = (
    End("forbidden-call", r"\bptrace\b", "forbidden-call"),
    # A kernel without 32-bit programs knows no such gate.
    End("int80", r"\bSIG(SYS|SEGV)\b", "int80"),
)
"""The sandbox ends it."""

SPIN = End("spin", _HANG, "spin")
HANGS = (
    End("stopped", _HANG, signal=signal.SIGSTOP),
    SPIN,
    End("close-doorbells", _HANG, "close-doorbells"),
    End("close-channel", "closed its channel", "close-channel"),
)
"""The process stays; the master has to notice and to end it."""

CHANNEL_LIES = (
    End("flood-faults", _SAID, "flood-faults"),
    End("flood-rubbish", _SAID, "flood-rubbish", "1"),
    End("empty-datagram", "closed its channel", "empty-datagram"),
    End("huge-datagram", _SAID, "huge-datagram"),
    End("one-fd", _SAID, "fault-with-fds", "1", certain=not KERNEL_REFUSES_FDS),
    End("many-fds", _SAID, "fault-with-fds", "200", certain=not KERNEL_REFUSES_FDS),
    End("ready-twice", _SAID, "say-again", "Ready"),
    End("capset-twice", _SAID, "say-again", "Capset"),
)
"""It says what no worker says."""

RING_LIES = (
    End("complete-zero", _CONFUSED, "complete-zero"),
    End("complete-future", _CONFUSED, "complete-future"),
    End("complete-highest", _CONFUSED, "complete-highest"),
    End("complete-again", _CONFUSED, "complete-again"),
    End("complete-early", _CONFUSED, "complete-early", certain=False),
    End("flood-completions", _CONFUSED, "flood-completions"),
    End("completions-beyond", _CONFUSED, "completions-beyond"),
    End("completions-wrapped", _CONFUSED, "completions-wrapped"),
    End("completions-back", _CONFUSED, "completions-back"),
    End("tail-ahead", _CONFUSED, "tail-ahead", certain=False),
    End("tail-back", _CONFUSED, "tail-back", certain=False),
    End("begun-to-and-fro", _CONFUSED, "begun-to-and-fro", certain=False),
    End("scribble", _CONFUSED, "scribble", "1", certain=False),
)
"""It writes into the memory that it shares with the master what no worker writes."""

MEMORY = End("eat-memory", r"killed by SIG(SEGV|KILL)|memory", "eat-memory")
