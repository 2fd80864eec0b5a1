"""master.handle_post: descriptors reach a worker in the order of its records, and nothing waits for that."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from ipc import messages
from ipc.channel import Channel, channel_pair
from master.handle_post import CROWD, HandlePost
from native.owned_fd import OwnedFd
from tests.event_loop import LoopDriver, loop_driver

MANY = 2000  # more than a socket holds


class Post:
    """A post, and the worker's end."""

    def __init__(self, driver: LoopDriver) -> None:
        ours, theirs = channel_pair()
        self.driver = driver
        self.failures: list[str] = []
        self.channel = Channel(ours, messages.FROM_LANE_WORKER)
        self.worker = Channel(theirs, messages.TO_LANE_WORKER)
        self.post = HandlePost(driver.loop, self.channel, self.failures.append)

    def tickets(self) -> list[int]:
        """Those of the descriptors that have come."""
        found = []
        while (received := self.worker.recv_nowait()) is not None:
            message, (fd,) = received
            fd.close()
            assert isinstance(message, messages.Handle)
            found.append(message.ticket)
        return found

    def close(self) -> None:
        self.post.close()
        self.channel.close()
        self.worker.close()


@pytest.fixture
def driver() -> Iterator[LoopDriver]:
    with loop_driver() as driver:
        yield driver


@pytest.fixture
def post(driver: LoopDriver) -> Iterator[Post]:
    post = Post(driver)
    yield post
    post.close()


@pytest.fixture
def fd() -> Iterator[OwnedFd]:
    with OwnedFd(os.memfd_create("storage")) as fd:
        yield fd


def test_a_duplicate_is_sent_at_once(post: Post, fd: OwnedFd) -> None:
    post.post.put(5, fd)
    received = post.worker.recv_nowait()
    assert received is not None
    with received[1][0] as theirs:
        assert os.path.sameopenfile(fd.fd, theirs.fd)
    assert not fd.closed and len(post.post) == 0


def test_what_comes_later_waits_behind_an_open_place(post: Post, fd: OwnedFd) -> None:
    first, second = post.post.reserve(), post.post.reserve()
    post.post.put(3, fd)
    post.post.fill(second, 2, fd)
    assert post.tickets() == [] and len(post.post) == 3
    post.post.fill(first, 1, fd)
    assert post.tickets() == [1, 2, 3] and len(post.post) == 0


def test_a_place_that_is_given_up(post: Post, fd: OwnedFd) -> None:
    place = post.post.reserve()
    post.post.put(2, fd)
    post.post.give_up(place)
    assert post.tickets() == [2]


def test_a_worker_that_takes_none_makes_nobody_wait(post: Post, fd: OwnedFd) -> None:
    assert not post.post.crowded
    for ticket in range(1, MANY + 1):
        post.post.put(ticket, fd)
    assert post.post.crowded and len(post.post) > CROWD
    got: list[int] = []
    post.driver.until(lambda: got.extend(post.tickets()) or len(got) == MANY, "all of them")
    assert got == list(range(1, MANY + 1)) and not post.post.crowded and not post.failures


def test_a_worker_that_is_gone(post: Post, fd: OwnedFd) -> None:
    post.worker.close()
    place = post.post.reserve()
    post.post.put(2, fd)
    post.post.fill(place, 1, fd)
    post.post.put(3, fd)
    assert len(post.post) == 0 and not post.failures  # others notice


def test_without_room_for_a_descriptor(post: Post, fd: OwnedFd, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(_cls: object, _fd: object) -> OwnedFd:
        raise OSError(errno.EMFILE, "no room")

    place = post.post.reserve()
    monkeypatch.setattr(OwnedFd, "duplicate", classmethod(no_room))
    with pytest.raises(OSError, match="no room"):
        post.post.fill(place, 1, fd)
    monkeypatch.undo()
    post.post.put(2, fd)  # the place is given up
    assert post.tickets() == [2]


def test_what_never_arrives_is_told(post: Post, fd: OwnedFd, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bool:
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(post.post._outbox, "flush", broken)
    post.post.put(1, fd)
    assert len(post.failures) == 1 and len(post.post) == 0


def test_closing_closes_what_waits(post: Post, fd: OwnedFd) -> None:
    before = len(os.listdir("/proc/self/fd"))
    place = post.post.reserve()
    post.post.put(2, fd)
    post.post.close()
    post.post.fill(place, 1, fd)
    assert len(os.listdir("/proc/self/fd")) == before and post.tickets() == []
