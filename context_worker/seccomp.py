"""Filters of system calls: a small one while a worker loads its driver, and that of the stage SEALED, for all its
threads at once; and who is told of what that denies.

The latter is an allow-list (`profiles`). A system call that is not on it waits for the reader of the filter's listener,
which is not the worker but the launcher (`denials`). So the launcher, and nobody who has taken over the worker, says
which call it was. The worker sends the listener away over a socket that it had from its birth, and closes both, before
it sees the first byte of a guest.
"""

import os
import socket

from context_worker.profiles import DriverProfile
from context_worker.sandbox_mode import SandboxMode
from context_worker.system_calls import NEVER
from ipc.channel import FDS_PATIENCE, send_fds
from native import sandbox
from native.owned_fd import OwnedFd

LISTENER = b"L"
"""The datagram that a listener comes with."""

RECEIVED = b"R"
"""The answer to it."""


def forbid(mode: SandboxMode) -> None:
    """Take from this process, which has one thread, what no driver needs to start (system_calls.NEVER).

    Whoever takes over a worker before it is sealed, by a file of the driver or of a shared shader cache, has no more.
    With AUDIT nothing is taken, as nobody could say what was. Raises native.sandbox.FilterError.
    """
    if mode is SandboxMode.ENFORCE:
        sandbox.forbid(NEVER)


def seal(profile: DriverProfile, mode: SandboxMode) -> OwnedFd | None:
    """Put this process, all its threads and all it will ever start under the profile's filter, for good.

    Returns the listener, which hears of denied calls; None with SandboxMode.OFF, which does nothing. The filter is the
    same for ENFORCE and AUDIT: who reads the listener makes the difference. Raises native.sandbox.FilterError.
    """
    if mode is SandboxMode.OFF:
        return None
    return OwnedFd(sandbox.load_filter(profile.rules(os.getpid())))


def hand_over(listener: OwnedFd, reporter: socket.socket) -> None:
    """Send the listener to the launcher, by the socket it is read from by `denials`, wait until the launcher has done
    what it does about a sealed worker, and close both. Raises OSError.

    The socket is to be a Python object already: to make one of a descriptor takes getsockname, which is denied by now,
    and nobody hears of that yet.
    """
    with listener, reporter:
        send_fds(reporter, LISTENER, [listener], FDS_PATIENCE)
        if reporter.recv(len(RECEIVED)) != RECEIVED:
            raise ConnectionError("the launcher does not take the listener")
