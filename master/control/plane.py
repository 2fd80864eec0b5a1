"""A service's control plane as the service has it: made, told what happens, closed; there may be none."""

import asyncio
import logging
from typing import TYPE_CHECKING

from master.control.directory import ServiceDirectory
from master.control.errors import DirectoryError
from master.control_target import Controlled
from master.events import Event

if TYPE_CHECKING:
    from master.control.server import ControlServer

log = logging.getLogger(__name__)


class ControlPlane:
    """A server at the service's name. If its place cannot be had, the service goes on without it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        target: Controlled,
        *,
        wanted: bool = True,
        name_matters: bool = False,
    ) -> None:
        """wanted: whether there shall be one. name_matters: it was asked for by this name.

        Raises DirectoryError if it cannot have a name that matters. It listens from the loop's next turn on: ZeroMQ
        is loaded while the first worker loads its driver, and its thread has no more privileges than ours has then.
        """
        self._loop = loop
        self._target = target
        self._server: ControlServer | None = None
        self._directory = self._claim(name, name_matters) if wanted else None
        self._start = loop.call_soon(self._listen, self._directory) if self._directory is not None else None

    def publish(self, event: Event) -> None:
        """Tells whoever listens. A Publish (master.events)."""
        if self._server is not None:
            self._server.publish(event)

    def close(self) -> None:
        """May be called again."""
        if self._start is not None:
            self._start.cancel()
        if self._server is not None:
            self._server.close()
        elif self._directory is not None:
            self._directory.close()

    def _claim(self, name: str, name_matters: bool) -> ServiceDirectory | None:
        try:
            return ServiceDirectory.claim(name)
        except DirectoryError as reason:
            if name_matters:
                raise
            self._complain(reason)
            return None

    def _listen(self, directory: ServiceDirectory) -> None:
        try:
            from master.control.server import ControlServer

            self._server = ControlServer(self._loop, directory, self._target)
        except (DirectoryError, ImportError) as reason:  # a service renders without pyzmq
            self._complain(reason)

    def _complain(self, reason: Exception) -> None:
        log.warning("`isorend status` will not find this service: %s", reason)
