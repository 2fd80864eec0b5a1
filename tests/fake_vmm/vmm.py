"""FakeVmm: guest RAM, front end, virtqueues, driver and display put together, started as QEMU 11 and Linux start them.

The order of messages is that of QEMU 11.1's vhost-user-gpu-pci, or of its vhost-user-test-device-pci (the "generic"
device): `_realize` when the VM is made, `_start_device` at the driver's DRIVER_OK, `_stop_device` at a reset, a pause
or the end.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tests.fake_vmm import protocol
from tests.fake_vmm.back_end_channel import BackEndChannel
from tests.fake_vmm.command_queue import CommandQueue
from tests.fake_vmm.display import Display
from tests.fake_vmm.errors import ProtocolViolation
from tests.fake_vmm.front_end import FrontEnd
from tests.fake_vmm.gpu import Gpu
from tests.fake_vmm.memory import GuestMemory
from tests.fake_vmm.protocol import MAX_TABLE_REGIONS, SHMEM_HOST_VISIBLE, BackEndRequest, Message, ProtocolFeature
from tests.fake_vmm.virtqueue import DriverQueue
from tests.fake_vmm.window import Window
from tests.fake_vmm.wire import DEVICE_CONFIG, CapsetInfo, DisplayInfo, Edid, Feature

DEFAULT_RAM = 256 << 20
_CONFIG_SIZE = 20  # QEMU 11's struct virtio_gpu_config; older back ends know 16 bytes
_OLD_CONFIG_SIZE = 16
_GENERIC_CONFIG_SIZE = 24  # as its command line has to say
_CONTROL_SIZE_3D, _CONTROL_SIZE_2D, _CURSOR_SIZE = 256, 64, 16
_STATUS_FEATURES_OK = 8
_LINUX_FEATURES = Feature.VIRGL | Feature.EDID | Feature.RESOURCE_UUID
_ALL_FEATURES = 0xFFFFFF  # the generic device lets everything through
_RETRY_SECONDS = 0.02


class FakeVmm:
    """A VM with one virtio-gpu served by a vhost-user back end; a context manager.

    Made by `connect` (Unix socket path) or from a connected socket, which it then owns.

    generic: be QEMU's generic device, which has no display socket but all features and a host-visible region (`window`,
    if the back end offers one). ram: bytes at guest address 0, or a layout of (gpa, size) pairs. memory: a GuestMemory
    instead, owned from then on. event_idx, indirect: whether the driver takes those ring features. display: whether
    there is a display socket, or a Display, owned from then on; by default as the device has it. features: mask of
    virtio-gpu Features that the guest driver takes if offered, by default what the device lets through.
    protocol_features: mask of what is acknowledged at most. control_size: entries of the control queue, if not QEMU's.
    keep_display_socket: hand over one display socket for good, where QEMU makes a new one at every start.
    timeout: seconds that any single answer may take.
    boot: False leaves the device unstarted; then call `start` (rings up) or `boot` (and ask what Linux asks) later.

    The back-end channel (`channel`) is served from the start; SHMEM_MAP and SHMEM_UNMAP on it change `window` and the
    memory table. After `boot`: `gpu` drives the device, `display_info`, `edids` and `capsets` hold what the driver was
    told.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        generic: bool = False,
        ram: int | Sequence[tuple[int, int]] = DEFAULT_RAM,
        memory: GuestMemory | None = None,
        event_idx: bool = True,
        indirect: bool = True,
        display: bool | Display | None = None,
        features: int | None = None,
        protocol_features: int = protocol.bits(list(ProtocolFeature)),
        control_size: int | None = None,
        keep_display_socket: bool = False,
        timeout: float = 30.0,
        boot: bool = True,
    ) -> None:
        self.generic = generic
        self.event_idx = event_idx
        self.indirect = indirect
        self.timeout = timeout
        self.memory = memory or GuestMemory([(0, ram)] if isinstance(ram, int) else ram)
        if display is None or isinstance(display, bool):
            self.display = Display() if (not generic if display is None else display) else None
        else:
            self.display = display
        self.window: Window | None = None
        self.front_end = FrontEnd(sock, timeout=timeout)
        self.channel: BackEndChannel | None = None
        self.offered = 0
        self.features = 0
        self.queue_num: int | None = None
        self.num_scanouts = 0
        self.num_capsets = 0
        self.display_info: DisplayInfo | None = None
        self.edids: tuple[Edid, ...] = ()
        self.capsets: tuple[CapsetInfo, ...] = ()
        self.started = False
        self._wanted_features = features if features is not None else _ALL_FEATURES if generic else _LINUX_FEATURES
        self._wanted_protocol_features = protocol_features
        self._control_size = control_size
        self._keep_display_socket = keep_display_socket
        self._memory_sent = False
        self._config_size = _GENERIC_CONFIG_SIZE if generic else _CONFIG_SIZE
        self._bases = [0, 0]  # where the rings go on, when they are started
        self._rings_run = False
        self._queues: list[DriverQueue] = []
        # While the device is stopped its calls go to eventfds that nobody reads.
        self._masked_calls = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2)]
        self._command_queues: list[CommandQueue] = []
        self._gpu: Gpu | None = None
        self._closed = False
        try:
            self._realize()
            if boot:
                self.boot()
        except BaseException as error:
            self._free_after(error)
            raise

    @classmethod
    def connect(
        cls,
        socket_path: str | Path,
        *,
        wait: float = 30.0,
        generic: bool = False,
        ram: int | Sequence[tuple[int, int]] = DEFAULT_RAM,
        memory: GuestMemory | None = None,
        event_idx: bool = True,
        indirect: bool = True,
        display: bool | Display | None = None,
        features: int | None = None,
        protocol_features: int = protocol.bits(list(ProtocolFeature)),
        control_size: int | None = None,
        keep_display_socket: bool = False,
        timeout: float = 30.0,
        boot: bool = True,
    ) -> FakeVmm:
        """Connect to a listening back end, waiting up to `wait` seconds for the socket to appear, and boot."""
        sock = connect_socket(socket_path, wait)
        return cls(
            sock, generic=generic, ram=ram, memory=memory, event_idx=event_idx, indirect=indirect, display=display,
            features=features, protocol_features=protocol_features, control_size=control_size,
            keep_display_socket=keep_display_socket, timeout=timeout, boot=boot,
        )  # fmt: skip

    def __enter__(self) -> FakeVmm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.disconnect()
        else:
            self._free_after(error)

    @property
    def gpu(self) -> Gpu:
        """The driver; RuntimeError before the device is started."""
        if self._gpu is None:
            raise RuntimeError("the device was not started")
        return self._gpu

    # --- life ---------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start the device and ask what the Linux driver asks: capsets, EDIDs, display info."""
        self.start()
        gpu = self.gpu
        if self.features & Feature.VIRGL:
            self.capsets = tuple(gpu.capset_info(index) for index in range(self.num_capsets))
        if self.features & Feature.EDID:
            scanouts = len(self.display.modes) if self.display else self.num_scanouts
            self.edids = tuple(gpu.edid(scanout) for scanout in range(scanouts))
        self.display_info = gpu.display_info()

    def start(self) -> None:
        """The driver's probe up to DRIVER_OK, and what the VMM then does: both rings run, empty."""
        if self.started:
            raise RuntimeError("the device is started already")
        for _ in range(2):  # num_scanouts and num_capsets are two reads of the guest, the VMM fetches it all each time
            _, _, self.num_scanouts, self.num_capsets = self.config()
        self.started = True
        self._bases = [0, 0]
        with self.front_end.lock:
            self._start_device()
        self._gpu = Gpu(*self._command_queues, window=self.window)

    def _choose_features(self) -> None:
        """What the guest driver accepts. The ring features are the GPU device's own: it acknowledges them without being
        asked. The generic device lets through what is offered.
        """
        ring = protocol.F_VERSION_1 | protocol.F_RING_RESET
        ring |= (protocol.F_RING_EVENT_IDX if self.event_idx else 0) | self.offered & protocol.F_PROTOCOL_FEATURES
        ring |= protocol.F_RING_INDIRECT_DESC if self.indirect else 0
        if self.generic:
            ring &= self.offered
            self.event_idx = bool(ring & protocol.F_RING_EVENT_IDX)
            self.indirect = bool(ring & protocol.F_RING_INDIRECT_DESC)
        self.features = self.offered & self._wanted_features & 0xFFFFFF | ring

    def stop(self) -> None:
        """The device stops (guest reset, driver unbind): rings down, display socket closed, commands cancelled."""
        with self.front_end.lock:
            if not self.started:
                return
            self.started = False
            self._stop_device()
            if self.window is not None:
                self.window.reset()
        for queue in self._command_queues:
            queue.reset()
        self._gpu = None

    def reset(self) -> None:
        """A virtio reset as QEMU does it, without starting again; `boot` starts anew on the same connection. A generic
        device tells nobody that it was one.
        """
        with self.front_end.lock:
            self.stop()
            if not self.generic and self.front_end.has(ProtocolFeature.RESET_DEVICE):
                self.front_end.reset_device()

    def pause(self) -> None:
        """The VM stops for a while (QEMU's `stop`); what is mapped stays. `resume` goes on where it was."""
        with self.front_end.lock:
            self._stop_device()

    def resume(self) -> None:
        """After `pause`."""
        with self.front_end.lock:
            self._start_device()

    def reboot(self) -> None:
        """`reset` and `boot`."""
        self.reset()
        self.boot()

    def disconnect(self, *, graceful: bool = True) -> None:
        """Power off: stop the device (unless not `graceful`), close every socket, free the memory."""
        if self._closed:
            return
        try:
            if graceful and self.started:
                self.stop()
        except BaseException as error:
            self._free_after(error)
            raise
        errors = self._free()
        if errors:
            raise errors[0]

    def _free_after(self, error: BaseException) -> None:
        """Free everything while `error` goes up; what else came to light is noted on it."""
        for other in self._free():
            error.add_note(f"besides: {other}")

    def _free(self) -> list[Exception]:
        """Close everything; the errors that the threads of the display and the channel had kept."""
        if self._closed:
            return []
        self._closed = True
        self.started = False
        errors: list[Exception] = []
        self.front_end.close()
        for part in (self.channel, self.display, self.window):
            try:
                if part is not None:
                    part.close()
            except Exception as error:  # handed to the caller, once all is closed
                errors.append(error)
        for queue in self._command_queues:
            queue.close()
        self._command_queues.clear()
        self._queues.clear()
        for fd in self._masked_calls:
            os.close(fd)
        self._masked_calls.clear()
        self._gpu = None
        self.memory.close()
        return errors

    # --- configuration space ------------------------------------------------------------------------------------

    def config(self) -> tuple[int, int, int, int]:
        """events_read, events_clear, num_scanouts, num_capsets, by one GET_CONFIG."""
        data = self.front_end.get_config(0, self._config_size)
        if data is None and self._config_size != _OLD_CONFIG_SIZE:
            self._config_size = _OLD_CONFIG_SIZE
            data = self.front_end.get_config(0, self._config_size)
        if data is None:
            raise ProtocolViolation("the back end refuses GET_CONFIG of the virtio-gpu configuration")
        events_read, events_clear, num_scanouts, num_capsets = DEVICE_CONFIG.unpack_from(data)
        return events_read, events_clear, num_scanouts, num_capsets

    # --- as QEMU does it ----------------------------------------------------------------------------------------

    def _realize(self) -> None:
        """What happens when the VM is made, before its guest runs."""
        front = self.front_end
        self.offered = front.get_features()
        if self.offered & protocol.F_PROTOCOL_FEATURES:
            front.set_protocol_features(front.get_protocol_features() & self._wanted_protocol_features)
        if front.has(ProtocolFeature.MQ):
            self.queue_num = front.get_queue_num()
            if self.queue_num < 2:
                raise ProtocolViolation(f"the back end has {self.queue_num} queues, a virtio-gpu needs 2")
        if front.has(ProtocolFeature.CONFIGURE_MEM_SLOTS) and front.get_max_mem_slots() < len(self.memory.regions):
            raise ProtocolViolation("the back end has too few memory slots for the guest RAM")
        if front.has(ProtocolFeature.BACKEND_REQ):
            self.channel = BackEndChannel(self._serve_back_end, self._memory_changed, front.lock)
            front.set_backend_req_fd(self.channel.peer.fileno())
            self.channel.peer.close()
        front.set_owner()
        front.get_features()
        self._choose_features()
        self._make_queues()
        for queue, masked in zip(self._queues, self._masked_calls, strict=True):
            front.set_vring_call(queue.index, masked)
            front.set_vring_err(queue.index, queue.err_fd)
        if not self.generic:
            if front.has(ProtocolFeature.RESET_DEVICE):
                front.reset_device()
        elif front.has(ProtocolFeature.SHMEM):
            size = front.get_shmem_config().get(SHMEM_HOST_VISIBLE)
            self.window = Window(size) if size else None

    def _make_queues(self) -> None:
        default = _CONTROL_SIZE_3D if self.generic or self.features & Feature.VIRGL else _CONTROL_SIZE_2D
        sizes = (self._control_size or default, default if self.generic else _CURSOR_SIZE)
        for index, (size, name) in enumerate(zip(sizes, ("control", "cursor"), strict=True)):
            queue = DriverQueue(self.memory, index, size, event_idx=self.event_idx)
            self._queues.append(queue)
            self._command_queues.append(
                CommandQueue(
                    queue, indirect=self.indirect, timeout=self.timeout, connection=self.front_end.fileno(), name=name
                )
            )

    def _start_device(self) -> None:
        """DRIVER_OK."""
        front = self.front_end
        if self.display is not None and not (self._keep_display_socket and self.display.connected):
            with self.display.new_socket() as theirs:
                front.gpu_set_socket(theirs.fileno())
        if not self.generic:
            self._unmask_calls()
        front.set_features(self.features)
        if front.has(ProtocolFeature.STATUS):
            front.get_status()
            front.set_status(_STATUS_FEATURES_OK)
        self._send_memory()
        self._rings_run = True
        for queue in self._queues:
            front.set_vring_num(queue.index, queue.size)
            front.set_vring_base(queue.index, self._bases[queue.index])
            addresses = (self.memory.to_uva(gpa) for gpa in (queue.desc_gpa, queue.used_gpa, queue.avail_gpa))
            front.set_vring_addr(queue.index, *addresses)
            front.set_vring_kick(queue.index, queue.kick_fd)
            if self.generic:
                front.set_vring_call(queue.index, queue.call_fd)
        if self.offered & protocol.F_PROTOCOL_FEATURES:
            for queue in self._queues:
                front.set_vring_enable(queue.index, True)
        self._unmask_calls()

    def _unmask_calls(self) -> None:
        for queue in self._queues:
            self.front_end.set_vring_call(queue.index, queue.call_fd)

    def _send_memory(self) -> None:
        """The whole table at every start; by slots (CONFIGURE_MEM_SLOTS) only once."""
        if not self.front_end.has(ProtocolFeature.CONFIGURE_MEM_SLOTS):
            self._send_memory_table()
        elif not self._memory_sent:
            for region in self.memory.regions:
                self.front_end.add_mem_reg(region)
        self._memory_sent = True

    def _send_memory_table(self) -> None:
        """RAM and what is mapped into the host-visible region; nothing (and a line of QEMU's log) if it is too much."""
        slots = [*self.memory.regions, *(self.window.slots() if self.window is not None else [])]
        if len(slots) <= MAX_TABLE_REGIONS:
            self.front_end.set_mem_table(slots)

    def _serve_back_end(self, message: Message) -> int:
        """In the channel's thread."""
        if message.request != BackEndRequest.CONFIG_CHANGE:
            return self.window.serve(message) if self.window is not None else 1
        return 0 if self.generic else 1

    def _memory_changed(self, message: Message) -> None:
        """In the channel's thread, after the answer: the region is memory like RAM to QEMU."""
        if self._rings_run and message.request != BackEndRequest.CONFIG_CHANGE:
            self._send_memory_table()

    def _stop_device(self) -> None:
        if self.display is not None and not self._keep_display_socket:
            self.display.disconnect()
        front = self.front_end
        self._rings_run = False
        if self.offered & protocol.F_PROTOCOL_FEATURES:
            for queue in self._queues:
                front.set_vring_enable(queue.index, False)
        self._bases = [front.get_vring_base(queue.index) for queue in self._queues]
        if self.generic:
            return
        for queue, masked in zip(self._queues, self._masked_calls, strict=True):
            front.set_vring_call(queue.index, masked)


def connect_socket(path: str | Path, wait: float = 30.0) -> socket.socket:
    """A connection to the Unix socket at `path`, waiting up to `wait` seconds until somebody listens there."""
    deadline = time.monotonic() + wait
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(str(path))
            return sock
        except (FileNotFoundError, ConnectionRefusedError) as error:
            sock.close()
            if time.monotonic() >= deadline:
                raise TimeoutError(f"nobody listens at {path} after {wait} s") from error
            time.sleep(_RETRY_SECONDS)
        except BaseException:
            sock.close()
            raise


