"""Commands in a Debian root: chroot in a mount namespace of its own, so that the kernel drops the mounts with it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.vm.debian_root import LabError

# What a program in a root sees of the host besides PATH, and nothing else.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "USER": "root", "LANG": "C.UTF-8"}

# $1 the root, pairs of a host directory and where the root has it, --, the command.
_ENTER = """
set -e
root=$1
shift
while [ "$1" != -- ]; do
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    shift 2
done
shift
exec chroot "$root" "$@"
"""


def command_in_root(root: Path, command: Sequence[str | Path], directories: Mapping[str, Path]) -> list[str]:
    """The command line that becomes `command` in a root, with the host's /dev, /proc and `directories` in it.

    directories: absolute path in the root -> directory of the host. Every step is an exec, so the process that is
    started is the program's; it gets SIGKILL when the thread that started it ends. Raises LabError without root.
    """
    if os.geteuid() != 0:
        raise LabError("programs in a Debian root of the VM lab need root (chroot): run this as root or with sudo")
    enter = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]
    binds = {"/dev": Path("/dev"), "/proc": Path("/proc"), **directories}
    pairs = [word for place, directory in binds.items() for word in (str(directory.absolute()), place)]
    return [*enter, "sh", "-c", _ENTER, "sh", str(root), *pairs, "--", *map(str, command)]
