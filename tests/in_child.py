"""Running a function in a process of its own, for what changes a process for good."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any


class ChildFailed(AssertionError):
    """It did not end by returning; the text has its traceback or its signal."""


def in_child(function: Callable[[], Any], fork: Callable[[], int] = os.fork) -> Any:
    """What `function` returns in a forked child, which ends then. Raises ChildFailed."""
    read, write = os.pipe()
    pid = fork()
    if pid == 0:
        os.close(read)
        try:
            answer = (True, function())
        except BaseException:
            answer = (False, traceback.format_exc())
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    if not data:
        raise ChildFailed(f"ended without a word, wait status {status:#x}")
    done, value = pickle.loads(data)
    if not done:
        raise ChildFailed(value)
    return value
