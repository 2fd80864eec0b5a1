"""A socket that carries messages and their file descriptors.

SOCK_SEQPACKET keeps the borders of messages and reports the end of the other process, SCM_RIGHTS carries descriptors
(unix(7)). One datagram is one message. What arrives is closed here unless it is handed out with a well-formed message.
"""

import array
import errno
import socket
import time
from collections.abc import Callable, Sequence
from typing import Self

from ipc import messages
from ipc.errors import ChannelClosed, ProtocolError
from ipc.messages import Message
from native.owned_fd import OwnedFd

_MAX_BYTES = max(kind.size() for kind in messages.MESSAGES.values())
_MAX_FDS = max(kind.FDS for kind in messages.MESSAGES.values())
FD_BYTES = array.array("i").itemsize
_PAUSE = 0.01

FDS_PATIENCE = 5.0
"""Seconds that whoever must send descriptors tries to: longer than a worker lives that floods its channel with them."""


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new socket for a channel, close-on-exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send_fds(
    sock: socket.socket, data: bytes, fds: Sequence[OwnedFd | int], patience: float = 0.0, flags: int = 0
) -> None:
    """Send one datagram with descriptors, which stay the caller's. flags: those of send(2). Raises OSError.

    Descriptors under way are counted for all processes of a user together (unix(7), ETOOMANYREFS). So a worker that
    floods its channel with them can keep others of its user from sending one, until it is ended: patience is how many
    seconds to try again.
    """
    numbers = array.array("i", [fd if isinstance(fd, int) else fd.fd for fd in fds])
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if numbers else []
    deadline = time.monotonic() + patience
    while True:
        try:
            sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL | flags)
            return
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS or time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE)


class Channel:
    """One end of a channel, which accepts the messages it was told to and no others."""

    def __init__(self, sock: socket.socket, accepts: tuple[type[Message], ...]) -> None:
        """Take over `sock`, a connected SOCK_SEQPACKET socket."""
        self._socket = sock
        self._accepts = accepts
        self._takes_fds = any(kind.FDS for kind in accepts)
        self._discard: Callable[[OwnedFd], None] = OwnedFd.close

    @classmethod
    def from_fd(cls, fd: int, accepts: tuple[type[Message], ...]) -> Self:
        """Take over the socket `fd`. Raises ValueError if it is not a SOCK_SEQPACKET one, OSError if it is none."""
        sock = socket.socket(fileno=fd)
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_SEQPACKET:
            sock.detach()
            raise ValueError(f"descriptor {fd} is not a SOCK_SEQPACKET Unix socket")
        sock.set_inheritable(False)
        sock.setblocking(True)
        return cls(sock, accepts)

    def fileno(self) -> int:
        """The socket's descriptor, for select and poll."""
        return self._socket.fileno()

    @property
    def sock(self) -> socket.socket:
        """The socket, lent for its options."""
        return self._socket

    def take_fds(self, wanted: bool, discard: Callable[[OwnedFd], None] = OwnedFd.close) -> None:
        """Whether messages are taken off the socket with their descriptors from now on; else one with descriptors stays
        there and is a ProtocolError. discard(fd) closes what came with a message that is not as declared."""
        self._takes_fds = wanted
        self._discard = discard

    def send(self, message: Message, fds: Sequence[OwnedFd | int] = (), patience: float = 0.0) -> None:
        """Send a message with its descriptors, which stay the caller's.

        Blocks while the socket's buffer is full. patience: see send_fds. Raises ChannelClosed when the other end is
        gone, OSError, ValueError when the number of descriptors is not the message's.
        """
        self._send(message, fds, patience, 0)

    def send_nowait(self, message: Message, fds: Sequence[OwnedFd | int] = ()) -> None:
        """As send(), but BlockingIOError where that would block."""
        self._send(message, fds, 0.0, socket.MSG_DONTWAIT)

    def _send(self, message: Message, fds: Sequence[OwnedFd | int], patience: float, flags: int) -> None:
        if len(fds) != message.FDS:
            raise ValueError(f"{type(message).__name__} takes {message.FDS} descriptors, not {len(fds)}")
        try:
            send_fds(self._socket, message.encode(), fds, patience, flags)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosed("the other end of the channel is closed") from error

    def recv(self) -> tuple[Message, list[OwnedFd]]:
        """Wait for a message; its descriptors are the caller's.

        Raises ChannelClosed at the end, ProtocolError (with nothing left open) for anything that is not as declared.
        """
        received = self._receive(0)
        assert received is not None  # the socket blocks
        return received

    def recv_nowait(self) -> tuple[Message, list[OwnedFd]] | None:
        """As recv(), but None when no message is there yet."""
        return self._receive(socket.MSG_DONTWAIT)

    def _receive(self, flags: int) -> tuple[Message, list[OwnedFd]] | None:
        try:
            if not self._takes_fds:
                self._look_for_fds(flags)
            # Room for one byte and one descriptor more than any message has, so that too much is seen and not cut off.
            data, ancillary, message_flags, _ = self._socket.recvmsg(
                _MAX_BYTES + 1, socket.CMSG_SPACE((_MAX_FDS + 1) * FD_BYTES), flags | socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except ConnectionResetError as error:
            raise ChannelClosed("the other end of the channel is closed") from error
        fds = descriptors(ancillary)
        try:
            return self._check(data, fds, message_flags), fds
        except BaseException:
            for fd in fds:
                self._discard(fd)
            raise

    def _look_for_fds(self, flags: int) -> None:
        """A message with descriptors, of which there is none, stays where it is: to discard it would close them, and
        who sent them may have made that take long (SO_LINGER, socket(7))."""
        if self._socket.recvmsg(1, 0, flags | socket.MSG_PEEK)[2] & socket.MSG_CTRUNC:
            raise ProtocolError("descriptors with a message that has none")

    def _check(self, data: bytes, fds: list[OwnedFd], message_flags: int) -> Message:
        if not data and not fds:
            raise ChannelClosed("the other end of the channel is closed")
        if message_flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ProtocolError("a message larger than any, or with more descriptors")
        message = messages.decode(data, self._accepts)
        if len(fds) != message.FDS:
            raise ProtocolError(f"{type(message).__name__} with {len(fds)} descriptors, not {message.FDS}")
        return message

    def take(self) -> socket.socket:
        """Give up the socket to the caller, who closes it."""
        return socket.socket(fileno=self._socket.detach())

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[OwnedFd]:
    """Those that recvmsg() says have come, the caller's from here on."""
    fds: list[OwnedFd] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % FD_BYTES])
            fds.extend(OwnedFd(number) for number in numbers)
    return fds
