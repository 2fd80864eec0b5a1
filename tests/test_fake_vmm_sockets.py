"""The fake VMM's ends of the sockets, vhost-user and display, against bytes written by hand; its errors."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from tests.fake_vmm import (
    Disconnected,
    Display,
    DisplayRequest,
    FakeVmm,
    GuestMemory,
    ProtocolViolation,
    Rect,
    Refused,
    wire,
)
from tests.fake_vmm.edid import make_edid
from tests.fake_vmm.front_end import FrontEnd

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory([(0, 4 * MIB), (4 * MIB, 4 * MIB), (4 * GIB, 4 * MIB)], one_memfd=False) as ram:
        yield ram


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        yield ours, theirs


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- front end and VMM ----------------------------------------------------------------------------------------------


def test_front_end_message_and_acknowledgement_in_bytes(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = sockets
    front = FrontEnd(ours, timeout=30)
    front.set_protocol_features(1 << 3)
    theirs.sendall(bytes.fromhex("12000000 05000000 08000000 0000000000000000"))
    front.set_vring_enable(1, True)
    theirs.sendall(bytes.fromhex("12000000 05000000 08000000 0100000000000000"))
    with pytest.raises(Refused, match="SET_VRING_ENABLE"):
        front.set_vring_enable(0, False)
    assert theirs.recv(1000) == bytes.fromhex(
        "10000000 01000000 08000000 0800000000000000"
        "12000000 09000000 08000000 01000000 01000000"
        "12000000 09000000 08000000 00000000 00000000"
    )


def test_front_end_hands_over_memory(sockets: tuple[socket.socket, socket.socket], memory: GuestMemory) -> None:
    front = FrontEnd(sockets[0], timeout=30)
    front.set_mem_table(memory.regions)
    data, fds, _, _ = socket.recv_fds(sockets[1], 1000, 8)
    try:
        assert data[:20] == struct.pack("<IIIII", 5, 1, 8 + 3 * 32, 3, 0)
        assert data[20:52] == struct.pack("<QQQQ", 0, 4 * MIB, memory.regions[0].uva, 0)
        assert [os.fstat(fd).st_ino for fd in fds] == [os.fstat(r.fd).st_ino for r in memory.regions]
    finally:
        for fd in fds:
            os.close(fd)


def test_front_end_errors_name_what_was_awaited(sockets: tuple[socket.socket, socket.socket]) -> None:
    front = FrontEnd(sockets[0], timeout=0.01)
    with pytest.raises(TimeoutError, match="GET_FEATURES"):
        front.get_features()
    front.set_timeout(30)
    sockets[1].sendall(bytes.fromhex("0f000000 05000000 08000000 0000000000000000"))
    with pytest.raises(ProtocolViolation, match="GET_FEATURES was answered by request 15"):
        front.get_features()
    sockets[1].close()
    with pytest.raises(Disconnected, match="vhost-user socket"):
        front.get_queue_num()


def test_vmm_with_a_mute_back_end_frees_everything(sockets: tuple[socket.socket, socket.socket]) -> None:
    before = open_fds()
    with pytest.raises(TimeoutError, match="GET_FEATURES"):
        FakeVmm(sockets[0].dup(), timeout=0.01)
    assert open_fds() == before


def test_connect_to_nobody_is_a_timeout(tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(TimeoutError, match="nobody listens"):
        FakeVmm.connect(os.path.join(tmp_path, "no.sock"), wait=0.01)


# --- display --------------------------------------------------------------------------------------------------------


def test_edid_is_well_formed() -> None:
    edid = make_edid(1280, 800)
    assert len(edid) == 128
    assert sum(edid) % 256 == 0
    assert edid[:8] == bytes.fromhex("00ffffffffffff00")
    assert edid[56] | (edid[58] & 0xF0) << 4 == 1280
    assert edid[59] | (edid[61] & 0xF0) << 4 == 800


def test_display_draws_updates_and_answers() -> None:
    display = Display([(64, 32)])
    with display.new_socket() as back_end:
        back_end.settimeout(30)
        back_end.sendall(struct.pack("<III", 1, 0, 0))
        assert back_end.recv(100) == struct.pack("<IIIQ", 1, 4, 8, 3)
        back_end.sendall(struct.pack("<6I", 7, 0, 12, 0, 8, 4))
        pixels = bytes(range(2 * 3 * 4))
        back_end.sendall(struct.pack("<8I", 8, 0, 20 + len(pixels), 0, 1, 1, 2, 3) + pixels)
        display.wait_for_message(DisplayRequest.UPDATE)
        framebuffer = display.framebuffer()
        assert framebuffer is not None
        assert framebuffer.shape == (4, 8, 4)
        assert framebuffer[1:4, 1:3].tobytes() == pixels
        assert not framebuffer[0].any()
        assert display.screenshot().getpixel((1, 1)) == (2, 1, 0)
        back_end.sendall(struct.pack("<III", 3, 0, 0))
        info = wire.decode_response(back_end.recv(1000)[12:])
        assert isinstance(info, wire.DisplayInfo)
        assert info.enabled == (wire.DisplayMode(Rect(64, 32), True, 0),)
    display.close()


def test_display_maps_a_dmabuf_with_its_modifier_and_orientation() -> None:
    display = Display()
    with display.new_socket() as back_end:
        fd = os.memfd_create("pixels")
        rows = np.arange(4 * 4 * 4, dtype=np.uint8).reshape(4, 4, 4)
        os.write(fd, rows.tobytes())
        for flags in (1, 0):
            message = struct.pack("<III9IIQ", 12, 0, 48, 0, 1, 0, 3, 4, 4, 4, 16, flags, 0x34325258, 0)
            socket.send_fds(back_end, [message], [fd])
            back_end.sendall(struct.pack("<8I", 10, 0, 20, 0, 0, 0, 3, 4))
            back_end.settimeout(30)
            assert back_end.recv(100) == struct.pack("<III", 10, 4, 0)
            framebuffer = display.framebuffer()
            assert framebuffer is not None
            assert np.array_equal(framebuffer, rows[:: -1 if flags else 1, 1:4])
        os.close(fd)
    display.close()


def test_display_stalls_and_resumes() -> None:
    display = Display(receive_buffer=4096)
    with display.new_socket() as back_end:
        display.stall()
        back_end.setblocking(False)
        move = struct.pack("<6I", 4, 0, 12, 0, 1, 1)
        sent = 0
        with pytest.raises(BlockingIOError):
            for _ in range(100_000):
                assert back_end.send(move) == len(move)
                sent += 1
        display.resume()
        assert len(display.wait_for_message(DisplayRequest.CURSOR_POS, sent)) == sent
    display.close()


def test_display_reports_protocol_errors_to_the_test() -> None:
    display = Display()
    with display.new_socket() as back_end:
        back_end.sendall(struct.pack("<8I", 8, 0, 20 + 4, 0, 0, 0, 1, 1) + b"abcd")
        with pytest.raises(ProtocolViolation, match="leaves its scanout"):
            display.wait_for_message(DisplayRequest.UPDATE)
    display.close()
