"""The null engine: draws nothing and completes everything, for tests and benches of what surrounds an engine."""

from context_worker.engine import Description
from ipc.messages import AttachResource, Capability, Capset, CreateContext, EngineName
from native.engines import NullEngine as NativeNullEngine
from native.engines import Status

_VIRGL = 1
_VIRGL_CAPS_V1_BYTES = 308  # sizeof(struct virgl_caps_v1), virgl_hw.h


class NullEngine:
    """Keeps count of contexts and their resources so that wrong ids are answered as a renderer does."""

    name = EngineName.NULL

    def __init__(self) -> None:
        """Raises OSError when its fence thread cannot be started."""
        self.native = NativeNullEngine()
        self.description = Description(renderer="null", version="", capabilities=Capability(0))
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
        return Status.INVALID_RESOURCE if self._attached.pop(ctx_id, None) is None else Status.OK

    def attach_resource(self, ctx_id: int, message: AttachResource) -> Status:
        """Remember the resource's id."""
        attached = self._attached.get(ctx_id)
        if attached is None or message.resource_id in attached:
            return Status.INVALID_PARAMETER
        attached.add(message.resource_id)
        return Status.OK

    def detach_resource(self, ctx_id: int, resource_id: int) -> Status:
        """Forget the resource's id."""
        attached = self._attached.get(ctx_id, set())
        if resource_id not in attached:
            return Status.INVALID_RESOURCE
        attached.remove(resource_id)
        return Status.OK
