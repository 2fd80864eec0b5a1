"""master.hangup_watch."""

import socket

from master.hangup_watch import HangupWatch
from tests.event_loop import loop_driver


def test_only_the_end_is_told_of_and_once() -> None:
    with loop_driver() as driver:
        watch = HangupWatch(driver.loop)
        ours, theirs = socket.socketpair()
        told: list[str] = []
        with ours:
            watch.add(ours, lambda: told.append("gone"))
            theirs.send(b"data that stays there")
            driver.turn(3)
            assert not told
            theirs.shutdown(socket.SHUT_WR)  # it may still want to read
            driver.turn(3)
            assert not told
            theirs.close()
            driver.until(lambda: told, "that it is noticed")
            driver.turn(3)
            assert told == ["gone"] and ours.recv(100) == b"data that stays there"
            watch.remove(ours)
        watch.close()


def test_one_that_is_not_watched_any_more() -> None:
    with loop_driver() as driver:
        watch = HangupWatch(driver.loop)
        ours, theirs = socket.socketpair()
        told: list[str] = []
        with ours:
            watch.add(ours, lambda: told.append("gone"))
            watch.remove(ours)
            theirs.close()
            driver.turn(3)
        watch.close()
        assert not told
