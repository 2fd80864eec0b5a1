"""The service: one process's life, from the first worker to the last front end.

Front ends are served one at a time. Workers, their launcher and the data plane outlive a front end, so that the next
one finds warm spares.
"""

import asyncio
import logging
import os
import socket

from ipc.messages import Capability, EngineName
from master import hardening
from master.blame import Incident
from master.capsets import Capset
from master.context_status import context_status
from master.contexts import Contexts
from master.control.plane import ControlPlane
from master.device import GpuDevice
from master.events import EventSource, FrontEndChanged
from master.hang_watch import HangWatch
from master.incidents import IncidentLog
from master.lane_worker import LaneWorker, LaneWorkers
from master.lifetime import Lifetime, run_service
from master.listener import Listener, connection_from_fd
from master.logging_setup import printable_line
from master.memory_watch import MemoryWatch
from master.options import ServeOptions
from master.status import ServiceStatus
from master.strikes import Strikes
from master.supervisor import Supervisor
from master.version import service_version
from master.vhost_user import VhostUserBackend
from native.dataplane import LaneBroken, Plane
from resource_table import Abilities, ResourceTable

log = logging.getLogger(__name__)


class Service:
    """Everything that lives as long as the process. It is Controlled (master.control_target)."""

    def __init__(self, options: ServeOptions, loop: asyncio.AbstractEventLoop) -> None:
        self.events = EventSource(options.name or f"vm-{os.getpid()}")
        self._incidents = IncidentLog(self.events)
        self._strikes = Strikes(self.events, options.strikes, options.guest_strikes)
        self._started = loop.time()
        self._renderer = ""
        self._options = options
        self._loop = loop
        self._lifetime = Lifetime(loop)
        self._plane = Plane()
        self._table = ResourceTable()
        self._supervisor = Supervisor(
            loop,
            LaneWorkers(self._plane, EngineName(options.engine), loop),
            options.spares,
            options.launch_settings(),
            self._lifetime.fatal,
        )
        self._contexts = Contexts(
            self._plane,
            self._supervisor,
            self._table,
            self.events,
            self._incidents,
            self._strikes,
            options.limits,
            options.share_worker,
        )
        self._memory_watch = MemoryWatch(loop, self._supervisor.workers)
        self._hang_watch = HangWatch(loop, self._plane, self._contexts, options.hang_timeout_s)
        self._capsets: list[Capset] = []
        self._listener: Listener | None = None
        self._control: ControlPlane | None = None
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
            self._start_control()
            self._supervisor.launch()
            hardening.drop_capabilities()  # of this thread, so before there are others
            self._plane.start()
            await self._start_workers()
            self._hang_watch.start()
            self._memory_watch.start()
            self._accept_front_ends()
            return await self._lifetime.ended
        finally:
            self._close()

    def _start_control(self) -> None:
        named = self._options.name is not None
        wanted = self._options.control
        self._control = ControlPlane(self._loop, self.events.service, self, wanted=wanted, name_matters=named)
        self.events.publish = self._control.publish

    async def _start_workers(self) -> None:
        first = await self._supervisor.start()
        self._capsets = first.capsets
        if self._options.sharing == "auto":
            self._contexts.abilities = abilities_of(first)
        self._renderer = first.renderer()
        log.info("rendering by %s", self._renderer)
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
        device = GpuDevice(self._loop, self._plane, self._table, self._contexts, self._capsets, self._options)
        self._device = device
        self._front_end = VhostUserBackend(self._loop, connection, device, self._front_end_closed)
        device.reply_vring_base = self._front_end.reply_vring_base
        log.info("a front end is connected")
        self.events.publish(FrontEndChanged(**self.events.stamp(), connected=True))

    def _front_end_closed(self, reason: Exception | None) -> None:
        if reason is None:
            log.info("the front end is gone")
        else:
            log.error("the front end is gone: %s", reason)
        self._drop_front_end()
        said = printable_line(str(reason)) if reason is not None else ""
        self.events.publish(FrontEndChanged(**self.events.stamp(), connected=False, reason=said))
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

    # ---- Controlled

    def status(self) -> ServiceStatus:
        return ServiceStatus(
            service=self.events.service,
            kind="serve",
            pid=os.getpid(),
            version=service_version(),
            renderer=self._renderer,
            sandbox=self._options.sandbox,
            seconds=self._loop.time() - self._started,
            connected=int(self._front_end is not None),
            spares=self._supervisor.spares(),
            resources=len(self._table),
            incidents=len(self._incidents),
            contexts=[context_status(context) for context in self._contexts.all()],
            quarantined=self._strikes.quarantined(),
        )

    def incidents(self) -> list[Incident]:
        return self._incidents.latest()

    def release(self, program: str | None) -> list[str]:
        return self._strikes.release(program)

    def kill(self, ctx_id: int) -> bool:
        return self._contexts.kill(ctx_id)

    # ---- the end

    def _close(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
        if self._control is not None:
            self._control.close()
        self._hang_watch.stop()
        self._memory_watch.stop()
        if self._front_end is not None:
            self._front_end.close()
        self._drop_front_end()
        self._supervisor.close()
        self._loop.remove_reader(self._plane)
        self._plane.close()


def abilities_of(worker: LaneWorker) -> Abilities:
    """What it was probed to do, and so all others of its kind. It serves."""
    assert worker.ready is not None
    found = worker.ready.capabilities
    return Abilities(
        export=Capability.OBJECT_EXPORT in found,
        import_dmabuf=Capability.DMABUF_IMPORT in found,
        memfd_images=Capability.MEMFD_IMPORT in found,
        pinned_buffers=Capability.PINNED_BUFFERS in found,
    )


def serve(options: ServeOptions) -> int:
    """Runs the service. Returns the exit code. Raises ListenError when there is nothing to serve on."""
    return run_service(lambda loop: Service(options, loop).run())
