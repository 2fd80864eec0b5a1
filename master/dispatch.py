"""Guest commands that Python decides, and their answers.

`Dispatcher.run(command)` decodes a command, does it, and completes its request: at once with Done, or later when the
outcome is Pending. Order matters: when run() returns, the command has been *placed*, so whatever it has to tell a
worker is in that worker's ring, and the plane may go on to the next. Nothing here waits.

A command that reaches a worker is answered when placed, unless the guest fenced it or the worker's ring is full; then
it is answered when executed.
"""

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ipc.messages import Message
from master import wire
from master.capsets import Capset
from master.contexts import Context, Contexts
from master.errors import GuestError
from master.scanout import Scanouts
from master.virtio_gpu import CONTEXT_INIT_CAPSET_ID_MASK, CURSOR_QUEUE, CommandType, Feature, ResponseType
from master.wire import DisplayMode, GuestCommand
from native.dataplane import Command, Flipped, Plane, Status
from native.guest_memory import Backing, GuestMemory
from native.texture import Rect, Texture
from resource_table import (
    DuplicateResource,
    InvalidResource,
    OutOfMemory,
    Resource,
    ResourceTable,
    TableError,
    UnknownResource,
)

log = logging.getLogger(__name__)

# What RESOURCE_CREATE_2D means to a context that the resource is attached to (gallium's numbers)
_TEXTURE_2D = 2
_BIND_RENDER_TARGET = 1 << 1
_BIND_SAMPLER_VIEW = 1 << 3
_Y_0_TOP = 1

_RESPONSES: dict[type[TableError], ResponseType] = {
    UnknownResource: ResponseType.ERR_INVALID_RESOURCE_ID,
    DuplicateResource: ResponseType.ERR_INVALID_RESOURCE_ID,
    InvalidResource: ResponseType.ERR_INVALID_PARAMETER,
    OutOfMemory: ResponseType.ERR_OUT_OF_MEMORY,
}

_WORKER_RESPONSES: dict[Status, ResponseType] = {
    Status.OK: ResponseType.OK_NODATA,
    Status.INVALID_PARAMETER: ResponseType.ERR_INVALID_PARAMETER,
    Status.INVALID_RESOURCE: ResponseType.ERR_INVALID_RESOURCE_ID,
    Status.OUT_OF_MEMORY: ResponseType.ERR_OUT_OF_MEMORY,
}


@dataclass(frozen=True, slots=True)
class Done:
    """The answer: its type and what follows the header."""

    response: ResponseType
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Pending:
    """Somebody will complete the request later."""


Outcome: TypeAlias = Done | Pending
OK = Done(ResponseType.OK_NODATA)


class Dispatcher:
    """The device's behaviour, on top of the table, the contexts and the scanouts."""

    def __init__(
        self,
        plane: Plane,
        table: ResourceTable,
        contexts: Contexts,
        scanouts: Scanouts,
        capsets: list[Capset],
    ) -> None:
        self.memory: GuestMemory | None = None
        self.features = Feature(0)
        self._plane = plane
        self._table = table
        self._contexts = contexts
        self._scanouts = scanouts
        self._capsets = capsets
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
            outcome = Done(_RESPONSES[type(error)])
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
        capset = self._capsets[command.capset_index]
        body = wire.capset_info_body(capset.capset_id, capset.version, len(capset.data))
        return Done(ResponseType.OK_CAPSET_INFO, body)

    def _get_capset(self, command: wire.GetCapset, _request: int) -> Outcome:
        for capset in self._capsets:
            if capset.capset_id == command.capset_id and command.capset_version <= capset.version:
                return Done(ResponseType.OK_CAPSET, capset.data)
        raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"capset {command.capset_id}.{command.capset_version}")

    # ---- resources

    def _create_2d(self, command: wire.ResourceCreate2D, _request: int) -> Outcome:
        try:
            resource = self._table.create_2d(command.resource_id, command.format, command.width, command.height)
        except OSError as error:
            raise GuestError(ResponseType.ERR_OUT_OF_MEMORY, str(error)) from error
        self._plane.set_resource(resource.resource_id, self._texture_of(resource))
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
        self._require(Feature.VIRGL)
        resource = self._table.create_3d(command.resource_id, v1)
        self._plane.set_resource(resource.resource_id, v1)
        if resource.image is not None:
            self._plane.set_picture(resource.resource_id, resource.image.width, resource.image.height, None)
        return OK

    @staticmethod
    def _texture_of(resource: Resource) -> Texture:
        """What a context makes of the resource."""
        if resource.v1 is not None:
            return resource.v1
        image = resource.image
        assert image is not None  # a resource has v1 arguments or is a picture
        bind = _BIND_RENDER_TARGET | _BIND_SAMPLER_VIEW
        return Texture(_TEXTURE_2D, image.format, bind, image.width, image.height, 1, 1, 0, 0, _Y_0_TOP)

    def _unref(self, command: wire.ResourceUnref, _request: int) -> Outcome:
        resource = self._table.get(command.resource_id)
        self._scanouts.forget(resource)
        self._contexts.detach_everywhere(resource)
        self._plane.remove_resource(resource.resource_id)
        self._table.remove(resource.resource_id)
        return OK

    def _attach_backing(self, command: wire.ResourceAttachBacking, _request: int) -> Outcome:
        resource = self._table.get(command.resource_id)
        if resource.iov is not None:
            raise GuestError(ResponseType.ERR_UNSPEC, f"resource {resource.resource_id} has a backing")
        if self.memory is None:
            raise GuestError(ResponseType.ERR_UNSPEC, "no guest memory")
        try:
            backing = Backing(self.memory, command.entries, command.nr_entries)
        except OSError as error:
            short = error.errno == errno.ENOMEM
            response = ResponseType.ERR_OUT_OF_MEMORY if short else ResponseType.ERR_INVALID_PARAMETER
            raise GuestError(response, str(error)) from error
        self._table.attach_backing(resource, backing)
        self._plane.set_backing(resource.resource_id, backing)
        return OK

    def _detach_backing(self, command: wire.ResourceDetachBacking, _request: int) -> Outcome:
        resource = self._table.get(command.resource_id)
        if resource.iov is None:
            raise GuestError(ResponseType.ERR_UNSPEC, f"resource {resource.resource_id} has no backing")
        self._plane.set_backing(resource.resource_id, None)
        self._table.detach_backing(resource)
        return OK

    def _assign_uuid(self, command: wire.ResourceAssignUuid, _request: int) -> Outcome:
        self._require(Feature.RESOURCE_UUID)
        resource = self._table.get(command.resource_id)
        return Done(ResponseType.OK_RESOURCE_UUID, resource.assign_uuid().bytes)

    def _transfer_to_host_2d(self, command: wire.TransferToHost2D, _request: int) -> Outcome:
        """What the plane left to us: a large one, copied without its lock, or one with something wrong."""
        resource = self._table.get(command.resource_id)
        if resource.shadow is None or resource.image is None:
            raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"resource {resource.resource_id} is not 2D")
        if not command.rect.within(resource.image.width, resource.image.height):
            raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"{command.rect} of resource {resource.resource_id}")
        if resource.iov is None or self.memory is None:
            raise GuestError(ResponseType.ERR_UNSPEC, f"resource {resource.resource_id} has no backing")
        rect = Rect(command.rect.x, command.rect.y, command.rect.width, command.rect.height)
        if not resource.shadow.fill(self.memory, resource.iov, rect, command.offset):
            raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"{rect} at {command.offset} reaches past the backing")
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
        resource = self._table.get(command.resource_id)
        image = resource.image
        if image is None or not command.rect.within(image.width, image.height):
            raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"{command.rect} of resource {resource.resource_id}")
        self._scanouts.flush(resource, command.rect)
        return OK

    def _update_cursor(self, command: wire.UpdateCursor, _request: int) -> Outcome:
        self._scanouts.check_id(command.scanout_id)
        if command.resource_id == 0:
            self._scanouts.hide_cursor(command.scanout_id, command.x, command.y)
        else:
            hot, at = (command.hot_x, command.hot_y), (command.x, command.y)
            self._scanouts.define_cursor(command.scanout_id, self._table.get(command.resource_id), hot, at)
        return OK

    def _move_cursor(self, command: wire.MoveCursor, _request: int) -> Outcome:
        self._scanouts.check_id(command.scanout_id)
        self._scanouts.move_cursor(command.scanout_id, command.x, command.y)
        return OK

    # ---- contexts

    def _ctx_create(self, command: wire.CtxCreate, request: int) -> Outcome:
        self._require(Feature.VIRGL)
        capset_id = command.context_init & CONTEXT_INIT_CAPSET_ID_MASK
        if command.context_init and Feature.CONTEXT_INIT not in self.features:
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
        message = self._contexts.attach(context, resource, self._texture_of(resource))
        return self._tell(context, message, command, request)

    def _ctx_detach(self, command: wire.CtxDetachResource, request: int) -> Outcome:
        context = self._contexts.alive(command.header.ctx_id)
        resource = self._table.get(command.resource_id)
        message = self._contexts.detach(context, resource)
        if message is None:
            raise GuestError(ResponseType.ERR_INVALID_RESOURCE_ID, f"{context} has no resource {command.resource_id}")
        return self._tell(context, message, command, request)

    def _tell(self, context: Context, message: Message | None, command: GuestCommand, request: int) -> Outcome:
        """Places a message for a context's worker; a fenced command waits for its execution.

        So does one that found the worker's ring full: a guest's open requests are what bounds the messages that wait.
        """
        if message is None:
            return OK
        waits = command.header.fenced

        def executed(status: Status) -> None:
            if status not in (Status.OK, Status.LOST):
                log.warning("%s: %s failed: %s", context, type(message).__name__, status.name)
            if waits:
                response = _WORKER_RESPONSES.get(status, ResponseType.ERR_UNSPEC)
                self._complete(request, Done(response))

        if not self._contexts.send(context, message, executed):
            waits = True
        return Pending() if waits else OK

    def _require(self, feature: Feature) -> None:
        if feature not in self.features:
            raise GuestError(ResponseType.ERR_UNSPEC, f"{feature.name} was not negotiated")
