"""Contexts and resources as a guest program sees them: ids and backing kept together, failures raised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fake_vmm import commands
from tests.fake_vmm.command_queue import Pending
from tests.fake_vmm.errors import ProtocolViolation
from tests.fake_vmm.memory import GuestBuffer
from tests.fake_vmm.window import Window
from tests.fake_vmm.wire import Box, Format, MapInfo, Rect, Response

if TYPE_CHECKING:
    from tests.fake_vmm.gpu import Gpu


class GuestContext:
    """A rendering context of the guest; made by Gpu.create_context."""

    def __init__(self, gpu: Gpu, ctx_id: int, name: str) -> None:
        self.gpu = gpu
        self.ctx_id = ctx_id
        self.name = name

    def attach(self, resource: GuestResource) -> None:
        self.gpu.ctx_attach_resource(self.ctx_id, resource.resource_id).check("CTX_ATTACH_RESOURCE")

    def detach(self, resource: GuestResource) -> None:
        self.gpu.ctx_detach_resource(self.ctx_id, resource.resource_id).check("CTX_DETACH_RESOURCE")

    def submit(
        self, stream: bytes | memoryview | GuestBuffer, *, fenced: bool = True, ring_idx: int | None = None
    ) -> Pending:
        """Queue a command stream, its fence on timeline `ring_idx` if given; wait for it with Gpu.wait."""
        return self.gpu.submit(commands.submit_3d(self.ctx_id, stream), fenced=fenced, ring_idx=ring_idx)

    def run(
        self, stream: bytes | memoryview | GuestBuffer, *, ring_idx: int | None = None, timeout: float | None = None
    ) -> Response:
        """Submit fenced and wait; the response, whatever it says."""
        return self.gpu.wait(self.submit(stream, ring_idx=ring_idx), timeout)

    def destroy(self) -> None:
        self.gpu.contexts.pop(self.ctx_id, None)
        self.gpu.ctx_destroy(self.ctx_id).check("CTX_DESTROY")


class GuestResource:
    """A resource of the guest, made by Gpu.create_resource_2d and _3d. `backing` is None until one is attached."""

    def __init__(self, gpu: Gpu, resource_id: int, width: int, height: int) -> None:
        self.gpu = gpu
        self.resource_id = resource_id
        self.width = width
        self.height = height
        self.backing: GuestBuffer | None = None

    @property
    def rect(self) -> Rect:
        return Rect(self.width, self.height)

    @property
    def pixels(self) -> GuestBuffer:
        """The backing; RuntimeError when there is none."""
        if self.backing is None:
            raise RuntimeError(f"resource {self.resource_id} has no backing")
        return self.backing

    def attach_backing(self, size: int, *, scattered: bool = False) -> GuestBuffer:
        """Allocate zeroed pages and attach them, one entry per extent; CommandFailed when refused."""
        backing = self.gpu.memory.buffer(size, scattered=scattered)
        response = self.gpu.resource_attach_backing(self.resource_id, backing.segments())
        if not response.ok:
            backing.free()
            response.check("RESOURCE_ATTACH_BACKING")
        self.backing = backing
        return backing

    def detach_backing(self) -> None:
        self.gpu.resource_detach_backing(self.resource_id).check("RESOURCE_DETACH_BACKING")
        self.pixels.free()
        self.backing = None

    def upload_2d(self, data: bytes | None = None) -> None:
        """Write `data` to the backing (if given) and transfer all of it to the host."""
        if data is not None:
            self.pixels.write(data)
        self.gpu.transfer_to_host_2d(self.resource_id, self.rect).check("TRANSFER_TO_HOST_2D")

    def show(self, scanout: int = 0) -> None:
        """Make this resource the scanout's content and flush all of it."""
        self.gpu.set_scanout(scanout, self.resource_id, self.rect).check("SET_SCANOUT")
        self.gpu.flush(self.resource_id, self.rect).check("RESOURCE_FLUSH")

    def read_back(self, context: GuestContext, size: int, box: Box | None = None, stride: int = 0) -> bytes:
        """TRANSFER_FROM_HOST_3D of level 0 into the backing, whose first `size` bytes are returned."""
        whole = box or Box(self.width, self.height)
        response = self.gpu.transfer_from_host_3d(context.ctx_id, self.resource_id, whole, stride=stride)
        response.check("TRANSFER_FROM_HOST_3D")
        return self.pixels.read(0, size)

    def unref(self) -> None:
        """Drop the resource and give its backing's pages back."""
        self.gpu.resource_unref(self.resource_id).check("RESOURCE_UNREF")
        self._free_backing()

    def _free_backing(self) -> None:
        if self.backing is not None:
            self.backing.free()
            self.backing = None


class GuestBlob(GuestResource):
    """A blob of the guest, made by Gpu.create_blob: `size` bytes, `mem` a BlobMem.

    The guest's pages of it, if there are any, are `pixels`; what the host has is seen once it is mapped.
    """

    def __init__(self, gpu: Gpu, resource_id: int, size: int, mem: int) -> None:
        super().__init__(gpu, resource_id, size, 1)
        self.size = size
        self.mem = mem
        self.offset: int | None = None
        """Where it is mapped in the host-visible region, in bytes."""

    def map(self) -> MapInfo:
        """RESOURCE_MAP_BLOB at the lowest free place; CommandFailed when refused."""
        offset = self.gpu.window_space.allocate(self.size)
        response = self.gpu.resource_map_blob(self.resource_id, offset)
        if not response.ok:
            self.gpu.window_space.free(offset)
            response.check("RESOURCE_MAP_BLOB")
        if not isinstance(response, MapInfo):
            raise ProtocolViolation(f"RESOURCE_MAP_BLOB was answered by {response}")
        self.offset = offset
        return response

    def unmap(self) -> None:
        """RESOURCE_UNMAP_BLOB."""
        self.gpu.resource_unmap_blob(self.resource_id).check("RESOURCE_UNMAP_BLOB")
        self.gpu.window_space.free(self._place())
        self.offset = None

    def read(self, start: int = 0, length: int | None = None) -> bytes:
        """Bytes as the guest sees them through the host-visible region."""
        return self._window().read(self._place() + start, self.size - start if length is None else length)

    def write(self, data: bytes | bytearray | memoryview, start: int = 0) -> None:
        """Write through the host-visible region."""
        self._window().write(self._place() + start, data)

    def show_as(
        self, width: int, height: int, *, format: int = Format.B8G8R8X8, stride: int | None = None, start: int = 0,
        scanout: int = 0,
    ) -> None:  # fmt: skip
        """SET_SCANOUT_BLOB of a picture whose first row is at byte `start`, and RESOURCE_FLUSH of all of it."""
        rows = 4 * width if stride is None else stride
        rect = Rect(width, height)
        response = self.gpu.set_scanout_blob(
            scanout, self.resource_id, rect, (width, height), format, [rows], [start]
        )
        response.check("SET_SCANOUT_BLOB")
        self.gpu.flush(self.resource_id, rect).check("RESOURCE_FLUSH")

    def unref(self) -> None:
        """Drop the blob; a mapped one is unmapped first, without waiting in between, as Linux does it."""
        if self.offset is None:
            super().unref()
            return
        with self.gpu.batch():
            unmapped = self.gpu.submit(commands.resource_unmap_blob(self.resource_id))
            dropped = self.gpu.submit(commands.resource_unref(self.resource_id))
        for response in self.gpu.wait_all([unmapped, dropped]):
            response.check("RESOURCE_UNMAP_BLOB or RESOURCE_UNREF")
        self.gpu.window_space.free(self.offset)
        self.offset = None
        self._free_backing()

    def _place(self) -> int:
        if self.offset is None:
            raise RuntimeError(f"blob {self.resource_id} is not mapped")
        return self.offset

    def _window(self) -> Window:
        if self.gpu.window is None:
            raise RuntimeError("there is no host-visible region")
        return self.gpu.window
