"""The channel on which the back end asks the front end."""

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from master.vhost_user import BackendChannel
from master.vhost_user_messages import Request
from native.owned_fd import OwnedFd
from tests.vhost_user_connection import (  # noqa: F401 (fixtures)
    NEED_REPLY,
    PLAIN,
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
def channel_peer(connection: Connection) -> Iterator[socket.socket]:
    """The front end's end of the back-end channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        replies = connection.ask(Request.SET_BACKEND_REQ_FD, b"", (theirs.fileno(),), NEED_REPLY)
    assert replies == [(Request.SET_BACKEND_REQ_FD, REPLY, u64(0))]
    ours.setblocking(False)
    with ours:
        yield ours


def channel_of(connection: Connection) -> BackendChannel:
    assert connection.handler.channel is not None
    return connection.handler.channel


def test_a_configuration_change(connection: Connection, channel_peer: socket.socket) -> None:
    answers: list[bool] = []
    channel_of(connection).config_change()
    assert channel_peer.recv(100) == struct.pack("=III", 2, PLAIN, 0)
    channel_of(connection).config_change(answers.append)
    channel_of(connection).config_change(answers.append)
    assert channel_peer.recv(100) == struct.pack("=III", 2, NEED_REPLY, 0) * 2
    channel_peer.send(struct.pack("=IIIQ", 2, REPLY, 8, 1) + struct.pack("=IIIQ", 2, REPLY, 8, 0))
    connection.driver.until(lambda: len(answers) == 2, "both answers")
    assert answers == [False, True]


def test_a_request_with_a_descriptor(connection: Connection, channel_peer: socket.socket, memory: int) -> None:
    channel_of(connection).request(9, b"payload", fd=OwnedFd(os.dup(memory)))
    data, fds, _flags, _address = socket.recv_fds(channel_peer, 100, 4)
    assert data == struct.pack("=III", 9, PLAIN, 7) + b"payload"
    assert os.path.sameopenfile(fds[0], memory)
    os.close(fds[0])
    assert open_descriptions(memory) == 1


def test_answers_can_be_had_before_the_loop_sees_them(connection: Connection, channel_peer: socket.socket) -> None:
    answers: list[bool] = []
    channel_of(connection).config_change(answers.append)
    channel_of(connection).config_change(answers.append)
    channel_peer.send(struct.pack("=IIIQ", 2, REPLY, 8, 0))
    channel_of(connection).read_answers()
    assert answers == [True]
    channel_of(connection).read_answers()
    assert answers == [True]
    channel_of(connection).close()
    channel_of(connection).read_answers()
    assert answers == [True, False]


@pytest.mark.parametrize(
    "reply",
    [
        struct.pack("=IIIQ", 3, REPLY, 8, 0),
        struct.pack("=IIIQ", 2, PLAIN, 8, 0),
        struct.pack("=IIII", 2, REPLY, 4, 0),
    ],
)
def test_wrong_replies_close_the_channel_alone(
    connection: Connection, channel_peer: socket.socket, reply: bytes
) -> None:
    answers: list[bool] = []
    channel_of(connection).config_change(answers.append)
    channel_peer.send(reply)
    connection.driver.until(lambda: answers, "the open request fails")
    assert answers == [False]
    assert channel_of(connection).closed
    assert connection.ask(Request.GET_QUEUE_NUM) == [(Request.GET_QUEUE_NUM, REPLY, u64(2))]


def test_the_channel_closes_with_the_connection(
    connection: Connection, channel_peer: socket.socket, memory: int
) -> None:
    answers: list[bool] = []
    channel_of(connection).config_change(answers.append)
    connection.peer.close()
    connection.why_closed()
    assert answers == [False]
    channel_of(connection).config_change(answers.append)
    channel_of(connection).request(9, fd=OwnedFd(os.dup(memory)))
    assert answers == [False, False]
    assert open_descriptions(memory) == 1


def test_a_second_channel_replaces_the_first(connection: Connection, channel_peer: socket.socket) -> None:
    first = channel_of(connection)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            connection.ask(Request.SET_BACKEND_REQ_FD, b"", (theirs.fileno(),))
        assert first.closed
        channel_of(connection).config_change()
        assert ours.recv(12) == struct.pack("=III", 2, PLAIN, 0)
