"""The Unix socket that front ends connect to."""

import errno
import os
import socket
import stat
from pathlib import Path
from types import TracebackType
from typing import Final, Self

MAX_PATH_BYTES: Final = 107  # sun_path with its NUL, unix(7)
_OWNER_ONLY: Final = 0o600
_BACKLOG: Final = 8


class ListenError(Exception):
    """The socket cannot be had; the text is for the user."""


def check_socket_path(path: Path) -> None:
    """Raises ListenError if no socket could have that name."""
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        raise ListenError(f"socket path is too long: {length} bytes, a Unix socket's name has at most {MAX_PATH_BYTES}")
    if not path.parent.is_dir():
        raise ListenError(f"no such directory for the socket: {path.parent}")


class Listener:
    """A listening socket at `path`, for its owner alone (mode 0600), removed when closed."""

    def __init__(self, path: Path) -> None:
        """Replaces a socket that nobody listens on any more, and nothing else. Raises ListenError."""
        check_socket_path(path)
        _remove_stale(path)
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            os.fchmod(self.socket.fileno(), _OWNER_ONLY)  # bind gives its mode to the file, which never has a wider one
            self.socket.bind(os.fspath(path))
            self.socket.listen(_BACKLOG)
        except OSError as reason:
            self.socket.close()
            raise ListenError(f"cannot listen on {path}: {reason.strerror}") from reason
        self._inode = _inode(path)

    def fileno(self) -> int:
        return self.socket.fileno()

    def accept(self) -> socket.socket:
        """The next front end's connection. BlockingIOError if there is none."""
        connection, _address = self.socket.accept()
        return connection

    def close(self) -> None:
        """Stop listening; remove the path unless somebody else has taken it since. May be called again."""
        if self.socket.fileno() < 0:
            return
        if _inode(self.path) == self._inode:
            self.path.unlink(missing_ok=True)
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _remove_stale(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    except OSError as reason:
        raise ListenError(f"cannot look at {path}: {reason.strerror}") from reason
    if not stat.S_ISSOCK(status.st_mode):
        raise ListenError(f"{path} exists and is not a socket")
    if _somebody_listens(path):
        raise ListenError(f"{path} is in use by another process")
    path.unlink(missing_ok=True)


def _somebody_listens(path: Path) -> bool:
    """Ask with a datagram socket: "wrong type" means that a stream socket listens, whose owner hears nothing of it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        result = probe.connect_ex(os.fspath(path))
    if result in (errno.ECONNREFUSED, errno.ENOENT):
        return False
    if result in (0, errno.EPROTOTYPE, errno.EACCES, errno.EPERM):
        return True
    raise ListenError(f"cannot ask who listens on {path}: {os.strerror(result)}")


def connection_from_fd(fd: int) -> socket.socket:
    """The connected Unix stream socket that was inherited as `fd`. Raises ListenError. It is not inherited further."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as reason:
        raise ListenError(f"descriptor {fd} is not an open socket: {reason.strerror}") from reason
    try:
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise ListenError(f"descriptor {fd} is not a Unix stream socket")
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ListenError(f"descriptor {fd} is a listening socket, a connected one is expected")
        os.set_inheritable(fd, False)
    except BaseException:
        sock.detach()
        raise
    return sock
