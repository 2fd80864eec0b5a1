"""The GL engine: libvirglrenderer on an EGL display of ours."""

import errno
import struct

from context_worker import egl
from context_worker.engine import EngineError
from context_worker.title import printable
from ipc.messages import AttachBacking, AttachResource, Capset, CreateContext, EngineName
from native.engines import ResourceArguments, Status, status_of
from native.engines import VirglEngine as NativeVirglEngine

CAPSET_VIRGL = 1
CAPSET_VIRGL2 = 2

# struct virgl_caps_v2 of virglrenderer's virgl_hw.h: where its two words of capability bits are, and bits in them.
_CAPABILITY_BITS = 392
_CAPABILITY_BITS_V2 = 688
_CAP_TRANSFER = 1 << 17
_CAP_COPY_TRANSFER = 1 << 26
_CAP_ARB_BUFFER_STORAGE = 1 << 31
_CAP_V2_MEMINFO = 1 << 3
_CAP_V2_COPY_TRANSFER_BOTH_DIRECTIONS = 1 << 7

_WITHHELD = {
    # Transfers encoded in the command stream, and a resource filled with memory information: in both, the renderer
    # reaches for the guest's pages, which no worker has. Guests use TRANSFER_TO/FROM_HOST_3D instead. Buffer storage:
    # persistent mappings need blobs in host-visible memory.
    _CAPABILITY_BITS: _CAP_TRANSFER | _CAP_COPY_TRANSFER | _CAP_ARB_BUFFER_STORAGE,
    _CAPABILITY_BITS_V2: _CAP_V2_MEMINFO | _CAP_V2_COPY_TRANSFER_BOTH_DIRECTIONS,
}


def withhold(capset_id: int, data: bytes) -> bytes:
    """A virgl capability set without what a worker cannot serve. Sets that end before a word do not have it."""
    if capset_id != CAPSET_VIRGL2:
        return data
    words = bytearray(data)
    for offset, bits in _WITHHELD.items():
        if offset + 4 <= len(words):
            (value,) = struct.unpack_from("<I", words, offset)
            struct.pack_into("<I", words, offset, value & ~bits)
    return bytes(words)


class VirglEngine:
    """virglrenderer, started; after the constructor its GL context is the current one."""

    name = EngineName.VIRGL

    def __init__(self, render_node: str | None = None) -> None:
        """Open the display of `render_node` (None: EGL's choice), draw, start virglrenderer. Raises EngineError."""
        display = egl.open_display(render_node)
        self.description = egl.probe(display)
        try:
            self.native = NativeVirglEngine(display.address, display.config_address, gles=display.gles)
        except OSError as error:
            raise EngineError(f"virglrenderer: {error.strerror}") from error
        self._warm_up()
        self._capsets = self._read_capsets()
        self.native.started()

    def _warm_up(self) -> None:
        """Create and destroy a context, which compiles what every context needs."""
        error = self.native.context_create(1, CAPSET_VIRGL2, "warm-up")
        if error:
            raise EngineError(f"virglrenderer makes no context: {errno.errorcode.get(error, error)}")
        self.native.context_destroy()

    def capsets(self) -> list[Capset]:
        """virgl and virgl2, as far as virglrenderer has them and a worker can serve them."""
        return self._capsets

    def _read_capsets(self) -> list[Capset]:
        sets = []
        for capset_id in (CAPSET_VIRGL, CAPSET_VIRGL2):
            found = self.native.capset(capset_id)
            if found:
                version, data = found
                sets.append(Capset(capset_id, version, withhold(capset_id, data)))
        return sets

    def create_context(self, message: CreateContext) -> Status:
        """Create the guest context under the guest's id."""
        return status_of(self.native.context_create(message.ctx_id, message.capset_id, printable(message.name)))

    def attach_resource(self, message: AttachResource) -> Status:
        """Make a v1 resource in virglrenderer and attach it to the context."""
        return status_of(self.native.resource_attach(ResourceArguments(**vars(message))))

    def detach_resource(self, resource_id: int) -> Status:
        """Detach it and drop it."""
        return status_of(self.native.resource_detach(resource_id))

    def attach_backing(self, message: AttachBacking, address: int) -> Status:
        """Have virglrenderer write query results at `address`."""
        return status_of(self.native.backing_attach(message.resource_id, address, message.length))

    def detach_backing(self, resource_id: int) -> Status:
        """No longer."""
        return status_of(self.native.backing_detach(resource_id))
