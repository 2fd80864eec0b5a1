"""The Unix sockets that front ends and clients connect to."""

import errno
import os
import socket
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from master.hostile_socket import refuse_descriptors

MAX_PATH_BYTES: Final = 107  # sun_path with its NUL, unix(7)
OWNER_ONLY: Final = 0o600
_BACKLOG: Final = 128


class ListenError(Exception):
    """The socket cannot be had; the text is for the user."""


def check_socket_path(path: Path) -> None:
    """Raises ListenError if no socket could have that name."""
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        raise ListenError(f"socket path is too long: {length} bytes, a Unix socket's name has at most {MAX_PATH_BYTES}")
    if not path.parent.is_dir():
        raise ListenError(f"no such directory for the socket: {path.parent}")


@dataclass(frozen=True, slots=True)
class SocketOwner:
    """Whose the socket's file becomes; None leaves what a new file has."""

    uid: int | None = None
    gid: int | None = None

    def __str__(self) -> str:
        return ":".join("" if number is None else str(number) for number in (self.uid, self.gid)).removesuffix(":")


class Listener:
    """A listening Unix stream socket. accept() does not block."""

    def __init__(self, sock: socket.socket, path: Path | None) -> None:
        """Takes over `sock`. `path` is its file if that is ours to remove."""
        sock.setblocking(False)
        self.socket = sock
        self.path = path
        self._inode = _inode(path) if path is not None else None

    @classmethod
    def at(cls, path: Path, mode: int = OWNER_ONLY, owner: SocketOwner | None = None) -> Self:
        """Listens on a new socket file with this mode and owner.

        Replaces a socket that nobody listens on any more, and nothing else. Raises ListenError.
        """
        check_socket_path(path)
        _remove_stale(path)
        with ExitStack() as undo:
            sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            try:
                os.fchmod(sock.fileno(), OWNER_ONLY)  # bind gives its mode to the file, so nobody else sees a wider one
                sock.bind(os.fspath(path))
                undo.callback(path.unlink, missing_ok=True)
                _set_access(path, mode, owner)
                sock.listen(_BACKLOG)
            except OSError as reason:
                raise ListenError(f"cannot listen on {path}: {reason.strerror}") from reason
            undo.pop_all()
        return cls(sock, path)

    @classmethod
    def inherited(cls, fd: int) -> Self:
        """Takes over a listening socket that was inherited; its file is not ours. Raises ListenError."""
        return cls(_stream_socket(fd, listening=True), None)

    def fileno(self) -> int:
        return self.socket.fileno()

    def refuse_descriptors(self) -> None:
        """From whoever connects from now on, as far as the kernel can. Raises OSError."""
        refuse_descriptors(self.socket)

    def accept(self) -> socket.socket:
        """The next connection, which blocks. BlockingIOError if there is none."""
        connection, _address = self.socket.accept()
        return connection

    def close(self) -> None:
        """Stop listening; remove our file unless somebody else has taken its path since. May be called again."""
        if self.socket.fileno() < 0:
            return
        if self.path is not None and _inode(self.path) == self._inode:
            self.path.unlink(missing_ok=True)
        self.socket.close()

    def __str__(self) -> str:
        return str(self.path) if self.path is not None else f"inherited socket {self.fileno()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _set_access(path: Path, mode: int, owner: SocketOwner | None) -> None:
    """Before listen(): nobody can connect yet. By a descriptor: whatever the path may mean by now, it is our socket."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise ListenError(f"{path} was replaced while it was made")
        itself = f"/proc/self/fd/{fd}"
        if owner is not None:
            try:
                os.chown(itself, *(-1 if number is None else number for number in (owner.uid, owner.gid)))
            except OSError as reason:
                raise ListenError(f"cannot give {path} to {owner}: {reason.strerror}") from reason
        os.chmod(itself, mode)
    finally:
        os.close(fd)


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
    if somebody_listens(path):
        raise ListenError(f"{path} is in use by another process")
    path.unlink(missing_ok=True)


def somebody_listens(path: Path) -> bool:
    """Whether a Unix stream socket is served. Raises ListenError if that cannot be known.

    Ask with a datagram socket: "wrong type" means that a stream socket listens, whose owner hears nothing of it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        result = probe.connect_ex(os.fspath(path))
    if result in (errno.ECONNREFUSED, errno.ENOENT):
        return False
    if result in (0, errno.EPROTOTYPE, errno.EACCES, errno.EPERM):
        return True
    raise ListenError(f"cannot ask who listens on {path}: {os.strerror(result)}")


def connection_from_fd(fd: int) -> socket.socket:
    """The connected Unix stream socket that was inherited as `fd`. Raises ListenError. It is not inherited further."""
    return _stream_socket(fd, listening=False)


def check_listening_fd(fd: int) -> None:
    """Raises ListenError if `fd` is not a listening Unix stream socket."""
    _stream_socket(fd, listening=True).detach()


def _stream_socket(fd: int, *, listening: bool) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as reason:
        raise ListenError(f"descriptor {fd} is not an open socket: {reason.strerror}") from reason
    try:
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise ListenError(f"descriptor {fd} is not a Unix stream socket")
        if bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) != listening:
            found, wanted = ("a connected", "a listening") if listening else ("a listening", "a connected")
            raise ListenError(f"descriptor {fd} is {found} socket, {wanted} one is expected")
        os.set_inheritable(fd, False)
    except BaseException:
        sock.detach()
        raise
    return sock
