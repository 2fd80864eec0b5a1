"""What the VM lab is made of: packages, kernel modules, guest files, and the hash of all that, which names a build.

Everything that changes the result of a build is a field of Recipe or a file in guest/, so an edited recipe gives a
new build and an unchanged one is found again. Package versions are the mirror's and are not part of the hash.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

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
    revision: int = 1
    suite: str = "trixie"
    backports: str = "trixie-backports"
    # Packages taken from the backports suite (apt preference patterns); everything else comes from the suite itself.
    from_backports: tuple[str, ...] = ("qemu-*", "seabios")
    qemu_packages: tuple[str, ...] = ("base-files", "libc-bin", "coreutils", "qemu-system-x86", "qemu-system-common")
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
    )
    # Loaded by the initramfs in this order, each after what modules.dep says it needs.
    kernel_modules: tuple[str, ...] = ("virtio_blk", "crc32c_generic", "ext4", "virtio_rng", "virtio_gpu")
    excluded_paths: tuple[str, ...] = _DOCUMENTATION
    guest_files: dict[str, str] = field(default_factory=lambda: _read_guest_files())

    def digest(self) -> str:
        """16 hexadecimal digits that name this recipe's build."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_guest_files() -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(GUEST_FILES_DIR.iterdir()) if path.is_file()}
