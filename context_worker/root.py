"""The file tree that workers live in: the driver's files, read-only, and next to nothing else.

It is a small tmpfs into which parts of the old tree are mounted: the directories that the dynamic linker searches, what
the driver reads, device nodes, and a shader cache if workers share one. There is no /proc and no /home, and of /etc,
/dev and /sys only what a driver profile names. What was the root before is gone from the namespace.
"""

import glob
import json
import os
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from context_worker import linux
from native.owned_fd import OwnedFd

SCRATCH: Final = Path("/tmp")
"""Where each worker mounts a file system of its own."""

SHARED_SHADERS: Final = Path("/shaders")

_SEARCHED_BY_LINKER: Final = ("/lib64", "/usr/lib64", "/usr/local/lib64")
_LINKER_CONFIGURATION: Final = "/etc/ld.so.conf"
_SYSTEM_FILES: Final = (
    "/etc/ld.so.cache",
    "/etc/alternatives",  # links among libraries
    "/usr/share/glvnd",
    "/etc/glvnd",
    "/usr/share/drirc.d",
    "/etc/drirc",
    # Nix has libraries nowhere else.
    "/nix/store",
    "/run/opengl-driver",
)
# Variables by which drivers are taken from elsewhere: those of ld.so(8), of Mesa (docs.mesa3d.org/envvars.html), of
# libglvnd (its README) and of the Vulkan loader (its LoaderInterfaceArchitecture.md).
_DIRECTORY_VARIABLES: Final = (
    "LD_LIBRARY_PATH",
    "LIBGL_DRIVERS_PATH",
    "GBM_BACKENDS_PATH",
    "DRIRC_CONFIGDIR",
    "__EGL_VENDOR_LIBRARY_DIRS",
    "__EGL_EXTERNAL_PLATFORM_CONFIG_DIRS",
)
_MANIFEST_VARIABLES: Final = ("__EGL_VENDOR_LIBRARY_FILENAMES", "VK_DRIVER_FILES", "VK_ICD_FILENAMES")
_MOST_LINKS: Final = 40  # as path_resolution(7)


@dataclass(frozen=True)
class Root:
    """What the tree has, each by its path of before: `read_only` directories and files, `devices`, and the directory
    of shaders that all workers write to, if they share one."""

    read_only: tuple[Path, ...]
    devices: tuple[Path, ...] = ()
    shared_shaders: Path | None = None

    def existing(self) -> "Root":
        """Without what is not there."""
        return replace(
            self,
            read_only=tuple(path for path in self.read_only if path.exists()),
            devices=tuple(path for path in self.devices if path.exists()),
        )


def driver_paths(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Where libraries and drivers are on this machine, and by this environment."""
    found = [*linker_directories(), *map(Path, _SYSTEM_FILES)]
    for name in _DIRECTORY_VARIABLES:
        found += _paths(environment.get(name, ""))
    for name in _MANIFEST_VARIABLES:
        for manifest in _paths(environment.get(name, "")):
            found += [manifest, *_library_directory(manifest)]
    return tuple(dict.fromkeys(found))


def linker_directories() -> list[Path]:
    """Where the dynamic linker looks for libraries: its own places, and those of its configuration (ldconfig(8))."""
    multiarch = sysconfig.get_config_var("MULTIARCH")
    own = [f"/lib/{multiarch}", f"/usr/lib/{multiarch}"] if multiarch and Path(f"/usr/lib/{multiarch}").is_dir() else []
    own = own or ["/lib", "/usr/lib"]
    return [Path(name) for name in [*own, *_SEARCHED_BY_LINKER, *_configured(_LINKER_CONFIGURATION)]]


def _configured(file: str, depth: int = 0) -> Iterator[str]:
    try:
        lines = Path(file).read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        word, _, rest = line.partition("#")[0].strip().partition(" ")
        if word == "include" and depth < 8:
            pattern = os.path.join(os.path.dirname(file), rest.strip())
            for included in sorted(glob.glob(pattern)):
                yield from _configured(included, depth + 1)
        elif word.startswith("/"):
            yield word


def _paths(variable: str) -> list[Path]:
    """The absolute paths in a variable; the whole tree is nobody's driver directory."""
    return [Path(name) for name in variable.split(":") if name.startswith("/") and os.path.realpath(name) != "/"]


def _library_directory(manifest: Path) -> list[Path]:
    """The directory of the library that a JSON manifest names by an absolute or relative path."""
    try:
        name = json.loads(manifest.read_bytes())["ICD"]["library_path"]
        return [(manifest.parent / name).parent] if "/" in name else []
    except (OSError, ValueError, KeyError, TypeError):
        return []  # whoever reads it will say what is wrong with it


# ---- making it

_DATA: Final = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV | linux.MOUNT_ATTR_NOEXEC
_LIBRARIES: Final = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
_DEVICE: Final = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NOEXEC


class Trees:
    """The parts of a Root, taken from the tree of now: enter() needs no right to reach them there."""

    def __init__(self, root: Root) -> None:
        """To be called with CAP_SYS_ADMIN in the mount namespace's user namespace. Raises OSError."""
        self._mounts: dict[Path, OwnedFd] = {}
        self._links: dict[Path, str] = {}
        try:
            for attributes, paths in ((_LIBRARIES, root.read_only), (_DEVICE, root.devices)):
                for path in paths:
                    self._links.update(_links(path))
                for path in sorted({path.resolve() for path in paths}):
                    if not any(path.is_relative_to(other) for other in self._mounts):
                        self._mounts[path] = _tree(path, attributes)
            if root.shared_shaders is not None:
                self._mounts[SHARED_SHADERS] = _tree(root.shared_shaders, _DATA)
        except OSError:
            self.close()
            raise

    def enter(self) -> None:
        """Make them the root of this process' mount namespace, which nobody else is in; they are closed then.

        To be called as who is to own it, with CAP_SYS_ADMIN, and with one thread. Raises OSError.
        """
        try:
            _pivot()
            for target in sorted(self._mounts):
                _attach(self._mounts[target], target)
            for link, text in sorted(self._links.items()):
                if not os.path.lexists(link):
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(text)
            SCRATCH.mkdir(exist_ok=True)
            linux.mount_setattr(linux.AT_FDCWD, "/", 0, linux.MOUNT_ATTR_RDONLY | _DATA)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of them."""
        for mount in self._mounts.values():
            mount.close()


def _tree(path: Path, attributes: int) -> OwnedFd:
    """What is mounted at and below `path`, detached, with `attributes`."""
    tree = OwnedFd(linux.open_tree(os.fspath(path), linux.OPEN_TREE_CLONE | linux.AT_RECURSIVE))
    try:
        linux.mount_setattr(tree.fd, "", linux.AT_EMPTY_PATH | linux.AT_RECURSIVE, attributes)
    except OSError:
        tree.close()
        raise
    return tree


def _links(path: Path) -> Iterator[tuple[Path, str]]:
    """The symbolic links on the way to `path`, each with its text: a merged /usr has /lib as one."""
    pending = list(path.parts[1:])
    here = Path("/")
    met = 0
    while pending and met < _MOST_LINKS:
        name = pending.pop(0)
        if name == "..":
            here = here.parent
            continue
        try:
            text = os.readlink(here / name)
        except OSError:
            here = here / name
            continue
        met += 1
        yield here / name, text
        if text.startswith("/"):
            here = Path("/")
        pending = [part for part in Path(text).parts if part != "/"] + pending


def _pivot() -> None:
    """An empty tmpfs becomes the root (pivot_root(2), "." on "."), and the old one is gone."""
    place = "/proc"  # any directory that is there; that one was just used
    linux.mount("isorend", place, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC, "size=1m,mode=755")
    os.chdir(place)
    linux.pivot_root(".", ".")
    linux.umount2(".", linux.MNT_DETACH)
    os.chdir("/")


def _attach(tree: OwnedFd, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.isdir(tree.fd):
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    linux.move_mount(tree.fd, os.fspath(target))


# ---- a worker's part


def mount_scratch(size: int) -> None:
    """A file system of this mount namespace's own at SCRATCH, of at most `size` bytes. Raises OSError."""
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("scratch", os.fspath(SCRATCH), "tmpfs", flags, f"size={size},nr_inodes=16384,mode=700")
