"""QEMU's side of the vhost-user-gpu display socket, in a thread: framebuffers, cursor, a record of messages.

The thread answers GET_PROTOCOL_FEATURES, GET_DISPLAY_INFO and GET_EDID, keeps a framebuffer per scanout up to date and
notes every message. `stall()` makes it stop reading, as a QEMU whose main loop is busy does. A message that breaks the
protocol ends the socket and is raised by the next call of `wait_for`, `screenshot` or `close`.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from tests.fake_vmm import display_protocol as protocol
from tests.fake_vmm import wire
from tests.fake_vmm.display_protocol import (
    CursorPos,
    CursorUpdate,
    DisplayMessage,
    DisplayRequest,
    DmabufScanout,
    GetEdid,
    Incoming,
    Pixels,
    Scanout,
    SetProtocolFeatures,
    Update,
)
from tests.fake_vmm.edid import make_edid
from tests.fake_vmm.errors import ProtocolViolation
from tests.fake_vmm.protocol import MAX_FDS, receive_exactly, send_all
from tests.fake_vmm.wire import Rect

_RESP_FLAGS_NONE = (0, 0, 0, 0)
_MAX_PAYLOAD = 1 << 28
_Y_0_TOP = 1  # fd_flags, as of virtio-gpu resources: a texture of GL, whose first row QEMU shows at the bottom
_FOURCC_BGR = {b"XR24", b"AR24"}  # bytes B G R x in memory
_FOURCC_RGB = {b"XB24", b"AB24"}  # bytes R G B x in memory


class Display:
    """The VMM's display: `modes` are the (width, height) of its scanouts, the first ones enabled.

    protocol_features: what GET_PROTOCOL_FEATURES says (F_EDID, F_DMABUF2).
    receive_buffer: SO_RCVBUF in bytes, to make a stall felt early; None leaves the system's.
    Thread-safe; survives device resets, each of which brings a new socket (`new_socket`).
    """

    def __init__(
        self,
        modes: Sequence[tuple[int, int]] = ((1280, 800),),
        *,
        protocol_features: int = protocol.F_EDID | protocol.F_DMABUF2,
        receive_buffer: int | None = None,
    ) -> None:
        self.modes = tuple(modes)
        self.protocol_features = protocol_features
        self.negotiated_features: int | None = None
        self.messages: list[DisplayMessage] = []
        self._receive_buffer = receive_buffer
        self._condition = threading.Condition()  # re-entrant
        self._framebuffers: dict[int, Pixels] = {}
        self._dmabufs: dict[int, tuple[DmabufScanout, int]] = {}
        self._error: Exception | None = None
        self._stalled = False
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closed = False

    # --- life ---------------------------------------------------------------------------------------------------

    def new_socket(self) -> socket.socket:
        """A fresh connection: serves one end, returns the back end's (the caller closes it once it is passed on)."""
        self.disconnect()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        if self._receive_buffer is not None:
            # Unix sockets account data against the *sender's* buffer.
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._receive_buffer)
        self._socket = ours
        self._thread = threading.Thread(target=self._serve, args=(ours,), name="fake-vmm-display", daemon=True)
        self._thread.start()
        return theirs

    @property
    def connected(self) -> bool:
        return self._socket is not None

    def disconnect(self) -> None:
        """Close our end, as QEMU does when the device stops. What was shown and recorded stays."""
        if self._thread is None or self._socket is None:
            return
        sock, self._socket = self._socket, None
        os.eventfd_write(self._wake, 1)
        self._thread.join(timeout=10)
        if self._thread.is_alive():
            raise TimeoutError("the display thread did not end")
        self._thread = None
        sock.close()

    def close(self) -> None:
        """Disconnect and free everything; raises what went wrong on the socket, if something did."""
        if self._closed:
            return
        self._closed = True
        self.disconnect()
        for _, fd in self._dmabufs.values():
            os.close(fd)
        self._dmabufs.clear()
        os.close(self._wake)
        self._raise_error()

    def stall(self) -> None:
        """Stop reading the socket until `resume`."""
        with self._condition:
            self._stalled = True
        os.eventfd_write(self._wake, 1)

    def resume(self) -> None:
        with self._condition:
            self._stalled = False
        os.eventfd_write(self._wake, 1)

    def hand_over(self) -> int:
        """Stop reading for good and return a new descriptor of our end, for somebody who reads it instead."""
        if self._socket is None:
            raise RuntimeError("the display is not connected")
        self.stall()
        return os.dup(self._socket.fileno())

    # --- what a test asks ---------------------------------------------------------------------------------------

    def framebuffer(self, scanout: int = 0) -> Pixels | None:
        """A copy of what the scanout shows, height x width x 4 (B G R x); None when it is off."""
        with self._condition:
            self._raise_error()
            pixels = self._framebuffers.get(scanout)
            return None if pixels is None else pixels.copy()

    def screenshot(self, scanout: int = 0) -> Image.Image:
        """What the scanout shows, as RGB image; RuntimeError when it is off."""
        pixels = self.framebuffer(scanout)
        if pixels is None:
            raise RuntimeError(f"scanout {scanout} is off")
        return Image.fromarray(np.ascontiguousarray(pixels[:, :, 2::-1]))

    def received(self, *requests: DisplayRequest) -> list[DisplayMessage]:
        """The messages recorded so far, of these kinds if any are given."""
        with self._condition:
            return [m for m in self.messages if not requests or m.request in requests]

    def clear_record(self) -> None:
        with self._condition:
            self.messages.clear()

    def wait_for(self, condition: Callable[[], object], awaited: str, timeout: float = 30.0) -> None:
        """Until `condition()` is true; it is asked after each message, with the display locked (re-entrant)."""
        deadline = time.monotonic() + timeout
        with self._condition:
            while not condition():
                self._raise_error()
                if not self._condition.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    raise TimeoutError(f"the display socket did not bring {awaited} within {timeout} s")

    def wait_for_message(self, request: DisplayRequest, count: int = 1, timeout: float = 30.0) -> list[DisplayMessage]:
        """Until `count` messages of a kind are on record; returns all of that kind."""
        self.wait_for(lambda: len(self.received(request)) >= count, f"{count} x {request.name}", timeout)
        return self.received(request)

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    # --- the thread ---------------------------------------------------------------------------------------------

    def _serve(self, sock: socket.socket) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while self._socket is sock:
            with self._condition:
                stalled = self._stalled
            if stalled:
                poll.register(sock, 0)
            else:
                poll.register(sock, select.POLLIN)
            ready = dict(poll.poll())
            if self._wake in ready:
                _drain(self._wake)
                continue
            if stalled:  # the peer hung up: nothing more to stall for
                return
            try:
                if not self._serve_one(sock):
                    return
            except Exception as error:  # whatever it is, the test's thread must see it
                with self._condition:
                    self._error = error
                    self._condition.notify_all()
                sock.shutdown(socket.SHUT_RDWR)
                return

    def _serve_one(self, sock: socket.socket) -> bool:
        """One message; False at the end of the stream."""
        fds: list[int] = []
        try:
            header = _first_bytes(sock, fds)
            if not header:
                return False
            request, _, size = protocol.HEADER.unpack(header)
            if size > _MAX_PAYLOAD:
                raise ProtocolViolation(f"display socket: a payload of {size} bytes")
            incoming = protocol.decode(request, receive_exactly(sock, size, fds))
            with self._condition:
                reply = self._handle(incoming, fds)
                self.messages.append(incoming.message)
                self._condition.notify_all()
        except (EOFError, ConnectionResetError) as error:
            if self._socket is sock:
                raise ProtocolViolation(f"display socket closed within a message: {error}") from error
            return False
        finally:
            for fd in fds:
                os.close(fd)
        if reply is not None:
            try:
                send_all(sock, protocol.HEADER.pack(request, protocol.FLAG_REPLY, len(reply)) + reply)
            except (BrokenPipeError, ConnectionResetError):
                return False
        return True

    def _handle(self, incoming: Incoming, fds: list[int]) -> bytes | None:
        """Apply a message; the reply's payload where there is one. Takes the fds it keeps out of `fds`."""
        message = incoming.message
        if message.request is DisplayRequest.GET_PROTOCOL_FEATURES:
            return struct.pack("<Q", self.protocol_features)
        if message.request is DisplayRequest.GET_DISPLAY_INFO:
            return self._display_info()
        if isinstance(message, GetEdid):
            return self._edid(message.scanout)
        if isinstance(message, SetProtocolFeatures):
            self.negotiated_features = message.features
        elif isinstance(message, Scanout):
            self._set_scanout(message)
        elif isinstance(message, DmabufScanout):
            self._set_dmabuf(message, fds)
        elif isinstance(message, Update):
            return self._update(message, incoming.data)
        elif not isinstance(message, CursorPos | CursorUpdate):
            raise ProtocolViolation(f"display socket: {message}")
        return None

    def _display_info(self) -> bytes:
        reply = wire.HEADER.pack(wire.Resp.OK_DISPLAY_INFO, *_RESP_FLAGS_NONE)
        for scanout in range(wire.MAX_SCANOUTS):
            width, height = self.modes[scanout] if scanout < len(self.modes) else (0, 0)
            reply += wire.DISPLAY_ONE.pack(0, 0, width, height, scanout < len(self.modes), 0)
        return reply

    def _edid(self, scanout: int) -> bytes:
        if scanout >= len(self.modes):
            raise ProtocolViolation(f"display socket: GET_EDID of scanout {scanout}")
        edid = make_edid(*self.modes[scanout])
        header = wire.HEADER.pack(wire.Resp.OK_EDID, *_RESP_FLAGS_NONE)
        return header + struct.pack("<II", wire.EDID_SIZE, 0) + edid.ljust(wire.EDID_SIZE, b"\0")

    def _check_scanout(self, scanout: int) -> None:
        if scanout >= len(self.modes):
            raise ProtocolViolation(f"display socket: scanout {scanout} of {len(self.modes)}")

    def _drop_dmabuf(self, scanout: int) -> None:
        if scanout in self._dmabufs:
            os.close(self._dmabufs.pop(scanout)[1])

    def _set_scanout(self, message: Scanout) -> None:
        self._check_scanout(message.scanout)
        self._drop_dmabuf(message.scanout)
        if message.width == 0 or message.height == 0:
            self._framebuffers.pop(message.scanout, None)
        else:
            self._framebuffers[message.scanout] = np.zeros((message.height, message.width, 4), np.uint8)

    def _set_dmabuf(self, message: DmabufScanout, fds: list[int]) -> None:
        self._check_scanout(message.scanout)
        self._drop_dmabuf(message.scanout)
        self._framebuffers.pop(message.scanout, None)
        if message.rect.width == 0 or message.rect.height == 0:
            return
        if len(fds) != 1:
            raise ProtocolViolation(f"display socket: {message.request.name} with {len(fds)} fds")
        self._dmabufs[message.scanout] = message, fds.pop()
        self._framebuffers[message.scanout] = np.zeros((message.rect.height, message.rect.width, 4), np.uint8)

    def _update(self, message: Update, data: memoryview) -> bytes | None:
        self._check_scanout(message.scanout)
        pixels = self._framebuffers.get(message.scanout)
        if message.request is DisplayRequest.DMABUF_UPDATE:
            if message.scanout not in self._dmabufs:
                raise ProtocolViolation(f"display socket: DMABUF_UPDATE of scanout {message.scanout} without one")
            self._framebuffers[message.scanout] = _read_dmabuf(*self._dmabufs[message.scanout])
            return b""
        rect = message.rect
        if pixels is None or rect.x + rect.width > pixels.shape[1] or rect.y + rect.height > pixels.shape[0]:
            raise ProtocolViolation(f"display socket: {message} leaves its scanout")
        new = np.frombuffer(data, np.uint8).reshape(rect.height, rect.width, 4)
        pixels[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width] = new
        return None


def _first_bytes(sock: socket.socket, fds: list[int]) -> bytes:
    """A message header, or nothing at the end of the stream."""
    first, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(4 * MAX_FDS))
    for _, kind, body in ancillary:
        if kind == socket.SCM_RIGHTS:
            fds.extend(struct.unpack(f"{len(body) // 4}i", body))
    return first + receive_exactly(sock, protocol.HEADER.size - 1, fds) if first else b""


def _read_dmabuf(scanout: DmabufScanout, fd: int) -> Pixels:
    """The scanout's pixels by mapping its buffer; black where that cannot be done (tiled, or not mappable)."""
    rect: Rect = scanout.rect
    black = np.zeros((rect.height, rect.width, 4), np.uint8)
    code = struct.pack("<I", scanout.fourcc)
    if scanout.modifier or code not in _FOURCC_BGR | _FOURCC_RGB:
        return black
    try:
        mapping = mmap.mmap(fd, scanout.fd_stride * scanout.fd_height, prot=mmap.PROT_READ)
    except OSError:
        return black
    with mapping:
        rows = np.frombuffer(mapping, np.uint8).reshape(scanout.fd_height, scanout.fd_stride)
        pixels = rows[:, : 4 * scanout.fd_width].reshape(scanout.fd_height, scanout.fd_width, 4)
        part = pixels[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width].copy()
        del rows, pixels
    if scanout.fd_flags & _Y_0_TOP:
        part = part[::-1]
    return np.ascontiguousarray(part[:, :, [2, 1, 0, 3]] if code in _FOURCC_RGB else part)


def _drain(eventfd: int) -> None:
    try:
        os.eventfd_read(eventfd)
    except BlockingIOError:
        return
