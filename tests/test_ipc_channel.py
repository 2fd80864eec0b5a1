"""ipc.channel: messages with their descriptors, and everything that is not as declared."""

import array
import errno
import os
import socket
from typing import Any, cast

import pytest

from ipc import messages
from ipc.channel import FDS_PATIENCE, Channel, channel_pair, send_fds
from ipc.errors import ChannelClosed, ProtocolError
from ipc.messages import EngineName, Exited, Spawned, SpawnWorker
from native.owned_fd import OwnedFd

ALL = tuple(messages.MESSAGES.values())


def open_fds() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def ends() -> tuple[socket.socket, Channel]:
    """A raw socket, and a channel at its other end."""
    raw, other = channel_pair()
    return raw, Channel(other, ALL)


def send_raw(raw: socket.socket, data: bytes, fds: list[int]) -> None:
    """Send a datagram as it is."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    raw.sendmsg([data], ancillary)


def test_a_message_arrives_with_its_descriptors_in_order() -> None:
    ours, theirs = channel_pair()
    files = [OwnedFd(os.memfd_create(f"file{n}")) for n in range(SpawnWorker.FDS)]
    message = SpawnWorker(3, EngineName.NULL)
    with Channel(ours, ALL) as sender, Channel(theirs, ALL) as receiver:
        sender.send(message, files)
        received, fds = receiver.recv()
        assert received == message
        assert [os.fstat(fd.fd).st_ino for fd in fds] == [os.fstat(file.fd).st_ino for file in files]
        assert not any(os.get_inheritable(fd.fd) for fd in fds)
        assert not any(file.closed for file in files)  # sending lends


def test_messages_keep_their_borders(ends: tuple[socket.socket, Channel]) -> None:
    raw, channel = ends
    for number in (1, 2, 3):
        raw.send(Exited(number, 0).encode())
    assert [channel.recv()[0] for _ in range(3)] == [Exited(n, 0) for n in (1, 2, 3)]
    assert channel.recv_nowait() is None


def test_the_end_of_the_other_side(ends: tuple[socket.socket, Channel]) -> None:
    raw, channel = ends
    raw.send(Exited(1, 0).encode())
    raw.close()
    assert channel.recv()[0] == Exited(1, 0)
    with pytest.raises(ChannelClosed):
        channel.recv()
    with pytest.raises(ChannelClosed):
        channel.recv_nowait()
    with pytest.raises(ChannelClosed):
        channel.send(Exited(1, 0))


@pytest.mark.parametrize(
    ("data", "fd_count"),
    [
        (Spawned(1).encode(), 0),
        (Spawned(1).encode(), 2),
        (Exited(1, 0).encode(), 1),
        (SpawnWorker(1, EngineName.NULL).encode(), SpawnWorker.FDS - 1),
        (SpawnWorker(1, EngineName.NULL).encode(), SpawnWorker.FDS + 1),
        (SpawnWorker(1, EngineName.NULL).encode(), 50),
        (b"\0", 1),
        (b"\xff" * 20, 1),
        (Spawned(1).encode() + b"\0", 1),
        (bytes(100_000), 1),
    ],
)
def test_anything_else_leaves_nothing_open(
    ends: tuple[socket.socket, Channel], data: bytes, fd_count: int
) -> None:
    raw, channel = ends
    files = [os.memfd_create("file") for _ in range(fd_count)]
    before = open_fds()
    send_raw(raw, data, files)
    with pytest.raises(ProtocolError):
        channel.recv()
    assert open_fds() == before
    for file in files:
        os.close(file)


def test_messages_of_another_direction_are_refused() -> None:
    ours, theirs = channel_pair()
    with Channel(ours, ()) as sender, Channel(theirs, messages.TO_LAUNCHER) as receiver:
        sender.send(Exited(1, 0))
        with pytest.raises(ProtocolError):
            receiver.recv()


def test_the_sender_must_know_how_many_descriptors_there_are() -> None:
    ours, theirs = channel_pair()
    with theirs, Channel(ours, ALL) as channel, pytest.raises(ValueError):
        channel.send(Spawned(1))


def test_only_seqpacket_sockets_make_a_channel() -> None:
    stream, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with stream, other, pytest.raises(ValueError):
        Channel.from_fd(stream.fileno(), ALL)
    with OwnedFd(os.memfd_create("file")) as file, pytest.raises(OSError):
        Channel.from_fd(file.fd, ALL)


def test_sending_can_be_had_without_waiting() -> None:
    ours, theirs = channel_pair()
    with Channel(ours, ALL) as sender, Channel(theirs, ALL) as receiver, OwnedFd(os.memfd_create("file")) as file:
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                sender.send_nowait(Spawned(sent + 1), [file])
                sent += 1
        assert sent
        for number in range(1, sent + 1):
            message, (fd,) = receiver.recv()
            fd.close()
            assert message == Spawned(number)
        assert receiver.recv_nowait() is None
        sender.send_nowait(Exited(1, 0))
        assert receiver.recv()[0] == Exited(1, 0)
        with pytest.raises(ValueError):
            sender.send_nowait(Spawned(1))
        receiver.close()
        with pytest.raises(ChannelClosed):
            sender.send_nowait(Exited(1, 0))


class FullSocket:
    """One that refuses descriptors so many times, as the kernel does while too many are under way."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.sent: list[bytes] = []

    def sendmsg(self, buffers: list[bytes], ancillary: object, flags: int) -> int:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.ETOOMANYREFS, "Too many references: cannot splice")
        self.sent += buffers
        return sum(map(len, buffers))


def test_descriptors_wait_for_those_of_others_if_they_may() -> None:
    full = FullSocket(3)
    with pytest.raises(OSError) as refused:
        send_fds(cast(Any, full), b"impatient", [0])
    assert refused.value.errno == errno.ETOOMANYREFS
    send_fds(cast(Any, full), b"patient", [0], FDS_PATIENCE)
    assert full.refusals == 0 and full.sent == [b"patient"]
