"""Waiting for a condition of another process, with a generous limit instead of a guessed pause."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.05


class WaitTimeout(Exception):
    """What was waited for did not come within its limit."""


def wait_until(condition: Callable[[], T], what: str, timeout: float, poll: float = POLL_S) -> T:
    """Calls condition until its value is true and returns it. Raises WaitTimeout naming what after timeout seconds.

    An exception raised by condition ends the wait: that is how a dead QEMU fails a test at once.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise WaitTimeout(f"not within {timeout:.0f} s: {what}")
        time.sleep(poll)
