"""What the device shows its pictures on: the front end's display by its socket, or nothing.

DisplayLink is the back end's side of the vhost-user-gpu protocol (QEMU's docs/interop/vhost-user-gpu.rst). Two things
shape it:

It never blocks and its memory is bounded, however slowly the front end reads. Scanouts and cursors are state, so of
each only the latest waits to be sent. Pixels are the caller's: it asks ready_for_update(), sends one update, and
gathers damage until on_ready says that the socket has taken it. A front end that stops reading costs one update and a
few small structures.

It asks nothing by itself. When the socket arrives the front end is still in the middle of its own requests and waits
for our answers to them, without looking at this socket. The first call here, which a guest's command makes, starts
the conversation.

Order: a scanout's size goes before its pixels, and no update is sent for a disabled scanout, because QEMU draws into
the surface that the size made.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from master import display_messages as messages
from master import wire
from master.display_messages import Cursor, DisplayFeature, DisplayRequest, DmabufScanout
from master.edid import MIN_PIXELS, make_edid
from master.errors import ProtocolError
from master.framed_socket import Frame, FramedSocket
from master.virtio_gpu import MAX_SCANOUTS
from master.wire import DisplayMode, Rect
from native.owned_fd import OwnedFd

log = logging.getLogger(__name__)

OFFERED: Final = DisplayFeature.EDID | DisplayFeature.DMABUF2
MODIFIER_LINEAR: Final = 0
MODIFIER_INVALID: Final = 0x00FF_FFFF_FFFF_FFFF  # DRM_FORMAT_MOD_INVALID: none was told

DisplayInfoCallback = Callable[[list[DisplayMode]], None]
EdidCallback = Callable[[bytes | None], None]


class Display(Protocol):
    """Where pictures go. scanout_id is less than 16. Callbacks may come before the call returns."""

    def get_display_info(self, callback: DisplayInfoCallback) -> None:
        """The preferred modes, in the order of scanouts."""

    def get_edid(self, scanout_id: int, callback: EdidCallback) -> None:
        """The scanout's EDID, or None if the display has no such scanout."""

    def set_scanout(self, scanout_id: int, width: int, height: int) -> None:
        """Show pixels: update() follows. Size in pixels."""

    def can_scan_out_dmabuf(self, modifier: int) -> bool:
        """Whether set_dmabuf_scanout may be used for a dma-buf of this DRM format modifier. False until it is known."""

    def set_dmabuf_scanout(self, scanout_id: int, scanout: DmabufScanout, fd: OwnedFd) -> None:
        """Show a dma-buf: update_dmabuf() follows. Takes fd over."""

    def disable_scanout(self, scanout_id: int) -> None: ...

    def ready_for_update(self, scanout_id: int) -> bool:
        """Whether update() or update_dmabuf() may be called now. If not, on_ready is called once it may."""

    def update(self, scanout_id: int, rect: Rect, pixels: memoryview) -> None:
        """New pixels of rect: x8r8g8b8 words, rows tightly packed; they must not change before the scanout is ready
        again.

        RuntimeError if not ready, ValueError for a rectangle outside the scanout or a wrong number of bytes.
        """

    def update_dmabuf(self, scanout_id: int, rect: Rect) -> None:
        """rect of the dma-buf has been drawn. Not ready again until the front end has shown it. RuntimeError if not
        ready.
        """

    def define_cursor(self, scanout_id: int, x: int, y: int, cursor: Cursor) -> None: ...

    def move_cursor(self, scanout_id: int, x: int, y: int) -> None: ...

    def hide_cursor(self, scanout_id: int, x: int, y: int) -> None: ...

    def close(self) -> None: ...


class Headless:
    """A display that nobody looks at: never ready, so no pixels are fetched for it."""

    def __init__(self, width: int, height: int, scanouts: int = 1) -> None:
        """The preferred size in pixels, of each scanout. They stand side by side."""
        self._modes = [DisplayMode(Rect(at * width, 0, width, height), enabled=True) for at in range(scanouts)]
        self._edid = make_edid(width, height)

    def get_display_info(self, callback: DisplayInfoCallback) -> None:
        callback(self._modes)

    def get_edid(self, scanout_id: int, callback: EdidCallback) -> None:
        callback(self._edid if scanout_id < len(self._modes) else None)

    def set_scanout(self, scanout_id: int, width: int, height: int) -> None:
        pass

    def can_scan_out_dmabuf(self, modifier: int) -> bool:
        return False

    def set_dmabuf_scanout(self, scanout_id: int, scanout: DmabufScanout, fd: OwnedFd) -> None:
        fd.close()

    def disable_scanout(self, scanout_id: int) -> None:
        pass

    def ready_for_update(self, scanout_id: int) -> bool:
        return False

    def update(self, scanout_id: int, rect: Rect, pixels: memoryview) -> None:
        raise RuntimeError("a headless display is never ready")

    def update_dmabuf(self, scanout_id: int, rect: Rect) -> None:
        raise RuntimeError("a headless display is never ready")

    def define_cursor(self, scanout_id: int, x: int, y: int, cursor: Cursor) -> None:
        pass

    def move_cursor(self, scanout_id: int, x: int, y: int) -> None:
        pass

    def hide_cursor(self, scanout_id: int, x: int, y: int) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(slots=True)
class _Message:
    """A message to be sent. fd is owned."""

    request: DisplayRequest
    payload: bytes
    fd: OwnedFd | None = None


@dataclass(slots=True)
class _Query:
    """A message with a reply. on_reply gets its payload, or None if the front end has passed it over."""

    request: DisplayRequest
    payload: bytes
    on_reply: Callable[[bytes | None], None]


@dataclass(slots=True)
class _Scanout:
    """What a scanout should be, and what of that has not been sent. dmabuf: what the front end shows now is one."""

    width: int = 0
    height: int = 0
    configuration: list[_Message] = field(default_factory=list)
    dmabuf: bool = False
    cursor_image: Cursor | None = None
    cursor_position: tuple[DisplayRequest, int, int] | None = None

    def configure(self, messages_: list[_Message], width: int, height: int) -> None:
        """Replace what has not been sent."""
        self.drop_configuration()
        self.configuration = messages_
        self.width = width
        self.height = height

    def drop_configuration(self) -> None:
        for message in self.configuration:
            if message.fd is not None:
                message.fd.close()
        self.configuration = []

    def take_cursor(self, scanout_id: int) -> Iterator[_Message]:
        """The messages that bring the front end's cursor up to date."""
        if self.cursor_position is None:
            return
        request, x, y = self.cursor_position
        if self.cursor_image is not None:
            yield _Message(
                DisplayRequest.CURSOR_UPDATE, messages.encode_cursor_update(scanout_id, x, y, self.cursor_image)
            )
        if self.cursor_image is None or request is DisplayRequest.CURSOR_POS_HIDE:
            yield _Message(request, messages.encode_cursor_pos(scanout_id, x, y))
        self.cursor_image = None
        self.cursor_position = None


class DisplayLink:
    """The front end's display behind `sock`, which it owns from now on.

    on_ready(scanout_id) follows a ready_for_update() that was False, from the event loop. on_closed(reason) is called
    exactly once unless close() was: None if the front end left, else a ProtocolError or an OSError. After that
    questions are answered by `fallback`, also those that were open, and everything else does nothing.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        fallback: Headless,
        on_ready: Callable[[int], None],
        on_closed: Callable[[Exception | None], None],
    ) -> None:
        self._loop = loop
        self._fallback = fallback
        self._on_ready = on_ready
        self._on_closed = on_closed
        self._started = False
        self._features: DisplayFeature | None = None  # None: not told yet, and nothing else is sent before
        self._modes: list[DisplayMode] = []  # as last told
        self._queries: deque[_Query] = deque()
        self._awaiting: deque[_Query] = deque()
        self._scanouts: dict[int, _Scanout] = {}
        self._dmabuf_update_shown = True
        self._starved: set[int] = set()
        self._telling_ready = False
        self._pumping = False
        self._socket = FramedSocket(loop, sock, self, send_limit=None)

    @property
    def closed(self) -> bool:
        return self._socket.closed

    def start(self) -> None:
        """Begin the conversation. Every other call does it too; see the module's text for when it is too early."""
        if not self._started and not self.closed:
            self._started = True
            self._send_query(_Query(DisplayRequest.GET_PROTOCOL_FEATURES, b"", self._take_features))

    def close(self) -> None:
        """Close the socket and answer open questions by the fallback. on_closed is not called."""
        self._socket.close()
        self._drop()

    # Questions

    def get_display_info(self, callback: DisplayInfoCallback) -> None:
        def reply(payload: bytes | None) -> None:
            if payload is None:
                self._fallback.get_display_info(callback)
                return
            self._modes = wire.decode_display_info(payload)
            callback(self._modes)

        self._ask(_Query(DisplayRequest.GET_DISPLAY_INFO, b"", reply))

    def get_edid(self, scanout_id: int, callback: EdidCallback) -> None:
        """QEMU does not answer at all for a scanout that it has not, hence the second question, which it always
        answers.
        """

        def reply(payload: bytes | None) -> None:
            if payload is not None:
                self._take_edid(scanout_id, payload, callback)
            elif self.closed or not self._features_include(DisplayFeature.EDID):
                self._make_edid(scanout_id, callback)
            else:
                callback(None)

        self._ask(_Query(DisplayRequest.GET_EDID, messages.encode_edid_request(scanout_id), reply))
        self._ask(_Query(DisplayRequest.GET_PROTOCOL_FEATURES, b"", lambda _payload: None))

    def _take_edid(self, scanout_id: int, payload: bytes, callback: EdidCallback) -> None:
        try:
            edid = wire.decode_edid(payload)
        except ValueError as reason:
            self._make_edid(scanout_id, callback)
            raise ProtocolError(f"display reply to GET_EDID: {reason}") from reason
        callback(edid)

    def _make_edid(self, scanout_id: int, callback: EdidCallback) -> None:
        """An EDID for a front end that gives none, of the size that it prefers."""
        mode = self._modes[scanout_id] if scanout_id < len(self._modes) else None
        if mode is not None and mode.enabled and min(mode.rect.width, mode.rect.height) >= MIN_PIXELS:
            callback(make_edid(mode.rect.width, mode.rect.height))
        else:
            self._fallback.get_edid(scanout_id, callback)

    # Scanouts

    def set_scanout(self, scanout_id: int, width: int, height: int) -> None:
        scanout = self._scanout(scanout_id)
        sequence = [_Message(DisplayRequest.SCANOUT, messages.encode_scanout(scanout_id, width, height))]
        if scanout.dmabuf:
            sequence.insert(0, _Message(DisplayRequest.DMABUF_SCANOUT, messages.encode_no_dmabuf(scanout_id)))
        scanout.configure(sequence, width, height)
        self._pump()

    def can_scan_out_dmabuf(self, modifier: int) -> bool:
        self.start()
        if self.closed or self._features is None:
            return False
        return self._features_include(DisplayFeature.DMABUF2) or modifier in (MODIFIER_LINEAR, MODIFIER_INVALID)

    def set_dmabuf_scanout(self, scanout_id: int, scanout: DmabufScanout, fd: OwnedFd) -> None:
        if self.closed:
            fd.close()
            return
        with_modifier = self._features_include(DisplayFeature.DMABUF2) and scanout.modifier != MODIFIER_INVALID
        request = DisplayRequest.DMABUF_SCANOUT2 if with_modifier else DisplayRequest.DMABUF_SCANOUT
        payload = messages.encode_dmabuf_scanout(scanout_id, scanout, with_modifier=with_modifier)
        state = self._scanout(scanout_id)
        state.configure([_Message(request, payload, fd)], scanout.rect.width, scanout.rect.height)
        self._pump()

    def disable_scanout(self, scanout_id: int) -> None:
        self.set_scanout(scanout_id, 0, 0)

    # Updates

    def ready_for_update(self, scanout_id: int) -> bool:
        scanout = self._scanout(scanout_id)
        self._pump()
        ready = self._is_ready(scanout)
        if not ready:
            self._starved.add(scanout_id)
        return ready

    def update(self, scanout_id: int, rect: Rect, pixels: memoryview) -> None:
        scanout = self._ready_scanout(scanout_id, rect, dmabuf=False)
        if not rect.within(scanout.width, scanout.height):
            raise ValueError(f"{rect} is not inside {scanout.width}x{scanout.height}")
        if pixels.nbytes != rect.width * rect.height * messages.BYTES_PER_PIXEL:
            raise ValueError(f"{pixels.nbytes} bytes of pixels for {rect}")
        head = messages.encode_update(scanout_id, rect)
        self._socket.send(DisplayRequest.UPDATE, 0, [head, pixels], on_sent=self._pump)

    def update_dmabuf(self, scanout_id: int, rect: Rect) -> None:
        self._ready_scanout(scanout_id, rect, dmabuf=True)
        self._dmabuf_update_shown = False
        payload = messages.encode_update(scanout_id, rect)
        self._socket.send(DisplayRequest.DMABUF_UPDATE, 0, [payload], on_sent=self._pump)

    def _ready_scanout(self, scanout_id: int, rect: Rect, *, dmabuf: bool) -> _Scanout:
        scanout = self._scanout(scanout_id)
        if not self._is_ready(scanout) or scanout.dmabuf != dmabuf:
            raise RuntimeError(f"scanout {scanout_id} is not ready for an update of {rect}")
        return scanout

    def _is_ready(self, scanout: _Scanout) -> bool:
        return (
            not self.closed
            and self._features is not None
            and self._socket.drained
            and not scanout.configuration
            and scanout.width > 0
            # The front end's "shown" names no scanout, and QEMU says it once for all that came before.
            and (self._dmabuf_update_shown or not scanout.dmabuf)
        )

    # Cursors

    def define_cursor(self, scanout_id: int, x: int, y: int, cursor: Cursor) -> None:
        self._scanout(scanout_id).cursor_image = cursor
        self.move_cursor(scanout_id, x, y)

    def move_cursor(self, scanout_id: int, x: int, y: int) -> None:
        self._scanout(scanout_id).cursor_position = (DisplayRequest.CURSOR_POS, x, y)
        self._pump()

    def hide_cursor(self, scanout_id: int, x: int, y: int) -> None:
        self._scanout(scanout_id).cursor_position = (DisplayRequest.CURSOR_POS_HIDE, x, y)
        self._pump()

    # FrameReceiver

    def check_header(self, request: int, flags: int, size: int) -> None:
        messages.check_reply(request, flags, size)

    def take_frame(self, frame: Frame) -> None:
        if frame.fds:
            raise ProtocolError("a display reply with descriptors")
        if frame.request == DisplayRequest.DMABUF_UPDATE:
            self._dmabuf_update_shown = True
            self._pump()
            return
        if not any(query.request == frame.request for query in self._awaiting):
            raise ProtocolError(f"a display reply to {DisplayRequest(frame.request).name}, which was not asked")
        passed_over = []
        while (query := self._awaiting.popleft()).request != frame.request:
            passed_over.append(query)
        for unanswered in passed_over:
            unanswered.on_reply(None)
        query.on_reply(frame.payload)
        self._pump()

    def socket_closed(self, reason: Exception | None) -> None:
        self._drop()
        self._on_closed(reason)

    # Sending

    def _scanout(self, scanout_id: int) -> _Scanout:
        if not 0 <= scanout_id < MAX_SCANOUTS:
            raise ValueError(f"scanout {scanout_id}")
        self.start()
        return self._scanouts.setdefault(scanout_id, _Scanout())

    def _features_include(self, feature: DisplayFeature) -> bool:
        return self._features is not None and feature in self._features

    def _take_features(self, payload: bytes | None) -> None:
        if payload is None:
            return
        self._features = DisplayFeature(messages.U64.unpack(payload)[0]) & OFFERED
        log.debug("the display offers %r", self._features)
        self._send(_Message(DisplayRequest.SET_PROTOCOL_FEATURES, messages.U64.pack(self._features)))

    def _ask(self, query: _Query) -> None:
        if self.closed:
            query.on_reply(None)
            return
        self.start()
        self._queries.append(query)
        self._pump()

    def _send(self, message: _Message) -> None:
        fds = [message.fd] if message.fd is not None else []
        self._socket.send(message.request, 0, [message.payload], fds=fds, on_sent=self._pump)

    def _pump(self) -> None:
        """Send what waits, while the socket takes it."""
        if self._pumping or self.closed:
            return
        self._pumping = True
        try:
            while self._socket.drained and self._send_next():
                pass
        finally:
            self._pumping = False
        if self._starved and not self._telling_ready:
            self._telling_ready = True
            self._loop.call_soon(self._tell_ready)

    def _send_next(self) -> bool:
        """Send the next thing that may be sent now. False: there is none."""
        if self._features is None:
            return False
        if self._queries:
            self._send_query(self._queries.popleft())
            return True
        for scanout_id, scanout in self._scanouts.items():
            if scanout.configuration:
                message = scanout.configuration.pop(0)
                scanout.dmabuf = message.fd is not None
                self._send(message)
                return True
            if scanout.cursor_position is not None:
                for message in scanout.take_cursor(scanout_id):
                    self._send(message)
                return True
        return False

    def _send_query(self, query: _Query) -> None:
        if query.request is DisplayRequest.GET_EDID and not self._features_include(DisplayFeature.EDID):
            query.on_reply(None)
            return
        self._awaiting.append(query)
        self._send(_Message(query.request, query.payload))

    def _tell_ready(self) -> None:
        self._telling_ready = False
        for scanout_id in sorted(self._starved):
            scanout = self._scanouts.get(scanout_id)
            if scanout is not None and self._is_ready(scanout):
                self._starved.discard(scanout_id)
                self._on_ready(scanout_id)

    def _drop(self) -> None:
        """After the socket has closed."""
        for scanout in self._scanouts.values():
            scanout.drop_configuration()
        self._scanouts.clear()
        self._starved.clear()
        open_queries = [*self._awaiting, *self._queries]
        self._awaiting.clear()
        self._queries.clear()
        for query in open_queries:
            query.on_reply(None)
