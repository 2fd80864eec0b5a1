"""The VM lab: builds and caches a Debian root with QEMU and a bootable guest, keyed by the recipe.

    ${ISOREND_VM_LAB:-${XDG_CACHE_HOME:-~/.cache}/isorend/vm-lab}/<recipe digest>/
        qemu/     a Debian root in which qemu-system-x86_64 runs (by chroot)
        guest/    vmlinuz, initramfs.cpio, root.ext4, release, and userland/, from which root.ext4 was made

Each of the two parts is built beside its place and renamed into it, so what is there is whole and a build that was
killed goes on with the part that is missing. A lock file holds off a second builder.

    python -m tests.vm.lab build                     build if needed, print where
    python -m tests.vm.lab info                      digest, place, what is built, sizes, versions
    python -m tests.vm.lab clean                     remove the labs of other recipes
    python -m tests.vm.lab shell [--socket-path S]   boot a VM on the back end listening at S (else on virtio-gpu-pci)
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.vm.debian_root import LabError, require_tools, say, unpack
from tests.vm.debian_tree import DebianTree
from tests.vm.image import make_image
from tests.vm.parts import build_part, cache_dir, locked
from tests.vm.recipe import ROOT_RECIPES, Recipe

# Directories of the QEMU root on which a VM's private mount namespace puts its run directory, the back end's socket
# directory and the guest files.
RUN_MOUNT, BACKEND_MOUNT, GUEST_MOUNT = "/run/vm", "/run/backend", "/run/guest"
USERLAND = "userland"

# A lab is named by its digest, another Debian root by its name and digest.
_BUILD_NAME = re.compile(r"(?:[a-z]+-)?[0-9a-f]{16}")


@dataclass(frozen=True)
class Lab:
    """One lab on disk, built or not."""

    recipe: Recipe
    path: Path

    @classmethod
    def of(cls, recipe: Recipe) -> Lab:
        """The lab of a recipe at its place in the cache."""
        return cls(recipe, cache_dir() / recipe.digest())

    @property
    def qemu_root(self) -> Path:
        """Root directory to chroot into for QEMU."""
        return self.path / "qemu"

    @property
    def guest(self) -> Path:
        """Directory with vmlinuz, initramfs.cpio and root.ext4."""
        return self.path / "guest"

    @property
    def userland(self) -> Path:
        """Root directory with what the guest has, besides its kernel: programs and the Mesa of the suite."""
        return self.guest / USERLAND

    @property
    def built(self) -> bool:
        """Whether both parts are there."""
        return self.qemu_root.is_dir() and self.guest.is_dir()

    def build(self) -> None:
        """Builds what is missing. Raises LabError when this host cannot, CalledProcessError when a step fails."""
        if self.built:
            return
        require_tools(self.recipe.suite)
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path / "lock"):
            build_part(self.qemu_root, self._build_qemu)
            build_part(self.guest, self._build_guest)

    def qemu_version(self) -> str:
        """First line of qemu-system-x86_64 --version."""
        command = ["chroot", str(self.qemu_root), "qemu-system-x86_64", "--version"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]

    def _build_qemu(self, scratch: Path) -> None:
        recipe = self.recipe
        unpack(
            scratch,
            suite=recipe.suite,
            packages=recipe.qemu_packages,
            backports=recipe.backports,
            from_backports=recipe.from_backports,
            excluded_paths=recipe.excluded_paths,
        )
        subprocess.run(["chroot", str(scratch), "ldconfig"], check=True)

    def _build_guest(self, scratch: Path) -> None:
        recipe = self.recipe
        root = scratch / "root"
        unpack(root, suite=recipe.suite, packages=recipe.guest_packages, excluded_paths=recipe.excluded_paths)
        say("making the guest image")
        release = make_image(root, scratch, recipe.kernel_modules, recipe.guest_files)
        # The same programs and the same Mesa serve tests on the host as a userland to chroot into.
        root.rename(scratch / USERLAND)
        (scratch / "release").write_text(release + "\n")


def _info(lab: Lab) -> None:
    print(f"recipe  {lab.recipe.digest()}")
    print(f"place   {lab.path}")
    print(f"built   {'yes' if lab.built else 'no'}")
    if lab.built:
        print(f"guest   Linux {(lab.guest / 'release').read_text().strip()}")
        if os.geteuid() == 0:
            print(f"qemu    {lab.qemu_version()}")
        print(
            subprocess.run(["du", "-sh", lab.qemu_root, lab.guest], capture_output=True, text=True, check=True).stdout,
            end="",
        )


def _clean(lab: Lab) -> None:
    wanted = {lab.path, *(DebianTree.of(recipe).path for recipe in ROOT_RECIPES)}
    for other in sorted(cache_dir().iterdir()):
        if _BUILD_NAME.fullmatch(other.name) and other not in wanted:
            say(f"removing {other}")
            shutil.rmtree(other)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm.lab", description="Build and use the VM lab.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build the lab if it is not there, print where it is")
    commands.add_parser("clean", help="remove the labs of other recipes than today's")
    commands.add_parser("info", help="say what is built, where, and which versions are in it")
    shell = commands.add_parser(
        "shell", help="boot a VM and connect this terminal to a root console in it (Ctrl-] ends)"
    )
    shell.add_argument(
        "--socket-path", type=Path, help="socket of a listening vhost-user GPU back end (default: plain virtio-gpu-pci)"
    )
    options = parser.parse_args(arguments)
    lab = Lab.of(Recipe())
    try:
        if options.command == "info":
            _info(lab)
            return 0
        if options.command == "clean":
            _clean(lab)
            return 0
        lab.build()
        if options.command == "build":
            print(lab.path)
            return 0
        from tests.vm.console import run_console

        return run_console(lab, options.socket_path)
    except LabError as error:
        print(f"vm-lab: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
