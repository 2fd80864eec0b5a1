"""The services of a soak: started once, and measured whenever nobody uses them."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.device_lab import SPARES
from tests.fake_vmm import BackEndProcess
from tests.rogue.hub import Hub
from tests.rogue.lab import RogueLab
from tests.service_lab import Footprint, resident

_CGROUPS = Path("/sys/fs/cgroup")
_OURS = re.compile(r"isorend", re.IGNORECASE)


class ServiceFailed(Exception):
    """A service ended while it was wanted."""


class SoakService(BackEndProcess):
    """A rogue service (tests.rogue.service) that keeps its temporary files in a directory of its own."""

    def __init__(self, command: str, hub: Hub, arguments: Sequence[str]) -> None:
        self.temporary = tempfile.TemporaryDirectory(prefix="isorend-soak-")
        # No soak's end leaves a service behind, whatever ends it.
        program = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.rogue.service", command]
        super().__init__(
            [*program, f"--spares={SPARES}", "--log-level=warning", *arguments],
            env={**hub.environment, "TMPDIR": self.temporary.name},
        )

    def check_running(self) -> None:
        """Raises ServiceFailed."""
        if not self.running:
            raise ServiceFailed(f"the service ended with {self.process.poll()}:\n{self.log[-4000:]}")

    def end(self, timeout: float = 15.0) -> int:
        """As BackEndProcess.end()."""
        code = super().end(timeout)
        self.temporary.cleanup()
        return code


@dataclass(frozen=True)
class Holdings:
    """What a service and the machine hold because of it while nobody is served; all are counts."""

    master_fds: int
    launcher_fds: int
    processes: int
    temporary_files: int
    mounts: int
    cgroups: int

    def minus(self, before: Holdings) -> dict[str, int]:
        """By field, what there is more."""
        return {field.name: getattr(self, field.name) - getattr(before, field.name) for field in fields(self)}


class Subject:
    """One service under soak. memory: samples of (master, launcher), in bytes, of an idle service."""

    def __init__(self, name: str, command: str, arguments: Sequence[str]) -> None:
        self.name = name
        self.hub = Hub()
        try:
            self.service = SoakService(command, self.hub, arguments)
        except BaseException:
            self.hub.close()
            raise
        self.lab = RogueLab(self.service, self.hub)
        self.memory: list[tuple[int, int]] = []

    def settle(self) -> Holdings:
        """What is held once all is over. The service must be idle but for spares."""
        footprint: Footprint = self.lab.wait_until_idle()
        self.service.check_running()
        return Holdings(
            footprint.master_fds,
            footprint.launcher_fds,
            footprint.processes,
            _entries(Path(self.service.temporary.name)),
            len(Path(f"/proc/{self.service.pid}/mountinfo").read_text().splitlines()),
            sum(bool(_OURS.search(path)) for path, _, _ in os.walk(_CGROUPS)),
        )

    def sample_memory(self) -> None:
        """Once more."""
        self.memory.append((self.lab.resident(), resident(self.lab.launcher())))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                error.add_note(f"the end of the log of {self.name}:\n{self.service.log[-2000:]}")
            self.code = self.service.end()
        finally:
            self.hub.close()


def _entries(directory: Path) -> int:
    return sum(len(names) + len(files) for _, names, files in os.walk(directory))
