"""Blob resources (virtio 1.3, 5.7.6.8 and 5.7.6.10): memory without a format, of the guest or of the host.

A blob of the host is an object that a context has named in its command stream (blob_id); the context's worker makes it
the resource's, so the command is answered when that has been tried. A guest maps such a blob into its address space:
the front end does it, at our word (master.host_window), once there is a descriptor.
"""

from collections.abc import Callable
from typing import Final

from master import wire
from master.contexts import Contexts
from master.errors import GuestError
from master.guest import Guest
from master.host_window import HostWindow
from master.outcome import OK, Complete, Done, Outcome, Pending, of_worker
from master.scanout import Scanouts
from master.virtio_gpu import BlobFlag, BlobMem, Feature, ResponseType
from native.dataplane import Plane, Status
from native.texture import Texture
from resource_table import Blob, Resource, ResourceTable, Storage
from resource_table.memory import whole_pages

_KNOWN_FLAGS: Final = BlobFlag.USE_MAPPABLE | BlobFlag.USE_SHAREABLE | BlobFlag.USE_CROSS_DEVICE
_UNKNOWN: Final = Texture(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


class BlobCommands:
    """RESOURCE_CREATE_BLOB, SET_SCANOUT_BLOB, RESOURCE_MAP_BLOB and RESOURCE_UNMAP_BLOB."""

    def __init__(
        self,
        guest: Guest,
        plane: Plane,
        table: ResourceTable,
        contexts: Contexts,
        scanouts: Scanouts,
        window: HostWindow,
        complete: Complete,
        remove: Callable[[Resource], None],
        guest_handles: bool = False,
    ) -> None:
        """remove(resource): takes it out of everything but contexts. guest_handles: CREATE_GUEST_HANDLE is allowed."""
        self._guest = guest
        self._plane = plane
        self._table = table
        self._contexts = contexts
        self._scanouts = scanouts
        self._window = window
        self._complete = complete
        self._remove = remove
        self._flags = int(_KNOWN_FLAGS | BlobFlag.CREATE_GUEST_HANDLE if guest_handles else _KNOWN_FLAGS)

    # ---- making one

    def create(self, command: wire.ResourceCreateBlob, request: int) -> Outcome:
        """RESOURCE_CREATE_BLOB."""
        self._guest.require(Feature.RESOURCE_BLOB)
        self._check(command)
        if command.blob_mem == BlobMem.GUEST:
            return self._create_guest(command)
        return self._create_host(command, request)

    def _check(self, command: wire.ResourceCreateBlob) -> None:
        """Raises GuestError."""
        ours = command.blob_mem != BlobMem.GUEST
        wrong = None
        if command.blob_mem not in list(BlobMem):
            wrong = f"blob memory {command.blob_mem}"
        elif command.blob_flags & ~self._flags:
            wrong = f"blob flags {command.blob_flags:#x}"
        elif command.blob_flags & BlobFlag.CREATE_GUEST_HANDLE and ours:
            wrong = "a handle for guest memory of a blob of the host"
        elif not ours and command.blob_id:
            wrong = f"a guest blob named {command.blob_id}"
        elif command.blob_mem == BlobMem.HOST3D and command.nr_entries:
            wrong = f"{command.nr_entries} pages for a blob that has none"
        if wrong is not None:
            raise GuestError(ResponseType.ERR_INVALID_PARAMETER, wrong)

    def _create_guest(self, command: wire.ResourceCreateBlob) -> Outcome:
        resource = self._enter(command)
        self._plane.set_shared_with_guest(resource.resource_id)
        shared = self._table.share_guest_pages(resource, self._guest.regions)
        if command.blob_flags & BlobFlag.CREATE_GUEST_HANDLE and not shared:
            self._remove(resource)
            raise GuestError(ResponseType.ERR_UNSPEC, "the guest's pages cannot have a handle")
        return OK

    def _create_host(self, command: wire.ResourceCreateBlob, request: int) -> Outcome:
        self._guest.require(Feature.VIRGL)
        context = self._contexts.alive(command.header.ctx_id)
        resource = self._enter(command)

        def executed(status: Status) -> None:
            if status is not Status.OK and self._is_there(resource):
                self._contexts.disown(resource)
                self._remove(resource)
            self._complete(request, of_worker(status))

        try:
            if not self._contexts.abilities.export:
                self._table.allocate_blob_memory(resource)
            self._contexts.create_blob(context, resource, executed)
        except BaseException:
            self._remove(resource)
            raise
        return Pending()

    def _enter(self, command: wire.ResourceCreateBlob) -> Resource:
        """The row, in the table and in the plane. Raises TableError, GuestError."""
        blob = Blob(command.blob_mem, command.blob_flags, command.blob_id, command.size)
        backing = None
        if command.nr_entries or command.blob_mem == BlobMem.GUEST:
            backing = self._guest.backing(command.entries, command.nr_entries)
        resource = self._table.create_blob(command.resource_id, blob, backing)
        self._plane.set_resource(resource.resource_id, _UNKNOWN)
        if backing is not None:
            self._plane.set_backing(resource.resource_id, backing)
        return resource

    def _is_there(self, resource: Resource) -> bool:
        return resource.resource_id in self._table and self._table.get(resource.resource_id) is resource

    # ---- showing it

    def set_scanout(self, command: wire.SetScanoutBlob, _request: int) -> Outcome:
        """SET_SCANOUT_BLOB. Only the first plane counts: all formats of scanouts have one."""
        self._guest.require(Feature.RESOURCE_BLOB)
        self._scanouts.check_id(command.scanout_id)
        if command.resource_id == 0:
            self._scanouts.disable(command.scanout_id)
            return OK
        resource = self._table.get(command.resource_id)
        self._scanouts.show_blob(
            command.scanout_id,
            resource,
            command.rect,
            command.format,
            command.width,
            command.height,
            command.strides[0],
            command.offsets[0],
        )
        return OK

    # ---- mapping it

    def map(self, command: wire.ResourceMapBlob, request: int) -> Outcome:
        """RESOURCE_MAP_BLOB: answered when the front end has mapped it, or cannot."""
        self._guest.require(Feature.RESOURCE_BLOB)
        resource = self._table.get(command.resource_id)
        blob = resource.blob
        if blob is None or blob.mem == BlobMem.GUEST or not blob.flags & BlobFlag.USE_MAPPABLE:
            raise GuestError(
                ResponseType.ERR_INVALID_PARAMETER, f"resource {resource.resource_id} is not to be mapped"
            )

        def obtained(storage: Storage | None) -> None:
            try:
                if storage is None or not storage.map_info:
                    raise GuestError(ResponseType.ERR_UNSPEC, f"resource {resource.resource_id} cannot be mapped")
                answer = Done(ResponseType.OK_MAP_INFO, wire.map_info_body(storage.map_info))
                self._window.map(
                    resource.resource_id,
                    storage.fd,
                    whole_pages(blob.nbytes),
                    command.offset,
                    lambda ok: self._answer(request, ok, answer),
                )
            except GuestError as error:
                self._complete(request, Done(error.response))

        self._contexts.obtain_storage(resource, obtained)
        return Pending()

    def unmap(self, command: wire.ResourceUnmapBlob, request: int) -> Outcome:
        """RESOURCE_UNMAP_BLOB."""
        self._guest.require(Feature.RESOURCE_BLOB)
        resource = self._table.get(command.resource_id)
        self._window.unmap(resource.resource_id, lambda ok: self._answer(request, ok, OK))
        return Pending()

    def _answer(self, request: int, ok: bool, answer: Done) -> None:
        """The front end has answered, at a time of its own."""
        self._complete(request, answer if ok else Done(ResponseType.ERR_UNSPEC))
        self._plane.flush()
