"""The virtio-gpu device behind a front end: what vhost-user messages mean to the plane, the display and the dispatcher.

One object serves one front end's connection. Stopping a queue (GET_VRING_BASE) waits until what was taken from it has
been answered; that is short unless a worker hangs, and then the worker has to go.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from master import vhost_user_messages as messages
from master.capsets import Capset
from master.config_space import ConfigSpace
from master.contexts import Contexts
from master.dispatch import Dispatcher
from master.display import DisplayLink, Headless
from master.errors import HandlerError
from master.host_window import HostWindow
from master.memory_table import MemoryTable
from master.options import ServeOptions
from master.picture_source import PictureSource
from master.scanout import Scanouts
from master.vhost_user import BackendChannel
from master.vhost_user_messages import MemoryRegion, ProtocolFeature, VringAddress
from master.virtio_gpu import CONTROL_QUEUE, NUM_QUEUES, SHM_ID_HOST_VISIBLE, Feature, RingFeature
from native.dataplane import Command, Event, Flipped, LaneBroken, Plane, QueueBroken, TooLarge, WorkDone
from native.owned_fd import OwnedFd
from resource_table import ResourceTable

log = logging.getLogger(__name__)

DRAIN_POLL = 0.002  # seconds between looks at a queue that is being stopped
DRAIN_LIMIT = 5.0  # seconds after which its hanging workers are killed
EVENTS_AT_ONCE = 256  # then everything else gets its turn, whatever a guest sends

OFFERED = Feature.VIRGL | Feature.EDID | Feature.RESOURCE_UUID | Feature.RESOURCE_BLOB | Feature.CONTEXT_INIT
OF_CONTEXTS = Feature.VIRGL | Feature.CONTEXT_INIT
RING_FEATURES = RingFeature.VERSION_1 | RingFeature.INDIRECT_DESC | RingFeature.EVENT_IDX
PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.BACKEND_SEND_FD
    | ProtocolFeature.RESET_DEVICE
)
"""SHMEM comes on top where there is a host-visible region."""


@dataclass(slots=True)
class Ring:
    """A queue as the front end has described it so far."""

    size: int = 0
    address: VringAddress | None = None
    base: int = 0
    stopped: bool = False


class GpuDevice:
    """A VhostUserHandler (master.vhost_user)."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        plane: Plane,
        table: ResourceTable,
        contexts: Contexts,
        capsets: list[Capset],
        options: ServeOptions,
    ) -> None:
        """Of the options, those about the display, blobs and host-visible memory."""
        self.reply_vring_base: Callable[[int, int], None] = lambda _index, _base: None
        """Set by whoever makes the connection: VhostUserBackend.reply_vring_base."""
        self._loop = loop
        self._plane = plane
        self._contexts = contexts
        self._headless = Headless(*options.size, options.outputs)
        self._rings = [Ring() for _ in range(NUM_QUEUES)]
        self._features = 0
        self._config = ConfigSpace(options.outputs, len(capsets))
        self._window = HostWindow(options.hostmem)
        self._memory = MemoryTable(self._window.has_sent)
        self._pictures = PictureSource(plane, contexts, lambda: self._memory.memory)
        self._scanouts = Scanouts(
            self._headless,
            options.outputs,
            self._pictures,
            plane,
            contexts.obtain_storage,
            dmabufs=options.display_dmabufs,
        )
        self._dispatcher = Dispatcher(
            plane, table, contexts, self._scanouts, capsets, self._window, options.guest_handles
        )
        self._offered = OFFERED if capsets else OFFERED & ~OF_CONTEXTS
        self._closed = False

    # ---- the data plane

    def pump(self) -> None:
        """Does what the plane has for Python. If that is much, its descriptor stays readable for the rest."""
        for _ in range(EVENTS_AT_ONCE):
            event = self._plane.take()
            if event is None:
                break
            self._handle(event)
        else:
            self._plane.flush()
        self._scanouts.settle()

    def _handle(self, event: Event) -> None:
        if isinstance(event, Command):
            self._dispatcher.run(event)
        elif isinstance(event, WorkDone):
            if not self._contexts.work_done(event.token, event.status):
                self._pictures.work_done(event)
        elif isinstance(event, Flipped):
            self._dispatcher.flipped(event)
        elif isinstance(event, LaneBroken):
            self._contexts.lane_broken(event.lane)
        elif isinstance(event, TooLarge):
            self._contexts.too_large(event)
        elif isinstance(event, QueueBroken):
            log.error("queue %d: the driver's available index is impossible; it stands still until reset", event.queue)

    def close(self) -> None:
        """The front end is gone."""
        self._closed = True
        self.reset_device()
        self._memory.close()
        self._use_memory()
        self._use_display(None)
        for index in range(NUM_QUEUES):
            self._plane.queue_call(index, -1)
            self._plane.queue_err(index, -1)

    # ---- features

    def get_features(self) -> int:
        return int(self._offered) | int(RING_FEATURES) | messages.F_PROTOCOL_FEATURES

    def set_features(self, features: int) -> None:
        self._features = features
        self._dispatcher.guest.features = Feature(features & int(self._offered))
        self._plane.set_ring_idx(bool(features & Feature.CONTEXT_INIT & self._offered))

    def get_protocol_features(self) -> ProtocolFeature:
        return PROTOCOL_FEATURES | ProtocolFeature.SHMEM if self._window.nbytes else PROTOCOL_FEATURES

    def set_protocol_features(self, features: ProtocolFeature) -> None:
        log.debug("the front end uses %r", features)
        self._window.negotiated = bool(features & ProtocolFeature.SHMEM)
        self._dispatcher.guest.maps_blobs = bool(features & self.get_protocol_features() & ProtocolFeature.SHMEM)

    def set_owner(self) -> None:
        pass

    def reset_device(self) -> None:
        for index in range(NUM_QUEUES):
            self._plane.queue_stop(index)
            self._plane.queue_enable(index, False)
        self._forget_guest()
        for index in range(NUM_QUEUES):
            self._plane.queue_abandon(index)
        while (event := self._plane.take()) is not None:  # the ends of what was under way; the queues stand still
            self._handle(event)
        self._config.reset()

    def _forget_guest(self) -> None:
        """Nothing of what its driver made is left, nor is it mapped."""
        self._window.forget()
        self._dispatcher.reset()

    # ---- memory

    def set_mem_table(self, regions: list[MemoryRegion]) -> None:
        if not self._memory.replace(regions):
            return
        outside = self._use_memory()
        if outside:
            raise HandlerError(f"{outside} running queues lie outside of the new memory table")

    def _use_memory(self) -> int:
        """How many running queues lie outside of it."""
        memory = self._memory.memory
        outside = self._plane.set_memory(memory)
        self._dispatcher.guest.memory, self._dispatcher.guest.regions = memory, self._memory.regions()
        return outside

    # ---- queues

    def get_queue_num(self) -> int:
        return NUM_QUEUES

    def set_vring_num(self, index: int, num: int) -> None:
        self._rings[index].size = num

    def set_vring_addr(self, address: VringAddress) -> None:
        self._rings[address.index].address = address

    def set_vring_base(self, index: int, base: int) -> None:
        """A queue that does not go on where it stopped is that of a driver that begins anew. Not every front end says
        so: QEMU's generic device sends no RESET_DEVICE."""
        ring = self._rings[index]
        if index == CONTROL_QUEUE and ring.stopped and (base == 0 or base != ring.base):
            self._forget_guest()
        ring.base = base

    def get_vring_base(self, index: int) -> int | None:
        base = self._plane.queue_stop(index)
        ring = self._rings[index]
        ring.base, ring.stopped = base, True
        if index == CONTROL_QUEUE:
            self._window.suspend()
        self.pump()
        self._dispatcher.answer_open_questions()
        if not self._plane.queue_open(index):
            return base
        self._drain(index, base, self._loop.time() + DRAIN_LIMIT)
        return None

    def _drain(self, index: int, base: int, deadline: float) -> None:
        if self._closed:
            return
        self._dispatcher.answer_open_questions()  # those that came to light only since it was stopped
        if self._plane.queue_open(index):
            now = self._loop.time()
            if now >= deadline and self._contexts.give_up_on_stuck("did not finish when the VM stopped"):
                deadline = now + DRAIN_LIMIT  # those who waited for them go on now
            if now < deadline:
                self._loop.call_later(DRAIN_POLL, self._drain, index, base, deadline)
                return
            self._plane.queue_abandon(index)
        self.reply_vring_base(index, base)

    def set_vring_kick(self, index: int, fd: OwnedFd | None) -> None:
        ring = self._rings[index]
        if fd is None:
            raise HandlerError("polled queues are not supported")
        if ring.address is None:
            raise HandlerError(f"queue {index} has no address")
        address = ring.address
        event_idx = bool(self._features & RingFeature.EVENT_IDX)
        try:
            self._plane.queue_setup(
                index, ring.size, address.descriptor, address.available, address.used, ring.base, event_idx
            )
            self._plane.queue_start(index, fd.fd)
        except OSError as error:
            raise HandlerError(str(error)) from error
        fd.close()
        ring.stopped = False
        if index == CONTROL_QUEUE:
            self._window.resume()
        if not self._features & messages.F_PROTOCOL_FEATURES:
            self._plane.queue_enable(index, True)

    def set_vring_call(self, index: int, fd: OwnedFd | None) -> None:
        self._plane.queue_call(index, fd.fd if fd is not None else -1)
        if fd is not None:
            fd.close()

    def set_vring_err(self, index: int, fd: OwnedFd | None) -> None:
        self._plane.queue_err(index, fd.fd if fd is not None else -1)
        if fd is not None:
            fd.close()

    def set_vring_enable(self, index: int, enabled: bool) -> None:
        self._plane.queue_enable(index, enabled)

    # ---- configuration space

    def get_config(self, offset: int, size: int) -> bytes:
        return self._config.read(offset, size)

    def set_config(self, offset: int, data: bytes, flags: int) -> None:
        self._config.write(offset, data)

    # ---- sockets back to the front end

    def get_shmem_config(self) -> Mapping[int, int]:
        return {SHM_ID_HOST_VISIBLE: self._window.nbytes} if self._window.nbytes else {}

    def set_backend_channel(self, channel: BackendChannel) -> None:
        self._window.channel = channel

    def gpu_set_socket(self, sock: socket.socket) -> None:
        link = DisplayLink(
            self._loop,
            sock,
            fallback=self._headless,
            on_ready=self._scanouts.pump,
            on_closed=self._display_closed,
        )
        self._use_display(link)

    def _display_closed(self, reason: Exception | None) -> None:
        if not self._closed:
            log.info("the display is gone%s", f": {reason}" if reason else "")
            self._use_display(None)

    def _use_display(self, link: DisplayLink | None) -> None:
        before = self._scanouts.display
        self._scanouts.use(link or self._headless)
        before.close()
