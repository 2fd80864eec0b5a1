"""The display link: what is said, in which order, how little is kept when the front end does not read, and its ends."""

import os
import socket
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from master import wire
from master.display import MODIFIER_INVALID, DisplayLink, Headless
from master.display_messages import CURSOR_BYTES, Cursor, DmabufScanout
from master.display_messages import DisplayRequest as Req
from master.edid import make_edid
from master.errors import ProtocolError
from master.wire import DisplayMode, Rect
from native.owned_fd import OwnedFd
from tests.event_loop import LoopDriver, loop_driver
from tests.fake_vmm.display import Display as FakeDisplay

EDID, DMABUF2 = 1, 2
MODES = [DisplayMode(Rect(0, 0, 1024, 768), True), DisplayMode(Rect(1024, 0, 640, 480), False)]
CURSOR = Cursor(3, 4, bytes(range(256)) * 64)
TILED = 0x0200000000000001
Message = tuple[int, bytes]


class Peer:
    """The front end's end, driven by the test: it reads and answers only when told to."""

    def __init__(self, driver: LoopDriver, *, send_buffer: int | None = None) -> None:
        self.driver = driver
        self.sock, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.setblocking(False)
        if send_buffer is not None:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.ready: list[int] = []
        self.closings: list[Exception | None] = []
        self._received = b""
        self.fds: list[int] = []
        self.link = DisplayLink(
            driver.loop,
            ours,
            fallback=Headless(800, 600),
            on_ready=self.ready.append,
            on_closed=self.closings.append,
        )

    def read(self) -> None:
        try:
            while True:
                data, fds, _flags, _address = socket.recv_fds(self.sock, 1 << 20, 8)
                self._received += data
                self.fds += fds
                if not data:
                    return
        except BlockingIOError:
            return

    def messages(self) -> list[Message]:
        """Read to the end of what the link has to say now; whole messages."""
        for _ in range(50):
            self.driver.turn()
            self.read()
        messages = []
        while len(self._received) >= 12:
            request, flags, size = struct.unpack_from("=III", self._received)
            assert flags == 0
            if len(self._received) < 12 + size:
                break
            messages.append((request, self._received[12 : 12 + size]))
            self._received = self._received[12 + size :]
        return messages

    def reply(self, request: int, payload: bytes, flags: int = 4) -> None:
        self.sock.send(struct.pack("=III", request, flags, len(payload)) + payload)
        self.driver.turn(3)

    def negotiate(self, features: int = EDID | DMABUF2) -> None:
        self.link.start()
        assert self.messages() == [(Req.GET_PROTOCOL_FEATURES, b"")]
        self.reply(Req.GET_PROTOCOL_FEATURES, struct.pack("=Q", features))
        assert self.messages() == [(Req.SET_PROTOCOL_FEATURES, struct.pack("=Q", features & 3))]

    def close(self) -> None:
        self.link.close()
        self.sock.close()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.fixture
def driver() -> Iterator[LoopDriver]:
    with loop_driver() as driver:
        yield driver


@pytest.fixture
def peer(driver: LoopDriver) -> Iterator[Peer]:
    peer = Peer(driver)
    yield peer
    peer.close()


@pytest.fixture
def slow_peer(driver: LoopDriver) -> Iterator[Peer]:
    """Its socket takes a few kilobytes; a full update does not fit."""
    peer = Peer(driver, send_buffer=4096)
    yield peer
    peer.close()


def u32(*values: int) -> bytes:
    return struct.pack(f"={len(values)}I", *values)


def pixels(rect: Rect, value: int = 0x55) -> memoryview:
    return memoryview(bytes([value]) * (rect.width * rect.height * 4))


def dmabuf(width: int = 64, height: int = 32, modifier: int = TILED) -> DmabufScanout:
    return DmabufScanout(Rect(1, 2, width - 4, height - 4), width, height, width * 4, 0x34325258, modifier)


def memfd() -> OwnedFd:
    return OwnedFd(os.memfd_create("dma-buf"))


# The conversation


def test_nothing_is_said_before_the_first_call(peer: Peer) -> None:
    assert peer.messages() == []
    peer.link.move_cursor(0, 1, 1)
    assert peer.messages() == [(Req.GET_PROTOCOL_FEATURES, b"")]


def test_nothing_else_is_said_before_the_features_are_known(peer: Peer) -> None:
    infos: list[list[DisplayMode]] = []
    peer.link.set_scanout(0, 640, 480)
    peer.link.get_display_info(infos.append)
    assert not peer.link.ready_for_update(0)
    assert not peer.link.can_scan_out_dmabuf(0)
    assert peer.messages() == [(Req.GET_PROTOCOL_FEATURES, b"")]
    peer.reply(Req.GET_PROTOCOL_FEATURES, struct.pack("=Q", 0xFF))
    assert peer.messages() == [
        (Req.SET_PROTOCOL_FEATURES, struct.pack("=Q", 3)),
        (Req.GET_DISPLAY_INFO, b""),
        (Req.SCANOUT, u32(0, 640, 480)),
    ]
    assert peer.ready == [0]


def test_display_info(peer: Peer) -> None:
    infos: list[list[DisplayMode]] = []
    peer.negotiate()
    peer.link.get_display_info(infos.append)
    assert peer.messages() == [(Req.GET_DISPLAY_INFO, b"")]
    peer.reply(Req.GET_DISPLAY_INFO, bytes(24) + wire.display_info_body(MODES))
    assert len(infos) == 1
    assert infos[0][:2] == MODES


def test_edid(peer: Peer) -> None:
    edids: list[bytes | None] = []
    peer.negotiate()
    peer.link.get_edid(1, edids.append)
    assert peer.messages() == [(Req.GET_EDID, u32(1)), (Req.GET_PROTOCOL_FEATURES, b"")]
    peer.reply(Req.GET_EDID, bytes(24) + wire.edid_body(b"display" * 20))
    assert edids == [b"display" * 20]
    peer.reply(Req.GET_PROTOCOL_FEATURES, struct.pack("=Q", 3))
    assert edids == [b"display" * 20]
    assert peer.closings == []


def test_an_edid_question_that_is_passed_over(peer: Peer) -> None:
    """QEMU says nothing about a scanout that it has not."""
    edids: list[bytes | None] = []
    peer.negotiate()
    peer.link.get_edid(9, edids.append)
    peer.messages()
    peer.reply(Req.GET_PROTOCOL_FEATURES, struct.pack("=Q", 3))
    assert edids == [None]


def test_an_edid_is_made_where_the_front_end_gives_none(peer: Peer) -> None:
    edids: list[bytes | None] = []
    peer.negotiate(DMABUF2)
    peer.link.get_display_info(lambda _modes: None)
    peer.messages()
    peer.reply(Req.GET_DISPLAY_INFO, bytes(24) + wire.display_info_body(MODES))
    peer.link.get_edid(0, edids.append)
    peer.link.get_edid(1, edids.append)
    assert edids == [make_edid(1024, 768), None]


@pytest.mark.parametrize(("width", "height"), [(187, 0), (0, 0), (15, 600), (0xFFFF_FFFF, 1)])
def test_an_edid_is_made_where_the_front_end_tells_of_a_size_that_has_none(peer: Peer, width: int, height: int) -> None:
    edids: list[bytes | None] = []
    peer.negotiate(DMABUF2)
    peer.link.get_display_info(lambda _modes: None)
    peer.messages()
    body = wire.display_info_body([DisplayMode(Rect(0, 0, width, height), enabled=True)])
    peer.reply(Req.GET_DISPLAY_INFO, bytes(24) + body)
    peer.link.get_edid(0, edids.append)
    assert edids == [make_edid(800, 600)]


# Scanouts and updates


def test_an_update_follows_its_scanout(peer: Peer) -> None:
    peer.negotiate()
    peer.link.set_scanout(2, 64, 48)
    assert peer.link.ready_for_update(2)
    rect = Rect(10, 20, 30, 5)
    data = memoryview(bytes(range(200)) * 3)
    peer.link.update(2, rect, data)
    assert peer.messages() == [
        (Req.SCANOUT, u32(2, 64, 48)),
        (Req.UPDATE, u32(2, 10, 20, 30, 5) + bytes(data)),
    ]
    assert peer.link.ready_for_update(2)
    assert peer.ready == []


@pytest.mark.parametrize("rect", [Rect(0, 0, 65, 1), Rect(60, 0, 5, 1), Rect(0, 0, 0, 1), Rect(0xFFFFFFFF, 0, 2, 1)])
def test_updates_outside_the_scanout(peer: Peer, rect: Rect) -> None:
    peer.negotiate()
    peer.link.set_scanout(0, 64, 48)
    with pytest.raises(ValueError, match="is not inside"):
        peer.link.update(0, rect, memoryview(b""))


def test_updates_with_too_few_pixels(peer: Peer) -> None:
    peer.negotiate()
    peer.link.set_scanout(0, 64, 48)
    with pytest.raises(ValueError, match="bytes of pixels"):
        peer.link.update(0, Rect(0, 0, 2, 2), memoryview(bytes(15)))


def test_no_update_of_a_disabled_scanout(peer: Peer) -> None:
    peer.negotiate()
    with pytest.raises(RuntimeError):
        peer.link.update(0, Rect(0, 0, 1, 1), pixels(Rect(0, 0, 1, 1)))
    peer.link.set_scanout(0, 64, 48)
    peer.link.disable_scanout(0)
    assert not peer.link.ready_for_update(0)
    with pytest.raises(RuntimeError):
        peer.link.update(0, Rect(0, 0, 1, 1), pixels(Rect(0, 0, 1, 1)))
    assert peer.messages() == [(Req.SCANOUT, u32(0, 64, 48)), (Req.SCANOUT, u32(0, 0, 0))]
    peer.link.set_scanout(0, 32, 32)
    peer.driver.until(lambda: peer.ready, "the scanout is ready")
    assert peer.ready == [0]


def test_there_are_sixteen_scanouts(peer: Peer) -> None:
    for scanout in (16, -1):
        with pytest.raises(ValueError):
            peer.link.set_scanout(scanout, 1, 1)


def test_a_front_end_that_does_not_read_gets_the_latest_state_only(slow_peer: Peer) -> None:
    peer = slow_peer
    peer.negotiate()
    whole = Rect(0, 0, 256, 256)
    peer.link.set_scanout(0, 256, 256)
    peer.messages()
    peer.link.update(0, whole, pixels(whole))
    assert not peer.link.ready_for_update(0)
    with pytest.raises(RuntimeError):
        peer.link.update(0, whole, pixels(whole))
    for step in range(1000):
        peer.link.set_scanout(0, 100 + step, 50)
        peer.link.set_scanout(1, 200 + step, 50)
        peer.link.define_cursor(0, step, step, CURSOR)
        peer.link.move_cursor(0, step, 7)
        peer.link.hide_cursor(1, step, 8)
        peer.driver.turn()
    assert peer.ready == []
    messages = peer.messages()
    assert messages[0] == (Req.UPDATE, u32(0, *(0, 0, 256, 256)) + bytes(pixels(whole)))
    assert sorted(messages[1:]) == sorted(
        [
            (Req.SCANOUT, u32(0, 1099, 50)),
            (Req.SCANOUT, u32(1, 1199, 50)),
            (Req.CURSOR_UPDATE, u32(0, 999, 7, 3, 4) + CURSOR.argb),
            (Req.CURSOR_POS_HIDE, u32(1, 999, 8)),
        ]
    )
    assert peer.ready == [0]
    peer.link.update(0, Rect(1098, 49, 1, 1), pixels(Rect(0, 0, 1, 1)))


def test_ready_is_told_once_and_only_if_it_was_asked(slow_peer: Peer) -> None:
    peer = slow_peer
    peer.negotiate()
    whole = Rect(0, 0, 128, 128)
    peer.link.set_scanout(0, 128, 128)
    peer.messages()
    peer.link.update(0, whole, pixels(whole))
    assert len(peer.messages()) == 1
    assert peer.ready == []
    peer.link.update(0, whole, pixels(whole))
    assert not peer.link.ready_for_update(0)
    assert not peer.link.ready_for_update(0)
    assert len(peer.messages()) == 1
    peer.link.move_cursor(0, 1, 1)
    peer.messages()
    assert peer.ready == [0]


# dma-bufs


def test_a_dmabuf_scanout_with_modifier(peer: Peer) -> None:
    peer.negotiate()
    assert peer.link.can_scan_out_dmabuf(TILED)
    fd = memfd()
    peer.link.set_dmabuf_scanout(0, dmabuf(), fd)
    fields = u32(0, 1, 2, 60, 28, 64, 32, 256, 0, 0x34325258)
    assert peer.messages() == [(Req.DMABUF_SCANOUT2, fields + struct.pack("=Q", TILED))]
    assert len(peer.fds) == 1
    assert fd.closed


@pytest.mark.parametrize(("features", "modifier"), [(EDID, 0), (EDID, MODIFIER_INVALID), (3, MODIFIER_INVALID)])
def test_a_dmabuf_scanout_without_modifier(peer: Peer, features: int, modifier: int) -> None:
    peer.negotiate(features)
    assert peer.link.can_scan_out_dmabuf(modifier)
    assert peer.link.can_scan_out_dmabuf(TILED) == bool(features & DMABUF2)
    peer.link.set_dmabuf_scanout(0, dmabuf(modifier=modifier), memfd())
    assert peer.messages() == [(Req.DMABUF_SCANOUT, u32(0, 1, 2, 60, 28, 64, 32, 256, 0, 0x34325258))]


def test_a_dmabuf_update_waits_until_it_is_shown(peer: Peer) -> None:
    peer.negotiate()
    peer.link.set_dmabuf_scanout(0, dmabuf(), memfd())
    peer.link.set_dmabuf_scanout(1, dmabuf(), memfd())
    peer.link.set_scanout(2, 8, 8)
    peer.messages()
    peer.link.update_dmabuf(0, Rect(0, 0, 60, 28))
    assert peer.messages() == [(Req.DMABUF_UPDATE, u32(0, 0, 0, 60, 28))]
    assert not peer.link.ready_for_update(0)
    assert not peer.link.ready_for_update(1)
    assert peer.link.ready_for_update(2)
    with pytest.raises(RuntimeError):
        peer.link.update_dmabuf(0, Rect(0, 0, 60, 28))
    assert peer.ready == []
    peer.reply(Req.DMABUF_UPDATE, b"")
    assert peer.ready == [0, 1]


def test_the_kinds_of_update_are_not_mixed(peer: Peer) -> None:
    peer.negotiate()
    peer.link.set_dmabuf_scanout(0, dmabuf(), memfd())
    peer.link.set_scanout(1, 8, 8)
    rect = Rect(0, 0, 1, 1)
    with pytest.raises(RuntimeError):
        peer.link.update(0, rect, pixels(rect))
    with pytest.raises(RuntimeError):
        peer.link.update_dmabuf(1, rect)


def test_pixels_after_a_dmabuf(peer: Peer) -> None:
    peer.negotiate()
    peer.link.set_dmabuf_scanout(0, dmabuf(), memfd())
    peer.messages()
    peer.link.set_scanout(0, 8, 8)
    assert peer.messages() == [(Req.DMABUF_SCANOUT, bytes(40)), (Req.SCANOUT, u32(0, 8, 8))]
    assert len(peer.fds) == 1


def test_a_dmabuf_that_is_replaced_before_it_was_sent_is_closed(slow_peer: Peer) -> None:
    peer = slow_peer
    peer.negotiate()
    whole = Rect(0, 0, 256, 256)
    peer.link.set_scanout(1, 256, 256)
    peer.link.update(1, whole, pixels(whole))
    first, second = memfd(), memfd()
    peer.link.set_dmabuf_scanout(0, dmabuf(), first)
    assert not first.closed
    peer.link.set_dmabuf_scanout(0, dmabuf(), second)
    assert first.closed
    assert [request for request, _payload in peer.messages()][-1] == Req.DMABUF_SCANOUT2
    assert len(peer.fds) == 1
    assert second.closed


# Cursors


def test_cursors(peer: Peer) -> None:
    peer.negotiate()
    peer.link.define_cursor(0, 10, 20, CURSOR)
    peer.link.move_cursor(0, 11, 21)
    peer.link.hide_cursor(0, 12, 22)
    assert peer.messages() == [
        (Req.CURSOR_UPDATE, u32(0, 10, 20, 3, 4) + CURSOR.argb),
        (Req.CURSOR_POS, u32(0, 11, 21)),
        (Req.CURSOR_POS_HIDE, u32(0, 12, 22)),
    ]


def test_a_cursor_image_has_one_size() -> None:
    with pytest.raises(ValueError):
        Cursor(0, 0, bytes(CURSOR_BYTES - 1))


# Ends


def test_open_questions_are_answered_when_the_front_end_leaves(peer: Peer) -> None:
    infos: list[list[DisplayMode]] = []
    edids: list[bytes | None] = []
    peer.negotiate()
    peer.link.get_display_info(infos.append)
    peer.link.get_edid(0, edids.append)
    peer.link.set_scanout(0, 64, 64)
    peer.sock.close()
    peer.driver.until(lambda: peer.closings, "the link closes")
    peer.driver.turn(5)
    assert peer.closings[1:] == []
    assert infos == [[DisplayMode(Rect(0, 0, 800, 600), True)]]
    assert edids == [make_edid(800, 600)]
    assert peer.link.closed

    peer.link.get_display_info(infos.append)
    peer.link.get_edid(0, edids.append)
    peer.link.get_edid(1, edids.append)
    assert infos[1] == infos[0]
    assert edids[1:] == [make_edid(800, 600), None]
    peer.link.set_scanout(0, 64, 64)
    peer.link.define_cursor(0, 1, 1, CURSOR)
    late = memfd()
    peer.link.set_dmabuf_scanout(0, dmabuf(), late)
    assert late.closed
    assert not peer.link.ready_for_update(0)
    peer.driver.turn(5)
    assert peer.ready == []


def test_closing_answers_questions_and_drops_what_waits(slow_peer: Peer) -> None:
    peer = slow_peer
    infos: list[list[DisplayMode]] = []
    peer.negotiate()
    whole = Rect(0, 0, 256, 256)
    peer.link.set_scanout(0, 256, 256)
    peer.link.update(0, whole, pixels(whole))
    fd = memfd()
    peer.link.set_dmabuf_scanout(1, dmabuf(), fd)
    peer.link.get_display_info(infos.append)
    peer.link.close()
    peer.link.close()
    assert fd.closed
    assert infos == [[DisplayMode(Rect(0, 0, 800, 600), True)]]
    peer.driver.turn(5)
    assert peer.closings == []


@pytest.mark.parametrize(
    ("request_", "payload", "flags"),
    [
        (Req.GET_DISPLAY_INFO, bytes(407), 4),
        (Req.GET_DISPLAY_INFO, bytes(408), 0),
        (Req.GET_PROTOCOL_FEATURES, bytes(8), 4),
        (Req.SCANOUT, b"", 4),
        (77, b"", 4),
        (Req.GET_EDID, bytes(24) + u32(1025, 0) + bytes(1024), 4),
    ],
)
def test_replies_that_make_no_sense_close_the_link(peer: Peer, request_: int, payload: bytes, flags: int) -> None:
    edids: list[bytes | None] = []
    peer.negotiate()
    if request_ == Req.GET_EDID:
        peer.link.get_edid(0, edids.append)
        peer.messages()
    peer.reply(request_, payload, flags)
    peer.driver.until(lambda: peer.closings, "the link closes")
    assert len(peer.closings) == 1
    assert isinstance(peer.closings[0], ProtocolError)
    assert request_ != Req.GET_EDID or edids == [make_edid(800, 600)]


def test_a_link_may_be_closed_from_its_own_callback(peer: Peer) -> None:
    peer.negotiate()
    peer.link.get_edid(0, lambda _edid: peer.link.close())
    peer.link.get_display_info(lambda _modes: peer.link.close())
    peer.messages()
    peer.reply(Req.GET_DISPLAY_INFO, bytes(24) + wire.display_info_body(MODES))
    assert peer.link.closed
    assert peer.closings == []


# Others


def test_headless() -> None:
    headless = Headless(1600, 900)
    answers: list[object] = []
    headless.get_display_info(answers.append)
    headless.get_edid(0, answers.append)
    headless.get_edid(1, answers.append)
    assert answers == [[DisplayMode(Rect(0, 0, 1600, 900), True)], make_edid(1600, 900), None]
    second: list[object] = []
    two = Headless(640, 480, 2)
    two.get_display_info(lambda modes: second.append(modes[1].rect))
    two.get_edid(1, second.append)
    assert second == [Rect(640, 0, 640, 480), make_edid(640, 480)]
    assert not headless.ready_for_update(0)
    fd = memfd()
    headless.set_dmabuf_scanout(0, dmabuf(), fd)
    assert fd.closed


def shown_by(display: FakeDisplay) -> bytes:
    framebuffer = display.framebuffer(0)
    assert framebuffer is not None
    return framebuffer.tobytes()


def test_against_the_fake_display(driver: LoopDriver) -> None:
    """A front end written apart from this one, which draws what it is told."""
    display = FakeDisplay(modes=((320, 200),), receive_buffer=4096)
    ready: list[int] = []
    link = DisplayLink(
        driver.loop, display.new_socket(), fallback=Headless(800, 600),
        on_ready=ready.append, on_closed=lambda reason: pytest.fail(f"closed: {reason}"),
    )  # fmt: skip
    try:
        infos: list[list[DisplayMode]] = []
        edids: list[bytes | None] = []
        link.get_display_info(infos.append)
        link.get_edid(0, edids.append)
        driver.until(lambda: edids, "the EDID")
        assert infos[0][0] == DisplayMode(Rect(0, 0, 320, 200), True)
        assert edids[0] is not None and edids[0].startswith(bytes.fromhex("00ffffffffffff00"))

        link.set_scanout(0, 320, 200)
        picture = np.random.default_rng(7).integers(0, 256, (200, 320, 4), np.uint8)
        driver.until(lambda: link.ready_for_update(0), "the scanout is ready")
        link.update(0, Rect(0, 0, 320, 200), memoryview(picture.tobytes()))
        driver.until(lambda: link.ready_for_update(0), "the picture has been taken")
        part = np.full((50, 60, 4), 9, np.uint8)
        link.update(0, Rect(100, 20, 60, 50), memoryview(part.tobytes()))
        picture[20:70, 100:160] = part
        driver.until(lambda: shown_by(display) == picture.tobytes(), "the picture is shown")
    finally:
        link.close()
        display.close()
