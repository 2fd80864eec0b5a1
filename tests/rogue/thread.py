"""The thread of a worker that does what the test orders."""

import array
import mmap
import os
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn
from unittest import mock

from context_worker import lockdown, title, worker
from context_worker.worker import WorkerStart
from ipc import ring
from ipc.channel import Channel
from ipc.handles import Handles
from ipc.messages import Message
from native.owned_fd import OwnedFd
from tests.rogue.deeds import DEEDS, Access, Prepared
from tests.rogue.sharing_lies import LIES, Props, concerns


class RogueThread:
    """One worker's. It is made at the worker's birth, when the line to the hub is; it starts when the driver is loaded.

    What it says: `title ...` whenever the worker takes another, `ready` when orders are taken, `did ...` after a deed
    that has an end.
    """

    def __init__(self, start: WorkerStart, hub: socket.socket, props: Props) -> None:
        self._start = start
        self._said: dict[str, bytes] = {}
        self._access: Access | None = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # With the first message the kernel tells the hub our process id, whatever it is in our namespace.
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        hub.sendmsg([b"born"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))])
        theirs.close()
        self.line = ours.detach()
        self._props = props

    def say(self, text: str) -> None:
        """To the hub. The test may have left."""
        try:
            os.write(self.line, text.encode(errors="replace"))
        except (BrokenPipeError, ConnectionResetError):
            return

    def note(self, name: str, message: bytes) -> None:
        """Remembers what the worker has said of itself."""
        self._said.setdefault(name, message)

    def lies(self, message: Message, fds: Sequence[OwnedFd], tell: Callable[..., None]) -> bool:
        """Says something else in place of the message, if it was told to."""
        access = self._access
        if access is None or not access.lie or not concerns(access.lie, message):
            return False
        LIES[access.lie](tell, message, [fd.fd for fd in fds], access.props)
        return True

    def has_storage(self, fd: OwnedFd) -> None:
        """Keeps a mapping of what the worker was given, if it can be had."""
        if self._access is not None:
            self._access.mirrors.append(mmap.mmap(fd.fd, 0))

    def begin(self) -> None:
        """Makes what the deeds need, while that is allowed, and takes orders from now on."""
        start = self._start
        access = Access(
            channel=socket.socket(fileno=start.channel_fd),
            line=self.line,
            main_thread=threading.main_thread().ident or 0,
            said=self._said,
            prepared=Prepared.make(),
            props=self._props,
        )
        if start.ring is not None:
            access.ring = mmap.mmap(start.ring.ring, ring.RING_TOTAL_BYTES)
            access.staging = mmap.mmap(start.ring.staging, ring.STAGING_BYTES)
            access.worker_doorbell = start.ring.worker_doorbell
            access.master_doorbell = start.ring.master_doorbell
        self._access = access  # it closes its socket when nobody holds it
        threading.Thread(target=self._obey, args=(access,), daemon=True).start()
        self.say("ready")

    def _obey(self, access: Access) -> None:
        while order := os.read(self.line, 256):
            name, _, argument = order.decode().partition(" ")
            DEEDS[name](access, argument)
            self.say(f"did {name}")


def corrupt(hub: socket.socket) -> None:
    """Has every worker that this process forks from now on be a rogue."""
    real_run, real_load, real_close = worker.run, worker.load, lockdown.close_all_but
    real_title, real_send, real_take = title.set_title, Channel.send, Handles.take
    born: list[RogueThread] = []
    props = Props.make()  # here, where everything may be opened

    def run(start: WorkerStart) -> NoReturn:
        born.append(RogueThread(start, hub, props))
        hub.close()
        real_run(start)

    def close_all_but(keep: set[int]) -> None:
        kept = born[0].line if born else hub.fileno()
        real_close(keep | props.all() | {kept})

    def load(*arguments: Any) -> Any:
        engine = real_load(*arguments)
        born[0].begin()
        return engine

    def set_title(text: str) -> None:
        real_title(text)
        if born:
            born[0].say(f"title {text}")

    def send(channel: Channel, message: Message, fds: Sequence[OwnedFd] = (), *others: Any) -> None:
        if born and born[0].lies(message, fds, lambda said, given: real_send(channel, said, given)):
            return
        real_send(channel, message, fds, *others)
        if born:
            born[0].note(type(message).__name__, message.encode())

    def take(handles: Handles, ticket: int) -> OwnedFd:
        fd = real_take(handles, ticket)
        if born:
            born[0].has_storage(fd)
        return fd

    mock.patch.object(worker, "run", run).start()
    mock.patch.object(worker, "load", load).start()
    mock.patch.object(lockdown, "close_all_but", close_all_but).start()
    mock.patch.object(title, "set_title", set_title).start()
    mock.patch.object(Channel, "send", send).start()
    mock.patch.object(Handles, "take", take).start()
