"""What a pidfd says of its process (pidfd_open(2))."""

import re
from pathlib import Path

from native.owned_fd import OwnedFd

_PID = re.compile(r"^Pid:\s*(-?\d+)$", re.MULTILINE)


def pid_of(pidfd: OwnedFd) -> int:
    """Its pid in our own pid namespace, wherever the descriptor comes from; 0 if the process was reaped already, or is
    not in our namespace. Raises ValueError for a descriptor that is no pidfd, OSError without /proc."""
    found = _PID.search(Path(f"/proc/self/fdinfo/{pidfd.fd}").read_text())
    if found is None:
        raise ValueError("not a pidfd")
    return max(int(found[1]), 0)
