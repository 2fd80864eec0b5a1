"""A non-blocking Unix stream socket that carries frames, as vhost-user, its back-end channel and vhost-user-gpu all do.

A frame is u32 request, u32 flags, u32 size in the machine's byte order, then `size` bytes of payload. File
descriptors travel with a frame's bytes (SCM_RIGHTS).

Which descriptor belongs to which frame: the kernel never merges what lies behind descriptors into the same read, but
it does merge what lies before them. So no read here ever asks for more than the rest of the current header or
payload, and what arrives with a read belongs to the frame being read.
"""

import asyncio
import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from master.errors import ProtocolError
from native.owned_fd import OwnedFd

HEADER: Final = struct.Struct("=III")
MAX_FDS: Final = 32  # room for descriptors in one frame; the protocols need 8
FRAMES_PER_TURN: Final = 32  # then the event loop gets its turn, whatever a peer sends
_FD: Final = struct.Struct("=i")
_RECEIVE_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
_SEND_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as it came. Who gets it owns its descriptors."""

    request: int
    flags: int
    payload: bytes
    fds: list[OwnedFd]

    def close_fds(self) -> None:
        """Close the descriptors that nobody has taken. May be called at any time."""
        for fd in self.fds:
            fd.close()


class FrameReceiver(Protocol):
    """Who owns a FramedSocket."""

    def check_header(self, request: int, flags: int, size: int) -> None:
        """Judge a header before its payload is read. Raises ProtocolError to close the socket."""

    def take_frame(self, frame: Frame) -> None:
        """A whole frame. Raises ProtocolError to close the socket; its descriptors are closed then unless taken."""

    def socket_closed(self, reason: Exception | None) -> None:
        """Called exactly once, unless close() was called first. None: the peer closed it between two frames."""


@dataclass(slots=True)
class _Outgoing:
    parts: list[memoryview]
    fds: list[OwnedFd]
    on_sent: Callable[[], None] | None


@dataclass(slots=True)
class _Incoming:
    """The frame being read."""

    header: bytearray = field(default_factory=bytearray)
    payload: bytearray = field(default_factory=bytearray)
    fds: list[OwnedFd] = field(default_factory=list)
    checked: bool = False


class FramedSocket:
    """Reads and writes frames on `sock`, which it owns from now on, by the event loop's callbacks. It never blocks."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, receiver: FrameReceiver, *, send_limit: int | None
    ) -> None:
        """send_limit: bytes that may wait to be sent; a peer that lets more pile up has stopped reading and is
        given up. None if the owner sees to it by `drained`."""
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._receiver = receiver
        self._send_limit = send_limit
        self._incoming = _Incoming()
        self._outgoing: deque[_Outgoing] = deque()
        self._waiting_bytes = 0
        self._paused = False
        self._closed = False
        self._broken = False
        loop.add_reader(sock, self._readable)

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def drained(self) -> bool:
        """Nothing waits to be sent."""
        return not self._outgoing

    def pause_reading(self) -> None:
        """Leave what comes in the kernel's buffer, from the next frame on."""
        if not self._paused and not self._closed:
            self._paused = True
            self._loop.remove_reader(self._sock)

    def resume_reading(self) -> None:
        if self._paused and not self._closed:
            self._paused = False
            self._loop.add_reader(self._sock, self._readable)

    def read_now(self) -> None:
        """Read what is there without waiting for the loop to say so."""
        self._readable()

    def send(
        self,
        request: int,
        flags: int,
        payload: Sequence[bytes | memoryview] = (),
        *,
        fds: Sequence[OwnedFd] = (),
        on_sent: Callable[[], None] | None = None,
    ) -> None:
        """Send a frame, or queue what the socket does not take now. Takes the descriptors over.

        payload: its parts in order; they must not change before on_sent. on_sent is called when the last byte has
        been handed to the kernel, possibly before this returns. On a closed socket nothing happens.
        """
        if self._closed or self._broken:
            for fd in fds:
                fd.close()
            return
        views = [memoryview(part).cast("B") for part in payload]
        size = sum(len(view) for view in views)
        parts = [memoryview(HEADER.pack(request, flags, size)), *(view for view in views if len(view))]
        self._outgoing.append(_Outgoing(parts, list(fds), on_sent))
        self._waiting_bytes += HEADER.size + size
        if len(self._outgoing) == 1:
            self._write()
        if self._send_limit is not None and self._waiting_bytes > self._send_limit and not self._broken:
            self._break(ProtocolError(f"the peer has stopped reading: {self._waiting_bytes} bytes wait to be sent"))

    def close(self) -> None:
        """Close the socket and every descriptor in it. The receiver hears nothing. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        for fd in self._incoming.fds:
            fd.close()
        for outgoing in self._outgoing:
            for fd in outgoing.fds:
                fd.close()
        self._outgoing.clear()
        self._waiting_bytes = 0
        self._sock.close()

    def _end(self, reason: Exception | None) -> None:
        if not self._closed:
            self.close()
            self._receiver.socket_closed(reason)

    def _break(self, reason: Exception) -> None:
        """End it in the loop's next turn: a sender in the middle of something must not see its own teardown."""
        self._broken = True
        self._loop.remove_writer(self._sock)
        self._loop.call_soon(self._end, reason)

    def _readable(self) -> None:
        try:
            for _ in range(FRAMES_PER_TURN):
                if self._paused or self._closed or not self._read_frame():
                    return
        except ProtocolError as reason:
            self._end(reason)

    def _read_frame(self) -> bool:
        """Read what is there of one frame and hand it on if it is whole. False: there was not enough."""
        incoming = self._incoming
        if not self._fill(incoming.header, HEADER.size):
            return False
        request, flags, size = HEADER.unpack(incoming.header)
        if not incoming.checked:
            self._receiver.check_header(request, flags, size)
            incoming.checked = True
        if not self._fill(incoming.payload, size):
            return False
        self._incoming = _Incoming()
        frame = Frame(request, flags, bytes(incoming.payload), incoming.fds)
        try:
            self._receiver.take_frame(frame)
        except BaseException:
            frame.close_fds()
            raise
        return True

    def _fill(self, buffer: bytearray, size: int) -> bool:
        """Read until buffer has `size` bytes. False: not yet, or the peer is gone."""
        while len(buffer) < size:
            try:
                data, fds, truncated = _receive(self._sock, size - len(buffer))
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as reason:
                self._end(reason)
                return False
            self._incoming.fds += fds
            if truncated or len(self._incoming.fds) > MAX_FDS:
                raise ProtocolError("descriptors were lost: too many in one frame, or this process can open no more")
            if not data:
                whole = not self._incoming.header
                self._end(None if whole else ProtocolError("the peer closed the socket in the middle of a frame"))
                return False
            buffer += data
        return True

    def _write(self) -> None:
        while self._outgoing:
            outgoing = self._outgoing[0]
            try:
                sent = _send(self._sock, outgoing.parts, outgoing.fds)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._sock, self._write)
                return
            except OSError as reason:
                self._break(reason)
                return
            for fd in outgoing.fds:
                fd.close()
            outgoing.fds.clear()
            self._waiting_bytes -= sent
            _advance(outgoing.parts, sent)
            if not outgoing.parts:
                self._outgoing.popleft()
                if outgoing.on_sent is not None:
                    outgoing.on_sent()
        if not self._closed:
            self._loop.remove_writer(self._sock)


def _receive(sock: socket.socket, size: int) -> tuple[bytes, list[OwnedFd], bool]:
    """One recvmsg: at most `size` bytes, the descriptors that came, and whether some were lost."""
    data, ancillary, flags, _address = sock.recvmsg(size, socket.CMSG_SPACE(MAX_FDS * _FD.size), _RECEIVE_FLAGS)
    fds = [
        OwnedFd(fd)
        for level, kind, content in ancillary
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
        for (fd,) in _FD.iter_unpack(content[: len(content) - len(content) % _FD.size])
    ]
    return data, fds, bool(flags & socket.MSG_CTRUNC)


def _send(sock: socket.socket, parts: list[memoryview], fds: list[OwnedFd]) -> int:
    ancillary = []
    if fds:
        rights = b"".join(_FD.pack(fd.fileno()) for fd in fds)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
    return sock.sendmsg(parts, ancillary, _SEND_FLAGS)


def _advance(parts: list[memoryview], sent: int) -> None:
    """Drop the first `sent` bytes of parts."""
    while parts and sent >= len(parts[0]):
        sent -= len(parts.pop(0))
    if sent:
        parts[0] = parts[0][sent:]


def unix_stream_socket(fd: OwnedFd) -> socket.socket:
    """The connected Unix stream socket that came as a descriptor. Takes the descriptor over; OSError if it is no such
    socket.
    """
    number = fd.take()
    try:
        sock = socket.socket(fileno=number)
    except OSError:
        os.close(number)
        raise
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        sock.close()
        raise OSError(errno.ENOTSOCK, "not a Unix stream socket")
    return sock
