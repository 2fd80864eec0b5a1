"""One row of the table."""

import uuid
from dataclasses import dataclass, field
from enum import Enum

from native.guest_memory import Backing
from native.owned_fd import OwnedFd
from native.texture import Texture
from resource_table.shadow import Shadow


class Policy(Enum):
    """Where a resource's contents live and how others come to see them."""

    GUEST_ONLY = "guest-only"
    """Made by RESOURCE_CREATE_2D: the guest's pages, and a shadow of them here that TRANSFER_TO_HOST_2D fills."""

    WORKER_LOCAL = "worker-local"
    """Made by RESOURCE_CREATE_3D: each context has an object of its own; scanned out by reading back from its home."""


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


@dataclass(eq=False, slots=True)
class Resource:
    """resid -> {fd, iov, v1}, and who uses it."""

    resource_id: int
    policy: Policy
    v1: Texture | None = None
    image: Image | None = None
    fd: OwnedFd | None = None
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
        """As detach_from(), for a worker that took the contents with it."""
        was_home = self.home == ctx_id
        if self.detach_from(ctx_id) and was_home and self.policy is Policy.WORKER_LOCAL:
            self.lost = True

    def close(self) -> None:
        """Gives everything back that it holds."""
        for part in (self.fd, self.iov, self.shadow):
            if part is not None:
                part.close()
        self.fd = self.iov = self.shadow = None
