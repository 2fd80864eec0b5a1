"""ipc.outbox: descriptors in their order, without ever waiting."""

import errno
import os
import select
import socket
from collections.abc import Iterator

import pytest

from ipc import messages
from ipc.channel import Channel, channel_pair
from ipc.errors import ChannelClosed
from ipc.messages import Handle
from ipc.outbox import Outbox
from native.owned_fd import OwnedFd
from tests.test_ipc_channel import open_fds


class Ends:
    """An outbox of a channel, and the channel's other end."""

    def __init__(self) -> None:
        self.socket, theirs = channel_pair()
        self.channel = Channel(self.socket, ())
        self.outbox = Outbox(self.channel)
        self.other = Channel(theirs, messages.TO_LANE_WORKER)
        self.file = OwnedFd(os.memfd_create("file"))

    def put(self, *tickets: int) -> None:
        for ticket in tickets:
            self.outbox.put(Handle(ticket), self.file)

    def take(self) -> list[int]:
        """The tickets that have come; each with the file."""
        tickets = []
        while (received := self.other.recv_nowait()) is not None:
            message, (fd,) = received
            with fd:
                assert os.fstat(fd.fd).st_ino == os.fstat(self.file.fd).st_ino
            assert isinstance(message, Handle)
            tickets.append(message.ticket)
        return tickets

    def writable(self) -> bool:
        return bool(select.select([], [self.outbox], [], 0)[1])

    def close(self) -> None:
        self.outbox.close()
        self.channel.close()
        self.other.close()
        self.file.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


def test_nothing_goes_before_it_is_flushed(ends: Ends) -> None:
    assert ends.outbox.flush()
    before = open_fds()
    ends.put(3, 1, 2)
    assert len(ends.outbox) == 3 and ends.take() == []
    assert ends.outbox.flush()
    assert len(ends.outbox) == 0 and not ends.outbox.crowded
    assert ends.take() == [3, 1, 2]
    assert open_fds() == before


def test_a_lent_descriptor_may_be_closed_meanwhile(ends: Ends) -> None:
    inode = os.fstat(ends.file.fd).st_ino
    ends.put(1)
    ends.file.close()
    assert ends.outbox.flush()
    _, (fd,) = ends.other.recv()
    with fd:
        assert os.fstat(fd.fd).st_ino == inode


def test_a_full_channel_keeps_the_rest_until_it_is_writable(ends: Ends) -> None:
    wanted = list(range(1, 801))
    ends.put(*wanted)
    assert not ends.outbox.flush()
    assert not ends.outbox.crowded and not ends.writable()
    left = len(ends.outbox)
    assert 0 < left < len(wanted)
    assert not ends.outbox.flush() and len(ends.outbox) == left
    got = []
    while len(ends.outbox):
        got += ends.take()
        assert ends.writable()
        ends.outbox.flush()
    assert got + ends.take() == wanted


class Crowded(socket.socket):
    """One over which no descriptor goes while others have too many under way, or for another reason."""

    error = errno.ETOOMANYREFS

    def sendmsg(self, *arguments: object) -> int:
        raise OSError(self.error, os.strerror(self.error))


def test_too_many_descriptors_of_others_are_waited_for(ends: Ends) -> None:
    crowded = Crowded(fileno=os.dup(ends.socket.fileno()))
    outbox = Outbox(Channel(crowded, ()))
    outbox.put(Handle(1), ends.file)
    assert not outbox.flush()
    assert outbox.crowded and len(outbox) == 1
    crowded.error = errno.EAGAIN
    assert not outbox.flush()
    assert not outbox.crowded
    crowded.error = errno.EPERM
    with pytest.raises(PermissionError):
        outbox.flush()
    assert len(outbox) == 1
    outbox.close()
    crowded.close()


def test_the_other_s_end(ends: Ends) -> None:
    ends.other.close()
    ends.put(1, 2)
    before = open_fds()
    with pytest.raises(ChannelClosed):
        ends.outbox.flush()
    ends.outbox.close()
    ends.outbox.close()
    assert len(ends.outbox) == 0
    assert open_fds() == before - 2


def test_what_is_no_descriptor_is_not_put(ends: Ends) -> None:
    with OwnedFd(os.memfd_create("file")) as fd:
        number = fd.fd
    with pytest.raises(OSError):
        ends.outbox.put(Handle(1), number)
    assert len(ends.outbox) == 0
