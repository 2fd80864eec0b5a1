"""What the VM lab is made of: packages, kernel modules, guest files, and the hash of all that, which names a build.

Everything that changes the result of a build is a field of Recipe or a file in guest/, so an edited recipe gives a
new build and an unchanged one is found again. Package versions are the mirror's and are not part of the hash.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

GUEST_FILES_DIR = Path(__file__).parent / "guest"

# Files the unpacked roots never need; glob patterns as dpkg's --path-exclude takes them.
_DOCUMENTATION = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
    "/usr/share/bug/*",
)


@dataclass(frozen=True)
class Recipe:
    """One VM lab. Strings are Debian package names unless said otherwise."""

    # Raised by hand when the building code itself changes what comes out.
    revision: int = 3
    suite: str = "trixie"
    backports: str = "trixie-backports"
    # Packages taken from the backports suite (apt preference patterns); everything else comes from the suite itself.
    from_backports: tuple[str, ...] = ("qemu-*", "seabios")
    qemu_packages: tuple[str, ...] = ("base-files", "libc-bin", "coreutils", "qemu-system-x86", "qemu-system-common")
    # Last in a group of their own: what the service and the fake VMM import, for tests that run them in the guest.
    guest_packages: tuple[str, ...] = (
        "base-files",
        "base-passwd",
        "bash",
        "busybox-static",
        "coreutils",
        "dash",
        "drm-info",
        "fonts-dejavu-core",
        "glmark2-es2-drm",
        "grep",
        "kmod",
        "kmscube",
        "libc-bin",
        "libegl1",
        "libgl1-mesa-dri",
        "libgles2",
        "linux-image-amd64",
        "mesa-utils",
        "mesa-utils-bin",
        "mesa-utils-extra",
        "mount",
        "procps",
        "qemu-guest-agent",
        "sed",
        "util-linux",
        "weston",
        *("libseccomp2", "libvirglrenderer1", "python3", "python3-cffi-backend", "python3-numpy", "python3-opengl"),
        *("python3-pil", "python3-psutil", "python3-setproctitle"),
    )
    # Loaded by the initramfs in this order, each after what modules.dep says it needs.
    kernel_modules: tuple[str, ...] = ("virtio_blk", "crc32c_generic", "ext4", "virtio_rng", "virtio_gpu")
    excluded_paths: tuple[str, ...] = _DOCUMENTATION
    guest_files: dict[str, str] = field(default_factory=lambda: _read_guest_files())

    def digest(self) -> str:
        """16 hexadecimal digits that name this recipe's build."""
        return _digest(asdict(self))


@dataclass(frozen=True)
class RootRecipe:
    """A Debian root to run programs in, beside the lab: what `Recipe` has for its roots, and a name (a-z)."""

    name: str
    packages: tuple[str, ...]
    suite: str = "trixie"
    backports: str | None = None
    from_backports: tuple[str, ...] = ()
    excluded_paths: tuple[str, ...] = _DOCUMENTATION

    def digest(self) -> str:
        """16 hexadecimal digits that name this recipe's build."""
        return _digest(asdict(self))


_ROOT_BASE = ("base-files", "bash", "coreutils", "dash", "libc-bin")
_MESA = ("libegl-mesa0", "libegl1", "libgl1", "libgl1-mesa-dri", "libgles2")

# QEMU with a GL display (SDL's, which needs no screen) and virglrenderer in it, and what the service is built from and
# runs on: both sides of a comparison have one Mesa and one virglrenderer there.
GL_ROOT = RootRecipe(
    "gl",
    (
        *(*_ROOT_BASE, *_MESA, "libglx-mesa0"),
        *("qemu-system-common", "qemu-system-gui", "qemu-system-modules-opengl", "qemu-system-x86"),
        *("gcc", "libc6-dev", "libegl-dev", "libseccomp-dev", "libvirglrenderer-dev", "pkg-config"),
        *("python3", "python3-cffi", "python3-dev", "python3-opengl", "python3-setproctitle", "python3-setuptools"),
    ),
    backports=Recipe.backports,
    from_backports=Recipe.from_backports,
)

# Piglit without the shaders it generates, which are most of its 2 GB.
PIGLIT_ROOT = RootRecipe(
    "piglit",
    (*_ROOT_BASE, *_MESA, "piglit", "python3"),
    excluded_paths=(*_DOCUMENTATION, "/usr/lib/*/piglit/generated_tests/*"),
)

ROOT_RECIPES = (GL_ROOT, PIGLIT_ROOT)


def _digest(recipe: dict[str, Any]) -> str:
    text = json.dumps(recipe, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_guest_files() -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(GUEST_FILES_DIR.iterdir()) if path.is_file()}
