"""A fake VMM: a vhost-user front end with real guest RAM, virtqueues and eventfds that drives a virtio-gpu back end.

It stands in for QEMU 11's vhost-user-gpu-pci and Linux's virtio-gpu driver together, in one process and without a VM:

    from tests.fake_vmm import FakeVmm, Rect, ResourceDescription, commands

    with FakeVmm.connect("/run/gpu.sock") as vmm:              # connects, negotiates, boots like Linux
        gpu = vmm.gpu
        print(vmm.display_info.enabled, vmm.capsets)           # what the driver was told at boot
        picture = gpu.create_resource_2d(640, 480)             # with zeroed backing in guest RAM
        picture.upload_2d(b"\\x00\\x00\\xff\\x00" * (640 * 480))   # red: bytes B G R x
        picture.show(scanout=0)                                # SET_SCANOUT and RESOURCE_FLUSH
        vmm.display.wait_for(lambda: vmm.display.framebuffer()[0, 0, 2] == 255, "a red pixel")
        vmm.display.screenshot().save("red.png")

        context = gpu.create_context("kmscube")                # CTX_CREATE with a debug name
        target = gpu.create_resource_3d(ResourceDescription(256, 256), backing_size=4 * 256 * 256, scattered=True)
        context.attach(target)
        gpu.wait(context.submit(stream))                       # a fenced SUBMIT_3D
        pixels = target.read_back(context, 4 * 256 * 256)      # TRANSFER_FROM_HOST_3D

        with gpu.batch():                                      # many commands, one kick
            pending = [context.submit(stream) for _ in range(64)]
        responses = gpu.wait_all(pending, timeout=10)          # all are fenced; each Pending has its times
        error = gpu.call(commands.resource_unref(4711))        # any command; error responses are returned, not raised
        assert error.type == Resp.ERR_INVALID_RESOURCE_ID
        vmm.reboot()                                           # virtio reset and start on the same connection

    with FakeVmm.connect("/run/gpu.sock", generic=True) as vmm:   # QEMU's generic device: blobs, no display socket
        context = vmm.gpu.create_context("blobs", context_init=2)
        blob = vmm.gpu.create_blob(8192, context=context, blob_id=7)     # of an object that a stream has made
        blob.map()                                             # into vmm.window; then as a program sees its bytes:
        blob.write(b"hello", start=100)
        assert blob.read(100, 5) == b"hello"
        vmm.gpu.wait(context.submit(stream, ring_idx=1))       # a fence on a timeline of the context's own
        blob.unref()                                           # unmaps it first
        vmm.channel.hold()                                     # a VMM that does not answer SHMEM_MAP for now
        vmm.window.refuse = True                               # or that refuses

Layers, each usable alone: memory (guest RAM, page allocator), protocol and front_end (vhost-user messages), virtqueue
(the driver's split ring), wire and commands (virtio-gpu), command_queue (slots, waiting), gpu and guest_objects (the
driver), display and display_protocol (the display socket), back_end_channel and window (the host-visible region), vmm.
Streams to submit: virgl, null_engine. For a driver that lies: misbehaviour,
`Gpu.submit_bytes`, `FrontEnd.send_raw`. back_end_process starts and ends a back-end program.

A back end that stays silent raises TimeoutError, one that goes away Disconnected; see errors. One thread drives a
FakeVmm; its display and back-end channel are served by threads of their own.
"""

from tests.fake_vmm import commands, misbehaviour, wire
from tests.fake_vmm.back_end_process import BackEndProcess
from tests.fake_vmm.command_queue import CommandQueue, Pending
from tests.fake_vmm.commands import GpuCommand
from tests.fake_vmm.display import Display
from tests.fake_vmm.display_protocol import DisplayRequest
from tests.fake_vmm.errors import (
    CommandFailed,
    Disconnected,
    FakeVmmError,
    OutOfGuestMemory,
    ProtocolViolation,
    QueueBroken,
    Refused,
)
from tests.fake_vmm.front_end import FrontEnd
from tests.fake_vmm.gpu import Gpu
from tests.fake_vmm.guest_objects import GuestBlob, GuestContext, GuestResource
from tests.fake_vmm.memory import PAGE_SIZE, GuestBuffer, GuestMemory
from tests.fake_vmm.null_engine import NullOpcode, NullStream
from tests.fake_vmm.protocol import ProtocolFeature, Request
from tests.fake_vmm.virtqueue import Descriptor, DriverQueue, Segment
from tests.fake_vmm.vmm import FakeVmm, connect_socket
from tests.fake_vmm.window import Window, WindowSpace
from tests.fake_vmm.wire import (
    Bind,
    BlobFlag,
    BlobMem,
    Box,
    Caching,
    Command,
    Feature,
    Format,
    MapInfo,
    Rect,
    ResourceDescription,
    Resp,
    Response,
    Target,
)

__all__ = [
    "PAGE_SIZE",
    "BackEndProcess",
    "Bind",
    "BlobFlag",
    "BlobMem",
    "Box",
    "Caching",
    "Command",
    "CommandFailed",
    "CommandQueue",
    "Descriptor",
    "Disconnected",
    "Display",
    "DisplayRequest",
    "DriverQueue",
    "FakeVmm",
    "FakeVmmError",
    "Feature",
    "Format",
    "FrontEnd",
    "Gpu",
    "GpuCommand",
    "GuestBlob",
    "GuestBuffer",
    "GuestContext",
    "GuestMemory",
    "GuestResource",
    "MapInfo",
    "NullOpcode",
    "NullStream",
    "OutOfGuestMemory",
    "Pending",
    "ProtocolFeature",
    "ProtocolViolation",
    "QueueBroken",
    "Rect",
    "Refused",
    "Request",
    "ResourceDescription",
    "Resp",
    "Response",
    "Segment",
    "Target",
    "Window",
    "WindowSpace",
    "commands",
    "connect_socket",
    "misbehaviour",
    "wire",
]
