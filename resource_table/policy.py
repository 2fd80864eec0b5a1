"""How a resource is shared: where its contents live, and how others come to see them.

Most resources are never shared, so nothing is done for them: a v1 resource is an object of its worker (at_creation).
Two bind flags predict that another process will want it; it then gets memory of ours at once, where the drivers were
probed to put objects into it, and no contents ever have to move. All others move when the second context comes
(when_shared).
"""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from native.shared_formats import TARGET_BUFFER
from native.texture import Texture
from resource_table.memory import layout_in_memory

if TYPE_CHECKING:
    from resource_table.resource import Resource

# gallium's numbers (virgl_hw.h)
_BIND_SCANOUT: Final = 1 << 18
_BIND_SHARED: Final = 1 << 20


class Policy(Enum):
    """Where a resource's contents live and how others come to see them."""

    GUEST_ONLY = "guest-only"
    """Made by RESOURCE_CREATE_2D, or a guest blob. A blob is the guest's pages, as one descriptor (udmabuf) where that
    can be had. A 2D resource has a shadow that TRANSFER_TO_HOST_2D fills: what is shown is what was transferred, so the
    guest's pages themselves would be the wrong picture."""

    WORKER_LOCAL = "worker-local"
    """Made by RESOURCE_CREATE_3D and not shared: an object of its home worker, scanned out by reading back."""

    EXPORTED = "exported"
    """An object of its home worker, of which the driver gave a descriptor that others import."""

    MASTER_ALLOCATED = "master-allocated"
    """Objects of all workers lie in one piece of sealed memory, made here."""

    MIRRORED = "mirrored"
    """Each context has an object of its own; contents are copied through a mirror where the order asks for it."""

    HOST_BLOB = "host blob"
    """Made by RESOURCE_CREATE_BLOB out of a worker's object."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What workers were probed to do with memory that is shared.

    export: an object of theirs becomes a descriptor. import_dmabuf: a dma-buf becomes a texture. memfd_images: so does
    plain memory. pinned_buffers: a buffer can lie in memory that it is given.
    """

    export: bool = False
    import_dmabuf: bool = False
    memfd_images: bool = False
    pinned_buffers: bool = False


def at_creation(v1: Texture, abilities: Abilities) -> Policy:
    """WORKER_LOCAL or MASTER_ALLOCATED, for a resource that RESOURCE_CREATE_3D makes."""
    can = abilities.pinned_buffers if v1.target == TARGET_BUFFER else abilities.memfd_images
    if can and v1.bind & (_BIND_SHARED | _BIND_SCANOUT) and layout_in_memory(v1) is not None:
        return Policy.MASTER_ALLOCATED
    return Policy.WORKER_LOCAL


def when_shared(resource: "Resource", abilities: Abilities) -> Policy:
    """What a resource has to become before a second context can have it, or any context a 2D resource: EXPORTED,
    MIRRORED, or the policy that it has. It stays WORKER_LOCAL where contents cannot be shared at all (multisampled)."""
    if resource.policy is Policy.GUEST_ONLY:
        return Policy.GUEST_ONLY if resource.shadow is None else Policy.MIRRORED
    if resource.policy is not Policy.WORKER_LOCAL:
        return resource.policy
    texture = resource.texture
    exportable = texture.target != TARGET_BUFFER and layout_in_memory(texture) is not None
    if exportable and abilities.export and abilities.import_dmabuf:
        return Policy.EXPORTED
    return Policy.MIRRORED if texture.mirror_bytes else Policy.WORKER_LOCAL
