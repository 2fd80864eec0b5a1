"""ipc.handles: descriptors by their tickets, in order."""

import os
from collections.abc import Iterator

import pytest

from ipc import messages
from ipc.channel import Channel, channel_pair
from ipc.errors import ChannelClosed, ProtocolError
from ipc.handles import Handles
from ipc.messages import DestroyContext, Handle
from native.owned_fd import OwnedFd
from tests.test_ipc_channel import open_fds


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Handles]]:
    """The master's channel, and what a worker takes off its own."""
    ours, theirs = channel_pair()
    with Channel(ours, ()) as master, Channel(theirs, messages.TO_LANE_WORKER) as worker:
        yield master, Handles(worker)


def test_each_is_the_taker_s(ends: tuple[Channel, Handles]) -> None:
    master, handles = ends
    with OwnedFd(os.memfd_create("one")) as one, OwnedFd(os.memfd_create("other")) as other:
        master.send(Handle(7), [one])
        master.send(Handle(2**64 - 1), [other])
        for ticket, sent in ((7, one), (2**64 - 1, other)):
            with handles.take(ticket) as taken:
                assert os.fstat(taken.fd).st_ino == os.fstat(sent.fd).st_ino
                assert not os.get_inheritable(taken.fd)


def test_another_ticket_than_the_next_is_a_lie(ends: tuple[Channel, Handles]) -> None:
    master, handles = ends
    with OwnedFd(os.memfd_create("one")) as one:
        master.send(Handle(8), [one])
        before = open_fds()
        with pytest.raises(ProtocolError, match="descriptor 8 where 7 was due"):
            handles.take(7)
        assert open_fds() == before


def test_a_record_needs_a_ticket(ends: tuple[Channel, Handles]) -> None:
    master, handles = ends
    with OwnedFd(os.memfd_create("one")) as one:
        master.send(Handle(0), [one])
        with pytest.raises(ProtocolError, match="without the ticket"):
            handles.take(0)


def test_nothing_else_comes_to_a_worker(ends: tuple[Channel, Handles]) -> None:
    master, handles = ends
    master.send(DestroyContext())
    with pytest.raises(ProtocolError):
        handles.take(1)


def test_the_master_s_end(ends: tuple[Channel, Handles]) -> None:
    master, handles = ends
    master.close()
    with pytest.raises(ChannelClosed):
        handles.take(1)
