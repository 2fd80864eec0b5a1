"""Where drivers keep compiled shaders: for each worker a directory of its own, gone with it.

The same shader is compiled again and again within one program (a renderer makes many objects of it), so a cache pays
even if it lives no longer than the worker. One that workers share would be a way from one to the others: who has taken
over one worker could leave code there for the next. That is the operator's choice (`isorend serve --shader-cache`).
"""

import os
import re
import shutil
import tempfile
from pathlib import Path

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
        """Raises OSError when no directory can be made. Removes what launchers left behind that were killed."""
        self._shared = shared
        self._root: Path | None = None
        if shared is None:
            _sweep()
            self._root = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))

    def give(self, worker_id: int) -> Path:
        """The directory for a worker, which has to exist by the time the driver is loaded."""
        if self._root is None:
            assert self._shared is not None
            return self._shared
        return self._root / str(worker_id)

    def take_back(self, worker_id: int) -> None:
        """The worker has ended."""
        if self._root is not None:
            shutil.rmtree(self._root / str(worker_id), ignore_errors=True)

    def close(self) -> None:
        """All workers have ended."""
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)


def _sweep() -> None:
    """Removes directories of launchers that are no more; those of other users stay, since we may not."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        match = re.fullmatch(rf"{_PREFIX}([0-9]+)-.*", path.name)
        if match and not path.is_symlink() and not Path("/proc", match[1]).exists():
            shutil.rmtree(path, ignore_errors=True)
