"""The fake VMM's host-visible region, and its being QEMU's generic device: against a back end that plays its part."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from tests.fake_vmm import FakeVmm, OutOfGuestMemory, ProtocolFeature, ProtocolViolation, Request, Window, WindowSpace
from tests.fake_vmm.back_end_channel import BackEndChannel
from tests.fake_vmm.front_end import FrontEnd
from tests.fake_vmm.protocol import Message, bits

PAGE = 4096
SIZE = 1 << 20
MAP, UNMAP = 9, 10
LIMIT = 30
DONE, REFUSED = 0, 1


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("blob")
    os.ftruncate(fd, 4 * PAGE)
    yield fd
    os.close(fd)


@pytest.fixture
def window() -> Iterator[Window]:
    window = Window(SIZE)
    yield window
    window.close()


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def range_of(offset: int, size: int, flags: int = 1, shmid: int = 1, file_offset: int = 0) -> bytes:
    return struct.pack("<B7x4Q", shmid, file_offset, offset, size, flags)


def map_at(window: Window, fd: int, offset: int, size: int = PAGE, **how: int) -> int:
    return window.serve(Message(MAP, 9, range_of(offset, size, **how), (fd,)))


def unmap_at(window: Window, offset: int, size: int = PAGE) -> int:
    return window.serve(Message(UNMAP, 9, range_of(offset, size)))


# --- the region -----------------------------------------------------------------------------------------------------


def test_guest_and_host_see_the_same_bytes(window: Window, file: int) -> None:
    assert map_at(window, file, 8 * PAGE, 2 * PAGE, file_offset=PAGE) == DONE
    window.write(8 * PAGE + 5, b"guest")
    assert os.pread(file, 5, PAGE + 5) == b"guest"
    os.pwrite(file, b"host", 2 * PAGE)
    assert window.read(9 * PAGE, 4) == b"host"
    (mapping,) = window.mappings
    assert (mapping.offset, mapping.size, mapping.writable) == (8 * PAGE, 2 * PAGE, True)
    assert mapping.file == (os.fstat(file).st_dev, os.fstat(file).st_ino)
    (slot,) = window.slots()
    assert (slot.size, slot.offset, slot.gpa % SIZE) == (2 * PAGE, PAGE, 8 * PAGE)
    assert unmap_at(window, 8 * PAGE, 2 * PAGE) == DONE
    with pytest.raises(ValueError, match="not one mapping"):
        window.read(8 * PAGE, 1)


def test_read_only_is_read_only(window: Window, file: int) -> None:
    assert map_at(window, file, 0, flags=0) == DONE
    with pytest.raises(TypeError):
        window.write(0, b"x")


def test_what_qemu_refuses(window: Window, file: int) -> None:
    assert map_at(window, file, PAGE, 2 * PAGE) == DONE
    assert map_at(window, file, 2 * PAGE) == REFUSED
    assert map_at(window, file, 0, 2 * PAGE) == REFUSED
    assert map_at(window, file, SIZE) == REFUSED
    assert map_at(window, file, 0, shmid=2) == REFUSED
    assert window.serve(Message(MAP, 9, range_of(0, PAGE))) == REFUSED
    assert unmap_at(window, 0) == REFUSED
    assert unmap_at(window, PAGE, PAGE) == REFUSED
    window.refuse = True
    assert map_at(window, file, 0) == REFUSED
    assert len(window.mappings) == 1


def test_what_qemu_or_its_guest_would_not_survive(window: Window, file: int) -> None:
    with pytest.raises(ProtocolViolation, match="past the end"):
        map_at(window, file, 0, 5 * PAGE)
    with pytest.raises(ProtocolViolation, match="no whole pages"):
        map_at(window, file, 0, 1000)
    map_at(window, file, 0)
    window.reset()
    assert window.mappings == ()
    with pytest.raises(ProtocolViolation, match="QEMU dies of it"):
        unmap_at(window, 0)
    assert map_at(window, file, 0) == DONE
    assert unmap_at(window, 0) == DONE


def test_the_drivers_allocator_takes_the_lowest_room() -> None:
    space = WindowSpace(4 * PAGE)
    assert [space.allocate(PAGE), space.allocate(2 * PAGE), space.allocate(PAGE)] == [0, PAGE, 3 * PAGE]
    with pytest.raises(OutOfGuestMemory):
        space.allocate(PAGE)
    space.free(PAGE)
    assert space.allocate(PAGE) == PAGE
    assert space.allocate(PAGE) == 2 * PAGE


# --- the channel ----------------------------------------------------------------------------------------------------


def ask(sock: socket.socket, request: int, payload: bytes, fds: tuple[int, ...] = ()) -> None:
    socket.send_fds(sock, [struct.pack("<III", request, 9, len(payload)) + payload], list(fds))


def test_requests_are_answered_in_order_or_when_the_test_says(window: Window, file: int) -> None:
    done: list[int] = []
    channel = BackEndChannel(window.serve, lambda message: done.append(message.request))
    back_end = channel.peer
    back_end.settimeout(LIMIT)
    channel.hold()
    ask(back_end, MAP, range_of(0, PAGE), (file,))
    ask(back_end, UNMAP, range_of(PAGE, PAGE))
    ask(back_end, UNMAP, range_of(0, PAGE))
    back_end.setblocking(False)
    with pytest.raises(BlockingIOError):
        back_end.recv(1)
    back_end.settimeout(LIMIT)
    channel.release()
    answers = b"".join(back_end.recv(20, socket.MSG_WAITALL) for _ in range(3))
    assert answers == b"".join(
        struct.pack("<IIIQ", request, 5, 8, status) for request, status in ((MAP, 0), (UNMAP, 1), (UNMAP, 0))
    )
    channel.close()
    assert done == [MAP, UNMAP]
    assert [message.request for message in channel.requests] == [MAP, UNMAP, UNMAP]


def test_what_is_held_for_ever_ends_with_the_channel(window: Window, file: int) -> None:
    channel = BackEndChannel(window.serve)
    channel.hold()
    ask(channel.peer, MAP, range_of(0, PAGE), (file,))
    channel.close()
    assert window.mappings == ()


def test_the_end_of_qemu_is_the_end_of_the_test(window: Window, file: int) -> None:
    map_at(window, file, 0)
    window.reset()
    channel = BackEndChannel(window.serve)
    channel.peer.settimeout(LIMIT)
    ask(channel.peer, UNMAP, range_of(0, PAGE))
    assert channel.peer.recv(1) == b""
    with pytest.raises(ProtocolViolation, match="QEMU dies"):
        channel.close()


@pytest.mark.parametrize(("request_", "size"), [(MAP, 39), (UNMAP, 48), (2, 8), (3, 0)])
def test_requests_that_are_none(request_: int, size: int) -> None:
    channel = BackEndChannel()
    channel.peer.settimeout(LIMIT)
    ask(channel.peer, request_, bytes(size))
    assert channel.peer.recv(1) == b""
    with pytest.raises(ProtocolViolation, match="payload"):
        channel.close()


# --- the generic device ---------------------------------------------------------------------------------------------

FEATURES = 0x1F | 1 << 28 | 1 << 29 | 1 << 30 | 1 << 32
OFFERED = (
    ProtocolFeature.MQ,
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.BACKEND_REQ,
    ProtocolFeature.CONFIG,
    ProtocolFeature.RESET_DEVICE,
    ProtocolFeature.SHMEM,
)
SHMEM_CONFIG = struct.pack("<II256Q", 1, 0, 0, SIZE, *[0] * 254)
ANSWERS = {
    Request.GET_FEATURES: struct.pack("<Q", FEATURES),
    Request.GET_PROTOCOL_FEATURES: struct.pack("<Q", bits(OFFERED)),
    Request.GET_QUEUE_NUM: struct.pack("<Q", 2),
    Request.GET_SHMEM_CONFIG: SHMEM_CONFIG,
}


class PlayedBackEnd:
    """Agrees to everything, in a thread. tables: (gpa, size) of the regions of each memory table."""

    def __init__(self) -> None:
        self.tables: list[list[tuple[int, int]]] = []
        self.features = 0
        self.bases: list[int] = []
        self.channel: socket.socket | None = None
        self.ours, self.theirs = socket.socketpair()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while header := self.ours.recv(12, socket.MSG_PEEK):
            _request, _flags, size = struct.unpack("<III", header)
            data, fds, _, _ = socket.recv_fds(self.ours, 12 + size, 16)
            request, flags, size = struct.unpack_from("<III", data)
            answer = self._do(request, data[12:], fds)
            if answer is None and flags & 8:
                answer = bytes(8)
            if answer is not None:
                self.ours.sendall(struct.pack("<III", request, 5, len(answer)) + answer)

    def _do(self, request: int, payload: bytes, fds: list[int]) -> bytes | None:
        if request == Request.SET_BACKEND_REQ_FD:
            self.channel = socket.socket(fileno=os.dup(fds[0]))
            self.channel.settimeout(LIMIT)
        for fd in fds:
            os.close(fd)
        if request == Request.SET_MEM_TABLE:
            rows = [struct.unpack_from("<QQ", payload, 8 + 32 * row) for row in range(len(fds))]
            with self._changed:
                self.tables.append(rows)
                self._changed.notify_all()
        elif request == Request.SET_FEATURES:
            (self.features,) = struct.unpack("<Q", payload)
        elif request == Request.SET_VRING_BASE:
            self.bases.append(struct.unpack("<II", payload)[1])
        elif request == Request.GET_CONFIG:
            return payload[:12] + struct.pack("<IIIIII", 0, 0, 1, 2, 0, 0)
        elif request == Request.GET_VRING_BASE:
            return payload[:4] + struct.pack("<I", 7)
        return ANSWERS.get(Request(request))

    def ask(self, request: int, payload: bytes, fds: tuple[int, ...] = ()) -> bool:
        """Asks the VMM for something."""
        assert self.channel is not None
        ask(self.channel, request, payload, fds)
        answer = self.channel.recv(20, socket.MSG_WAITALL)
        assert answer[:12] == struct.pack("<III", request, 5, 8)
        return answer[12:] == bytes(8)

    def wait_for_tables(self, count: int) -> list[tuple[int, int]]:
        """The latest when there are so many."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.tables) >= count, LIMIT)
            return self.tables[-1]

    def close(self) -> None:
        self._thread.join(LIMIT)
        self.ours.close()
        if self.channel is not None:
            self.channel.close()


@pytest.fixture
def back_end() -> Iterator[PlayedBackEnd]:
    back_end = PlayedBackEnd()
    yield back_end
    back_end.close()


@pytest.fixture
def vmm(back_end: PlayedBackEnd) -> Iterator[FakeVmm]:
    vmm = FakeVmm(back_end.theirs, generic=True, ram=[(0, 1 << 22), (1 << 32, 1 << 22)], boot=False)
    vmm.start()
    yield vmm
    vmm.disconnect()


def test_the_generic_device_starts_as_qemus(vmm: FakeVmm, back_end: PlayedBackEnd) -> None:
    names = [Request(request).name for request in vmm.front_end.log]
    realize = ["GET_FEATURES", "GET_PROTOCOL_FEATURES", "SET_PROTOCOL_FEATURES", "GET_QUEUE_NUM", "SET_BACKEND_REQ_FD"]
    realize += ["SET_OWNER", "GET_FEATURES", *["SET_VRING_CALL", "SET_VRING_ERR"] * 2, "GET_SHMEM_CONFIG"]
    ring = ["SET_VRING_NUM", "SET_VRING_BASE", "SET_VRING_ADDR", "SET_VRING_KICK", "SET_VRING_CALL"]
    start = ["GET_CONFIG", "GET_CONFIG", "SET_FEATURES", "SET_MEM_TABLE", *ring, *ring]
    assert names == [*realize, *start, *["SET_VRING_ENABLE"] * 2, *["SET_VRING_CALL"] * 2]
    assert back_end.features == FEATURES
    assert vmm.display is None and vmm.window is not None and vmm.window.size == SIZE
    assert vmm.gpu.window is vmm.window


def test_what_is_mapped_comes_back_as_memory(vmm: FakeVmm, back_end: PlayedBackEnd, file: int) -> None:
    ram = [(0, 1 << 22), (1 << 32, 1 << 22)]
    assert back_end.wait_for_tables(1) == ram
    assert back_end.ask(MAP, range_of(PAGE, 2 * PAGE), (file,))
    low, high, blob = back_end.wait_for_tables(2)
    assert [low, high] == ram and blob[1] == 2 * PAGE
    assert back_end.ask(UNMAP, range_of(PAGE, 2 * PAGE))
    assert back_end.wait_for_tables(3) == ram
    assert not back_end.ask(UNMAP, range_of(PAGE, 2 * PAGE))
    assert back_end.ask(2, b"")


def test_a_table_has_room_for_eight(vmm: FakeVmm, back_end: PlayedBackEnd, file: int) -> None:
    for number in range(8):
        assert back_end.ask(MAP, range_of(number * PAGE, PAGE), (file,))
    assert len(back_end.wait_for_tables(7)) == 8
    for number in range(3):
        assert back_end.ask(UNMAP, range_of(number * PAGE, PAGE))
    back_end.wait_for_tables(9)
    assert [len(table) for table in back_end.tables[7:]] == [8, 7]  # with nine nothing was sent
    assert vmm.window is not None and len(vmm.window.mappings) == 5


def test_a_reset_drops_the_mappings_and_a_pause_does_not(vmm: FakeVmm, back_end: PlayedBackEnd, file: int) -> None:
    assert back_end.ask(MAP, range_of(0, PAGE), (file,))
    back_end.wait_for_tables(2)
    vmm.pause()
    vmm.resume()
    assert len(back_end.wait_for_tables(3)) == 3
    assert back_end.bases == [0, 0, 7, 7]
    vmm.reset()
    assert vmm.window is not None and vmm.window.mappings == ()
    assert Request.RESET_DEVICE not in vmm.front_end.log
    vmm.start()
    assert len(back_end.wait_for_tables(4)) == 2
    assert back_end.bases[4:] == [0, 0]


def test_while_the_vmm_waits_for_an_answer_it_maps_nothing(vmm: FakeVmm, back_end: PlayedBackEnd, file: int) -> None:
    assert back_end.channel is not None and vmm.window is not None
    with vmm.front_end.lock:
        ask(back_end.channel, MAP, range_of(0, PAGE), (file,))
        back_end.channel.setblocking(False)
        vmm.front_end.get_features()
        with pytest.raises(BlockingIOError):
            back_end.channel.recv(1)
        assert vmm.window.mappings == ()
    back_end.channel.settimeout(LIMIT)
    assert back_end.channel.recv(20, socket.MSG_WAITALL)[12:] == bytes(8)
    back_end.wait_for_tables(2)


@pytest.mark.parametrize(
    "answer",
    [
        struct.pack("<II256Q", 2, 0, 0, SIZE, *[0] * 254),
        struct.pack("<II256Q", 1, 0, 0, 3 * SIZE, *[0] * 254),
        struct.pack("<II256Q", 1, 0, 0, 1024, *[0] * 254),
        bytes(24),
    ],
)
def test_sizes_of_which_qemu_would_end(answer: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        front = FrontEnd(theirs)
        ours.sendall(struct.pack("<III", 44, 5, len(answer)) + answer)
        with pytest.raises(ProtocolViolation):
            front.get_shmem_config()
        front.close()
