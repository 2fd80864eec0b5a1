"""What the launcher does with the listeners of its workers' filters (`seccomp`).

A worker's listener comes over a socket made for it at the fork. A notice is a system call that the filter does not
allow and that waits. With SandboxMode.ENFORCE the master is told its name and the worker is killed; nothing is ever let
go on, so the call is not made. With SandboxMode.AUDIT the master is told once for each system call and worker, and the
call is made.

That the listener came is what makes a worker Sealed, and the master is told. One that closes the socket without, where
it should not, is killed.

The worker at the other end is hostile as soon as it is sealed. It has closed its end of the socket by then; still
nothing that comes from there is believed. Nothing here waits for a worker, but once and for a moment for the end of one
that hung up without a listener.
"""

import logging
import select
import selectors
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from context_worker.sandbox_mode import SandboxMode
from context_worker.seccomp import LISTENER, RECEIVED
from ipc import messages
from ipc.channel import FD_BYTES, Channel, descriptors
from ipc.messages import Sealed
from native import sandbox
from native.owned_fd import OwnedFd

log = logging.getLogger(__name__)

_END_MS = 50
"""A process that ends closes its sockets a little before its end can be seen."""

MOST_TOLD = 64
"""Denied system calls of one worker that the master is told of with SandboxMode.AUDIT."""
_NAMELESS = -1
"""Stands for all system calls without a name: there are billions of numbers."""


def reporter_pair() -> tuple[socket.socket, socket.socket]:
    """The socket that a worker's listener is to come from, and the worker's end of it for `seccomp.hand_over`."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@dataclass(eq=False)
class Watch:
    """One worker whose denials are waited for. `reporter` until its listener came, `listener` from then on."""

    worker_id: int
    pidfd: OwnedFd
    reporter: socket.socket | None
    listener: OwnedFd | None = None
    told: set[int] = field(default_factory=set)


class Denials:
    """The listeners of all workers of a launcher."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        channel: Channel,
        mode: SandboxMode,
        on_listener: Callable[[Watch], object] = lambda _watch: None,
    ) -> None:
        """`selector`: whoever runs it calls `attend` for every key whose data is a Watch; `channel`: to the master;
        `on_listener`: what is to be done about a worker when it has its filter, which waits for that."""
        self._selector = selector
        self._channel = channel
        self._mode = mode
        self._on_listener = on_listener

    def expect(self, worker_id: int, pidfd: OwnedFd, reporter: socket.socket) -> Watch:
        """Wait for the listener of a worker that was born, at our end of its `reporter_pair`, which is taken over.

        `pidfd` stays the caller's and has to be open until `forget`.
        """
        reporter.setblocking(False)
        watch = Watch(worker_id, pidfd, reporter)
        self._selector.register(reporter, selectors.EVENT_READ, watch)
        return watch

    def forget(self, watch: Watch) -> None:
        """The worker has ended."""
        self._drop_reporter(watch)
        self._ignore(watch)
        if watch.listener is not None:
            watch.listener.close()
            watch.listener = None

    def attend(self, watch: Watch) -> None:
        """Something has come for a watch. Raises ChannelClosed when the master is gone."""
        if watch.listener is not None:
            self._attend_listener(watch, watch.listener)
        elif watch.reporter is not None:
            self._attend_reporter(watch, watch.reporter)

    def _attend_reporter(self, watch: Watch, reporter: socket.socket) -> None:
        try:
            listener = _receive_listener(reporter)
        except BlockingIOError:
            return
        except OSError as error:
            # Only a worker that is broken, or taken over before it could be, sends what is no listener.
            log.error("worker %d sends no listener: %s", watch.worker_id, error)
            self._drop_reporter(watch)
            self._kill(watch)
            return
        if listener is not None:
            watch.listener = listener
            self._selector.register(listener, selectors.EVENT_READ, watch)
            self._on_listener(watch)
            with suppress(BrokenPipeError, BlockingIOError):  # it has ended, or is not itself any more
                reporter.send(RECEIVED)
        self._drop_reporter(watch)
        if listener is None and self._mode is SandboxMode.ENFORCE:
            self._never_sealed(watch)
        else:
            self._channel.send(Sealed(watch.worker_id, sealed=True))

    def _never_sealed(self, watch: Watch) -> None:
        """It has let go of the way to send its listener: most likely because it ends."""
        poll = select.poll()
        poll.register(watch.pidfd, select.POLLIN)
        if poll.poll(_END_MS):
            return
        try:
            self._channel.send(Sealed(watch.worker_id, sealed=False))
        finally:
            self._kill(watch)

    def _attend_listener(self, watch: Watch, listener: OwnedFd) -> None:
        try:
            notice = sandbox.receive(listener.fd)
        except sandbox.ListenerEnded:
            self._ignore(watch)
            return
        if notice is None:
            return
        if self._mode is SandboxMode.AUDIT:
            known = notice.number if sandbox.known_name_of(notice.number) is not None else _NAMELESS
            if known not in watch.told and len(watch.told) < MOST_TOLD:
                watch.told.add(known)
                self._tell(watch, notice)
            sandbox.let_continue(listener.fd, notice.id)
            return
        self._ignore(watch)  # the first denial is the blame; whatever follows waits for the end
        try:
            self._tell(watch, notice)
        finally:
            self._kill(watch)

    def _tell(self, watch: Watch, notice: sandbox.Notice) -> None:
        name = sandbox.name_of(notice.number)
        self._channel.send(messages.denied(watch.worker_id, name, self._mode is SandboxMode.AUDIT))

    @staticmethod
    def _kill(watch: Watch) -> None:
        try:
            signal.pidfd_send_signal(watch.pidfd.fd, signal.SIGKILL)
        except ProcessLookupError:
            return  # it was quicker

    def _drop_reporter(self, watch: Watch) -> None:
        if watch.reporter is not None:
            self._selector.unregister(watch.reporter)
            watch.reporter.close()
            watch.reporter = None

    def _ignore(self, watch: Watch) -> None:
        """Wait for its listener no more, which stays open: were it closed, calls that wait would go on with ENOSYS."""
        if watch.listener is not None and watch.listener.fd in self._selector.get_map():
            self._selector.unregister(watch.listener)


def _receive_listener(reporter: socket.socket) -> OwnedFd | None:
    """The listener that came; None if the worker closed its end without. Raises OSError for anything else."""
    room = socket.CMSG_SPACE(2 * FD_BYTES)  # one more than there may be, so that too many are seen
    data, ancillary, flags, _ = reporter.recvmsg(len(LISTENER) + 1, room, socket.MSG_CMSG_CLOEXEC)
    fds = descriptors(ancillary)
    if not data and not fds:
        return None
    if data == LISTENER and len(fds) == 1 and not flags & socket.MSG_CTRUNC and sandbox.is_listener(fds[0].fd):
        return fds[0]
    for fd in fds:
        fd.close()
    raise OSError(f"{len(data)} bytes with {len(fds)} descriptors")
