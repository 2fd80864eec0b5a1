"""One worker as the master sees it."""

import select
import signal
from contextlib import suppress
from dataclasses import dataclass, field

from ipc import messages
from ipc.channel import Channel
from ipc.errors import ProtocolError
from ipc.messages import Fault, Message, Ready
from master.blame import cause_of
from master.capsets import Capset
from native.owned_fd import OwnedFd

FAULTS_KEPT = 8
MAX_CAPSETS = 16


@dataclass(eq=False)
class Worker:
    """A worker process and its channel. It exists for us from the moment we ask for it: it can be given work before its
    process has started."""

    worker_id: int
    channel: Channel
    pid: int = 0
    pidfd: OwnedFd | None = None
    ready: Ready | None = None
    capsets: list[Capset] = field(default_factory=list)
    serving: bool = False
    """All its capability sets have come: it looks at what it is sent."""
    dead: bool = False
    wait_status: int | None = None
    doom: str | None = None
    """Why we killed it, if we did."""
    faults: list[str] = field(default_factory=list)
    """The engine's latest complaints."""

    def hear(self, message: Message) -> None:
        """Takes in one message of the worker's. It may lie; all it can do is to describe itself.

        Raises ProtocolError for a description that comes at the wrong time or does not end.
        """
        if isinstance(message, Fault):
            self.faults = [*self.faults[-(FAULTS_KEPT - 1) :], message.text]
        elif self.serving or isinstance(message, Ready) != (self.ready is None):
            raise ProtocolError(f"{type(message).__name__} at the wrong time")
        elif isinstance(message, Ready):
            self.ready = message
        elif isinstance(message, messages.Capset):
            if len(self.capsets) == MAX_CAPSETS:
                raise ProtocolError("too many capability sets")
            self.capsets.append(Capset(message.capset_id, message.version, message.data))
        elif isinstance(message, messages.CapsetsDone):
            self.serving = True

    def renderer(self) -> str:
        """What it renders with, for a person, once it serves."""
        return f"{self.ready.engine}: {self.ready.renderer}" if self.ready is not None else "nothing"

    def kill(self, why: str) -> None:
        """SIGKILL by pidfd, so that it can hit nobody else; as soon as there is one, if it is still being started."""
        if self.dead:
            return
        self.doom = self.doom or why
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

    def cause(self) -> str:
        """What ended it, in words for a person."""
        cause = cause_of(self.wait_status) if self.wait_status is not None else "ended"
        if self.doom:
            cause = f"{self.doom} ({cause})"
        if self.faults:
            cause += f"; its last complaint: {self.faults[-1]}"
        return cause

    def close(self) -> None:
        """Closes what is ours of it."""
        self.channel.close()
        if self.pidfd is not None:
            self.pidfd.close()
            self.pidfd = None
