"""The null engine: draws nothing and completes everything, for tests and benches of what surrounds an engine.

Its resources are bytes (native/src/null_objects.h), which it can share in all ways that there are. What it says that it
can do is for the environment to choose, so that each way can be tested.
"""

import os
from collections.abc import Mapping
from contextlib import nullcontext

from context_worker.engine import Description, EngineError, Export
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
from native.engines import NullEngine as NativeNullEngine
from native.engines import ResourceArguments, Status, status_of
from native.owned_fd import OwnedFd
from native.storage import Layout, StorageKind

ABILITIES_VARIABLE = "ISOREND_NULL_ABILITIES"
"""Words of ABILITIES with commas between them; without any, resources are mirrored."""

ABILITIES = {
    "memfd": Capability.MEMFD_IMPORT | Capability.PINNED_BUFFERS,
    "export": Capability.OBJECT_EXPORT | Capability.DMABUF_IMPORT,
    # Says that it can export, and fails when it is to.
    "broken-export": Capability.OBJECT_EXPORT | Capability.DMABUF_IMPORT,
}

_VIRGL = 1
_VIRGL_CAPS_V1_BYTES = 308  # sizeof(struct virgl_caps_v1), virgl_hw.h
_MAP_CACHED = 1  # VIRTIO_GPU_MAP_CACHE_CACHED
_BUFFER = {"target": 0, "format": 64, "bind": 0, "height": 1, "depth": 1, "array_size": 1}  # of bytes (R8_UNORM)
_PLAIN = {"last_level": 0, "nr_samples": 0, "flags": 0}


class NullEngine:
    """Keeps count of contexts and their resources so that wrong ids are answered as a renderer does."""

    name = EngineName.NULL

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Raises EngineError for an ability that there is not, OSError when the fence thread cannot be started."""
        words = [word for word in environment.get(ABILITIES_VARIABLE, "").split(",") if word]
        if unknown := sorted(set(words) - set(ABILITIES)):
            raise EngineError(f"{ABILITIES_VARIABLE}: no such ability: {', '.join(unknown)}")
        self._exports = "export" in words
        capabilities = Capability(0)
        for word in words:
            capabilities |= ABILITIES[word]
        self.native = NativeNullEngine()
        self.description = Description(renderer="null", version="", capabilities=capabilities)
        self._attached: dict[int, set[int]] = {}

    def capsets(self) -> list[Capset]:
        """A virgl set that says of nothing that it can be done: without one there is no 3D, and so no context."""
        return [Capset(_VIRGL, 1, bytes(_VIRGL_CAPS_V1_BYTES))]

    def create_context(self, message: CreateContext) -> Status:
        """Remember the context's id."""
        if message.ctx_id in self._attached:
            return Status.INVALID_PARAMETER
        self._attached[message.ctx_id] = set()
        return Status.OK

    def destroy_context(self, ctx_id: int) -> Status:
        """Forget the context and what it has."""
        attached = self._attached.pop(ctx_id, None)
        if attached is None:
            return Status.INVALID_RESOURCE
        for resource_id in attached:
            self._drop_if_last(resource_id)
        self.native.forget_context(ctx_id)
        return Status.OK

    def attach_resource(self, ctx_id: int, message: AttachResource) -> Status:
        """An object of the resource's, if no context has it yet."""
        if not self._can_attach(ctx_id, message.resource_id):
            return Status.INVALID_PARAMETER
        return self._attach(ctx_id, message.resource_id, self.native.object_make(_arguments(message)))

    def detach_resource(self, ctx_id: int, resource_id: int) -> Status:
        """Let go of the object, which the last context to do so drops."""
        attached = self._attached.get(ctx_id, set())
        if resource_id not in attached:
            return Status.INVALID_RESOURCE
        attached.remove(resource_id)
        self._drop_if_last(resource_id)
        return Status.OK

    def resource_to_object(self, ctx_id: int, message: ResourceToObject, storage: OwnedFd) -> Status:
        """An object that lies in `storage`, or that has its mirror there."""
        with storage:
            if message.kind is StorageKind.MIRROR:
                return self._mirror(ctx_id, message, storage)
            if not self._can_attach(ctx_id, message.resource_id):
                return Status.INVALID_PARAMETER
            layout = Layout(message.nbytes, message.offset, message.stride, message.fourcc, message.modifier)
            dmabuf = message.kind is StorageKind.DMABUF
            error = self.native.object_import(_arguments(message), layout, storage.fd, dmabuf=dmabuf)
            return self._attach(ctx_id, message.resource_id, error)

    def _mirror(self, ctx_id: int, message: ResourceToObject, storage: OwnedFd) -> Status:
        resource_id = message.resource_id
        if ctx_id not in self._attached:
            return Status.INVALID_PARAMETER
        error = self.native.object_make(_arguments(message))
        error = error or self.native.object_mirror(resource_id, message.nbytes, storage.fd)
        return self._attach(ctx_id, resource_id, error)

    def object_to_resource(self, ctx_id: int, message: ObjectToResource) -> tuple[Status, Export | None]:
        """A memfd that the object lies in from now on. It can be had once: who has it has to keep it."""
        if message.resource_id not in self._attached.get(ctx_id, set()):
            return Status.INVALID_RESOURCE, None
        if not self._exports:
            return Status.FAILED, None
        try:
            fd, layout = self.native.object_export(message.resource_id)
        except OSError as error:
            return status_of(error.errno or 0), None
        return Status.OK, Export(fd, StorageKind.MEMFD, layout, _MAP_CACHED)

    def create_blob(
        self, ctx_id: int, message: CreateBlob, storage: OwnedFd | None
    ) -> tuple[Status, BlobObject | None]:
        """A buffer of the size that ISO_NULL_BLOB gave it, if it fits."""
        with nullcontext() if storage is None else storage:
            if not self._can_attach(ctx_id, message.resource_id):
                return Status.INVALID_PARAMETER, None
            size = self.native.take_blob(ctx_id, message.blob_id)
            if not 0 < size <= message.nbytes:
                return Status.INVALID_PARAMETER, None
            values = {**_BUFFER, "width": size, **_PLAIN}
            arguments = ResourceArguments(message.resource_id, **values)
            if storage is None:
                error = self.native.object_make(arguments)
            else:
                error = self.native.object_import(arguments, Layout(message.nbytes), storage.fd, dmabuf=False)
            status = self._attach(ctx_id, message.resource_id, error)
        if status is not Status.OK:
            return status, None
        return status, BlobObject(message.resource_id, **values, offset=0, stride=0, fourcc=0, modifier=0)

    def _can_attach(self, ctx_id: int, resource_id: int) -> bool:
        attached = self._attached.get(ctx_id)
        return attached is not None and resource_id not in attached

    def _attach(self, ctx_id: int, resource_id: int, error: int) -> Status:
        if error:
            self._drop_if_last(resource_id)
        else:
            self._attached[ctx_id].add(resource_id)
        return status_of(error)

    def _drop_if_last(self, resource_id: int) -> None:
        if not any(resource_id in attached for attached in self._attached.values()):
            self.native.object_drop(resource_id)


def _arguments(message: AttachResource | ResourceToObject) -> ResourceArguments:
    return ResourceArguments(**{name: getattr(message, name) for name in ResourceArguments.__dataclass_fields__})
