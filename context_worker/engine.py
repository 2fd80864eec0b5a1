"""What a worker asks of its renderer.

The hot path (submits, transfers, fences) runs in C behind `native`; this protocol is the rest, which Python decides.
All methods are called on the worker's one thread. A method that answers a control record returns the record's status.
"""

from dataclasses import dataclass
from typing import Protocol

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
from native.engines import NativeEngine, Status
from native.owned_fd import OwnedFd
from native.storage import Layout, StorageKind


@dataclass(frozen=True)
class Description:
    """What an engine found when it started: the driver's strings, and what it can do."""

    renderer: str
    version: str
    capabilities: Capability


@dataclass(frozen=True)
class Export:
    """An object's storage. Who gets it owns `fd`. map_info: VIRTIO_GPU_MAP_CACHE_*, 0 where it cannot be mapped."""

    fd: OwnedFd
    kind: StorageKind
    layout: Layout
    map_info: int


class EngineError(Exception):
    """The engine cannot start on this machine."""


class Engine(Protocol):
    """One renderer, started. It has one guest context, or several in a worker that is shared."""

    @property
    def name(self) -> EngineName: ...

    @property
    def native(self) -> NativeEngine: ...

    @property
    def description(self) -> Description: ...

    def capsets(self) -> list[Capset]:
        """The capability sets guests are told, as this worker can serve them."""
        ...

    def create_context(self, message: CreateContext) -> Status:
        """Make a guest context; fails if the id is taken."""
        ...

    def destroy_context(self, ctx_id: int) -> Status:
        """Drop a guest context and what only it has."""
        ...

    def attach_resource(self, ctx_id: int, message: AttachResource) -> Status:
        """Attach a resource's object to the context, and make it if no context has it."""
        ...

    def detach_resource(self, ctx_id: int, resource_id: int) -> Status:
        """Detach a resource's object, and drop it if no context has it any more."""
        ...

    def resource_to_object(self, ctx_id: int, message: ResourceToObject, storage: OwnedFd) -> Status:
        """Attach to the context an object that lies in `storage`, or is mirrored there; takes it over."""
        ...

    def object_to_resource(self, ctx_id: int, message: ObjectToResource) -> tuple[Status, Export | None]:
        """The storage of the context's object, if it can be had: only with Status.OK."""
        ...

    def create_blob(
        self, ctx_id: int, message: CreateBlob, storage: OwnedFd | None
    ) -> tuple[Status, BlobObject | None]:
        """Make the context's object `blob_id` that of a resource and attach it; takes `storage` over. What was made
        comes with Status.OK alone."""
        ...
