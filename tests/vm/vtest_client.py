"""GL programs of a Debian root as clients of a vtest server on the host: their Mesa is the root's, not the host's.

client = VtestClient(lab.userland, service.socket_path)
subprocess.run(client.command(["eglinfo", "-B", "-p", "surfaceless"]), env=client.environment())
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.vm.root_command import ENVIRONMENT, command_in_root

_SOCKET_MOUNT = "/run/vtest"


@dataclass(frozen=True)
class VtestClient:
    """root: as Lab.userland. socket_path: the server's; None is for Mesa's own renderer instead of a server."""

    root: Path
    socket_path: Path | None

    def command(self, argv: Sequence[str | Path], directories: Mapping[str, Path] | None = None) -> list[str]:
        """The command line that runs `argv`, with the host's `directories` at their paths. LabError without root."""
        server = {} if self.socket_path is None else {_SOCKET_MOUNT: self.socket_path.parent}
        return command_in_root(self.root, argv, {**server, **(directories or {})})

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The whole environment it is to have: nothing of the host's, `more` added."""
        ours = {"GALLIUM_DRIVER": "llvmpipe", "LIBGL_ALWAYS_SOFTWARE": "1"}
        if self.socket_path is not None:
            ours |= {"GALLIUM_DRIVER": "virpipe", "VTEST_SOCKET_NAME": f"{_SOCKET_MOUNT}/{self.socket_path.name}"}
        return {**ENVIRONMENT, **ours, **(more or {})}
