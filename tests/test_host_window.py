"""What is mapped into the host-visible region, with the front end's end of the channel played by hand."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from master import host_window
from master.errors import GuestError
from master.host_window import GONE_FILES, HostWindow
from master.vhost_user import BackendChannel
from master.virtio_gpu import ResponseType
from native.owned_fd import OwnedFd
from tests.event_loop import LoopDriver
from tests.vhost_user_connection import driver_fixture, no_descriptor_leaks  # noqa: F401 (fixtures)

PAGE = 4096
SIZE = 64 * PAGE
MAP, UNMAP = 9, 10
NEED_REPLY, REPLY = 0x9, 0x5


@dataclass(frozen=True)
class Asked:
    """A request as the front end reads it."""

    request: int
    offset: int
    nbytes: int
    flags: int
    fds: list[int] = field(compare=False)


class Bench:
    """A window, and a front end that does what the test says."""

    def __init__(self, driver: LoopDriver, nbytes: int = SIZE) -> None:
        self.driver = driver
        self.window = HostWindow(nbytes)
        self.peer, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.peer.setblocking(False)
        self.window.channel = BackendChannel(driver.loop, ours)
        self.file = OwnedFd(os.memfd_create("blob"))
        os.ftruncate(self.file.fd, SIZE)
        self.answers: list[tuple[str, bool]] = []

    def map(self, resource_id: int, offset: int = 0, nbytes: int = PAGE, file: OwnedFd | None = None) -> None:
        name = f"map {resource_id}"
        self.window.map(
            resource_id, file or self.file, nbytes, offset, lambda ok: self.answers.append((name, ok))
        )

    def unmap(self, resource_id: int) -> None:
        self.window.unmap(resource_id, lambda ok: self.answers.append((f"unmap {resource_id}", ok)))

    def asked(self) -> list[Asked]:
        """What has been asked since, descriptors closed."""
        found: list[Asked] = []
        while True:
            try:
                header, fds, _flags, _address = socket.recv_fds(self.peer, 12, 4)
            except BlockingIOError:
                return found
            if not header:
                return found
            request, flags, size = struct.unpack("=III", header)
            region, fd_offset, offset, nbytes, how = struct.unpack("=B7x4Q", self.peer.recv(size))
            assert (flags, size, region, fd_offset) == (NEED_REPLY, 40, 1, 0)
            assert len(fds) == (request == MAP)
            assert all(os.path.sameopenfile(fd, self.file.fd) for fd in fds)
            for fd in fds:
                os.close(fd)
            found.append(Asked(request, offset, nbytes, how, fds))

    def reply(self, request: int, status: int = 0) -> None:
        """An answer; it is read when the loop turns."""
        self.peer.send(struct.pack("=IIIQ", request, REPLY, 8, status))

    def answer(self, request: int, status: int = 0) -> None:
        self.reply(request, status)
        self.driver.turn(2)

    def mapped(self, resource_id: int, offset: int = 0, nbytes: int = PAGE) -> None:
        """A resource that is mapped."""
        self.map(resource_id, offset, nbytes)
        assert self.asked() == [mapping(offset, nbytes)]
        self.answer(MAP)
        assert self.answers.pop() == (f"map {resource_id}", True)

    def refused(self, resource_id: int, offset: int = 0, nbytes: int = PAGE) -> ResponseType:
        with pytest.raises(GuestError) as caught:
            self.map(resource_id, offset, nbytes)
        return caught.value.response

    def close(self) -> None:
        self.window.forget()
        assert self.window.channel is not None
        self.window.channel.close()
        self.peer.close()
        self.file.close()


def mapping(offset: int, nbytes: int = PAGE) -> Asked:
    return Asked(MAP, offset, nbytes, 1, [])


def unmapping(offset: int, nbytes: int = PAGE) -> Asked:
    return Asked(UNMAP, offset, nbytes, 0, [])


@pytest.fixture
def bench(driver: LoopDriver) -> Iterator[Bench]:
    bench = Bench(driver)
    yield bench
    bench.close()


# One thing at a time


def test_a_mapping_and_its_end(bench: Bench) -> None:
    bench.map(7, 2 * PAGE, 3 * PAGE)
    assert bench.window.is_mapped(7) and bench.answers == []
    assert bench.asked() == [mapping(2 * PAGE, 3 * PAGE)]
    bench.answer(MAP)
    assert bench.answers == [("map 7", True)]
    bench.unmap(7)
    assert not bench.window.is_mapped(7)
    assert bench.asked() == [unmapping(2 * PAGE, 3 * PAGE)]
    assert len(bench.answers) == 1
    bench.answer(UNMAP)
    assert bench.answers[1:] == [("unmap 7", True)]
    assert len(bench.window) == 0


def test_the_descriptor_stays_the_callers(bench: Bench) -> None:
    file = OwnedFd.duplicate(bench.file)
    bench.map(1, 0)
    bench.map(2, PAGE, file=file)  # waits for the answer to the first
    file.close()
    bench.answer(MAP)
    assert bench.asked() == [mapping(0), mapping(PAGE)]


def test_everything_is_asked_in_order_and_one_at_a_time(bench: Bench) -> None:
    bench.map(1, 0)
    bench.map(2, PAGE)
    bench.unmap(1)
    bench.map(3, 0)  # where 1 still is
    asked = []
    for request in (MAP, MAP, UNMAP, MAP):
        (only,) = bench.asked()
        asked.append(only)
        bench.answer(request)
    assert asked == [mapping(0), mapping(PAGE), unmapping(0), mapping(0)]
    assert bench.answers == [("map 1", True), ("map 2", True), ("unmap 1", True), ("map 3", True)]


def test_an_id_can_be_used_again_while_its_old_mapping_ends(bench: Bench) -> None:
    bench.mapped(1, 0)
    bench.unmap(1)
    bench.map(1, 8 * PAGE)
    assert bench.window.is_mapped(1)
    assert bench.asked() == [unmapping(0)]
    bench.answer(UNMAP)
    assert bench.asked() == [mapping(8 * PAGE)]
    bench.answer(MAP)
    bench.unmap(1)
    assert bench.asked() == [unmapping(8 * PAGE)]


def test_a_refused_mapping_leaves_nothing(bench: Bench) -> None:
    bench.map(1, 0)
    bench.asked()
    bench.answer(MAP, 1)
    assert bench.answers == [("map 1", False)]
    assert not bench.window.is_mapped(1)
    with pytest.raises(GuestError):
        bench.unmap(1)
    bench.mapped(2, 0)


def test_the_end_of_a_mapping_that_is_then_refused(bench: Bench) -> None:
    bench.map(1, 0)
    bench.unmap(1)
    bench.map(2, 0)
    assert bench.asked() == [mapping(0)]
    bench.answer(MAP, 1)
    assert bench.asked() == [mapping(0)]  # nothing to unmap: the next
    bench.answer(MAP)
    assert bench.answers == [("map 1", False), ("unmap 1", False), ("map 2", True)]


def test_a_refused_unmapping_frees_the_range_for_the_front_end_to_judge(bench: Bench) -> None:
    bench.mapped(1, 0)
    bench.unmap(1)
    bench.asked()
    bench.answer(UNMAP, 1)
    assert bench.answers == [("unmap 1", False)]
    bench.mapped(2, 0)


# What is refused


@pytest.mark.parametrize(
    ("offset", "nbytes"),
    [
        (0, 0),
        (0, PAGE - 1),
        (0, PAGE + 1),
        (1, PAGE),
        (SIZE, PAGE),
        (SIZE - PAGE, 2 * PAGE),
        (1 << 64, PAGE),
        (0, (1 << 64) - PAGE),
        ((1 << 64) - PAGE, 2 * PAGE),
    ],
)
def test_ranges_that_are_none(bench: Bench, offset: int, nbytes: int) -> None:
    assert bench.refused(1, offset, nbytes) is ResponseType.ERR_INVALID_PARAMETER
    assert bench.asked() == [] and not bench.window.is_mapped(1)


@pytest.mark.parametrize(("first", "count"), [(4, 4), (3, 2), (7, 2), (5, 1), (0, 64), (0, 5)])
def test_ranges_in_use(bench: Bench, first: int, count: int) -> None:
    bench.mapped(1, 4 * PAGE, 4 * PAGE)
    bench.mapped(2, 20 * PAGE, PAGE)
    assert bench.refused(3, first * PAGE, count * PAGE) is ResponseType.ERR_INVALID_PARAMETER
    bench.mapped(3, 3 * PAGE, PAGE)
    bench.mapped(4, 8 * PAGE, 12 * PAGE)


def test_a_resource_is_mapped_once(bench: Bench) -> None:
    bench.map(1, 0)
    assert bench.refused(1, PAGE) is ResponseType.ERR_UNSPEC
    with pytest.raises(GuestError) as caught:
        bench.unmap(2)
    assert caught.value.response is ResponseType.ERR_UNSPEC


def test_without_a_region_or_a_channel(bench: Bench, driver: LoopDriver) -> None:
    none = HostWindow(0)
    none.channel = bench.window.channel
    alone = HostWindow(SIZE)
    for window in (none, alone):
        with pytest.raises(GuestError) as caught:
            window.map(1, bench.file, PAGE, 0, bench.answers.append)  # type: ignore[arg-type]
        assert caught.value.response is ResponseType.ERR_UNSPEC
        window.forget()
    bench.window.negotiated = False
    assert bench.refused(1) is ResponseType.ERR_UNSPEC
    bench.window.negotiated = True
    assert bench.window.channel is not None
    bench.window.channel.close()
    assert bench.refused(1) is ResponseType.ERR_UNSPEC


def test_storage_that_is_too_short(bench: Bench) -> None:
    os.ftruncate(bench.file.fd, 2 * PAGE - 1)
    assert bench.refused(1, 0, 2 * PAGE) is ResponseType.ERR_UNSPEC
    bench.mapped(1, 0, PAGE)


def test_mappings_are_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_window, "MAX_MAPPINGS", 3)
    for number in range(3):
        bench.mapped(number, number * PAGE)
    assert bench.refused(3, 3 * PAGE) is ResponseType.ERR_OUT_OF_MEMORY
    for number in range(3):
        bench.unmap(number)
    bench.map(3, 0)
    assert bench.refused(4, PAGE) is ResponseType.ERR_OUT_OF_MEMORY  # what waits to be asked counts
    for _ in range(3):
        bench.asked()
        bench.answer(UNMAP)
    bench.asked()
    bench.answer(MAP)
    bench.mapped(4, PAGE)


def test_without_room_for_a_descriptor(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def dup(_fd: int) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "dup", dup)
        assert bench.refused(1) is ResponseType.ERR_OUT_OF_MEMORY
    bench.mapped(1)


# A front end that goes away, or stays silent


def test_a_channel_that_closes_fails_what_waits(bench: Bench) -> None:
    bench.mapped(1, 0)
    for number in range(2, 40):
        bench.map(number, number * PAGE)
    bench.unmap(1)
    bench.peer.close()
    bench.driver.turn(3)
    expected = [(f"map {number}", False) for number in range(2, 40)]
    assert bench.answers == [*expected, ("unmap 1", False)]
    assert len(bench.window) == 0


def test_thousands_that_fail_at_once(bench: Bench) -> None:
    """Each failure is told from inside the request for the next."""
    channel, bench.window = bench.window.channel, HostWindow(1 << 30)
    bench.window.channel = channel
    for number in range(1500):
        bench.map(number, number * PAGE)
        bench.unmap(number)
    bench.peer.close()
    bench.driver.turn(3)
    assert len(bench.answers) == 3000 and not any(ok for _name, ok in bench.answers)


def test_an_unmapping_after_the_channel_has_closed(bench: Bench) -> None:
    bench.mapped(1, 0)
    assert bench.window.channel is not None
    bench.window.channel.close()
    bench.unmap(1)
    assert bench.answers == [("unmap 1", False)]


def test_a_new_channel_takes_over(bench: Bench) -> None:
    bench.map(1, 0)
    assert bench.window.channel is not None
    bench.window.channel.close()
    assert bench.answers == [("map 1", False)]
    bench.peer.close()
    bench.peer, ours = socket.socketpair()
    bench.peer.setblocking(False)
    bench.window.channel = BackendChannel(bench.driver.loop, ours)
    bench.answers.clear()
    bench.mapped(1, 0)


# Stops and resets


def test_a_reset_forgets_everything_and_asks_for_nothing(bench: Bench) -> None:
    bench.mapped(1, 0)
    bench.mapped(2, PAGE)
    bench.window.forget()
    assert not bench.window.is_mapped(1) and len(bench.window) == 0
    with pytest.raises(GuestError):
        bench.unmap(2)
    bench.driver.turn(2)
    assert bench.asked() == []
    bench.mapped(1, 0)
    bench.mapped(3, PAGE)


def test_a_reset_answers_what_waits(bench: Bench) -> None:
    bench.mapped(1, 0)
    bench.unmap(1)
    bench.map(2, PAGE)
    bench.map(3, 2 * PAGE)
    bench.unmap(3)
    bench.window.forget()
    assert bench.answers == [("unmap 1", True), ("map 2", False), ("map 3", False), ("unmap 3", True)]
    assert bench.asked() == [unmapping(0)]
    bench.answer(UNMAP)
    assert len(bench.answers) == 4 and bench.asked() == []


def test_an_answer_after_the_reset_is_of_a_mapping_that_nobody_knows(bench: Bench) -> None:
    """The front end read the request only after it had dropped its mappings, so this one is there."""
    bench.map(1, 0)
    bench.asked()
    bench.window.forget()
    assert bench.answers == [("map 1", False)]
    bench.answer(MAP)
    assert bench.asked() == []  # not before the guest wants something: it may be in the middle of the reset
    bench.map(2, 0)
    assert bench.asked() == [unmapping(0)]
    bench.answer(UNMAP)
    assert bench.asked() == [mapping(0)]
    bench.answer(MAP)
    assert bench.answers == [("map 1", False), ("map 2", True)]


def test_a_refusal_after_the_reset_is_nothing(bench: Bench) -> None:
    bench.map(1, 0)
    bench.asked()
    bench.window.forget()
    bench.answer(MAP, 1)
    bench.mapped(2, 0)


def test_an_answer_that_came_before_the_stop_counts(bench: Bench) -> None:
    """Both are in sockets of ours when the loop looks; the stop must not be served as if it had come first."""
    bench.map(1, 0)
    bench.map(2, PAGE)
    bench.asked()
    bench.reply(MAP)
    bench.window.suspend()
    assert bench.answers == [("map 1", True), ("map 2", False)]
    bench.window.resume()
    assert bench.asked() == []
    bench.unmap(1)
    assert bench.asked() == [unmapping(0)]


def test_a_pause_keeps_what_is_mapped(bench: Bench) -> None:
    bench.mapped(1, 0)
    bench.window.suspend()
    assert bench.window.is_mapped(1)
    bench.window.resume()
    assert bench.refused(2, 0) is ResponseType.ERR_INVALID_PARAMETER
    bench.unmap(1)
    assert bench.asked() == [unmapping(0)]


def test_what_the_guest_asks_while_the_queues_stop(bench: Bench) -> None:
    """Commands that were taken before: they must end without the front end."""
    bench.mapped(1, 0)
    bench.mapped(2, PAGE)
    bench.window.suspend()
    assert bench.refused(3, 2 * PAGE) is ResponseType.ERR_UNSPEC
    bench.unmap(1)
    assert bench.answers == [("unmap 1", True)]
    assert bench.asked() == []
    bench.window.resume()
    bench.map(3, 0)
    assert bench.asked() == [unmapping(0)]
    bench.answer(UNMAP)
    assert bench.asked() == [mapping(0)]


def test_a_pause_in_the_middle(bench: Bench) -> None:
    bench.mapped(1, 0)
    bench.map(2, PAGE)
    bench.unmap(2)
    bench.unmap(1)
    bench.asked()
    bench.window.suspend()
    assert bench.answers == [("map 2", False), ("unmap 2", True), ("unmap 1", True)]
    bench.answer(MAP)
    bench.window.resume()
    bench.map(3, 0, 2 * PAGE)
    gone = []
    for _ in range(2):
        gone += bench.asked()
        bench.answer(UNMAP)
    assert sorted(gone, key=lambda asked: asked.offset) == [unmapping(0), unmapping(PAGE)]
    assert bench.asked() == [mapping(0, 2 * PAGE)]


def test_a_reset_after_a_stop(bench: Bench) -> None:
    bench.mapped(1, 0)
    bench.window.suspend()
    bench.unmap(1)
    bench.window.forget()
    assert bench.refused(2, 0) is ResponseType.ERR_UNSPEC  # the queues still stand
    bench.window.resume()
    bench.mapped(2, 0)


# What comes back in the memory table


def test_files_that_the_front_end_has(bench: Bench) -> None:
    other = OwnedFd(os.memfd_create("other"))
    os.ftruncate(other.fd, PAGE)
    with other:
        assert not bench.window.has_sent(bench.file)
        bench.map(1, 0)
        bench.map(2, PAGE)
        assert bench.window.has_sent(bench.file) and not bench.window.has_sent(other)
        bench.asked()
        bench.answer(MAP)
        bench.answer(MAP)
        bench.unmap(1)
        bench.unmap(2)
        bench.answer(UNMAP)
        bench.answer(UNMAP)
        bench.asked()
        assert bench.window.has_sent(bench.file)  # a table may be on its way
        for number in range(GONE_FILES):
            file = OwnedFd(os.memfd_create("another"))
            with file:
                os.ftruncate(file.fd, PAGE)
                bench.window.map(number, file, PAGE, 0, lambda _ok: None)
                bench.peer.recv(100)
                bench.answer(MAP, 1)
        assert not bench.window.has_sent(bench.file)


# Any order of everything


class PlayedFrontEnd:
    """Keeps the region as QEMU does, and ends the test where QEMU would end."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.mapped: dict[int, int] = {}
        self.waiting: list[Asked] = []

    def read(self) -> None:
        self.waiting += self.bench.asked()
        assert len(self.waiting) <= 2  # one, and one from before a reset

    def do(self) -> None:
        """One request, if there is one."""
        self.read()
        if not self.waiting:
            return
        asked = self.waiting.pop(0)
        if asked.request == MAP:
            end = asked.offset + asked.nbytes
            assert all(at + size <= asked.offset or end <= at for at, size in self.mapped.items()), "one over another"
            self.mapped[asked.offset] = asked.nbytes
        else:
            assert self.mapped.pop(asked.offset, None) == asked.nbytes, "SHMEM_UNMAP of what is not mapped"
        self.bench.reply(asked.request)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("mmmuuddddtpr"), st.integers(1, 5), st.integers(0, 5), st.integers(1, 3))))
def test_front_end_and_window_agree_whatever_happens(
    driver: LoopDriver, steps: list[tuple[str, int, int, int]]
) -> None:
    """Maps, unmaps, the front end's doing, the loop's turns, pauses and resets."""
    bench = Bench(driver)
    front_end = PlayedFrontEnd(bench)
    wanted = 0
    try:
        for step, resource_id, page, pages in steps:
            try:
                if step == "m":
                    bench.map(resource_id, page * PAGE, pages * PAGE)
                    wanted += 1
                elif step == "u":
                    bench.unmap(resource_id)
                    wanted += 1
            except GuestError:
                continue
            if step == "d":
                front_end.do()
            elif step == "t":
                driver.turn(2)
            elif step in "pr":
                front_end.read()
                if step == "r" and any(asked.request == UNMAP for asked in front_end.waiting):
                    continue  # nothing could keep QEMU from its end then
                bench.window.suspend()
                assert len(bench.answers) == wanted
                if step == "r":
                    front_end.mapped.clear()
                    bench.window.forget()
                bench.window.resume()
        for _ in range(2 * len(steps) + 4):
            front_end.do()
            driver.turn(2)
        assert len(bench.answers) == wanted
        places = {place.offset: place.nbytes for place in bench.window._places.values()}
        strays = {place.offset: place.nbytes for place in bench.window._strays}
        assert front_end.mapped == places | strays
        assert sum(bench.window._files.values()) == len(places) + len(strays)
    finally:
        bench.close()
