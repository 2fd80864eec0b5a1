"""The GL engine: libvirglrenderer on an EGL display of ours."""

import errno

from context_worker import egl
from context_worker.engine import EngineError
from context_worker.title import printable
from ipc.messages import AttachResource, Capset, CreateContext, EngineName
from native.engines import MAX_SHADER_BYTES, ResourceArguments, Status, status_of
from native.engines import VirglEngine as NativeVirglEngine

CAPSET_VIRGL = 1
CAPSET_VIRGL2 = 2
_WARM_UP_ID = 1


class VirglEngine:
    """virglrenderer, started; after the constructor its GL context is the current one."""

    name = EngineName.VIRGL

    def __init__(
        self, render_node: str | None = None, *, for_vtest: bool = False, max_shader_bytes: int = MAX_SHADER_BYTES
    ) -> None:
        """Open the display of `render_node` (None: EGL's choice), draw, start virglrenderer. Raises EngineError.

        `for_vtest`: for a session of context_worker.vtest, not for a ring. `max_shader_bytes`: the text of one shader.
        """
        display = egl.open_display(render_node)
        self.description = egl.probe(display)
        try:
            self.native = NativeVirglEngine(
                display.address,
                display.config_address,
                gles=display.gles,
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
        return status_of(self.native.resource_attach(ctx_id, ResourceArguments(**vars(message))))

    def detach_resource(self, ctx_id: int, resource_id: int) -> Status:
        """Detach it; the last one to let go drops it."""
        return status_of(self.native.resource_detach(ctx_id, resource_id))
