"""Noticing that the other end of a socket was closed, without reading a byte of it."""

import asyncio
import select
import socket
from collections.abc import Callable


class HangupWatch:
    """Tells once of each socket whose other end is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._told: dict[int, Callable[[], None]] = {}
        loop.add_reader(self._epoll.fileno(), self._look)

    def add(self, watched: socket.socket, told: Callable[[], None]) -> None:
        """Calls told() when that happens; it may have."""
        self._epoll.register(watched, 0)  # EPOLLHUP comes unasked
        self._told[watched.fileno()] = told

    def remove(self, watched: socket.socket) -> None:
        """To be called before the socket is closed here; nothing happens if it has been told of."""
        if self._told.pop(watched.fileno(), None) is not None:
            self._epoll.unregister(watched)

    def close(self) -> None:
        """Watches no more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _look(self) -> None:
        for fd, _events in self._epoll.poll(0):
            self._epoll.unregister(fd)
            self._told.pop(fd)()
