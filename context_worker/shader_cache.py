"""Where drivers keep compiled shaders: for each worker a directory of its own, gone with it.

With a sandbox it is in a file system of the worker's own (context_worker.root), of which nothing is left. Only without
one are directories made on the host, here.

The same shader is compiled again and again within one program (a renderer makes many objects of it), so a cache pays
even if it lives no longer than the worker. One that workers share would be a way from one to the others: who has taken
over one worker could leave code there for the next. That is the operator's choice (`isorend serve --shader-cache`).

What a worker leaves behind may be a guest's work, of any size and depth. So rm(1) removes it, in a process of its own:
it does not recurse, and nobody waits for it.
"""

import fcntl
import logging
import os
import subprocess
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)

_PREFIX = "isorend-shaders-"
_MAX_SIZE = "64M"


def environment(directory: Path) -> dict[str, str]:
    """What makes a driver use this directory. It has to be set before the driver is loaded.

    The variables are those of Mesa (docs.mesa3d.org/envvars.html) and of NVIDIA's driver (its README, "OpenGL
    environment variable settings").
    """
    path = os.fspath(directory)
    return {
        "MESA_SHADER_CACHE_DISABLE": "false",
        "MESA_SHADER_CACHE_DIR": path,
        "MESA_SHADER_CACHE_MAX_SIZE": _MAX_SIZE,
        "__GL_SHADER_DISK_CACHE": "1",
        "__GL_SHADER_DISK_CACHE_PATH": path,
    }


class ShaderCaches:
    """The directories of all workers of a launcher, or the one that they share."""

    def __init__(self, shared: Path | None) -> None:
        """Raises OSError when no directory can be made. Has what killed launchers left behind removed."""
        self._shared = shared
        self._removals: list[subprocess.Popen[bytes]] = []
        self._root: Path | None = None
        self._lock = -1
        if shared is None:
            self._sweep()
            self._root, self._lock = _make_root()

    def give(self) -> Path:
        """A directory for a worker. Raises OSError."""
        if self._root is None:
            assert self._shared is not None
            return self._shared
        return Path(tempfile.mkdtemp(dir=self._root))

    def take_back(self, directory: Path) -> None:
        """The worker has ended."""
        if directory != self._shared:
            self._remove(directory)

    def close(self) -> None:
        """All workers have ended."""
        if self._root is not None:
            self._remove(self._root)
            os.close(self._lock)
        for removal in self._removals:
            removal.wait()

    def _sweep(self) -> None:
        """Directories of launchers that are no more: whoever lives holds the lock of his."""
        for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            lock = _lock(path)
            if lock is not None:
                self._remove(path)
                os.close(lock)

    def _remove(self, directory: Path) -> None:
        """Without a process to be had, it stays until its root goes, or until the sweep of the next launcher."""
        self._removals = [removal for removal in self._removals if removal.poll() is None]
        command = ["rm", "-rf", "--one-file-system", "--", os.fspath(directory)]
        try:
            self._removals.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        except OSError as error:
            log.warning("%s is not removed: %s", directory, error)


def _make_root() -> tuple[Path, int]:
    while True:
        root = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = _lock(root)
        if lock is not None:
            return root, lock  # else somebody's sweep was quicker, and removes it


def _lock(directory: Path) -> int | None:
    """A descriptor that holds the lock of our own user's directory; None if somebody else has it, or it is not ours."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        if status.st_uid == os.geteuid() and status.st_nlink > 0:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
    except BlockingIOError:
        pass
    os.close(fd)
    return None
