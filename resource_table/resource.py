"""One row of the table."""

import uuid
from dataclasses import dataclass, field
from typing import Final

from native.guest_memory import Backing
from native.owned_fd import OwnedFd
from native.texture import Texture
from resource_table.policy import Policy
from resource_table.shadow import Shadow
from resource_table.storage import Storage

# What RESOURCE_CREATE_2D means to a context that the resource is attached to (gallium's numbers)
_TEXTURE_2D: Final = 2
_BIND_RENDER_TARGET: Final = 1 << 1
_BIND_SAMPLER_VIEW: Final = 1 << 3
_Y_0_TOP: Final = 1 << 0


@dataclass(frozen=True, slots=True)
class Image:
    """A picture that could be scanned out: enum virtio_gpu_formats (four bytes a pixel), sizes in pixels."""

    format: int
    width: int
    height: int

    @property
    def stride(self) -> int:
        """Bytes from row to row."""
        return 4 * self.width

    @property
    def nbytes(self) -> int:
        """Bytes of the whole picture."""
        return self.stride * self.height


@dataclass(frozen=True, slots=True)
class Blob:
    """The arguments of RESOURCE_CREATE_BLOB: VIRTIO_GPU_BLOB_MEM_* and _FLAG_*, the context's name of its object (0:
    none), bytes."""

    mem: int
    flags: int
    blob_id: int
    nbytes: int


@dataclass(eq=False, slots=True)
class Resource:
    """resid -> {fd, iov, v1}, and who uses it."""

    resource_id: int
    policy: Policy
    v1: Texture | None = None
    image: Image | None = None
    storage: Storage | None = None
    blob: Blob | None = None
    iov: Backing | None = None
    shadow: Shadow | None = None
    contexts: list[int] = field(default_factory=list)
    """Contexts it is attached to, in the order in which that happened."""
    home: int | None = None
    """The context whose object holds what is scanned out: the first it was attached to that still lives."""
    lost: bool = False
    """The worker that alone held its contents died; it can be attached anew, empty."""
    identity: uuid.UUID | None = None

    @property
    def fd(self) -> OwnedFd | None:
        """Its storage as a descriptor, None until there is one."""
        return self.storage.fd if self.storage is not None else None

    @property
    def texture(self) -> Texture:
        """What a context makes of it: its v1 arguments, or what is as good for a 2D resource. Of width 0 for a blob of
        which nobody knows yet what it is."""
        if self.v1 is not None:
            return self.v1
        if self.image is None:
            return Texture(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        bind = _BIND_RENDER_TARGET | _BIND_SAMPLER_VIEW
        image = self.image
        return Texture(_TEXTURE_2D, image.format, bind, image.width, image.height, 1, 1, 0, 0, _Y_0_TOP)

    @property
    def window_open(self) -> bool:
        """Whether it has no fd yet: shared use of it has to wait for one, or be served without."""
        return self.fd is None

    def assign_uuid(self) -> uuid.UUID:
        """The identity under which other virtio devices know it (RESOURCE_ASSIGN_UUID); the same at every call."""
        if self.identity is None:
            self.identity = uuid.uuid4()
        return self.identity

    def attach_to(self, ctx_id: int) -> bool:
        """Notes the context. False if it had it already."""
        if ctx_id in self.contexts:
            return False
        self.contexts.append(ctx_id)
        if self.home is None:
            self.home = ctx_id
            self.lost = False
        return True

    def detach_from(self, ctx_id: int) -> bool:
        """Forgets the context. False if it never had it."""
        if ctx_id not in self.contexts:
            return False
        self.contexts.remove(ctx_id)
        if self.home == ctx_id:
            self.home = self.contexts[0] if self.contexts else None
        return True

    def context_died(self, ctx_id: int) -> None:
        """As detach_from(), for a worker that took the contents with it, unless there is storage of them here."""
        was_home = self.home == ctx_id
        if self.detach_from(ctx_id) and was_home and self.storage is None and self.policy is not Policy.GUEST_ONLY:
            self.lost = True

    def close(self) -> None:
        """Gives everything back that it holds."""
        for part in (self.storage, self.iov, self.shadow):
            if part is not None:
                part.close()
        self.storage = self.iov = self.shadow = None
