"""What C functions return."""

import os


def check(result: int, what: str) -> int:
    """The result, or the OSError that a negative one stands for."""
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result
