"""How a resource gets to a context's worker: the one place that decides it.

A resource is no object of a driver; each worker makes one of its own (AttachResource), or out of the resource's storage
(RESOURCE_TO_OBJECT). Where the storage is another worker's object, that worker is asked for it first
(OBJECT_TO_RESOURCE), and the resource goes through a time in which it has no descriptor:

- open: a Question is out to its home. An attach that comes now keeps its place in its context's order, with everything
  behind it, and so does nobody else;
- answered: the storage is in the table, and the attaches that waited are written into their places;
- refused, or the home died: the home's object is mirrored, if it lives; else those who waited get objects of their own,
  mirrored among each other if they are several, and what was in it is lost.

It may come to a mirror, then, from the moment in which the first attach waits: the plane has copies made from then on,
and the home has a place kept for its mirror behind the question. They are nothing if there is storage in the end.

Once there is storage it stays, whoever dies. resource_table.policy says which way a resource goes; a worker that cannot
import what the policy promised makes the resource a mirrored one.

A worker's answers come over its channel, which is another way than the completions of its ring: before a completion
counts, its channel is listened to. What it says is checked in master.exports. An answer that nobody asked for, or a
second one, is the end of that worker.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final, TypeAlias

from ipc.errors import ProtocolError
from ipc.messages import AttachResource, BlobObject, CreateBlob, Exported, Message, ObjectToResource, ResourceToObject
from master.blame import Cause, CauseKind
from master.context import Context
from master.exports import blob_of, storage_of
from master.hostile_socket import closer
from master.lane_worker import LaneWorker
from master.line_limit import LineLimit
from master.records import Executed, Place, Records, Ticket
from native.dataplane import Plane, Status
from native.owned_fd import OwnedFd
from native.storage import StorageKind
from resource_table import Abilities, Policy, Resource, ResourceTable, Storage, TableError, when_shared

log = logging.getLogger(__name__)

UNSHARED_INTERVAL: Final = 10.0  # seconds between two log lines about resources that cannot be shared

Obtained: TypeAlias = Callable[[Storage | None], None]


@dataclass(eq=False, slots=True)
class Attach:
    """An attach that waits in its place."""

    place: Place
    executed: Executed


@dataclass(eq=False, slots=True)
class Question:
    """What a context's worker is being asked about a resource, and who waits for the answer.

    ticket: of the OBJECT_TO_RESOURCE, 0 if there is none. making: CREATE_BLOB has not been executed.
    """

    resource: Resource
    context: Context
    ticket: int = 0
    making: bool = False
    open: bool = True
    described: bool = False
    """BlobObject has come."""
    found: Storage | None = None
    """What was exported."""
    too_small: bool = False
    """It was, and was of no use."""
    mirror: Place | None = None
    """Where the home would be told of a mirror, once somebody waits."""
    attaches: list[Attach] = field(default_factory=list)
    listeners: list[Obtained] = field(default_factory=list)


class Objects:
    """The objects that workers have of resources, as far as there is something to decide."""

    def __init__(
        self,
        plane: Plane,
        table: ResourceTable,
        records: Records,
        find: Callable[[int], Context],
        listen: Callable[[LaneWorker], None],
    ) -> None:
        """find(ctx_id): the context, which exists. listen(worker): takes in what the worker has said so far."""
        self.abilities = Abilities()
        self._plane = plane
        self._table = table
        self._records = records
        self._find = find
        self._listen = listen
        self._questions: dict[Resource, Question] = {}
        self._exports: dict[int, Question] = {}
        """By ticket, until the record has been executed."""
        self._unshared = LineLimit(UNSHARED_INTERVAL, time.monotonic)

    # ---- what contexts want

    def attach(self, context: Context, resource: Resource, executed: Executed) -> bool:
        """Gets the resource to the context, which is on its list already. executed(status) is called, now or later.

        False if it has to wait for something, in its place. Raises TableError, OSError if there is no memory or no
        descriptor left for it.
        """
        if self._worker_has_it(context, resource):
            return self._records.send(context, own_object(resource), executed)
        question = self._questions.get(resource)
        if question is None:
            home = self._home_of(resource, context)
            if home is not None or resource.policy is Policy.GUEST_ONLY:
                question = self._share(resource, home, context)
        if question is not None and question.open:
            return self._wait(question, context, executed)
        return self._place(context, resource, executed)

    def create_blob(self, context: Context, resource: Resource, executed: Executed) -> bool:
        """Has the context's worker make its object that of the resource (RESOURCE_CREATE_BLOB of HOST3D and
        HOST3D_GUEST). If the status is not OK there is no such resource. Raises OSError."""
        blob = resource.blob
        assert blob is not None  # it is one
        question = Question(resource, context, making=True)
        ticket = None
        if resource.storage is not None:
            ticket = Ticket(self._records.new_ticket(), resource.storage.fd)
        number = ticket.number if ticket is not None else 0
        message = CreateBlob(resource.resource_id, blob.mem, blob.flags, blob.blob_id, blob.nbytes, number)
        self._questions[resource] = question
        context.worker.expect(BlobObject)
        try:
            placed = self._records.send(context, message, lambda status: self._made(question, status, executed), ticket)
        except OSError:
            context.worker.expects_no_more(BlobObject)
            del self._questions[resource]
            raise
        if ticket is None and question.open:
            self._ask_for_storage(question)
        return placed

    def obtain(self, resource: Resource, obtained: Obtained) -> None:
        """obtained(its storage, or None if it has none and gets none) is called, now or later. It may be closed by the
        time anybody looks at it again."""
        question = self._questions.get(resource)
        if question is None and resource.storage is None and self._exportable(resource) and resource.home is not None:
            home = self._find(resource.home)
            if home.usable:
                question = self._ask(resource, home)
        if question is not None and question.open:
            question.listeners.append(obtained)
        else:
            obtained(resource.storage)

    def tells_workers(self, resource: Resource) -> bool:
        """Whether an attach of it is anything to a worker: guest pages that no worker can see are nothing to it."""
        blob_of_guest = resource.policy is Policy.GUEST_ONLY and resource.shadow is None
        return not blob_of_guest or (resource.storage is not None and self._importable(resource.storage))

    # ---- deciding

    def _worker_has_it(self, context: Context, resource: Resource) -> bool:
        """Whether another context of the same worker has it: to attach it a second time makes no object."""
        return any(
            ctx_id != context.ctx_id and self._find(ctx_id).worker is context.worker for ctx_id in resource.contexts
        )

    def _home_of(self, resource: Resource, context: Context) -> Context | None:
        """The context whose object has the contents, but for the one that is about to get the resource."""
        if resource.home is None or resource.home == context.ctx_id:
            return None
        home = self._find(resource.home)
        return home if home.usable else None

    def _importable(self, storage: Storage) -> bool:
        return storage.kind is not StorageKind.DMABUF or self.abilities.import_dmabuf

    def _exportable(self, resource: Resource) -> bool:
        return resource.policy is Policy.WORKER_LOCAL and self.abilities.export

    def _share(self, resource: Resource, home: Context | None, newcomer: Context) -> Question | None:
        """Makes the resource one that several contexts can have, if it is none yet. A question if it takes one."""
        if resource.storage is not None and self._importable(resource.storage):
            return None
        policy = when_shared(resource, self.abilities)
        if policy is Policy.EXPORTED and resource.storage is None and home is not None:
            return self._ask(resource, home)
        if policy is not Policy.GUEST_ONLY and self._make_mirror(resource):
            self._copy_from(resource, home)
            self._tell_of_mirror(resource, {newcomer})
        return None

    def _make_mirror(self, resource: Resource) -> bool:
        """Makes it a mirrored resource. False if its contents cannot be copied; it stays what it is then.

        Raises TableError, OSError.
        """
        if not resource.texture.mirror_bytes:
            if (before := self._unshared.admit()) is not None:
                log.warning(
                    "resource %d cannot be shared: each context has one of its own%s", resource.resource_id, before
                )
            return False
        if resource.shadow is None:
            self._table.make_mirror(resource)
        else:
            self._table.mirror_shadow(resource)
            self._move_picture(resource)
        return True

    def _tell_of_mirror(self, resource: Resource, without: set[Context]) -> None:
        """Those contexts that have an object, all but those in `without`. Raises OSError."""
        for ctx_id in resource.contexts:
            context = self._find(ctx_id)
            if context not in without:
                self._place(context, resource, _nobody_waits)

    def _copy_from(self, resource: Resource, home: Context | None) -> None:
        """Has contents copied from now on: the latest are the home's, or the mirror's if there is none."""
        owner = home.ctx_id if home is not None else 0
        if resource.shadow is None:
            self._plane.set_mirrored(resource.resource_id, owner)
        else:
            with resource.shadow.header() as header:
                self._plane.set_mirrored(resource.resource_id, owner, header)

    def _move_picture(self, resource: Resource) -> None:
        """The plane writes shadows: it has to know where they are."""
        assert resource.shadow is not None and resource.image is not None  # a 2D resource has both
        with resource.shadow.view() as pixels:
            self._plane.set_picture(resource.resource_id, resource.image.width, resource.image.height, pixels)

    # ---- placing

    def _place(self, context: Context, resource: Resource, executed: Executed, place: Place | None = None) -> bool:
        """Writes an attach, behind everything or where it was waiting. Raises OSError, with the place given up."""
        if not self.tells_workers(resource):
            if place is not None:
                self._records.give_up(place)
            executed(Status.OK)
            return True
        storage = resource.storage
        message: Message = own_object(resource)
        ticket = None
        if storage is not None:
            ticket = Ticket(self._records.new_ticket(), storage.fd)
            message = object_of(resource, storage, ticket.number)
            if storage.kind is not StorageKind.MIRROR:
                executed = self._or_mirrored(context, resource, executed)
        if place is None:
            return self._records.send(context, message, executed, ticket)
        self._records.fill(place, message, executed, ticket)
        return True

    def _or_mirrored(self, context: Context, resource: Resource, executed: Executed) -> Executed:
        """What to do if the worker cannot import what it is given: the promise of the policy was too much."""

        def imported(status: Status) -> None:
            shared = resource.policy in (Policy.EXPORTED, Policy.MASTER_ALLOCATED)
            has_it = context.resources.get(resource.resource_id) is not None and self._in_table(resource)
            if status in (Status.OK, Status.LOST) or not shared or not has_it or not context.usable:
                executed(status)
                return
            log.warning("%s: resource %d cannot be imported: it is mirrored", context, resource.resource_id)
            try:
                if self._make_mirror(resource):
                    self._copy_from(resource, self._home_of(resource, context))
                    self._tell_of_mirror(resource, {context})
                    self._place(context, resource, executed)
                else:
                    executed(status)
            except (TableError, OSError):
                executed(Status.OUT_OF_MEMORY)

        return imported

    def _wait(self, question: Question, context: Context, executed: Executed) -> bool:
        place = self._records.reserve(context)
        if place is None:
            executed(Status.LOST)
            return True
        if question.ticket and question.mirror is None:
            question.mirror = self._records.reserve(question.context)
            self._copy_from(question.resource, question.context)
        question.attaches.append(Attach(place, executed))
        return False

    # ---- asking

    def _ask(self, resource: Resource, home: Context) -> Question:
        question = self._questions[resource] = Question(resource, home)
        self._ask_for_storage(question)
        return question

    def _ask_for_storage(self, question: Question) -> None:
        question.ticket = self._records.new_ticket()
        self._exports[question.ticket] = question
        question.context.worker.expect(Exported)
        message = ObjectToResource(question.resource.resource_id, question.ticket)
        self._records.send(question.context, message, lambda status: self._exported(question, status))

    def answered(self, worker: LaneWorker, message: Message, fds: Sequence[OwnedFd]) -> None:
        """The worker says what it was asked. Takes the descriptors over. Raises ProtocolError if it was not asked, or
        lies."""
        try:
            if isinstance(message, Exported):
                self._has_exported(worker, message, fds[0])
            elif isinstance(message, BlobObject):
                self._has_made(worker, message)
        except BaseException:
            for fd in fds:
                closer.discard(fd)
            raise

    def _has_exported(self, worker: LaneWorker, message: Exported, fd: OwnedFd) -> None:
        question = self._exports.get(message.ticket)
        open_to = question.context.worker if question is not None and question.open else None
        if question is None or open_to is not worker or question.found is not None or question.too_small:
            raise ProtocolError(f"an export that nobody asked for ({message.ticket})")
        blob = question.resource.blob
        if blob is not None and not question.described:
            raise ProtocolError("a blob's storage before the blob")
        found = storage_of(message, fd, question.resource.v1)
        if blob is not None and found.layout.nbytes < blob.nbytes:  # the guest asked for more than its object has
            question.too_small = True
            found.close()
        else:
            question.found = found

    def _has_made(self, worker: LaneWorker, message: BlobObject) -> None:
        question = next(
            (
                each
                for each in self._questions.values()
                if each.making
                and not each.described
                and each.resource.resource_id == message.resource_id
                and each.context.worker is worker
            ),
            None,
        )
        if question is None:
            raise ProtocolError(f"a blob that nobody asked for ({message.resource_id})")
        resource, storage = question.resource, question.resource.storage
        assert resource.blob is not None  # it is being made
        resource.v1, layout = blob_of(message, resource.blob.nbytes, plain=storage is not None)
        if storage is not None:
            storage.layout = layout
        question.described = True

    # ---- executed

    def _made(self, question: Question, status: Status, executed: Executed) -> None:
        """CREATE_BLOB was executed."""
        worker = question.context.worker
        if status is Status.OK and not question.described:
            self._listen(worker)
        worker.expects_no_more(BlobObject)
        question.making = False
        if status is not Status.LOST and question.described != (status is Status.OK):
            worker.kill(Cause(kind=CauseKind.PROTOCOL, text="did not say what became of a blob"))
            status = Status.FAILED
        question.described &= status is Status.OK
        if status is not Status.OK or not question.ticket:
            self._settle(question)
        executed(status)

    def _exported(self, question: Question, status: Status) -> None:
        """OBJECT_TO_RESOURCE was executed, or never will be."""
        worker = question.context.worker
        if status is Status.OK and question.found is None:
            self._listen(worker)
        worker.expects_no_more(Exported)
        del self._exports[question.ticket]
        answered = question.found is not None or question.too_small
        if status is not Status.LOST and answered != (status is Status.OK):
            worker.kill(Cause(kind=CauseKind.PROTOCOL, text="did not say what became of an export"))
        self._settle(question)

    def worker_gone(self, worker: LaneWorker) -> None:
        """It says nothing any more. Its contexts have their resources still."""
        for question in list(self._questions.values()):
            if question.context.worker is worker:
                self._settle(question)

    def _settle(self, question: Question) -> None:
        """No more answers come: those who wait are served with what there is."""
        if not question.open:
            return
        question.open = False
        resource = question.resource
        del self._questions[resource]
        made = resource.blob is None or (question.described and not question.making)
        if not made:
            self._disown(question)
        else:
            self._conclude(question)
            for attach in question.attaches:
                try:
                    self._place(attach.place.context, resource, attach.executed, attach.place)
                except OSError:
                    attach.executed(Status.OUT_OF_MEMORY)
        there = self._in_table(resource)
        if question.mirror is not None:
            self._records.give_up(question.mirror)
        for obtained in question.listeners:
            obtained(resource.storage if made and there else None)
        if not there:
            resource.close()

    def _disown(self, question: Question) -> None:
        """A blob was not made: those who wait for it never had it."""
        if question.found is not None:
            question.found.close()
        for attach in question.attaches:
            self._records.give_up(attach.place)
            attach.executed(Status.INVALID_RESOURCE)

    def _conclude(self, question: Question) -> None:
        """Gives the resource the storage that was found, or does without."""
        resource = question.resource
        in_table = self._in_table(resource)
        copied = question.mirror is not None
        try:
            if question.found is not None:
                self._take_storage(resource, question.found, in_table)
            elif resource.storage is None and in_table:
                self._do_without(question)
        except (TableError, OSError) as error:
            log.warning("resource %d is not shared: %s", resource.resource_id, error)
        if copied and in_table and resource.policy is not Policy.MIRRORED:
            self._plane.set_unmirrored(resource.resource_id)

    def _do_without(self, question: Question) -> None:
        """The resource gets no storage out of its home's object."""
        resource, home = question.resource, question.context
        alive = home.usable and resource.resource_id in home.resources
        if not alive and not home.destroyed:
            resource.lost = True
        waiting = {attach.place.context for attach in question.attaches}
        if not waiting or (not alive and len(waiting) == 1):
            return
        if not self._make_mirror(resource):
            return
        self._tell_of_mirror(resource, waiting | {home})
        if alive:
            place, question.mirror = question.mirror, None
            self._place(home, resource, _nobody_waits, place)

    def _take_storage(self, resource: Resource, storage: Storage, in_table: bool) -> None:
        if not in_table:  # whoever waits for it has it all the same, and its records
            resource.storage = storage
            return
        self._table.give_storage(resource, storage)
        if resource.policy is Policy.WORKER_LOCAL:
            resource.policy = Policy.EXPORTED

    def _in_table(self, resource: Resource) -> bool:
        """Whether the guest still has it, and not another of the same number."""
        return resource.resource_id in self._table and self._table.get(resource.resource_id) is resource


def _nobody_waits(_status: Status) -> None:
    pass


def own_object(resource: Resource) -> AttachResource:
    """An object of the worker's own, or the one it has."""
    return AttachResource(resource.resource_id, **asdict(resource.texture))


def object_of(resource: Resource, storage: Storage, ticket: int) -> ResourceToObject:
    """An object that lies in the storage, or is mirrored there."""
    texture, layout = resource.texture, storage.layout
    return ResourceToObject(
        resource_id=resource.resource_id,
        **asdict(texture),
        kind=storage.kind,
        ticket=ticket,
        nbytes=layout.nbytes,
        offset=layout.offset,
        stride=layout.stride,
        fourcc=layout.fourcc,
        modifier=layout.modifier,
    )
