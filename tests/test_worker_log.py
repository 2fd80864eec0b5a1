"""master.worker_log: what comes through a worker's pipe, and what of it is logged."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator

import pytest

from master import worker_log
from master.worker_log import LAST_LINES, LINE_BURST, LINE_CHARACTERS, WorkerLog, limit_of_all
from tests.event_loop import LoopDriver, loop_driver

NAME = "worker 4712 (ctx 1 kmscube)"


@pytest.fixture
def driver() -> Iterator[LoopDriver]:
    with loop_driver() as driver:
        yield driver


@pytest.fixture
def output(
    driver: LoopDriver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WorkerLog]:
    """Listened to, and never paused."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(worker_log, "READ_PAUSE", 0.0)
    output = WorkerLog(driver.loop, limit_of_all())
    output.listen(lambda: NAME)
    yield output
    output.close()


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """Level and text of what was logged."""
    return [(record.levelno, record.getMessage()) for record in caplog.records if record.name == worker_log.__name__]


def write(output: WorkerLog, data: bytes) -> None:
    assert os.write(output.worker_end.fd, data) == len(data)


def test_lines_are_the_workers_and_have_its_levels(
    driver: LoopDriver, output: WorkerLog, caplog: pytest.LogCaptureFixture
) -> None:
    write(output, b"debug: one\ninfo: two\nwarning: three\nerror: four\ncritical: five\nsix: a: b\nseven\n\n: eight\n")
    driver.until(lambda: len(said(caplog)) == 8, "eight lines")
    assert said(caplog) == [
        (logging.DEBUG, f"{NAME}: one"),
        (logging.INFO, f"{NAME}: two"),
        (logging.WARNING, f"{NAME}: three"),
        (logging.ERROR, f"{NAME}: four"),
        (logging.ERROR, f"{NAME}: five"),
        (logging.WARNING, f"{NAME}: six: a: b"),
        (logging.WARNING, f"{NAME}: seven"),
        (logging.WARNING, f"{NAME}: : eight"),
    ]


def test_a_line_may_come_in_pieces(driver: LoopDriver, output: WorkerLog, caplog: pytest.LogCaptureFixture) -> None:
    for piece in (b"info: be", b"gun and", b" ended\nrest"):
        write(output, piece)
        driver.turn(3)
    driver.until(lambda: said(caplog), "a line")
    assert said(caplog) == [(logging.INFO, f"{NAME}: begun and ended")]
    output.finish()
    assert said(caplog)[1:] == [(logging.WARNING, f"{NAME}: rest")]


def test_lines_are_printable_and_bounded(
    driver: LoopDriver, output: WorkerLog, caplog: pytest.LogCaptureFixture
) -> None:
    write(output, b"\x1b[2J\x9b\x00\r\xe2\x80\xae%s\n" + b"x" * 3000 + b"\n" + b"\xff" * 400 + b"\n" + b"y" * 3000)
    write(output, b"more of y\ninfo: last\n")
    driver.until(lambda: len(said(caplog)) == 5, "five lines")
    texts = [text.removeprefix(f"{NAME}: ") for _, text in said(caplog)]
    assert texts[0] == r"\x1b[2J\x9b\x00\x0d\xe2\x80\xae%s"
    assert texts[1] == "x" * LINE_CHARACTERS
    assert texts[2] == (r"\xff" * 400)[:LINE_CHARACTERS]
    assert texts[3] == "y" * LINE_CHARACTERS
    assert texts[4] == "last"


def test_a_flood_becomes_a_trickle_that_says_so(
    driver: LoopDriver, output: WorkerLog, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(50):
        write(output, b"error: again\n" * 100)
        driver.turn(3)
    assert LINE_BURST <= len(said(caplog)) < 2 * LINE_BURST
    output.finish()
    lines = said(caplog)
    assert len(lines) < 2 * LINE_BURST + LAST_LINES
    assert lines[-1] == (logging.INFO, f"{NAME}: its last lines were left out ({5000 - LINE_BURST} others before)")


def test_workers_together_have_a_limit(driver: LoopDriver, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    of_all = limit_of_all()
    for _ in range(20):
        output = WorkerLog(driver.loop, of_all)
        write(output, b"error: one of many\n" * LINE_BURST)
        output.finish()
    assert worker_log.ALL_BURST <= len(said(caplog)) < 2 * worker_log.ALL_BURST


def test_the_last_words_are_logged_whatever_came_before(
    driver: LoopDriver, output: WorkerLog, caplog: pytest.LogCaptureFixture
) -> None:
    write(output, b"info: chatter\n" * 200)
    driver.until(lambda: len(said(caplog)) >= LINE_BURST, "the burst")
    write(output, b"info: more chatter\n" * 500 + b"kmscube: st_context.c:99: assertion failed")
    output.finish()
    assert said(caplog)[-1] == (logging.WARNING, f"{NAME}: kmscube: st_context.c:99: assertion failed")
    assert len(said(caplog)) < 2 * LINE_BURST + LAST_LINES
    output.finish()  # has no more to say
    assert said(caplog)[-1][0] == logging.WARNING


def test_a_full_pipe_blocks_nobody_and_the_master_reads_a_little_at_a_time(
    driver: LoopDriver, output: WorkerLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_log, "READ_PAUSE", 3600.0)
    driver.turn(3)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(output.worker_end.fd, b"x" * 4096)
    sizes: list[int] = []
    read = os.read

    def reading(fd: int, size: int) -> bytes:
        if fd == output._ours.fd:
            sizes.append(size)
        return read(fd, size)

    monkeypatch.setattr(os, "read", reading)
    driver.turn(10)
    assert sizes == [worker_log.READ_BYTES]


def test_the_masters_end_has_flags_of_its_own(driver: LoopDriver, output: WorkerLog) -> None:
    fcntl.fcntl(output.worker_end.fd, fcntl.F_SETFL, 0)
    driver.turn(3)
    output.finish()  # would block if its end did


def test_the_end_of_the_pipe_is_the_end_of_listening(driver: LoopDriver, output: WorkerLog) -> None:
    output.worker_end.close()
    driver.turn(5)
    assert not driver.loop.remove_reader(output._ours)
    output.finish()
    output.close()
