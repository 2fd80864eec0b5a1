"""The table itself."""

from collections.abc import Iterator

from native.guest_memory import Backing
from native.texture import Texture, is_scanout_format
from resource_table.resource import Image, Policy, Resource
from resource_table.shadow import Shadow

MAX_RESOURCES = 1 << 16
MAX_IMAGE_SIZE = 16384
SHADOW_BYTES = 1 << 30
BACKING_PIECES = 1 << 24
"""Of all backings together (24 bytes each): 64 GiB of RAM in single pages. A guest may name a page more than once."""
_BUFFER = 0  # gallium's PIPE_BUFFER


class TableError(Exception):
    """A request to the table that cannot be met."""


class UnknownResource(TableError):
    """No resource has this id."""


class DuplicateResource(TableError):
    """The id is in use, or is 0."""


class InvalidResource(TableError):
    """Nothing could be made with these arguments."""


class OutOfMemory(TableError):
    """More resources, or more memory for them, than a guest may have."""


class ResourceTable:
    """resid -> Resource. Its size and the memory behind it are bounded, whatever the guest asks for."""

    def __init__(self, max_resources: int = MAX_RESOURCES, shadow_bytes: int = SHADOW_BYTES) -> None:
        self._rows: dict[int, Resource] = {}
        self._max_resources = max_resources
        self._shadow_bytes = shadow_bytes
        self._shadow_used = 0
        self._pieces_used = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Resource]:
        return iter(list(self._rows.values()))

    def __contains__(self, resource_id: int) -> bool:
        return resource_id in self._rows

    def get(self, resource_id: int) -> Resource:
        """The resource. Raises UnknownResource."""
        try:
            return self._rows[resource_id]
        except KeyError:
            raise UnknownResource(f"no resource {resource_id}") from None

    def create_2d(self, resource_id: int, format: int, width: int, height: int) -> Resource:
        """A guest-only resource. Raises DuplicateResource, InvalidResource, OutOfMemory, OSError (ENOMEM)."""
        self._check_new(resource_id)
        if not is_scanout_format(format):
            raise InvalidResource(f"format {format}")
        if not (0 < width <= MAX_IMAGE_SIZE and 0 < height <= MAX_IMAGE_SIZE):
            raise InvalidResource(f"{width}x{height}")
        image = Image(format, width, height)
        if self._shadow_used + image.nbytes > self._shadow_bytes:
            raise OutOfMemory(f"{width}x{height} on top of {self._shadow_used} bytes of 2D resources")
        shadow = Shadow(width, height)
        self._shadow_used += image.nbytes
        return self._insert(Resource(resource_id, Policy.GUEST_ONLY, image=image, shadow=shadow))

    def create_3d(self, resource_id: int, v1: Texture) -> Resource:
        """A v1 resource: an entry and nothing more until a context has it. Raises as create_2d()."""
        self._check_new(resource_id)
        if not v1.is_valid():
            raise InvalidResource(str(v1))
        image = None
        if v1.target != _BUFFER and is_scanout_format(v1.format):  # a buffer has bytes and no pixels
            image = Image(v1.format, v1.width, v1.height)
        return self._insert(Resource(resource_id, Policy.WORKER_LOCAL, v1=v1, image=image))

    def attach_backing(self, resource: Resource, backing: Backing) -> None:
        """Takes the backing over. Raises OutOfMemory (and closes it) if all of them together would be too scattered."""
        if self._pieces_used + backing.pieces > BACKING_PIECES:
            backing.close()
            raise OutOfMemory(f"{self._pieces_used} pieces of guest memory in backings")
        self._pieces_used += backing.pieces
        resource.iov = backing

    def detach_backing(self, resource: Resource) -> None:
        """Gives the backing back, if there is one."""
        if resource.iov is not None:
            self._pieces_used -= resource.iov.pieces
            resource.iov.close()
            resource.iov = None

    def remove(self, resource_id: int) -> Resource:
        """Takes the resource out and closes it. Raises UnknownResource."""
        resource = self.get(resource_id)
        del self._rows[resource_id]
        if resource.policy is Policy.GUEST_ONLY and resource.image is not None:
            self._shadow_used -= resource.image.nbytes
        self.detach_backing(resource)
        resource.close()
        return resource

    def clear(self) -> None:
        """Device reset."""
        for resource in self:
            self.remove(resource.resource_id)

    def _check_new(self, resource_id: int) -> None:
        if resource_id == 0 or resource_id in self._rows:
            raise DuplicateResource(f"resource id {resource_id}")
        if len(self._rows) >= self._max_resources:
            raise OutOfMemory(f"{len(self._rows)} resources")

    def _insert(self, resource: Resource) -> Resource:
        self._rows[resource.resource_id] = resource
        return resource
