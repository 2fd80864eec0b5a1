"""One worker as the master sees it."""

import select
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from ipc import messages
from ipc.channel import Channel
from ipc.errors import ProtocolError
from ipc.messages import Fault, Message, Ready
from master.blame import Cause, CauseKind, cause_of
from master.capsets import Capset
from master.history import History
from master.hostile_socket import closer
from master.limits import Rate
from master.line_limit import LineLimit
from master.logging_setup import printable_line
from master.process_memory import ProcessMemory
from master.window import Window
from master.worker_log import WorkerLog
from native.owned_fd import OwnedFd

START_LIMIT = 60.0  # seconds that a worker may need to load its driver
FAULTS_KEPT = 8
MAX_CAPSETS = 16
COMPLAINT_INTERVAL = 1.0  # seconds between two log lines of a worker's complaints, after the first few
COMPLAINT_BURST = 8
NEAR_THE_LIMIT = 0.9  # of its memory, from where on a crash was probably for want of more
MIB = 1 << 20
NOT_ITS_OWN = 512 * MIB  # of what a worker has in memory, at most
FAULT_RATE = Rate(64, 10.0)  # an honest worker sends one a second and a last one


def _complaints() -> LineLimit:
    return LineLimit(COMPLAINT_INTERVAL, time.monotonic, COMPLAINT_BURST)


@dataclass(eq=False)
class Worker:
    """A worker process and its channel. It exists for us from the moment we ask for it: it can be given work before its
    process has started."""

    worker_id: int
    channel: Channel
    serves: str = ""
    """Whom, for a person; "" for a spare."""
    pid: int = 0
    pidfd: OwnedFd | None = None
    ready: Ready | None = None
    capsets: list[Capset] = field(default_factory=list)
    introduced: bool = False
    """All its capability sets have come."""
    sealed: bool = False
    """Its system call filter is in place: its launcher says so, who cannot be made to believe it."""
    never_sealed: bool = False
    """Its launcher killed it because it closed the way to say that it is sealed."""
    serving: bool = False
    """It is introduced and sealed: it looks at what it is sent."""
    awaiting_seal: list[Callable[[], None]] = field(default_factory=list)
    dead: bool = False
    wait_status: int | None = None
    out_of_memory: bool = False
    """The kernel ended it for that, the launcher says."""
    doom: Cause | None = None
    """Why we killed it, if we did."""
    dismissed: bool = False
    """We killed it because it is not wanted any more."""
    denied: str | None = None
    """The system call that its launcher killed it for."""
    output: WorkerLog | None = None
    """What it writes; None before it is asked for."""
    memory_limit: int | None = None
    memory: ProcessMemory = field(default_factory=ProcessMemory)
    """As it was when last looked at."""
    faults: list[str] = field(default_factory=list)
    """The engine's latest complaints, printable."""
    complaints: LineLimit = field(default_factory=_complaints)
    """Of its log lines."""
    heard: Window = field(default_factory=lambda: Window(FAULT_RATE))
    """Of its complaints, logged or not."""

    def __str__(self) -> str:
        return f"{self.serves or 'spare'} (worker {self.pid or 'starting'})"

    def name(self) -> str:
        """What begins the lines of its own log in ours, and no line of our own."""
        return f"worker {self.pid} ({self.serves or 'spare'})"

    def hear(self, message: Message, fds: Sequence[OwnedFd] = ()) -> None:
        """Takes in one message of the worker's, and its descriptors over. It may lie; all it can do is to describe
        itself.

        Raises ProtocolError for a description that comes at the wrong time or does not end.
        """
        assert not fds  # none of these has one
        if isinstance(message, Fault):
            now = time.monotonic()
            if self.heard.full(now):  # each costs us time that others want
                raise ProtocolError(f"more than {FAULT_RATE} complaints")
            self.heard.add(now)
            self.faults = [*self.faults[-(FAULTS_KEPT - 1) :], printable_line(message.text)]
        elif self.introduced or isinstance(message, Ready) != (self.ready is None):
            raise ProtocolError(f"{type(message).__name__} at the wrong time")
        elif isinstance(message, Ready):
            self.ready = message
        elif isinstance(message, messages.Capset):
            if len(self.capsets) == MAX_CAPSETS:
                raise ProtocolError("too many capability sets")
            self.capsets.append(Capset(message.capset_id, message.version, message.data))
        elif isinstance(message, messages.CapsetsDone):
            self.introduced = True
            self.serving = self.sealed

    def was_sealed(self) -> None:
        """Its launcher says so."""
        self.sealed = True
        self.serving = self.introduced
        waiting, self.awaiting_seal = self.awaiting_seal, []
        for action in waiting:
            action()

    def once_sealed(self, action: Callable[[], None]) -> None:
        """Now, or when it is; never if it ends before."""
        if self.sealed:
            action()
        else:
            self.awaiting_seal.append(action)

    def renderer(self) -> str:
        """What it renders with, for a person, once it serves."""
        return printable_line(f"{self.ready.engine}: {self.ready.renderer}") if self.ready is not None else "nothing"

    def kill(self, why: Cause) -> None:
        """Ends it, and it is to blame; later reasons do not count."""
        if not self.dead:
            self.doom = self.doom or why
            self.end()

    def dismiss(self) -> None:
        """Ends it, and nobody is to blame: it is not needed any more."""
        if not self.dead:
            self.dismissed = True
            self.end()

    def end(self) -> None:
        """SIGKILL by pidfd, so that it can hit nobody else; whoever learns of the pidfd calls again."""
        if self.pidfd is not None:
            with suppress(ProcessLookupError):  # it has ended and been reaped, and we are about to hear of it
                signal.pidfd_send_signal(self.pidfd.fd, signal.SIGKILL)

    def has_ended(self) -> bool:
        """Whether its process is over, noticed or not."""
        if self.pidfd is None:
            return False
        poll = select.poll()  # select() cannot take descriptors above 1023
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def lost(self) -> None:
        """Its process has ended: nobody may wait for it any longer."""

    def history(self) -> History:
        """What it was at. To be asked before close()."""
        return History()

    def sample_memory(self) -> None:
        """Looks at what it uses."""
        if self.pid and not self.dead:
            self.memory = ProcessMemory.of(self.pid) or self.memory

    def uses_too_much(self) -> bool:
        """Whether it had more than its limit when last looked at, by more than what is not its own: code of drivers,
        its staging memory, what others made and it maps."""
        return self.memory_limit is not None and self.memory.used() > self.memory_limit + NOT_ITS_OWN

    def ended_as_it_should(self) -> bool:
        """By itself, or because we did not need it any more. wait_status is known, unless the launcher is gone."""
        if self.denied is not None or self.doom is not None or self.never_sealed:
            return False
        return self.wait_status == 0 or (self.dismissed and self.wait_status in (None, int(signal.SIGKILL)))

    def cause(self) -> Cause:
        """What ended it."""
        cause = self._end()
        if self.faults:
            cause = replace(cause, text=f"{cause.text}; its last complaint: {self.faults[-1]}")
        return cause

    def _end(self) -> Cause:
        end = cause_of(self.wait_status) if self.wait_status is not None else Cause(kind=CauseKind.EXIT, text="ended")
        if self.denied is not None:
            text = f"made a system call that the sandbox forbids: {self.denied}"
            return Cause(kind=CauseKind.SYSCALL, text=text, syscall=self.denied)
        if self.never_sealed and end.signal == "SIGKILL":
            return Cause(kind=CauseKind.STARTUP, text="did not seal itself", signal=end.signal)
        if self.doom is not None:
            by_us = self.wait_status is None or end.signal == "SIGKILL"
            return self.doom if by_us else replace(self.doom, text=f"{self.doom.text} ({end.text})")
        if self.out_of_memory:
            return replace(end, kind=CauseKind.MEMORY, text=f"out of memory ({end.text})")
        if self._lacked_memory(end):
            used = f"{self.memory.data // MIB} of {(self.memory_limit or 0) // MIB} MiB"
            return replace(end, kind=CauseKind.MEMORY, text=f"{end.text}, probably out of memory: it used {used}")
        if end.kind is CauseKind.EXIT and not self.serving:
            return replace(end, kind=CauseKind.STARTUP, text=f"did not start: {end.text}")
        return end

    def _lacked_memory(self, end: Cause) -> bool:
        """Drivers take a failed allocation for a reason to crash. SIGKILL comes from outside."""
        near = self.memory_limit is not None and self.memory.data >= NEAR_THE_LIMIT * self.memory_limit
        return near and self.wait_status != 0 and end.signal != "SIGKILL"

    def close(self) -> None:
        """Closes what is ours of it."""
        if self.channel.fileno() >= 0:
            closer.close(self.channel.take())
        if self.output is not None:
            self.output.close()
        if self.pidfd is not None:
            self.pidfd.close()
            self.pidfd = None
