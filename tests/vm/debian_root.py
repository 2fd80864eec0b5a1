"""Unpacking Debian packages into a directory with mmdebstrap, from the mirror that the host itself uses.

mmdebstrap's `extract` variant resolves and unpacks packages without running their scripts: seconds instead of
minutes, no mounts, nothing started. What maintainer scripts would have made and the lab needs (ld.so.cache, module
dependencies) image.py makes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

DEFAULT_MIRROR = "http://deb.debian.org/debian"
DEFAULT_SECURITY_MIRROR = "http://deb.debian.org/debian-security"
KEYRING_DIR = Path("/usr/share/keyrings")


class LabError(Exception):
    """The VM lab cannot be built or used here; the message is one line that says what to do."""


def say(text: str) -> None:
    """Prints a progress line of a build at once."""
    print(f"vm-lab: {text}", file=sys.stderr, flush=True)


def require_tools(suite: str) -> None:
    """Raises LabError with the one thing to do when this host cannot build or start the lab."""
    if os.geteuid() != 0:
        raise LabError(
            "the VM lab needs root (it unpacks Debian and starts QEMU in a chroot): run this as root or with sudo"
        )
    packages = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "setpriv": "util-linux", "unshare": "util-linux"}
    missing = sorted({package for tool, package in packages.items() if shutil.which(tool) is None})
    if missing:
        raise LabError(f"the VM lab needs more packages: run apt-get install -y {' '.join(missing)}")
    if not any(KEYRING_DIR.glob(f"debian-archive-{suite}-stable.*")):
        raise LabError(
            f"no archive key of Debian {suite} here: "
            "run apt-get install -y debian-archive-keyring (2023.3+deb12u2 or later)"
        )


def host_mirrors() -> tuple[str, str]:
    """(Debian mirror, security mirror) from ISOREND_DEBIAN_MIRROR or apt's own sources, else deb.debian.org."""
    mirror, security = DEFAULT_MIRROR, DEFAULT_SECURITY_MIRROR
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    uris = [uri.rstrip("/") for uri in listing.stdout.split()]
    mirror = next((uri for uri in uris if urlsplit(uri).path.endswith("/debian")), mirror)
    security = next((uri for uri in uris if urlsplit(uri).path.endswith("/debian-security")), security)
    return os.environ.get("ISOREND_DEBIAN_MIRROR", mirror), security


def unpack(
    root: Path,
    *,
    suite: str,
    packages: Iterable[str],
    backports: str | None = None,
    from_backports: Iterable[str] = (),
    excluded_paths: Iterable[str] = (),
) -> None:
    """Unpacks packages of a suite and all they depend on into root (a directory that mmdebstrap creates).

    Raises LabError when mmdebstrap fails; its last lines are in the message.
    """
    mirror, security = host_mirrors()
    sources = [
        f"deb {mirror} {suite} main",
        f"deb {mirror} {suite}-updates main",
        f"deb {security} {suite}-security main",
    ]
    command = [
        # mmdebstrap is to end with a build that is killed.
        *("setpriv", "--pdeathsig", "KILL"),
        "mmdebstrap",
        "--mode=root",
        "--variant=extract",
        "--format=directory",
        f"--include={','.join(packages)}",
    ]
    command.append('--aptopt=APT::Install-Recommends "false"')
    command += [f"--dpkgopt=path-exclude={path}" for path in excluded_paths]
    if backports is not None:
        sources.append(f"deb {mirror} {backports} main")
        pin = f"Package: {' '.join(from_backports)}\\nPin: release n={backports}\\nPin-Priority: 990\\n"
        command.append(
            f'--setup-hook=mkdir -p "$1/etc/apt/preferences.d" && printf "{pin}" >"$1/etc/apt/preferences.d/lab"'
        )
    command += [suite, str(root), *sources]
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if result.returncode != 0:
        raise LabError(f"mmdebstrap failed with {result.returncode} for {mirror} {suite}:\n{result.stdout[-3000:]}")
