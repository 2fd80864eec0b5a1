"""The null engine: draws nothing and completes everything, for tests and benches of what surrounds an engine."""

from context_worker.engine import Description
from ipc.messages import AttachResource, Capability, Capset, CreateContext, EngineName
from native.engines import NullEngine as NativeNullEngine
from native.engines import Status

_VIRGL = 1
_VIRGL_CAPS_V1_BYTES = 308  # sizeof(struct virgl_caps_v1), virgl_hw.h


class NullEngine:
    """Keeps count of its context and resources so that wrong ids are answered as a renderer does."""

    name = EngineName.NULL

    def __init__(self) -> None:
        """Raises OSError when its fence thread cannot be started."""
        self.native = NativeNullEngine()
        self.description = Description(renderer="null", version="", capabilities=Capability(0))
        self._context = 0
        self._resources: set[int] = set()

    def capsets(self) -> list[Capset]:
        """A virgl set that says of nothing that it can be done: without one there is no 3D, and so no context."""
        return [Capset(_VIRGL, 1, bytes(_VIRGL_CAPS_V1_BYTES))]

    def create_context(self, message: CreateContext) -> Status:
        """Remember the context's id."""
        if self._context:
            return Status.INVALID_PARAMETER
        self._context = message.ctx_id
        return Status.OK

    def attach_resource(self, message: AttachResource) -> Status:
        """Remember the resource's id."""
        if not self._context or message.resource_id in self._resources:
            return Status.INVALID_PARAMETER
        self._resources.add(message.resource_id)
        return Status.OK

    def detach_resource(self, resource_id: int) -> Status:
        """Forget the resource's id."""
        if resource_id not in self._resources:
            return Status.INVALID_RESOURCE
        self._resources.remove(resource_id)
        return Status.OK
