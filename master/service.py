"""The service: one process's life, from the first worker to the last front end.

Front ends are served one at a time. Workers, their launcher and the data plane outlive a front end, so that the next
one finds warm spares.
"""

import asyncio
import logging
import socket

from ipc.messages import EngineName
from master.blame import Blame
from master.capsets import Capset, for_guest
from master.contexts import Contexts
from master.device import GpuDevice
from master.hang_watch import HangWatch
from master.lane_worker import LaneWorkers
from master.lifetime import Lifetime, run_service
from master.listener import Listener, connection_from_fd
from master.options import ServeOptions
from master.supervisor import Supervisor
from master.vhost_user import VhostUserBackend
from native.dataplane import LaneBroken, Plane
from resource_table import ResourceTable

log = logging.getLogger(__name__)


class Service:
    """Everything that lives as long as the process."""

    def __init__(self, options: ServeOptions, loop: asyncio.AbstractEventLoop) -> None:
        self._options = options
        self._loop = loop
        self._lifetime = Lifetime(loop)
        self._plane = Plane()
        self._table = ResourceTable()
        self._supervisor = Supervisor(
            loop,
            LaneWorkers(self._plane, EngineName(options.engine)),
            options.spares,
            options.launch_settings(),
            self._lifetime.fatal,
        )
        self._contexts = Contexts(self._plane, self._supervisor, self._table, self._blame, options.share_worker)
        self._hang_watch = HangWatch(loop, self._plane, self._contexts, options.hang_timeout_s)
        self._capsets: list[Capset] = []
        self._listener: Listener | None = None
        self._device: GpuDevice | None = None
        self._front_end: VhostUserBackend | None = None

    async def run(self) -> int:
        """Serves until the end. Returns the exit code."""
        self._lifetime.begin()
        try:
            # The path exists before the first worker does: a VMM may connect at once, and is answered when we are
            # ready.
            if self._options.socket_path is not None:
                self._listener = Listener.at(self._options.socket_path)
            self._plane.start()
            await self._start_workers()
            self._hang_watch.start()
            self._accept_front_ends()
            return await self._lifetime.ended
        finally:
            self._close()

    async def _start_workers(self) -> None:
        first = await self._supervisor.start()
        self._capsets = [for_guest(capset) for capset in first.capsets]
        log.info("rendering by %s", first.renderer())
        names = ", ".join(f"{capset.capset_id}.{capset.version}" for capset in self._capsets)
        log.info("capability sets: %s", names or "none")

    def _accept_front_ends(self) -> None:
        self._loop.add_reader(self._plane, self._pump)
        if self._listener is not None:
            log.info("listening on %s", self._listener)
            self._loop.add_reader(self._listener, self._accept)
        else:
            assert self._options.fd is not None
            self._serve(connection_from_fd(self._options.fd))

    # ---- front ends

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            log.error("a front end could not be accepted: %s", error)
            return
        if self._front_end is not None:
            log.warning("refused a second front end: one is being served")
            connection.close()
            return
        self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        device = GpuDevice(self._loop, self._plane, self._table, self._contexts, self._capsets, self._options.size)
        self._device = device
        self._front_end = VhostUserBackend(self._loop, connection, device, self._front_end_closed)
        device.reply_vring_base = self._front_end.reply_vring_base
        log.info("a front end is connected")

    def _front_end_closed(self, reason: Exception | None) -> None:
        if reason is None:
            log.info("the front end is gone")
        else:
            log.error("the front end is gone: %s", reason)
        self._drop_front_end()
        if self._listener is None or not self._options.keep_listening:
            self._lifetime.end(0)

    def _drop_front_end(self) -> None:
        if self._device is not None:
            self._device.close()
        self._device = None
        self._front_end = None

    # ---- events

    def _pump(self) -> None:
        if self._device is not None:
            self._device.pump()
        else:
            while (event := self._plane.take()) is not None:  # what is left of a front end, and workers of nobody
                if isinstance(event, LaneBroken):
                    self._contexts.lane_broken(event.lane)

    def _blame(self, blame: Blame) -> None:
        log.error("context lost: %s", blame)

    def _close(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
        self._hang_watch.stop()
        if self._front_end is not None:
            self._front_end.close()
        self._drop_front_end()
        self._supervisor.close()
        self._loop.remove_reader(self._plane)
        self._plane.close()


def serve(options: ServeOptions) -> int:
    """Runs the service. Returns the exit code. Raises ListenError when there is nothing to serve on."""
    return run_service(lambda loop: Service(options, loop).run())
