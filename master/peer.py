"""Who is at the other end of a Unix socket, and who may be there."""

import os
import socket
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from master.logging_setup import printable_line

_UCRED = struct.Struct("=iII")  # struct ucred, unix(7): pid, uid, gid
_ROOT = 0


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, as the kernel saw it then. pid is 0 if it is in a PID namespace that we cannot see;
    program is its name, printable, "" if there is none any more."""

    pid: int
    uid: int
    gid: int
    program: str

    @classmethod
    def of(cls, connection: socket.socket) -> Self:
        """The peer of a connected Unix socket (SO_PEERCRED). Raises OSError."""
        pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return cls(pid, uid, gid, _program(pid))

    def __str__(self) -> str:
        return f"{self.program or 'unknown program'} (pid {self.pid or 'unknown'}, uid {self.uid})"


def _program(pid: int) -> str:
    """The name that the process has given itself (proc(5), comm): 15 bytes of anything."""
    try:
        name = Path(f"/proc/{pid}/comm").read_bytes()
    except OSError:  # it has ended, or is hidden from us
        return ""
    return printable_line(name.removesuffix(b"\n").decode("latin-1"))


@dataclass(frozen=True, slots=True)
class Admission:
    """Who may be a client: these users, or whoever the socket's file lets connect."""

    uids: frozenset[int]
    anybody: bool

    @classmethod
    def by(cls, listening: socket.socket) -> Self:
        """What the mode and owner of the socket's file say.

        Connecting takes the permission to write (unix(7)). If group or others have it, whoever set the mode meant them,
        and the kernel has checked; else our own user, root and the file's owner come in. Without a file (an abstract
        name, a path of another mount namespace) it is our own user and root.
        """
        ours = {os.geteuid(), _ROOT}
        name = listening.getsockname()
        try:
            status = os.stat(name) if name and isinstance(name, str) else None
        except OSError:
            status = None
        if status is None or not stat.S_ISSOCK(status.st_mode):
            return cls(frozenset(ours), anybody=False)
        anybody = bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
        return cls(frozenset({*ours, status.st_uid}), anybody)

    def admits(self, peer: Peer) -> bool:
        return self.anybody or peer.uid in self.uids
