"""The GL engine: libvirglrenderer on an EGL display of ours."""

import errno
from contextlib import closing, nullcontext
from dataclasses import asdict

from context_worker.egl import open_display
from context_worker.egl_images import EglImages
from context_worker.egl_probe import probe
from context_worker.engine import EngineError, Export
from context_worker.title import printable
from ipc.messages import (
    AttachResource,
    BlobObject,
    Capability,
    Capset,
    CreateBlob,
    CreateContext,
    EngineName,
    ObjectToResource,
    ResourceToObject,
)
from native.engines import MAX_SHADER_BYTES, ResourceArguments, Status, status_of
from native.owned_fd import OwnedFd
from native.shared_formats import is_image
from native.storage import Layout, StorageKind
from native.virgl import VirglEngine as NativeVirglEngine

CAPSET_VIRGL = 1
CAPSET_VIRGL2 = 2
_WARM_UP_ID = 1

_MAP_CACHED = 1  # VIRTIO_GPU_MAP_CACHE_CACHED
_MAP_UNKNOWN = 0


class VirglEngine:
    """virglrenderer, started; after the constructor its GL context is the current one."""

    name = EngineName.VIRGL

    def __init__(
        self, render_node: str | None = None, *, for_vtest: bool = False, max_shader_bytes: int = MAX_SHADER_BYTES
    ) -> None:
        """Open the display of `render_node` (None: EGL's choice), draw, start virglrenderer. Raises EngineError.

        `for_vtest`: for a session of context_worker.vtest, not for a ring. `max_shader_bytes`: the text of one shader.
        """
        display = open_display(render_node)
        self.description = probe(display)
        self._images = EglImages(display)
        try:
            self.native = NativeVirglEngine(
                display.address,
                display.config_address,
                gles=display.gles,
                images=self._images,
                for_vtest=for_vtest,
                max_shader_bytes=max_shader_bytes,
            )
        except OSError as error:
            raise EngineError(f"virglrenderer: {error.strerror}") from error
        self._warm_up()
        self._capsets = self._read_capsets()
        self.native.started()

    def _warm_up(self) -> None:
        """Create and destroy a context, which compiles what every context needs."""
        error = self.native.context_create(_WARM_UP_ID, CAPSET_VIRGL2, "warm-up")
        if error:
            raise EngineError(f"virglrenderer makes no context: {errno.errorcode.get(error, error)}")
        self.native.context_destroy(_WARM_UP_ID)

    def capsets(self) -> list[Capset]:
        """virgl and virgl2, as far as virglrenderer has them. What of it a guest may use is for the master to say."""
        return self._capsets

    def _read_capsets(self) -> list[Capset]:
        sets = []
        for capset_id in (CAPSET_VIRGL, CAPSET_VIRGL2):
            found = self.native.capset(capset_id)
            if found:
                version, data = found
                sets.append(Capset(capset_id, version, data))
        return sets

    def create_context(self, message: CreateContext) -> Status:
        """Create a guest context under the guest's id."""
        return status_of(self.native.context_create(message.ctx_id, message.capset_id, printable(message.name)))

    def destroy_context(self, ctx_id: int) -> Status:
        """Destroy it and what only it had attached."""
        return status_of(self.native.context_destroy(ctx_id))

    def attach_resource(self, ctx_id: int, message: AttachResource) -> Status:
        """Attach a v1 resource of virglrenderer's to the context, and make it if this is the first one to have it."""
        return status_of(self.native.resource_attach(ctx_id, _arguments(message)))

    def detach_resource(self, ctx_id: int, resource_id: int) -> Status:
        """Detach it; the last one to let go drops it."""
        return status_of(self.native.resource_detach(ctx_id, resource_id))

    def resource_to_object(self, ctx_id: int, message: ResourceToObject, storage: OwnedFd) -> Status:
        """Attach an object that lies in `storage`: a texture as an EGLImage, a buffer pinned to it; or one that is
        mirrored there."""
        with closing(storage):
            arguments = _arguments(message)
            if message.kind is StorageKind.MIRROR:
                return status_of(self.native.resource_mirror(ctx_id, arguments, message.nbytes, storage.fd))
            layout = Layout(message.nbytes, message.offset, message.stride, message.fourcc, message.modifier)
            return status_of(self.native.resource_import(ctx_id, arguments, message.kind, layout, storage.fd))

    def object_to_resource(self, ctx_id: int, message: ObjectToResource) -> tuple[Status, Export | None]:
        """A dma-buf of the context's texture, if others could import it."""
        error, texture, resource = self.native.resource_texture(ctx_id, message.resource_id)
        if error:
            return status_of(error), None
        if not _can_be_imported(resource):
            return Status.FAILED, None
        try:
            fd, layout = self._images.export_texture(texture)
        except OSError as refusal:
            return status_of(refusal.errno or errno.EIO), None
        software = not self.description.capabilities & Capability.RENDER_NODE
        return Status.OK, Export(fd, StorageKind.DMABUF, layout, _MAP_CACHED if software else _MAP_UNKNOWN)

    def create_blob(
        self, ctx_id: int, message: CreateBlob, storage: OwnedFd | None
    ) -> tuple[Status, BlobObject | None]:
        """Make what a PIPE_RESOURCE_CREATE announced: a buffer pinned to `storage` or a texture imported from it;
        without, where the driver puts it."""
        with closing(storage) if storage is not None else nullcontext():
            error, made, layout = self.native.resource_from_blob(
                *(ctx_id, message.resource_id, message.blob_id, message.nbytes),
                None if storage is None else storage.fd,
            )
        if error:
            return status_of(error), None
        return Status.OK, BlobObject(
            **asdict(made),
            offset=layout.offset,
            stride=layout.stride,
            fourcc=layout.fourcc,
            modifier=layout.modifier,
        )


def _arguments(message: AttachResource | ResourceToObject) -> ResourceArguments:
    return ResourceArguments(**{name: getattr(message, name) for name in ResourceArguments.__dataclass_fields__})


def _can_be_imported(resource: ResourceArguments) -> bool:
    return is_image(
        resource.target,
        resource.format,
        last_level=resource.last_level,
        array_size=resource.array_size,
        nr_samples=resource.nr_samples,
        flags=resource.flags,
    )
