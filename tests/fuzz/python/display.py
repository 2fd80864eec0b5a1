"""The display socket: a front end that answers anything at any time, while the device shows pictures.

Every question is answered exactly once, whatever comes and goes.
"""

import os
import socket
import struct
from contextlib import suppress

from master import display_messages as messages
from master.display import DisplayLink, Headless
from master.display_messages import CURSOR_BYTES, Cursor, DisplayRequest, DmabufScanout
from master.errors import ProtocolError
from master.wire import DISPLAY_INFO_BYTES, EDID_RESPONSE_BYTES, Rect
from native.owned_fd import OwnedFd
from tests.event_loop import LoopDriver
from tests.fuzz.python.choices import Choices, open_fds

SIZES = {
    DisplayRequest.GET_PROTOCOL_FEATURES: 8,
    DisplayRequest.GET_DISPLAY_INFO: DISPLAY_INFO_BYTES,
    DisplayRequest.DMABUF_UPDATE: 0,
    DisplayRequest.GET_EDID: EDID_RESPONSE_BYTES,
}
_driver: LoopDriver | None = None


class Caller:
    """What the device does with its display."""

    def __init__(self, driver: LoopDriver, sock: socket.socket) -> None:
        self.ends: list[Exception | None] = []
        self.ready: list[int] = []
        self.asked = 0
        self.answered: list[int] = []
        self.link = DisplayLink(driver.loop, sock, Headless(64, 64), self.ready.append, self.ends.append)

    def ask(self, choices: Choices) -> None:
        number = self.asked
        self.asked += 1
        if choices.byte() & 1:
            self.link.get_display_info(lambda modes: self.answered.append(number))
        else:
            self.link.get_edid(choices.byte() % 16, lambda edid: self.answered.append(number))

    def show(self, choices: Choices) -> None:
        scanout = choices.byte() % 16
        if choices.byte() & 1:
            self.link.set_scanout(scanout, choices.byte(), choices.byte())
            return
        modifier = choices.quad()
        if self.link.can_scan_out_dmabuf(modifier):
            picture = DmabufScanout(Rect(0, 0, 8, 8), 8, 8, 32, 1, modifier)
            self.link.set_dmabuf_scanout(scanout, picture, OwnedFd(os.memfd_create("picture")))

    def update(self, choices: Choices) -> None:
        scanout, width, height = choices.byte() % 16, 1 + choices.byte() % 64, 1 + choices.byte() % 64
        if not self.link.ready_for_update(scanout):
            return
        rect = Rect(0, 0, width, height)
        with suppress(RuntimeError, ValueError):  # as documented: of the other kind, or outside
            if choices.byte() & 1:
                self.link.update_dmabuf(scanout, rect)
            else:
                self.link.update(scanout, rect, memoryview(bytes(4 * width * height)))

    def point(self, choices: Choices) -> None:
        scanout, what = choices.byte() % 16, choices.byte() % 3
        if what == 0:
            self.link.define_cursor(scanout, 1, 2, Cursor(0, 0, bytes(CURSOR_BYTES)))
        elif what == 1:
            self.link.move_cursor(scanout, 3, 4)
        else:
            self.link.hide_cursor(scanout, 5, 6)


def run(data: bytes) -> None:
    global _driver
    _driver = _driver or LoopDriver()
    before = open_fds()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    caller = Caller(_driver, theirs)
    try:
        _talk(_driver, ours, caller, Choices(data))
    finally:
        ours.close()
        _driver.turn(2)
        caller.link.close()
        _driver.turn(1)
    assert sorted(caller.answered) == list(range(caller.asked))
    assert len(caller.ends) == 1 and isinstance(caller.ends[0], ProtocolError | OSError | None)
    assert open_fds() == before


def _talk(driver: LoopDriver, sock: socket.socket, caller: Caller, choices: Choices) -> None:
    acts = [caller.ask, caller.show, caller.update, caller.point]
    while choices.more():
        what = choices.byte()
        if what < 120:
            acts[what % len(acts)](choices)
        elif what < 160:
            _read(sock)
        elif not _answer(sock, choices):
            return
        driver.turn(1 + (what & 1))


def _read(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.recv(1 << 16)


def _answer(sock: socket.socket, choices: Choices) -> bool:
    """A reply, mostly of the right form. False if nobody takes it."""
    how = choices.byte()
    number = int(choices.of(list(SIZES))) if how < 240 else choices.number()
    size = SIZES.get(DisplayRequest(number), 0) if number in DisplayRequest.__members__.values() else 0
    body = _body(number, size, choices)
    if how & 15 == 15:
        size = choices.number()
    flags = messages.FLAG_REPLY if how & 7 != 7 else choices.number()
    try:
        if how & 31 == 30:
            with open("/dev/null", "rb") as file:
                socket.send_fds(sock, [struct.pack("=III", number, flags, size) + body], [file.fileno()])
        else:
            sock.send(struct.pack("=III", number, flags, size) + body)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def _body(number: int, size: int, choices: Choices) -> bytes:
    """Some bytes of it are the input's, the rest zeros."""
    if number == DisplayRequest.GET_EDID:
        return (bytes(24) + struct.pack("<I", choices.number())).ljust(size, b"\0")
    return choices.take(min(size, 8 + choices.byte() % 64)).ljust(size, b"\0")
