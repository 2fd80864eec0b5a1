"""Where services can be reached: a directory of the user's, and in it one for each service.

    $XDG_RUNTIME_DIR/isorend/          or /run/isorend (root), or /tmp/isorend-UID; mode 0700
        vm-4711/                       held by flock(2) while the service lives
            request.sock, events.sock

A service that was killed leaves its directory; the next one that starts removes it. The lock tells the dead from the
living, whatever process has their pid by now. Who makes or removes directories holds the lock of the one above.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from master.control.errors import DirectoryError, NameInUse
from master.listener import MAX_PATH_BYTES, ListenError, somebody_listens

REQUEST_SOCKET: Final = "request.sock"
EVENTS_SOCKET: Final = "events.sock"
_OTHERS: Final = 0o077
_SYSTEM: Final = Path("/run")
_TEMPORARY: Final = Path("/tmp")


def runtime_directory() -> Path:
    """Where the services of this user are; nothing is made or looked at there."""
    user = os.geteuid()
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(given) and _belongs_to(Path(given), user):
        return Path(given) / "isorend"
    if user == 0:
        return _SYSTEM / "isorend"
    return _TEMPORARY / f"isorend-{user}"


class ServiceDirectory:
    """A service's place. `path` holds its sockets until close()."""

    def __init__(self, path: Path, lock: int) -> None:
        """Takes over `lock`, the locked descriptor of the directory."""
        self.path = path
        self._lock: int | None = lock

    @classmethod
    def claim(cls, name: str, where: Path | None = None) -> Self:
        """Makes the directory of a service with this name, and removes those of services that have ended.

        where: runtime_directory() by default. Raises NameInUse, DirectoryError.
        """
        where = where or runtime_directory()
        path = where / name
        length = len(os.fsencode(path / REQUEST_SOCKET))
        if length > MAX_PATH_BYTES:
            raise DirectoryError(f"{path} is too long a path for Unix sockets: {length} bytes, not {MAX_PATH_BYTES}")
        try:
            with _locked(where):
                _remove_dead(where)
                try:
                    path.mkdir(mode=0o700)
                except FileExistsError:
                    raise NameInUse(f"there is a service named {name} already") from None
                return cls(path, _lock(path))
        except OSError as reason:
            raise DirectoryError(f"no directory for the sockets of `isorend status`: {_words(reason)}") from reason

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def requests(self) -> Path:
        """The socket that answers."""
        return self.path / REQUEST_SOCKET

    @property
    def events(self) -> Path:
        """The socket that tells."""
        return self.path / EVENTS_SOCKET

    def close(self) -> None:
        """Removes it. May be called again."""
        if self._lock is None:
            return
        _remove(self.path)
        os.close(self._lock)
        self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def running_services(where: Path | None = None) -> list[Path]:
    """The directories of services that run, by name.

    Raises DirectoryError if what is there is not to be trusted.
    """
    where = where or runtime_directory()
    try:
        os.close(_open_own(where))
        return sorted(path for path in where.iterdir() if _answers(path / REQUEST_SOCKET))
    except FileNotFoundError:
        return []
    except OSError as reason:
        raise DirectoryError(f"cannot look for services: {_words(reason)}") from reason


def _answers(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.lstat().st_mode) and somebody_listens(path)
    except (OSError, ListenError):  # not a service's directory, or one that goes away
        return False


def _belongs_to(path: Path, user: int) -> bool:
    """Whether nobody else could put something there."""
    try:
        status = path.stat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == user and not status.st_mode & 0o022


def _open_own(path: Path) -> int:
    """A descriptor of a directory, not a link to one, that is ours and closed to others.

    Raises DirectoryError, FileNotFoundError, OSError. Nobody can exchange it afterwards: the one above is /run, /tmp
    with its sticky bit, or our own.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    status = os.fstat(fd)
    if status.st_uid == os.geteuid() and not status.st_mode & _OTHERS:
        return fd
    os.close(fd)
    what = "is open to others" if status.st_uid == os.geteuid() else "belongs to somebody else"
    raise DirectoryError(f"{path} {what}: sockets there would not be safe")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """With the directory made if need be, checked, and locked against whoever else makes or removes something in it.
    Nobody holds that lock for longer than it takes."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    fd = _open_own(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _lock(path: Path) -> int:
    """The descriptor of a directory, locked. Raises BlockingIOError if it is already, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _remove_dead(where: Path) -> None:
    """What services have left that ended without a chance to clean up."""
    for path in where.iterdir():
        try:
            fd = _lock(path)
        except OSError:  # it lives, has just gone, or is no directory
            continue
        _remove(path)
        os.close(fd)


def _remove(path: Path) -> None:
    """The directory and our sockets in it; with anything else in it, it stays."""
    with suppress(OSError):
        for name in (REQUEST_SOCKET, EVENTS_SOCKET):
            (path / name).unlink(missing_ok=True)
        path.rmdir()


def _words(reason: OSError) -> str:
    return f"{reason.filename}: {reason.strerror}" if reason.filename else str(reason.strerror)
