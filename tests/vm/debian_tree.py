"""Debian roots to run programs in, beside those of the lab: unpacked once, cached by their recipe."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.vm.debian_root import require_tools, unpack
from tests.vm.parts import build_part, cache_dir, locked
from tests.vm.recipe import RootRecipe
from tests.vm.root_command import command_in_root


@dataclass(frozen=True)
class DebianTree:
    """One unpacked Debian root on disk, built or not: ${ISOREND_VM_LAB:-...}/<name>-<recipe digest>/root."""

    recipe: RootRecipe
    path: Path

    @classmethod
    def of(cls, recipe: RootRecipe) -> DebianTree:
        """The root of a recipe at its place in the cache."""
        return cls(recipe, cache_dir() / f"{recipe.name}-{recipe.digest()}")

    @property
    def root(self) -> Path:
        """The directory to chroot into."""
        return self.path / "root"

    def build(self) -> None:
        """Builds it if it is not there. Raises LabError when this host cannot, CalledProcessError when a step fails."""
        if self.root.is_dir():
            return
        require_tools(self.recipe.suite)
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path / "lock"):
            build_part(self.root, self._build)

    def command(self, command: Sequence[str | Path], directories: Mapping[str, Path] | None = None) -> list[str]:
        """The command line that runs a program in it; see command_in_root. Raises LabError without root."""
        return command_in_root(self.root, command, directories or {})

    def _build(self, scratch: Path) -> None:
        recipe = self.recipe
        unpack(
            scratch,
            suite=recipe.suite,
            packages=recipe.packages,
            backports=recipe.backports,
            from_backports=recipe.from_backports,
            excluded_paths=recipe.excluded_paths,
        )
        subprocess.run(["chroot", str(scratch), "ldconfig"], check=True)
