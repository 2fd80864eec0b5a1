"""The service's side of the control plane: in its loop, and never in its way.

Nothing here waits: what cannot be sent is dropped. A reader that is too slow misses events; one that asks more than it
reads misses answers. A few requests are answered a turn of the loop, then the guests get theirs.

ZeroMQ has a thread for its input and output, and its descriptor (ZMQ_FD) says only that something has changed since the
socket was last used for anything, sending too. So whoever has used a socket looks at its ZMQ_EVENTS until there is
nothing left, and so does the loop when the descriptor becomes readable.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import zmq

from master.control.directory import ServiceDirectory
from master.control.errors import DirectoryError
from master.control.protocol import MAX_REQUEST_BYTES, Hello, answer, encode_event, failure
from master.control_target import Controlled
from master.events import Event

log = logging.getLogger(__name__)

REQUESTS_PER_TURN: Final = 4
REQUESTS_WAITING: Final = 16  # of each peer; and as many answers
EVENTS_WAITING: Final = 1000  # for each subscriber
MAX_SUBSCRIPTION_BYTES: Final = 256
HANDSHAKE_MS: Final = 5000
OWNER_ONLY: Final = 0o600


class ControlServer:
    """Answers requests and publishes events in a directory, which it takes over, until close()."""

    def __init__(self, loop: asyncio.AbstractEventLoop, directory: ServiceDirectory, target: Controlled) -> None:
        """Raises DirectoryError if the sockets cannot be made; the directory is closed then."""
        self._directory = directory
        self._target = target
        self._context = zmq.Context(io_threads=1)
        try:
            self._requests = self._bind(zmq.ROUTER, directory.requests, MAX_REQUEST_BYTES, REQUESTS_WAITING)
            # XPUB is PUB that says who subscribes; verbose: also to what others have subscribed to already.
            self._events = self._bind(
                zmq.XPUB, directory.events, MAX_SUBSCRIPTION_BYTES, EVENTS_WAITING, {zmq.XPUB_VERBOSE: 1}
            )
        except zmq.ZMQError as reason:
            self._context.destroy(linger=0)
            directory.close()
            raise DirectoryError(f"cannot listen in {directory.path}: {reason.strerror}") from reason
        self._mailboxes = (
            Mailbox(loop, self._requests, self._answer),
            Mailbox(loop, self._events, self._greet),
        )
        self._broken = False

    @property
    def name(self) -> str:
        """What the service is called."""
        return self._directory.name

    def publish(self, event: Event) -> None:
        """Tells whoever listens. A Publish (master.events)."""
        if self._events.closed:
            return
        try:
            self._events.send_multipart(encode_event(event), zmq.DONTWAIT)
        except zmq.ZMQError as reason:
            self._complain(reason)
        self._mailboxes[1].look()

    def close(self) -> None:
        """Nobody is told anything any more. May be called again."""
        for mailbox in self._mailboxes:
            mailbox.close()
        self._context.destroy(linger=0)
        self._directory.close()

    def _bind(
        self, kind: int, path: Path, max_bytes: int, waiting: int, options: Mapping[int, int] | None = None
    ) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        for option, value in (options or {}).items():
            socket.setsockopt(option, value)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
        socket.setsockopt(zmq.RCVHWM, REQUESTS_WAITING)
        socket.setsockopt(zmq.SNDHWM, waiting)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        socket.bind(f"ipc://{path}")
        os.chmod(path, OWNER_ONLY)  # the directory has kept others out until now, and goes on doing so
        return socket

    def _answer(self) -> None:
        """Takes one request. Its envelope goes before the answer; a REQ socket puts an empty frame behind that."""
        *envelope, request = self._requests.recv_multipart(zmq.DONTWAIT)
        if len(envelope) != 1 and envelope[1:] != [b""]:
            return  # nobody who speaks our language
        try:
            reply = answer(self._target, request)
        except Exception:
            # A bug of ours, and no reason to end somebody's VM.
            log.exception("a request of the control plane failed")
            reply = failure("internal error; the service's log has it")
        self._requests.send_multipart([*envelope, reply], zmq.DONTWAIT)

    def _greet(self) -> None:
        """Takes one subscription (the byte 1 and a topic), or its end."""
        if self._events.recv(zmq.DONTWAIT).startswith(b"\x01"):
            self.publish(Hello(service=self.name, time=time.time()))

    def _complain(self, reason: zmq.ZMQError) -> None:
        if not self._broken:
            log.error("an event could not be published: %s", reason.strerror)
        self._broken = True


class Mailbox:
    """What a socket has received, taken in a few at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: zmq.Socket[bytes], take: Callable[[], None]) -> None:
        """take() takes one message in, without waiting; its ZMQErrors are that message's end."""
        self._loop = loop
        self._socket = socket
        self._take = take
        self._next: asyncio.Handle | None = None
        self._fd = socket.fileno()  # ZMQ_FD
        loop.add_reader(self._fd, self._turn)
        self.look()

    def look(self) -> None:
        """Call it when the socket has been used: there may be something that the descriptor does not tell any more."""
        if self._next is None and not self._socket.closed and self._has_some():
            self._next = self._loop.call_soon(self._turn)

    def close(self) -> None:
        """Stops looking. May be called again."""
        self._loop.remove_reader(self._fd)
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _turn(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None
        for _ in range(REQUESTS_PER_TURN):
            if not self._has_some():
                return
            try:
                self._take()
            except zmq.ZMQError as reason:
                log.debug("control plane: %s", reason.strerror)
        self.look()

    def _has_some(self) -> bool:
        events = self._socket.getsockopt(zmq.EVENTS)
        return isinstance(events, int) and bool(events & zmq.POLLIN)
