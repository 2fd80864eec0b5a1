"""The table itself.

It owns the descriptors of all storages; who sends one to somebody sends a duplicate.
"""

from collections.abc import Iterator, Sequence

from native.guest_memory import Backing
from native.shared_formats import TARGET_BUFFER
from native.storage import Layout, StorageKind
from native.texture import Texture, is_scanout_format
from resource_table.budget import DESCRIPTORS, STORAGE_BYTES, Budget
from resource_table.errors import DuplicateResource, InvalidResource, OutOfMemory, UnknownResource
from resource_table.memory import layout_in_memory, sealed_memory, whole_pages
from resource_table.policy import Abilities, Policy, at_creation
from resource_table.resource import Blob, Image, Resource
from resource_table.shadow import Shadow
from resource_table.storage import Storage
from resource_table.udmabuf import GuestRegion, Udmabuf

MAX_RESOURCES = 1 << 16
MAX_IMAGE_SIZE = 16384
SHADOW_BYTES = 1 << 30
BACKING_PIECES = 1 << 24
"""Of all backings together (24 bytes each): 64 GiB of RAM in single pages. A guest may name a page more than once."""
_NOTHING = Abilities()
_MAP_CACHED = 1  # VIRTIO_GPU_MAP_CACHE_CACHED
_MEM_GUEST = 1  # VIRTIO_GPU_BLOB_MEM_GUEST


class ResourceTable:
    """resid -> Resource. Its size and the memory behind it are bounded, whatever the guest asks for."""

    def __init__(
        self,
        max_resources: int = MAX_RESOURCES,
        shadow_bytes: int = SHADOW_BYTES,
        storage_bytes: int = STORAGE_BYTES,
        descriptors: int = DESCRIPTORS,
        udmabuf: Udmabuf | None = None,
    ) -> None:
        self._rows: dict[int, Resource] = {}
        self._max_resources = max_resources
        self._shadow_bytes = shadow_bytes
        self._shadow_used = 0
        self._pieces_used = 0
        self._storages = Budget(storage_bytes, descriptors)
        self._udmabuf = udmabuf or Udmabuf()

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

    def create_3d(self, resource_id: int, v1: Texture, abilities: Abilities = _NOTHING) -> Resource:
        """A v1 resource: an entry and nothing more until a context has it, or one with storage already, if it is going
        to be shared. Raises as create_2d()."""
        self._check_new(resource_id)
        if not v1.is_valid():
            raise InvalidResource(str(v1))
        image = None
        if v1.target != TARGET_BUFFER and is_scanout_format(v1.format):  # a buffer has bytes and no pixels
            image = Image(v1.format, v1.width, v1.height)
        resource = Resource(resource_id, at_creation(v1, abilities), v1=v1, image=image)
        if resource.policy is Policy.MASTER_ALLOCATED:
            layout = layout_in_memory(v1)
            assert layout is not None  # or it would not have this policy
            resource.storage = self._allocate(StorageKind.MEMFD, layout)
        return self._insert(resource)

    def create_blob(self, resource_id: int, blob: Blob, backing: Backing | None) -> Resource:
        """What RESOURCE_CREATE_BLOB makes, without storage so far. Takes the backing over, and closes it if it raises:
        as create_2d(), and InvalidResource for an empty blob or one larger than its backing."""
        try:
            self._check_new(resource_id)
            if not blob.nbytes or (backing is not None and backing.nbytes < blob.nbytes):
                raise InvalidResource(f"a blob of {blob.nbytes} bytes")
        except (DuplicateResource, InvalidResource, OutOfMemory):
            if backing is not None:
                backing.close()
            raise
        policy = Policy.GUEST_ONLY if blob.mem == _MEM_GUEST else Policy.HOST_BLOB
        resource = Resource(resource_id, policy, blob=blob)
        if backing is not None:
            self.attach_backing(resource, backing)
        return self._insert(resource)

    # ---- storage

    def allocate_blob_memory(self, resource: Resource) -> Storage:
        """Memory for a host blob, which its worker is to put its object into, and a guest may map. Raises
        OutOfMemory."""
        assert resource.blob is not None
        resource.storage = self._allocate(StorageKind.MEMFD, Layout(whole_pages(resource.blob.nbytes)), _MAP_CACHED)
        return resource.storage

    def make_mirror(self, resource: Resource) -> Storage:
        """Makes a resource MIRRORED: what it holds is copied by those who have it, through the storage that it has from
        now on, instead of any it had. Raises OutOfMemory, InvalidResource if there is no mirror of such a texture; then
        all is as before."""
        nbytes = resource.texture.mirror_bytes
        if not nbytes:
            raise InvalidResource(f"no mirror of {resource.texture}")
        mirror = self._allocate(StorageKind.MIRROR, Layout(whole_pages(nbytes)))
        self.drop_storage(resource)
        resource.storage, resource.policy = mirror, Policy.MIRRORED
        return mirror

    def mirror_shadow(self, resource: Resource) -> Storage:
        """As make_mirror(), for a 2D resource: its pixels are in the mirror from now on.

        To be called while a command of the control queue is open, since for that queue the plane writes shadows: it has
        to be told of the new place (Shadow.view) before it goes on.
        """
        assert resource.shadow is not None and not resource.shadow.mirrored
        before = resource.policy
        mirror = self.make_mirror(resource)
        try:
            resource.shadow.move_to(mirror.fd)
        except OSError as error:
            resource.policy = before
            self.drop_storage(resource)
            raise OutOfMemory(str(error)) from error
        self._shadow_used -= resource.shadow.nbytes
        return mirror

    def share_guest_pages(self, resource: Resource, regions: Sequence[GuestRegion]) -> bool:
        """Makes the pages behind a guest blob its storage, as one descriptor. How a picture lies in it is whatever the
        guest says when it uses it as one. False where that cannot be had.

        Not for 2D resources: what is shown of them is what was transferred, and their pages may hold something else.
        """
        if resource.iov is None:
            return False
        fd = self._udmabuf.create(resource.iov, regions)
        if fd is None:
            return False
        try:
            self.give_storage(resource, Storage(fd, StorageKind.DMABUF, Layout(resource.iov.nbytes)))
        except OutOfMemory:
            return False
        return True

    def give_storage(self, resource: Resource, storage: Storage) -> None:
        """The resource has this storage from now on, which others made, and no other. Raises OutOfMemory, and closes
        it, if there are too many descriptors."""
        try:
            self._storages.check(0)
        except OutOfMemory:
            storage.close()
            raise
        self._storages.add(storage, 0)
        self.drop_storage(resource)
        resource.storage = storage

    def drop_storage(self, resource: Resource) -> None:
        """Gives its storage back, if there is one."""
        if resource.storage is not None:
            self._release(resource.storage)
            resource.storage = None

    def _release(self, storage: Storage) -> None:
        self._storages.remove(storage)
        storage.close()

    def _allocate(self, kind: StorageKind, layout: Layout, map_info: int = 0) -> Storage:
        self._storages.check(layout.nbytes)
        try:
            storage = Storage(sealed_memory(f"isorend-{kind}", layout.nbytes), kind, layout, map_info)
        except OSError as error:
            raise OutOfMemory(str(error)) from error
        self._storages.add(storage, layout.nbytes)
        return storage

    # ---- backings

    def attach_backing(self, resource: Resource, backing: Backing) -> None:
        """Takes the backing over. Raises OutOfMemory (and closes it) if all of them together would be too scattered."""
        if self._pieces_used + backing.pieces > BACKING_PIECES:
            backing.close()
            raise OutOfMemory(f"{self._pieces_used} pieces of guest memory in backings")
        self._pieces_used += backing.pieces
        resource.iov = backing

    def detach_backing(self, resource: Resource) -> None:
        """Gives the backing back, if there is one, and a storage that was nothing but its pages."""
        if resource.policy is Policy.GUEST_ONLY:
            self.drop_storage(resource)
        if resource.iov is not None:
            self._pieces_used -= resource.iov.pieces
            resource.iov.close()
            resource.iov = None

    # ---- the end

    def remove(self, resource_id: int) -> Resource:
        """Takes the resource out and closes it. Raises UnknownResource."""
        resource = self.get(resource_id)
        del self._rows[resource_id]
        if resource.shadow is not None and not resource.shadow.mirrored:
            self._shadow_used -= resource.shadow.nbytes
        self.drop_storage(resource)
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
