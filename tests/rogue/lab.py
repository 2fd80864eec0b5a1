"""A service whose workers take orders, as seen from outside."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from xprocess.xprocess import XProcess

from tests.device_lab import OPTIONS, DeviceLab
from tests.rogue.hub import Hub
from tests.service_lab import RunningService
from tests.service_process import ROGUE_COMMAND, ServiceProcess

_LOST = re.compile(  # from the beginning of a line, where workers cannot write
    r"^isorend: error: (?:\(\d+ lines were left out\) )?"
    r"context lost: ctx (?P<ctx>\d+) (?P<name>.*?) \(worker (?P<pid>\d+)\): (?P<cause>.*)$", re.MULTILINE
)


@dataclass(frozen=True)
class Loss:
    """A context that the service's log says is lost."""

    ctx_id: int
    name: str
    pid: int
    cause: str


def losses(log: str) -> list[Loss]:
    """All of a log, in order."""
    return [Loss(int(m["ctx"]), m["name"], int(m["pid"]), m["cause"]) for m in _LOST.finditer(log)]


class RogueLab(DeviceLab):
    """A DeviceLab with the lines to its workers."""

    def __init__(self, service: RunningService, hub: Hub) -> None:
        super().__init__(service)
        self.hub = hub
        self.losses: list[Loss] = []
        """All that read_losses() has seen."""
        self._read = 0

    def read_losses(self) -> None:
        """Reads on in the log, which may be long."""
        with self.service.log_path.open("rb") as log:
            log.seek(self._read)
            lines, end, _ = log.read().rpartition(b"\n")
        self._read += len(lines) + len(end)
        self.losses += losses(lines.decode(errors="replace"))

    def loss_of(self, ctx_id: int, name: str) -> Loss | None:
        """The latest loss of a context with this number and name, if there was one."""
        self.read_losses()
        for loss in reversed(self.losses):
            if (loss.ctx_id, loss.name) == (ctx_id, name):
                return loss
        return None


@contextmanager
def rogue_lab(xprocess: XProcess, arguments: Sequence[str], env: Mapping[str, str]) -> Iterator[RogueLab]:
    """A rogue service with these arguments besides OPTIONS. It has to live until it is asked to end."""
    with Hub() as hub:
        every_time = [*OPTIONS, "--keep-listening"]
        service = ServiceProcess(
            xprocess, [*every_time, *arguments], command=ROGUE_COMMAND, env={**env, **hub.environment}
        )
        try:
            yield RogueLab(service, hub)
            service.check_running()
        finally:
            code = service.stop()
        assert code == 0
