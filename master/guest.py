"""The guest behind the queues: what its driver has negotiated, and its memory."""

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field

from master.errors import GuestError
from master.memory_table import RamRegion
from master.virtio_gpu import Feature, ResponseType
from native.guest_memory import Backing, GuestMemory


@dataclass(eq=False, slots=True)
class Guest:
    """As it is now. regions: of which files its memory is, for descriptors of parts of it. maps_blobs: its front end
    can map host memory into it."""

    features: Feature = field(default_factory=lambda: Feature(0))
    maps_blobs: bool = False
    memory: GuestMemory | None = None
    regions: Sequence[RamRegion] = ()

    @property
    def can_map_blobs(self) -> bool:
        """Whether blobs of the host can be mapped: its driver and its front end know how."""
        return self.maps_blobs and Feature.RESOURCE_BLOB in self.features

    def require(self, feature: Feature) -> None:
        """Raises GuestError (UNSPEC) if the feature was not negotiated."""
        if feature not in self.features:
            raise GuestError(ResponseType.ERR_UNSPEC, f"{feature.name} was not negotiated")

    def backing(self, entries: memoryview, nr_entries: int) -> Backing:
        """The pages that a command names (struct virtio_gpu_mem_entry). Raises GuestError."""
        if self.memory is None:
            raise GuestError(ResponseType.ERR_UNSPEC, "no guest memory")
        try:
            return Backing(self.memory, entries, nr_entries)
        except OSError as error:
            short = error.errno == errno.ENOMEM
            response = ResponseType.ERR_OUT_OF_MEMORY if short else ResponseType.ERR_INVALID_PARAMETER
            raise GuestError(response, str(error)) from error
