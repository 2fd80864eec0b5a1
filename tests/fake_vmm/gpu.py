"""The virtio-gpu driver: commands on the control queue, the cursor on the cursor queue.

Every command type is a method that waits and returns the decoded response, whatever it says (`response.ok`,
`response.check()`). For asynchronous use build the command (commands.py) and `submit` it. Ids of resources, contexts
and fences are handed out by `new_resource_id`, `new_context_id` and the fence counter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import count
from typing import TypeVar

from tests.fake_vmm import commands, wire
from tests.fake_vmm.command_queue import CommandQueue, Pending
from tests.fake_vmm.commands import GpuCommand
from tests.fake_vmm.errors import CommandFailed, ProtocolViolation
from tests.fake_vmm.guest_objects import GuestBlob, GuestContext, GuestResource
from tests.fake_vmm.memory import PAGE_SIZE, GuestBuffer, GuestMemory
from tests.fake_vmm.window import Window, WindowSpace
from tests.fake_vmm.wire import BlobFlag, BlobMem, Box, Rect, ResourceDescription, Response

_R = TypeVar("_R", bound=Response)


class Gpu:
    """Drives one virtio-gpu device; from one thread.

    window: the host-visible region as the guest sees it, None if there is none. window_space: what of it is taken.
    """

    def __init__(self, control: CommandQueue, cursor: CommandQueue, *, window: Window | None = None) -> None:
        self.control = control
        self.cursor = cursor
        self.window = window
        self.window_space = WindowSpace(window.size if window is not None else 0)
        self.memory: GuestMemory = control.memory
        self.contexts: dict[int, GuestContext] = {}
        self._resource_ids = count(1)
        self._context_ids = count(1)
        self._fence_ids = count(1)

    def new_resource_id(self) -> int:
        return next(self._resource_ids)

    def new_context_id(self) -> int:
        return next(self._context_ids)

    # --- submitting ---------------------------------------------------------------------------------------------

    def submit(self, command: GpuCommand, *, fenced: bool = False, ring_idx: int | None = None) -> Pending:
        """Queue a command without waiting; `fenced` gives it the next fence id, on the context's timeline `ring_idx` if
        that is given (CONTEXT_INIT).
        """
        fence_id = next(self._fence_ids) if fenced else None
        return self.control.submit(command, fence_id=fence_id, ring_idx=ring_idx)

    def submit_bytes(
        self, request: bytes, response_size: int = wire.NO_DATA_SIZE, *, request_split: Sequence[int] = (),
        response_split: Sequence[int] = (),
    ) -> Pending:  # fmt: skip
        """Any bytes at all as a request; see CommandQueue.submit_bytes."""
        return self.control.submit_bytes(
            request, response_size, request_split=request_split, response_split=response_split
        )

    def batch(self) -> AbstractContextManager[None]:
        """`with gpu.batch():` publishes and kicks once for all commands submitted inside."""
        return self.control.batch()

    def reap(self) -> list[Pending]:
        """Commands completed by now, without waiting."""
        return self.control.reap()

    def wait(self, pending: Pending, timeout: float | None = None) -> Response:
        """The response of `pending`, waiting for it; checks that a fence comes back as it went."""
        response = self.control.wait(pending, timeout).response
        _check_fence(pending, response)
        return response

    def wait_all(self, pending: Iterable[Pending], timeout: float | None = None) -> list[Response]:
        done = self.control.wait_all(pending, timeout)
        for each in done:
            _check_fence(each, each.response)
        return [each.response for each in done]

    def call(
        self, command: GpuCommand, *, fenced: bool = False, ring_idx: int | None = None, timeout: float | None = None
    ) -> Response:
        """Submit and wait."""
        return self.wait(self.submit(command, fenced=fenced, ring_idx=ring_idx), timeout)

    # --- display ------------------------------------------------------------------------------------------------

    def display_info(self) -> wire.DisplayInfo:
        """CommandFailed on an error response, as for the other queries below."""
        return _expect(self.call(commands.get_display_info()), wire.DisplayInfo, "GET_DISPLAY_INFO")

    def edid(self, scanout: int = 0) -> wire.Edid:
        return _expect(self.call(commands.get_edid(scanout)), wire.Edid, "GET_EDID")

    def set_scanout(self, scanout: int, resource_id: int, rect: Rect) -> Response:
        return self.call(commands.set_scanout(scanout, resource_id, rect))

    def flush(self, resource_id: int, rect: Rect, *, fenced: bool = False) -> Response:
        return self.call(commands.resource_flush(resource_id, rect), fenced=fenced)

    def update_cursor(
        self, scanout: int, x: int, y: int, resource_id: int, hot_x: int = 0, hot_y: int = 0
    ) -> Pending:
        """Set shape and place; returns when the device has taken the command (it has no response)."""
        command = commands.update_cursor(scanout, x, y, resource_id, hot_x, hot_y)
        return self.cursor.wait(self.cursor.submit(command))

    def move_cursor(self, scanout: int, x: int, y: int, resource_id: int = 0) -> Pending:
        return self.cursor.wait(self.cursor.submit(commands.move_cursor(scanout, x, y, resource_id)))

    # --- resources ----------------------------------------------------------------------------------------------

    def resource_create_2d(self, resource_id: int, format: int, width: int, height: int) -> Response:
        return self.call(commands.resource_create_2d(resource_id, format, width, height))

    def resource_create_3d(self, resource_id: int, what: ResourceDescription, ctx_id: int = 0) -> Response:
        return self.call(commands.resource_create_3d(resource_id, what, ctx_id))

    def resource_unref(self, resource_id: int) -> Response:
        return self.call(commands.resource_unref(resource_id))

    def resource_attach_backing(self, resource_id: int, segments: Sequence[tuple[int, int]]) -> Response:
        return self.call(commands.resource_attach_backing(resource_id, segments))

    def resource_detach_backing(self, resource_id: int) -> Response:
        return self.call(commands.resource_detach_backing(resource_id))

    def resource_assign_uuid(self, resource_id: int) -> Response:
        """A wire.ResourceUuid on success."""
        return self.call(commands.resource_assign_uuid(resource_id))

    def transfer_to_host_2d(self, resource_id: int, rect: Rect, offset: int = 0) -> Response:
        return self.call(commands.transfer_to_host_2d(resource_id, rect, offset))

    def resource_create_blob(
        self, resource_id: int, mem: int, flags: int, size: int, *, ctx_id: int = 0, blob_id: int = 0,
        segments: Sequence[tuple[int, int]] = (),
    ) -> Response:  # fmt: skip
        command = commands.resource_create_blob(
            resource_id, mem, flags, size, ctx_id=ctx_id, blob_id=blob_id, segments=segments
        )
        return self.call(command)

    def resource_map_blob(self, resource_id: int, offset: int) -> Response:
        """A wire.MapInfo on success."""
        return self.call(commands.resource_map_blob(resource_id, offset))

    def resource_unmap_blob(self, resource_id: int) -> Response:
        return self.call(commands.resource_unmap_blob(resource_id))

    def set_scanout_blob(
        self, scanout: int, resource_id: int, rect: Rect, size: tuple[int, int], format: int, strides: Sequence[int],
        offsets: Sequence[int] = (),
    ) -> Response:  # fmt: skip
        return self.call(commands.set_scanout_blob(scanout, resource_id, rect, size, format, strides, offsets))

    # --- contexts -----------------------------------------------------------------------------------------------

    def capset_info(self, index: int) -> wire.CapsetInfo:
        return _expect(self.call(commands.get_capset_info(index)), wire.CapsetInfo, "GET_CAPSET_INFO")

    def capset(self, capset_id: int, version: int, size: int) -> wire.Capset:
        return _expect(self.call(commands.get_capset(capset_id, version, size)), wire.Capset, "GET_CAPSET")

    def ctx_create(self, ctx_id: int, name: str | bytes = "", context_init: int = 0) -> Response:
        return self.call(commands.ctx_create(ctx_id, name, context_init))

    def ctx_destroy(self, ctx_id: int) -> Response:
        return self.call(commands.ctx_destroy(ctx_id))

    def ctx_attach_resource(self, ctx_id: int, resource_id: int) -> Response:
        return self.call(commands.ctx_attach_resource(ctx_id, resource_id))

    def ctx_detach_resource(self, ctx_id: int, resource_id: int) -> Response:
        return self.call(commands.ctx_detach_resource(ctx_id, resource_id))

    def submit_3d(self, ctx_id: int, stream: bytes | memoryview | GuestBuffer, *, fenced: bool = True) -> Response:
        return self.call(commands.submit_3d(ctx_id, stream), fenced=fenced)

    def transfer_to_host_3d(
        self, ctx_id: int, resource_id: int, box: Box, *, offset: int = 0, level: int = 0, stride: int = 0,
        layer_stride: int = 0, fenced: bool = True,
    ) -> Response:  # fmt: skip
        command = commands.transfer_to_host_3d(
            ctx_id, resource_id, box, offset=offset, level=level, stride=stride, layer_stride=layer_stride
        )
        return self.call(command, fenced=fenced)

    def transfer_from_host_3d(
        self, ctx_id: int, resource_id: int, box: Box, *, offset: int = 0, level: int = 0, stride: int = 0,
        layer_stride: int = 0, fenced: bool = True,
    ) -> Response:  # fmt: skip
        command = commands.transfer_from_host_3d(
            ctx_id, resource_id, box, offset=offset, level=level, stride=stride, layer_stride=layer_stride
        )
        return self.call(command, fenced=fenced)

    # --- the same as a program would have it: everything checked, ids and memory taken care of ------------------

    def create_context(self, name: str, *, context_init: int = 0) -> GuestContext:
        """A new context; CommandFailed when the device refuses it. context_init: the capability set that it is for,
        0 if it does not say (CONTEXT_INIT).
        """
        ctx_id = self.new_context_id()
        self.ctx_create(ctx_id, name, context_init).check(f"CTX_CREATE {name!r}")
        context = self.contexts[ctx_id] = GuestContext(self, ctx_id, name)
        return context

    def create_resource_2d(
        self, width: int, height: int, format: int = wire.Format.B8G8R8X8, *, scattered: bool = False
    ) -> GuestResource:
        """A 2D resource with zeroed backing of 4 * width * height bytes."""
        resource_id = self.new_resource_id()
        self.resource_create_2d(resource_id, format, width, height).check("RESOURCE_CREATE_2D")
        resource = GuestResource(self, resource_id, width, height)
        resource.attach_backing(4 * width * height, scattered=scattered)
        return resource

    def create_resource_3d(
        self, what: ResourceDescription, *, backing_size: int = 0, scattered: bool = False
    ) -> GuestResource:
        """A 3D resource, with zeroed backing of `backing_size` bytes if that is not 0. Not attached to a context."""
        resource_id = self.new_resource_id()
        self.resource_create_3d(resource_id, what).check("RESOURCE_CREATE_3D")
        resource = GuestResource(self, resource_id, what.width, what.height)
        if backing_size:
            resource.attach_backing(backing_size, scattered=scattered)
        return resource


    def create_blob(
        self,
        size: int,
        *,
        mem: int = BlobMem.HOST3D,
        flags: int = BlobFlag.MAPPABLE,
        context: GuestContext | None = None,
        blob_id: int = 0,
        scattered: bool = False,
    ) -> GuestBlob:
        """A blob of `size` bytes (rounded up to whole pages), made of object `blob_id` of `context` if it is the
        host's, of zeroed guest pages if it is the guest's, of both if of both. Not attached to a context.
        """
        size = -(-size // PAGE_SIZE) * PAGE_SIZE
        backing = self.memory.buffer(size, scattered=scattered) if mem != BlobMem.HOST3D else None
        blob = GuestBlob(self, self.new_resource_id(), size, mem)
        response = self.resource_create_blob(
            blob.resource_id, mem, flags, size, ctx_id=context.ctx_id if context is not None else 0, blob_id=blob_id,
            segments=backing.segments() if backing is not None else (),
        )  # fmt: skip
        if not response.ok and backing is not None:
            backing.free()
        response.check("RESOURCE_CREATE_BLOB")
        blob.backing = backing
        return blob


def _check_fence(pending: Pending, response: Response) -> None:
    """A fence comes back in the response: flags, id, context and timeline (virtio 1.3, 5.7.6.7)."""
    if pending.fence_id is None:
        return
    sent = (pending.fence_id, pending.ctx_id, pending.ring_idx)
    ring_idx = response.ring_idx if response.flags & wire.FLAG_RING_IDX else None
    if not response.fenced or (response.fence_id, response.ctx_id, ring_idx) != sent:
        raise ProtocolViolation(f"{pending} was answered by {response}")


def _expect(response: Response, kind: type[_R], command: str) -> _R:
    response.check(command)
    if not isinstance(response, kind):
        raise CommandFailed(command, response.type, response.name)
    return response
