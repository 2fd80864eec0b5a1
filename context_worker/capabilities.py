"""Giving up capabilities (capabilities(7)).

In its user namespace the launcher has all of them, over that namespace alone. It keeps what it needs to put a worker
into namespaces; a worker keeps none, and no way to have any again.
"""

from collections.abc import Iterable
from pathlib import Path

from context_worker import linux

LAUNCHER_KEEPS = (linux.CAP_SYS_ADMIN, linux.CAP_SETPCAP)
"""For unshare, setns and mount; for taking capabilities out of a worker's bounding set."""


def last_capability() -> int:
    """The highest that the kernel knows. No /proc is needed: it is the last that PR_CAPBSET_READ takes."""
    number = 0
    while True:
        try:
            linux.prctl(linux.PR_CAPBSET_READ, number + 1)
        except OSError:
            return number
        number += 1


def keep(capabilities: Iterable[int]) -> None:
    """Have these and no others from now on; none comes back by executing a file. Raises OSError."""
    kept = set(capabilities)
    mask = sum(1 << number for number in kept)
    _, permitted, _ = linux.capget()
    if permitted >> linux.CAP_SETPCAP & 1:  # else there is nothing to take out: a process without capabilities
        linux.prctl(linux.PR_SET_SECUREBITS, linux.SECURE_ALL_LOCKED)
        for number in range(last_capability() + 1):
            if number not in kept:
                linux.prctl(linux.PR_CAPBSET_DROP, number)
    linux.prctl_ambient_clear()
    linux.capset(mask & permitted, mask & permitted, 0)


def drop_all() -> None:
    """Have none, and none in the bounding and ambient sets. Raises OSError."""
    keep(())


def of_process(pid: int | str = "self") -> dict[str, int]:
    """The sets of a process by their names in /proc/PID/status (CapInh, CapPrm, CapEff, CapBnd, CapAmb)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: int(value, 16) for name, _, value in (line.partition(":\t") for line in lines) if name[:3] == "Cap"}
