"""native.pidfd: whose pidfd it is."""

import os
import subprocess
import sys

import pytest

from native.owned_fd import OwnedFd
from native.pidfd import pid_of


def test_the_pid_until_it_is_reaped() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with OwnedFd(os.pidfd_open(child.pid)) as pidfd:
        assert pid_of(pidfd) == child.pid
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert pid_of(pidfd) == child.pid
        child.communicate()
        assert pid_of(pidfd) == 0


def test_what_is_no_pidfd() -> None:
    with OwnedFd(os.open("/dev/null", os.O_RDONLY)) as fd, pytest.raises(ValueError, match="not a pidfd"):
        pid_of(fd)
