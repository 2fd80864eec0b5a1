"""master.hostile_socket: descriptors that nobody asked for, and the time that it takes to be rid of them."""

from __future__ import annotations

import array
import errno
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from ipc import messages
from ipc.channel import Channel, channel_pair
from ipc.errors import ProtocolError
from master import hostile_socket
from master.hostile_socket import Closer, refuse_descriptors, refuses_descriptors
from tests.vm.waiting import wait_until

LIMIT = 30.0


def kernel_can() -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return refuse_descriptors(sock)


needs_the_kernel = pytest.mark.skipif(not kernel_can(), reason="SO_PASSRIGHTS came with Linux 6.16")


def send_fd(sock: socket.socket, fd: int, data: bytes = b"x") -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])


@contextmanager
def lingering() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP socket whose last close waits until the other, the second, is closed."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        ours = stack.enter_context(socket.create_connection(listener.getsockname()))
        other = stack.enter_context(listener.accept()[0])
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                ours.send(bytes(65536))
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 600))
        yield ours, other


@needs_the_kernel
def test_a_socket_that_refuses_gets_none_and_may_send_some() -> None:
    ours, theirs = channel_pair()
    with ours, theirs:
        assert not refuses_descriptors(ours)
        refuse_descriptors(ours)
        assert refuses_descriptors(ours)
        with pytest.raises(PermissionError):
            send_fd(theirs, 0)
        send_fd(ours, 0)
        assert theirs.recvmsg(1, socket.CMSG_SPACE(4))[1]


@needs_the_kernel
def test_accepted_sockets_refuse_as_well_even_before_they_are_accepted() -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind("")  # the kernel finds an abstract name
        listener.listen()
        refuse_descriptors(listener)
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(listener.getsockname())
        with pytest.raises(PermissionError):
            send_fd(client, 0)
        accepted = stack.enter_context(listener.accept()[0])
        assert refuses_descriptors(accepted)
        send_fd(accepted, 0)


def test_a_kernel_that_does_not_know_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile_socket, "SO_PASSRIGHTS", 4096)  # no option of any kernel
    with socket.socket(socket.AF_UNIX) as sock:
        with pytest.raises(OSError) as refused:
            sock.setsockopt(socket.SOL_SOCKET, 4096, 0)
        assert refused.value.errno == errno.ENOPROTOOPT
        assert not refuse_descriptors(sock)
        assert not refuses_descriptors(sock)


@needs_the_kernel
def test_what_refuses_is_closed_at_once() -> None:
    ours, theirs = socket.socketpair()
    refuse_descriptors(ours)
    closer = Closer()
    with theirs:
        closer.close(ours)
        assert ours.fileno() == -1 and closer.waiting == 0
        assert theirs.recv(1) == b""
    closer.close(ours)  # nothing happens


def test_what_may_hold_descriptors_is_closed_by_a_thread() -> None:
    ours, theirs = socket.socketpair()
    closer = Closer()
    with theirs, lingering() as (sent, other):
        send_fd(theirs, sent.fileno())
        sent.close()
        threads = threading.active_count()
        closer.close(ours)  # would stand still here
        assert ours.fileno() == -1 and threading.active_count() == threads + 1
        theirs.setblocking(True)
        with pytest.raises(ConnectionResetError):  # unread data was discarded; the client sees it at once, or the end
            if theirs.recv(1) == b"":
                raise ConnectionResetError
        assert closer.waiting == 1
        one, another = socket.socketpair()
        with another:
            closer.close(one)
            assert closer.waiting == 2 and not closer.full
            other.close()
            wait_until(lambda: closer.waiting == 0, "both to be closed", LIMIT)


def test_so_many_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile_socket, "MAX_WAITING", 2)
    ours, theirs = socket.socketpair()
    closer = Closer()
    with theirs, lingering() as (sent, other):
        send_fd(theirs, sent.fileno())
        sent.close()
        closer.close(ours)
        assert not closer.full
        one, another = socket.socketpair()
        with another:
            closer.close(one)
            assert closer.full
        other.close()
        wait_until(lambda: not closer.full, "the end of waiting", LIMIT)


def test_a_message_with_descriptors_is_not_taken_by_who_expects_none() -> None:
    """Not even to discard it: that would close them, in whoever does."""
    ours, theirs = channel_pair()
    closer = Closer()
    with theirs, lingering() as (sent, other):
        send_fd(theirs, sent.fileno(), messages.fault("here").encode())
        sent.close()
        channel = Channel(ours, messages.FROM_WORKER)
        with pytest.raises(ProtocolError):
            channel.recv_nowait()
        with pytest.raises(ProtocolError):
            channel.recv_nowait()
        closer.close(channel.take())
        other.close()
        wait_until(lambda: closer.waiting == 0, "its end", LIMIT)
