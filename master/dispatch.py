"""Guest commands that Python decides, and their answers.

`Dispatcher.run(command)` decodes a command, does it, and completes its request: at once with Done, or later when the
outcome is Pending. Order matters: when run() returns, the command has been *placed*, so whatever it has to tell a
worker is in that worker's ring, and the plane may go on to the next. Nothing here waits.

A command that reaches a worker is answered when placed, unless the guest fenced it or the worker's ring is full; then
it is answered when executed.
"""

import logging
from collections.abc import Callable

from master import wire
from master.blob_commands import BlobCommands
from master.capsets import Capset, for_guest
from master.context import Context
from master.contexts import Contexts
from master.errors import GuestError
from master.guest import Guest
from master.host_window import HostWindow
from master.outcome import OK, Done, Outcome, Pending, of_table, of_worker
from master.records import Executed
from master.scanout import Scanouts
from master.virtio_gpu import CONTEXT_INIT_CAPSET_ID_MASK, CURSOR_QUEUE, CommandType, Feature, ResponseType
from master.wire import DisplayMode, GuestCommand
from native.dataplane import Command, Flipped, Plane, Status
from native.texture import Rect, Texture
from resource_table import Policy, Resource, ResourceTable, TableError

log = logging.getLogger(__name__)

class Dispatcher:
    """The device's behaviour, on top of the table, the contexts and the scanouts."""

    def __init__(
        self,
        plane: Plane,
        table: ResourceTable,
        contexts: Contexts,
        scanouts: Scanouts,
        capsets: list[Capset],
        window: HostWindow,
        guest_handles: bool = False,
    ) -> None:
        """guest_handles: see BlobCommands."""
        self.guest = Guest()
        self._plane = plane
        self._table = table
        self._contexts = contexts
        self._scanouts = scanouts
        self._capsets = capsets
        self._window = window
        self._blobs = BlobCommands(
            self.guest, plane, table, contexts, scanouts, window, self._complete, self._remove, guest_handles
        )
        self._questions: dict[int, Callable[[], None]] = {}
        self._handlers: dict[type[GuestCommand], Callable[..., Outcome]] = {
            wire.GetDisplayInfo: self._get_display_info,
            wire.GetEdid: self._get_edid,
            wire.GetCapsetInfo: self._get_capset_info,
            wire.GetCapset: self._get_capset,
            wire.ResourceCreate2D: self._create_2d,
            wire.ResourceCreate3D: self._create_3d,
            wire.ResourceUnref: self._unref,
            wire.ResourceAttachBacking: self._attach_backing,
            wire.ResourceDetachBacking: self._detach_backing,
            wire.ResourceAssignUuid: self._assign_uuid,
            wire.TransferToHost2D: self._transfer_to_host_2d,
            wire.SetScanout: self._set_scanout,
            wire.ResourceFlush: self._flush,
            wire.ResourceCreateBlob: self._blobs.create,
            wire.SetScanoutBlob: self._blobs.set_scanout,
            wire.ResourceMapBlob: self._blobs.map,
            wire.ResourceUnmapBlob: self._blobs.unmap,
            wire.CtxCreate: self._ctx_create,
            wire.CtxDestroy: self._ctx_destroy,
            wire.CtxAttachResource: self._ctx_attach,
            wire.CtxDetachResource: self._ctx_detach,
            wire.UpdateCursor: self._update_cursor,
            wire.MoveCursor: self._move_cursor,
        }

    # ---- the one way in and out

    def run(self, command: Command) -> None:
        """Does one command and sees to its answer."""
        try:
            outcome = self._dispatch(command)
        except GuestError as error:
            log.debug("%s: %s", self._name_of(command), error)
            outcome = Done(error.response)
        except TableError as error:
            log.debug("%s: %s", self._name_of(command), error)
            outcome = of_table(error)
        if isinstance(outcome, Done):
            self._complete(command.request, outcome)

    def _dispatch(self, command: Command) -> Outcome:
        decoded = wire.decode(command.data)
        is_cursor = isinstance(decoded, wire.UpdateCursor | wire.MoveCursor)
        handler = self._handlers.get(type(decoded))
        if handler is None or is_cursor != (command.queue == CURSOR_QUEUE):
            raise GuestError(ResponseType.ERR_UNSPEC, "not a command of this queue")
        return handler(decoded, command.request)

    @staticmethod
    def _name_of(command: Command) -> str:
        number = wire.header_of(command.data).type
        try:
            return CommandType(number).name
        except ValueError:
            return f"command {number:#x}"

    def _complete(self, request: int, done: Done) -> None:
        self._plane.complete(request, done.response, done.payload)

    def answer_open_questions(self) -> None:
        """Gives up on the display's answers: the front end is about to stop and does not serve its socket meanwhile."""
        for give_up in list(self._questions.values()):
            give_up()

    def reset(self) -> None:
        """Device reset: nothing the guest made is left."""
        self.answer_open_questions()
        self._scanouts.reset()
        self._contexts.reset()
        for resource in self._table:
            self._plane.remove_resource(resource.resource_id)
        self._table.clear()

    # ---- what the display says

    def _ask(self, request: int, fallback: Done, ask: Callable[[Callable[[Done], None]], None]) -> Outcome:
        """A question to the display, which may answer before this returns, later, or never."""

        def answer(done: Done) -> None:
            if self._questions.pop(request, None) is not None:
                self._complete(request, done)
                self._plane.flush()

        self._questions[request] = lambda: answer(fallback)
        ask(answer)
        return Pending()

    def _get_display_info(self, _command: wire.GetDisplayInfo, request: int) -> Outcome:
        def ask(answer: Callable[[Done], None]) -> None:
            def told(modes: list[DisplayMode]) -> None:
                answer(Done(ResponseType.OK_DISPLAY_INFO, wire.display_info_body(modes)))

            self._scanouts.display.get_display_info(told)

        return self._ask(request, Done(ResponseType.ERR_UNSPEC), ask)

    def _get_edid(self, command: wire.GetEdid, request: int) -> Outcome:
        self._scanouts.check_id(command.scanout)

        def ask(answer: Callable[[Done], None]) -> None:
            def told(edid: bytes | None) -> None:
                if edid is None:
                    answer(Done(ResponseType.ERR_INVALID_SCANOUT_ID))
                else:
                    answer(Done(ResponseType.OK_EDID, wire.edid_body(edid)))

            self._scanouts.display.get_edid(command.scanout, told)

        return self._ask(request, Done(ResponseType.ERR_UNSPEC), ask)

    # ---- capability sets

    def _get_capset_info(self, command: wire.GetCapsetInfo, _request: int) -> Outcome:
        if command.capset_index >= len(self._capsets):
            raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"capset index {command.capset_index}")
        capset = self._capsets[command.capset_index]  # what the guest sees of it is as long
        body = wire.capset_info_body(capset.capset_id, capset.version, len(capset.data))
        return Done(ResponseType.OK_CAPSET_INFO, body)

    def _get_capset(self, command: wire.GetCapset, _request: int) -> Outcome:
        for capset in self._capsets:
            if capset.capset_id == command.capset_id and command.capset_version <= capset.version:
                abilities = self._contexts.abilities
                seen = for_guest(
                    capset,
                    mapped_buffers=abilities.pinned_buffers and self.guest.can_map_blobs,
                    guest_dmabufs=abilities.import_dmabuf,
                )
                return Done(ResponseType.OK_CAPSET, seen.data)
        raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"capset {command.capset_id}.{command.capset_version}")

    # ---- resources

    def _create_2d(self, command: wire.ResourceCreate2D, _request: int) -> Outcome:
        try:
            resource = self._table.create_2d(command.resource_id, command.format, command.width, command.height)
        except OSError as error:
            raise GuestError(ResponseType.ERR_OUT_OF_MEMORY, str(error)) from error
        self._plane.set_resource(resource.resource_id, resource.texture)
        assert resource.shadow is not None  # a guest-only resource has one
        with resource.shadow.view() as pixels:
            self._plane.set_picture(resource.resource_id, command.width, command.height, pixels)
        return OK

    def _create_3d(self, command: wire.ResourceCreate3D, _request: int) -> Outcome:
        v1 = Texture(
            command.target,
            command.format,
            command.bind,
            command.width,
            command.height,
            command.depth,
            command.array_size,
            command.last_level,
            command.nr_samples,
            command.flags,
        )
        self.guest.require(Feature.VIRGL)
        resource = self._table.create_3d(command.resource_id, v1, self._contexts.abilities)
        self._plane.set_resource(resource.resource_id, v1)
        if resource.image is not None:
            self._plane.set_picture(resource.resource_id, resource.image.width, resource.image.height, None)
        return OK

    def _unref(self, command: wire.ResourceUnref, _request: int) -> Outcome:
        resource = self._table.get(command.resource_id)
        self._contexts.hurry(resource)
        self._contexts.detach_everywhere(resource)
        self._remove(resource)
        return OK

    def _remove(self, resource: Resource) -> None:
        """No context has it any more."""
        self._scanouts.forget(resource)
        if self._window.is_mapped(resource.resource_id):
            self._window.unmap(resource.resource_id, lambda _ok: None)
        self._plane.remove_resource(resource.resource_id)
        self._table.remove(resource.resource_id)

    def _attach_backing(self, command: wire.ResourceAttachBacking, _request: int) -> Outcome:
        resource = self._table.get(command.resource_id)
        if resource.iov is not None:
            raise GuestError(ResponseType.ERR_UNSPEC, f"resource {resource.resource_id} has a backing")
        backing = self.guest.backing(command.entries, command.nr_entries)
        self._table.attach_backing(resource, backing)
        self._plane.set_backing(resource.resource_id, backing)
        return OK

    def _detach_backing(self, command: wire.ResourceDetachBacking, _request: int) -> Outcome:
        resource = self._table.get(command.resource_id)
        if resource.iov is None:
            raise GuestError(ResponseType.ERR_UNSPEC, f"resource {resource.resource_id} has no backing")
        self._contexts.hurry(resource)
        self._plane.set_backing(resource.resource_id, None)
        self._table.detach_backing(resource)
        return OK

    def _assign_uuid(self, command: wire.ResourceAssignUuid, _request: int) -> Outcome:
        self.guest.require(Feature.RESOURCE_UUID)
        resource = self._table.get(command.resource_id)
        return Done(ResponseType.OK_RESOURCE_UUID, resource.assign_uuid().bytes)

    def _transfer_to_host_2d(self, command: wire.TransferToHost2D, request: int) -> Outcome:
        """What the plane left to us: a large one, copied without its lock, one to a picture that contexts are using, or
        one with something wrong."""
        resource = self._table.get(command.resource_id)
        if resource.blob is not None and resource.policy is Policy.GUEST_ONLY:
            return OK  # what is shown of a guest blob are its pages themselves
        if resource.shadow is None or resource.image is None:
            raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"resource {resource.resource_id} is not 2D")
        if not command.rect.within(resource.image.width, resource.image.height):
            raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"{command.rect} of resource {resource.resource_id}")
        if resource.iov is None or self.guest.memory is None:
            raise GuestError(ResponseType.ERR_UNSPEC, f"resource {resource.resource_id} has no backing")
        rect = Rect(command.rect.x, command.rect.y, command.rect.width, command.rect.height)
        if not resource.shadow.mirrored:
            return self._fill_shadow(resource, rect, command.offset)

        def fill() -> None:
            self._complete(request, self._fill_shadow(resource, rect, command.offset))
            self._plane.flush()

        try:
            self._contexts.in_turn(resource, fill)
        except OSError as error:
            raise GuestError(ResponseType.ERR_OUT_OF_MEMORY, str(error)) from error
        return Pending()

    def _fill_shadow(self, resource: Resource, rect: Rect, offset: int) -> Done:
        """Not if the guest has taken the resource or its pages away meanwhile."""
        if resource.shadow is None or resource.iov is None or self.guest.memory is None:
            return Done(ResponseType.ERR_UNSPEC)
        if not resource.shadow.fill(self.guest.memory, resource.iov, rect, offset):
            return Done(ResponseType.ERR_INVALID_PARAMETER)
        if resource.shadow.mirrored:
            resource.shadow.raise_version()
        return OK

    # ---- scanouts and cursors

    def _set_scanout(self, command: wire.SetScanout, _request: int) -> Outcome:
        """What the plane left to us: all but page flips between pictures that have a shadow."""
        self._scanouts.check_id(command.scanout_id)
        if command.resource_id == 0:
            self._scanouts.disable(command.scanout_id)
        else:
            self._scanouts.show(command.scanout_id, self._table.get(command.resource_id), command.rect)
        return OK

    def flipped(self, flip: Flipped) -> None:
        """The plane did SET_SCANOUT itself, with another picture of the same size. A scanout that is gone stays so."""
        if flip.resource_id in self._table:
            part = wire.Rect(flip.part.x, flip.part.y, flip.part.width, flip.part.height)
            self._scanouts.flip(flip.scanout, self._table.get(flip.resource_id), part)

    def _flush(self, command: wire.ResourceFlush, _request: int) -> Outcome:
        """What the plane left to us: a picture that is shown and lives in a worker, or one with something wrong."""
        self._scanouts.flush(self._table.get(command.resource_id), command.rect)
        return OK

    def _update_cursor(self, command: wire.UpdateCursor, _request: int) -> Outcome:
        self._scanouts.check_id(command.scanout_id)
        if command.resource_id == 0:
            self._scanouts.cursors.hide(command.scanout_id, command.x, command.y)
        else:
            hot, at = (command.hot_x, command.hot_y), (command.x, command.y)
            self._scanouts.cursors.define(command.scanout_id, self._table.get(command.resource_id), hot, at)
        return OK

    def _move_cursor(self, command: wire.MoveCursor, _request: int) -> Outcome:
        self._scanouts.check_id(command.scanout_id)
        self._scanouts.cursors.move(command.scanout_id, command.x, command.y)
        return OK

    # ---- contexts

    def _ctx_create(self, command: wire.CtxCreate, request: int) -> Outcome:
        self.guest.require(Feature.VIRGL)
        capset_id = command.context_init & CONTEXT_INIT_CAPSET_ID_MASK
        if command.context_init and Feature.CONTEXT_INIT not in self.guest.features:
            raise GuestError(ResponseType.ERR_INVALID_PARAMETER, "context_init was not negotiated")
        if capset_id and capset_id not in {capset.capset_id for capset in self._capsets}:
            raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"capset {capset_id}")
        self._contexts.create(command.header.ctx_id, command.debug_name or "unnamed", capset_id)
        return OK

    def _ctx_destroy(self, command: wire.CtxDestroy, _request: int) -> Outcome:
        self._contexts.destroy(command.header.ctx_id)
        return OK

    def _ctx_attach(self, command: wire.CtxAttachResource, request: int) -> Outcome:
        context = self._contexts.alive(command.header.ctx_id)
        resource = self._table.get(command.resource_id)
        return self._tell(context, command, request, lambda done: self._contexts.attach(context, resource, done))

    def _ctx_detach(self, command: wire.CtxDetachResource, request: int) -> Outcome:
        context = self._contexts.alive(command.header.ctx_id)
        resource = self._table.get(command.resource_id)
        return self._tell(context, command, request, lambda done: self._contexts.detach(context, resource, done))

    def _tell(
        self, context: Context, command: GuestCommand, request: int, place: Callable[[Executed], bool]
    ) -> Outcome:
        """Places something for a context's worker; a fenced command waits for its execution.

        So does one that has to wait to be placed (place(executed) is False): a guest's open requests are what bounds
        the messages that wait.
        """
        waits = command.header.fenced

        def executed(status: Status) -> None:
            if status not in (Status.OK, Status.LOST):
                log.warning("%s: %s failed: %s", context, type(command).__name__, status.name)
            if waits:
                self._complete(request, of_worker(status))

        if not place(executed):
            waits = True
        return Pending() if waits else OK
