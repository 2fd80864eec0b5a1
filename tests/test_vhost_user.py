"""The vhost-user connection: messages in order, acknowledgements, descriptors, and front ends that misbehave."""

import fcntl
import os
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from master.errors import ProtocolError
from master.vhost_user import BACKLOG_LIMIT
from master.vhost_user_messages import MemoryRegion, Request, VringAddress
from tests.event_loop import LoopDriver
from tests.vhost_user_connection import (  # noqa: F401 (fixtures)
    CONFIGURATION,
    FEATURES,
    NEED_REPLY,
    PLAIN,
    PROTOCOL_FEATURES,
    REPLY,
    Connection,
    connection_fixture,
    driver_fixture,
    memory_fixture,
    no_descriptor_leaks,
    open_descriptions,
    u64,
)


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


def state(index: int, num: int) -> bytes:
    return struct.pack("=II", index, num)


def mem_table(*regions: tuple[int, int, int, int]) -> bytes:
    return struct.pack("=II", len(regions), 0) + b"".join(struct.pack("=4Q", *region) for region in regions)


# What QEMU does


def test_the_start_as_qemu_does_it(connection: Connection, memory: int, eventfd: int) -> None:
    connection.send(Request.GET_FEATURES)
    connection.send(Request.GET_PROTOCOL_FEATURES)
    connection.send(Request.SET_PROTOCOL_FEATURES, u64(PROTOCOL_FEATURES))
    connection.send(Request.GET_QUEUE_NUM)
    connection.send(Request.SET_OWNER)
    connection.send(Request.SET_FEATURES, u64(0x10170000007))
    connection.send(Request.SET_MEM_TABLE, mem_table((0, 1 << 20, 0x7F00_0000_0000, 0)), (memory,), NEED_REPLY)
    connection.send(Request.SET_VRING_NUM, state(0, 256))
    connection.send(Request.SET_VRING_BASE, state(0, 7))
    connection.send(Request.SET_VRING_ADDR, struct.pack("=II4Q", 0, 0, 1, 2, 3, 4))
    connection.send(Request.SET_VRING_KICK, u64(0), (eventfd,), NEED_REPLY)
    connection.send(Request.SET_VRING_CALL, u64(1), (eventfd,), NEED_REPLY)
    connection.send(Request.SET_VRING_ENABLE, state(0, 1), (), NEED_REPLY)
    assert connection.replies() == [
        (Request.GET_FEATURES, REPLY, u64(FEATURES)),
        (Request.GET_PROTOCOL_FEATURES, REPLY, u64(PROTOCOL_FEATURES)),
        (Request.GET_QUEUE_NUM, REPLY, u64(2)),
        (Request.SET_MEM_TABLE, REPLY, u64(0)),
        (Request.SET_VRING_KICK, REPLY, u64(0)),
        (Request.SET_VRING_CALL, REPLY, u64(0)),
        (Request.SET_VRING_ENABLE, REPLY, u64(0)),
    ]
    assert connection.handler.calls == [
        ("get_features",),
        ("set_protocol_features", PROTOCOL_FEATURES),
        ("set_owner",),
        ("set_features", 0x10170000007),
        ("set_mem_table", 1),
        ("set_vring_num", 0, 256),
        ("set_vring_base", 0, 7),
        ("set_vring_addr", VringAddress(0, 0, 1, 2, 3, 4)),
        ("set_vring_kick", 0, True),
        ("set_vring_call", 1, True),
        ("set_vring_enable", 0, True),
    ]
    (region,) = connection.handler.regions
    assert (region.gpa, region.size, region.uva, region.mmap_offset) == (0, 1 << 20, 0x7F00_0000_0000, 0)
    os.pwrite(memory, b"guest", 100)
    assert os.pread(region.fd.fileno(), 5, 100) == b"guest"
    assert not os.get_inheritable(region.fd.fileno())


def test_regions_get_their_descriptors_in_order(connection: Connection) -> None:
    fds = tuple(os.memfd_create(f"region-{number}") for number in range(8))
    for number, fd in enumerate(fds):
        os.write(fd, bytes([number]))
    regions = [(number << 30, 1 << 20, number << 40, number) for number in range(8)]
    connection.ask(Request.SET_MEM_TABLE, mem_table(*regions), fds)
    for fd in fds:
        os.close(fd)
    assert [os.pread(region.fd.fileno(), 1, 0)[0] for region in connection.handler.regions] == list(range(8))
    assert [region.gpa for region in connection.handler.regions] == [number << 30 for number in range(8)]


def test_a_vring_without_descriptor(connection: Connection) -> None:
    replies = connection.ask(Request.SET_VRING_ERR, u64(1 | 1 << 8), (), NEED_REPLY)
    assert replies == [(Request.SET_VRING_ERR, REPLY, u64(0))]
    assert connection.handler.calls == [("set_vring_err", 1, False)]


@pytest.mark.parametrize(("offset", "size"), [(0, 20), (0, 24), (4, 4), (0, 256), (255, 1), (0, 0)])
def test_config_answers_have_the_size_that_was_asked(connection: Connection, offset: int, size: int) -> None:
    request = struct.pack("=III", offset, size, 0) + bytes(size)
    (reply,) = connection.ask(Request.GET_CONFIG, request)
    expected = struct.pack("=III", offset, size, 0) + CONFIGURATION[offset : offset + size]
    assert reply == (Request.GET_CONFIG, REPLY, expected)


def test_a_config_read_that_cannot_be_done_has_an_empty_answer(connection: Connection) -> None:
    connection.handler.refuse.add("get_config")
    replies = connection.ask(Request.GET_CONFIG, struct.pack("=III", 250, 20, 0) + bytes(20))
    assert replies == [(Request.GET_CONFIG, REPLY, b"")]


def test_config_writes(connection: Connection) -> None:
    replies = connection.ask(Request.SET_CONFIG, struct.pack("=III", 4, 3, 1) + b"abc", (), NEED_REPLY)
    assert replies == [(Request.SET_CONFIG, REPLY, u64(0))]
    assert connection.handler.calls == [("set_config", 4, b"abc", 1)]


def test_the_sizes_of_shared_memory_regions(connection: Connection) -> None:
    (reply,) = connection.ask(Request.GET_SHMEM_CONFIG)
    assert reply == (44, REPLY, struct.pack("=II", 1, 0) + u64(0) + u64(256 << 20) + bytes(254 * 8))
    assert len(reply[2]) == 2056


def test_the_display_socket_is_handed_on(connection: Connection) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            assert connection.ask(Request.GPU_SET_SOCKET, b"", (theirs.fileno(),)) == []
        assert connection.handler.display is not None
        connection.handler.display.send(b"picture")
        assert ours.recv(100) == b"picture"


def test_what_is_no_stream_socket_is_refused(connection: Connection, memory: int) -> None:
    (reply,) = connection.ask(Request.SET_BACKEND_REQ_FD, b"", (memory,), NEED_REPLY)
    assert reply[0] == Request.SET_BACKEND_REQ_FD and reply[2] != u64(0)
    datagram, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with datagram, other:
        (reply,) = connection.ask(Request.GPU_SET_SOCKET, b"", (datagram.fileno(),), NEED_REPLY)
        assert reply[2] != u64(0)
    assert open_descriptions(memory) == 1
    assert connection.handler.calls == []


@pytest.mark.parametrize("request_", [Request.SET_OWNER, Request.RESET_OWNER, Request.RESET_DEVICE])
def test_an_acknowledgement_is_sent_to_whoever_asks(connection: Connection, request_: Request) -> None:
    assert connection.ask(request_, b"", (), NEED_REPLY) == [(request_, REPLY, u64(0))]
    assert connection.ask(request_) == []


# Refusals


def test_a_refusal_is_acknowledged_and_the_connection_goes_on(connection: Connection, memory: int) -> None:
    connection.handler.refuse.add("set_mem_table")
    (reply,) = connection.ask(Request.SET_MEM_TABLE, mem_table((0, 4096, 0, 0)), (memory,), NEED_REPLY)
    assert reply[:2] == (Request.SET_MEM_TABLE, REPLY) and reply[2] != u64(0)
    assert open_descriptions(memory) == 1
    assert connection.ask(Request.GET_QUEUE_NUM) == [(Request.GET_QUEUE_NUM, REPLY, u64(2))]


def test_a_refusal_that_cannot_be_told_closes_the_connection(connection: Connection, memory: int) -> None:
    connection.handler.refuse.add("set_mem_table")
    connection.send(Request.SET_MEM_TABLE, mem_table((0, 4096, 0, 0)), (memory,))
    assert "set_mem_table is not possible" in connection.why_closed()
    assert open_descriptions(memory) == 1


def test_a_handler_bug_comes_out(connection: Connection, memory: int) -> None:
    def broken(regions: list[MemoryRegion]) -> None:
        raise ZeroDivisionError

    connection.handler.set_mem_table = broken  # type: ignore[method-assign]
    connection.send(Request.SET_MEM_TABLE, mem_table((0, 4096, 0, 0)), (memory,))
    with pytest.raises(ZeroDivisionError):
        connection.driver.turn(3)
    assert open_descriptions(memory) == 1


def test_unknown_requests(connection: Connection, memory: int) -> None:
    assert connection.ask(200, bytes(100), (memory,)) == []
    (reply,) = connection.ask(201, bytes(4096), (memory,), NEED_REPLY)
    assert reply[:2] == (201, REPLY) and reply[2] != u64(0)
    assert open_descriptions(memory) == 1
    assert connection.ask(Request.GET_QUEUE_NUM) == [(Request.GET_QUEUE_NUM, REPLY, u64(2))]


# Draining


def test_get_vring_base_at_once(connection: Connection) -> None:
    assert connection.ask(Request.GET_VRING_BASE, state(1, 0)) == [(Request.GET_VRING_BASE, REPLY, state(1, 42))]


def test_requests_wait_in_order_while_a_ring_drains(connection: Connection, eventfd: int) -> None:
    connection.handler.base = None
    connection.send(Request.GET_VRING_BASE, state(0, 0))
    connection.send(Request.SET_VRING_CALL, u64(0), (eventfd,), NEED_REPLY)
    connection.send(Request.GET_VRING_BASE, state(1, 0))
    connection.send(Request.SET_OWNER, b"", (), NEED_REPLY)
    assert connection.replies() == []
    assert connection.handler.calls == [("get_vring_base", 0)]

    connection.backend.reply_vring_base(0, 9)
    assert connection.replies() == [
        (Request.GET_VRING_BASE, REPLY, state(0, 9)),
        (Request.SET_VRING_CALL, REPLY, u64(0)),
    ]
    connection.backend.reply_vring_base(1, 10)
    assert connection.replies() == [
        (Request.GET_VRING_BASE, REPLY, state(1, 10)),
        (Request.SET_OWNER, REPLY, u64(0)),
    ]
    assert connection.handler.calls == [
        ("get_vring_base", 0),
        ("set_vring_call", 0, True),
        ("get_vring_base", 1),
        ("set_owner",),
    ]


def unread_bytes(sock: socket.socket) -> int:
    """What has been sent on a Unix socket and not been read at its other end."""
    (count,) = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))
    return int(count)


def test_a_request_that_arrives_with_the_answer_does_not_overtake(connection: Connection) -> None:
    connection.handler.base = None
    connection.send(Request.GET_VRING_BASE, state(0, 0))
    connection.send(Request.SET_VRING_BASE, state(0, 1))
    connection.driver.turn(3)
    connection.send(Request.SET_VRING_BASE, state(0, 2))
    # In one turn of the loop: first this, then the reading of the request that has just been sent.
    connection.driver.loop.call_soon(connection.backend.reply_vring_base, 0, 9)
    connection.driver.turn(3)
    assert connection.handler.calls[1:] == [("set_vring_base", 0, 1), ("set_vring_base", 0, 2)]


def test_a_refused_get_vring_base_closes_the_connection(connection: Connection) -> None:
    """Its answer has another meaning than an acknowledgement."""
    connection.handler.refuse.add("get_vring_base")
    connection.send(Request.GET_VRING_BASE, state(0, 0), (), NEED_REPLY)
    assert "get_vring_base is not possible" in connection.why_closed()
    assert connection.replies() == []


def test_more_requests_than_are_read_ahead(connection: Connection) -> None:
    connection.handler.base = None
    connection.send(Request.GET_VRING_BASE, state(0, 0))
    count = 3 * BACKLOG_LIMIT
    for number in range(count):
        connection.send(Request.SET_VRING_BASE, state(0, number), (), NEED_REPLY)
    assert connection.replies() == []
    assert unread_bytes(connection.peer) > 0  # what is read ahead is bounded
    connection.backend.reply_vring_base(0, 5)
    connection.driver.until(lambda: len(connection.handler.calls) == 1 + count, "every request has been served")
    assert connection.handler.calls[1:] == [("set_vring_base", 0, number) for number in range(count)]
    assert len(connection.replies()) == 1 + count


def test_the_answer_may_come_from_inside(connection: Connection) -> None:
    def drain(index: int) -> None:
        connection.backend.reply_vring_base(index, 3)

    connection.handler.get_vring_base = drain  # type: ignore[method-assign]
    connection.send(Request.GET_VRING_BASE, state(1, 0))
    connection.send(Request.GET_QUEUE_NUM)
    assert connection.replies() == [
        (Request.GET_VRING_BASE, REPLY, state(1, 3)),
        (Request.GET_QUEUE_NUM, REPLY, u64(2)),
    ]


def test_a_front_end_that_leaves_while_a_ring_drains(connection: Connection, memory: int) -> None:
    connection.handler.base = None
    connection.send(Request.GET_VRING_BASE, state(0, 0))
    connection.send(Request.SET_MEM_TABLE, mem_table((0, 4096, 0, 0)), (memory,))
    connection.driver.turn(5)
    connection.peer.close()
    connection.driver.until(lambda: connection.closings, "the connection closes")
    assert connection.closings == [None]
    assert open_descriptions(memory) == 1
    connection.backend.reply_vring_base(0, 9)  # comes too late, which is nobody's fault


def test_an_answer_that_nobody_waits_for(connection: Connection) -> None:
    with pytest.raises(ValueError, match="not being waited for"):
        connection.backend.reply_vring_base(0, 1)


def test_a_protocol_error_behind_a_draining_ring(connection: Connection) -> None:
    connection.handler.base = None
    connection.send(Request.GET_VRING_BASE, state(0, 0))
    connection.send(Request.SET_VRING_NUM, state(2, 256))
    connection.driver.turn(3)
    connection.backend.reply_vring_base(0, 1)
    assert "queue 2" in connection.why_closed()


# Framing


def test_bytes_one_at_a_time(connection: Connection, memory: int) -> None:
    table = mem_table((0, 4096, 0, 0))
    message = struct.pack("=III", Request.SET_MEM_TABLE, NEED_REPLY, len(table)) + table
    for position, byte in enumerate(message):
        connection.send_raw(bytes([byte]), (memory,) if position == 0 else ())
        connection.driver.turn()
    assert connection.replies() == [(Request.SET_MEM_TABLE, REPLY, u64(0))]
    assert len(connection.handler.regions) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(cuts=st.lists(st.integers(0, 200), max_size=12))
def test_any_cutting_of_the_stream(driver: LoopDriver, cuts: list[int]) -> None:
    connection = Connection(driver)
    stream = b"".join(
        struct.pack("=III", request, NEED_REPLY, len(payload)) + payload
        for request, payload in [
            (Request.SET_VRING_NUM, state(0, 128)),
            (Request.GET_FEATURES, b""),
            (Request.SET_VRING_BASE, state(1, 5)),
            (Request.SET_CONFIG, struct.pack("=III", 0, 30, 0) + bytes(30)),
            (Request.SET_OWNER, b""),
        ]
    )
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    try:
        for start, end in pairwise(edges):
            connection.send_raw(stream[start:end])
            driver.turn()
        assert [request for request, _flags, _payload in connection.replies()] == [8, 1, 10, 25, 3]
    finally:
        connection.close()


def test_descriptors_belong_to_the_message_they_came_with(connection: Connection, memory: int, eventfd: int) -> None:
    """All in the socket before the first is read; only one reading order keeps them apart."""
    connection.send(Request.SET_OWNER)
    connection.send(Request.SET_VRING_KICK, u64(0), (eventfd,))
    connection.send(Request.SET_VRING_CALL, u64(0 | 1 << 8))
    connection.send(Request.SET_MEM_TABLE, mem_table((0, 4096, 0, 0)), (memory,))
    connection.send(Request.SET_VRING_ERR, u64(1), (eventfd,))
    connection.driver.until(lambda: len(connection.handler.calls) == 5, "all are served")
    assert not connection.closings
    assert [call[0] for call in connection.handler.calls if call[-1] is True] == ["set_vring_kick", "set_vring_err"]


@pytest.mark.parametrize(
    ("flags", "words"), [(0x0, "version 0"), (0x2, "version 2"), (0x3, "version 3"), (0x5, "marked as a reply")]
)
def test_wrong_headers(connection: Connection, flags: int, words: str) -> None:
    connection.send(Request.GET_FEATURES, b"", (), flags)
    assert words in connection.why_closed()
    assert isinstance(connection.closings[0], ProtocolError)
    assert connection.handler.calls == []


@pytest.mark.parametrize(
    ("request_", "size"),
    [
        (Request.GET_FEATURES, 8),
        (Request.SET_FEATURES, 4),
        (Request.SET_FEATURES, 0xFFFFFFFF),
        (Request.SET_MEM_TABLE, 4),
        (Request.SET_MEM_TABLE, 8 + 9 * 32),
        (Request.SET_VRING_ADDR, 39),
        (Request.GET_CONFIG, 11),
        (Request.SET_CONFIG, 12 + 257),
        (Request.GET_SHMEM_CONFIG, 2056),
        (250, 4097),
    ],
)
def test_wrong_sizes_are_refused_before_the_payload_is_read(connection: Connection, request_: int, size: int) -> None:
    connection.send_raw(struct.pack("=III", request_, PLAIN, size))
    assert f"{size} bytes" in connection.why_closed()


@pytest.mark.parametrize(
    ("request_", "payload", "fds"),
    [
        (Request.SET_MEM_TABLE, mem_table((0, 4096, 0, 0)), 0),
        (Request.SET_MEM_TABLE, mem_table((0, 4096, 0, 0)), 2),
        (Request.SET_VRING_KICK, u64(0), 0),
        (Request.SET_VRING_KICK, u64(0), 2),
        (Request.SET_VRING_CALL, u64(0 | 1 << 8), 1),
        (Request.SET_BACKEND_REQ_FD, b"", 0),
        (Request.GPU_SET_SOCKET, b"", 0),
        (Request.GPU_SET_SOCKET, b"", 2),
        (Request.GET_FEATURES, b"", 1),
        (Request.GET_SHMEM_CONFIG, b"", 1),
        (Request.SET_FEATURES, u64(0), 1),
        (Request.SET_OWNER, b"", 1),
        (Request.SET_VRING_ENABLE, state(0, 1), 1),
        (Request.SET_OWNER, b"", 40),
    ],
)
def test_wrong_descriptor_counts(
    connection: Connection, memory: int, request_: int, payload: bytes, fds: int
) -> None:
    connection.send(request_, payload, (memory,) * fds)
    assert "descriptors" in connection.why_closed()
    assert open_descriptions(memory) == 1


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (Request.SET_VRING_NUM, state(2, 256)),
        (Request.SET_VRING_NUM, state(0, 0)),
        (Request.SET_VRING_NUM, state(0, 100)),
        (Request.SET_VRING_NUM, state(0, 1 << 31)),
        (Request.SET_VRING_BASE, state(0, 0x10000)),
        (Request.SET_VRING_BASE, state(0xFFFFFFFF, 0)),
        (Request.GET_VRING_BASE, state(2, 0)),
        (Request.SET_VRING_ENABLE, state(0, 2)),
        (Request.SET_VRING_ADDR, struct.pack("=II4Q", 7, 0, 1, 2, 3, 4)),
        (Request.SET_VRING_KICK, u64(5 | 1 << 8)),
        (Request.SET_MEM_TABLE, struct.pack("=II", 9, 0)),
        (Request.SET_MEM_TABLE, struct.pack("=II", 1, 0)),
        (Request.GET_CONFIG, struct.pack("=III", 0, 20, 0)),
        (Request.SET_CONFIG, struct.pack("=III", 0, 4, 0) + b"abc"),
    ],
)
def test_wrong_contents(connection: Connection, request_: int, payload: bytes) -> None:
    connection.send(request_, payload)
    connection.why_closed()
    assert isinstance(connection.closings[0], ProtocolError)
    assert connection.handler.calls == []


@pytest.mark.parametrize("region", [(0, 0, 0, 0), (1 << 63, 1 << 63 | 1, 0, 0), (0, 2, (1 << 64) - 1, 0)])
def test_regions_that_wrap_around(connection: Connection, memory: int, region: tuple[int, int, int, int]) -> None:
    connection.send(Request.SET_MEM_TABLE, mem_table(region), (memory,))
    assert "wraps around" in connection.why_closed()
    assert open_descriptions(memory) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.binary(max_size=400), request_=st.integers(0, 45))
def test_arbitrary_payloads_never_raise_anything_else(driver: LoopDriver, data: bytes, request_: int) -> None:
    connection = Connection(driver)
    try:
        connection.send(request_, data, (), NEED_REPLY)
        driver.turn(3)
        assert all(isinstance(reason, ProtocolError) for reason in connection.closings)
    finally:
        connection.close()


def test_a_front_end_that_leaves(connection: Connection) -> None:
    connection.peer.close()
    assert connection.why_closed() == "None"


def test_a_front_end_that_leaves_in_the_middle_of_a_message(connection: Connection, memory: int) -> None:
    table = mem_table((0, 4096, 0, 0))
    connection.send_raw(struct.pack("=III", Request.SET_MEM_TABLE, PLAIN, len(table)) + table[:10], (memory,))
    connection.driver.turn(3)
    connection.peer.close()
    assert "in the middle" in connection.why_closed()
    assert open_descriptions(memory) == 1


def test_a_front_end_that_does_not_read_its_answers(connection: Connection) -> None:
    for _ in range(20000):
        with suppress(BlockingIOError, BrokenPipeError):
            connection.send(Request.GET_FEATURES)
        connection.driver.turn()
        if connection.closings:
            break
    assert "stopped reading" in connection.why_closed()


def test_closing_tells_nobody_and_may_be_repeated(connection: Connection) -> None:
    connection.backend.close()
    connection.backend.close()
    connection.driver.turn(3)
    assert connection.closings == []
    assert connection.peer.recv(1) == b""
