"""Sockets whose other end may send descriptors that nobody asked for.

To close the last reference to a file can take as long as its owner likes: a TCP socket lingers (socket(7), SO_LINGER).
A descriptor that is under way in a message is closed by whoever discards the message or closes the socket, so a peer
could have us wait. Linux 6.16 lets a socket refuse descriptors; for older kernels there is a thread that may wait.
"""

import errno
import queue
import socket
import threading
from typing import Final

from native.owned_fd import OwnedFd

SO_PASSRIGHTS: Final = 83  # include/uapi/asm-generic/socket.h
MAX_WAITING: Final = 256


def refuse_descriptors(sock: socket.socket) -> bool:
    """Whoever sends a descriptor to this Unix socket, or to one that is accepted from it, gets EPERM from now on. False
    if the kernel does not know how. Raises OSError."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return False
    return True


def accept_descriptors(sock: socket.socket) -> None:
    """Whoever sends descriptors may do so from now on. There is no way back to where none can be under way: what was
    sent before a refusal is in the socket still. Raises OSError."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 1)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise


def refuses_descriptors(sock: socket.socket) -> bool:
    """Whether it does, and has so since it was made: what is accepted is as the listening socket was by then."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS) == 0
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return False


class Closer:
    """Closes sockets without waiting for what they hold: at once where nothing can be under way in them, else in a
    thread, one after the other. The peer sees the end at once in either case."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = 0
        self._queue: queue.SimpleQueue[socket.socket | OwnedFd] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def full(self) -> bool:
        """So many sockets wait to be closed that there had better be no new ones."""
        with self._lock:
            return self._waiting >= MAX_WAITING

    @property
    def waiting(self) -> int:
        """How many are not closed yet."""
        with self._lock:
            return self._waiting

    def close(self, sock: socket.socket) -> None:
        """Takes over `sock`, which may be closed already."""
        if sock.fileno() < 0:
            return
        if refuses_descriptors(sock):
            sock.close()
            return
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # the other end has gone
                raise
        self._close_later(socket.socket(fileno=sock.detach()))

    def discard(self, fd: OwnedFd) -> None:
        """Takes over a descriptor that a peer sent and that is not what it should be."""
        if not fd.closed:
            self._close_later(OwnedFd(fd.take()))

    def _close_later(self, file: socket.socket | OwnedFd) -> None:
        with self._lock:
            self._waiting += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="closer", daemon=True)
            self._thread.start()
        self._queue.put(file)

    def _run(self) -> None:
        while True:
            self._queue.get().close()
            with self._lock:
                self._waiting -= 1


closer: Final = Closer()
"""The master's."""
