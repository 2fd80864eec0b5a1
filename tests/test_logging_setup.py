"""Log lines: their form, that nothing breaks out of a line, and that they are bounded."""

import io
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from master.logging_setup import BURST_LINES, LINES_PER_SECOND, RateLimit, printable_line, set_up_logging


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # set_up_logging closes those it replaces
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_lines() -> None:
    stream = io.StringIO()
    set_up_logging("info", "isorend: ctx 7 kmscube (virgl)", stream)
    log = logging.getLogger("master.test")
    log.info("started %d", 3)
    log.warning("two\nlines \x1b[31m")
    log.debug("not shown")
    assert stream.getvalue() == (
        "isorend: ctx 7 kmscube (virgl): started 3\n"
        "isorend: ctx 7 kmscube (virgl): warning: two\\x0alines \\x1b[31m\n"
    )


def test_every_line_of_a_traceback_has_the_title() -> None:
    stream = io.StringIO()
    set_up_logging("error", "isorend", stream)
    try:
        raise RuntimeError("first\nsecond")
    except RuntimeError:
        logging.getLogger().exception("failed")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "isorend: error: failed"
    assert len(lines) > 3
    assert all(line.startswith("isorend: ") for line in lines)


def test_a_level_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="loud"):
        set_up_logging("loud")


@given(st.text())
def test_a_message_is_one_line(text: str) -> None:
    line = printable_line(text)
    assert "\n" not in line and "\r" not in line and "\x1b" not in line
    assert all(ord(character) >= 0x20 for character in line)


def record(level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("name", level, "path", 1, "line %d", (4,), None)


def test_a_flood_is_cut_and_counted() -> None:
    now = 100.0
    limit = RateLimit(lambda: now)
    assert sum(limit.filter(record()) for _ in range(BURST_LINES + 500)) == BURST_LINES
    assert limit.filter(record(logging.ERROR))
    now += 2 / LINES_PER_SECOND + 1e-6
    later = [record(), record(), record()]
    assert [limit.filter(line) for line in later] == [True, True, False]
    assert later[0].getMessage() == "line 4"  # the error before has told it already
    now += 1000
    told = record()
    assert limit.filter(told)
    assert told.getMessage() == "(1 lines were left out) line 4"
