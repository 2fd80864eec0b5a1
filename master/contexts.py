"""Guest contexts: each is one worker process.

With share_worker they are all one process, the resource model that most renderers have; that is for comparing the two.
"""

import logging
import time
from collections.abc import Callable, Iterator

from ipc.messages import CreateContext, DestroyContext, DetachResource, Fault, Message
from master.allowance import Allowance
from master.blame import NOT_THE_PROGRAMS, Cause, CauseKind
from master.context import Context
from master.errors import GuestError
from master.events import ContextCreated, ContextEnded, EventSource
from master.incidents import IncidentLog
from master.lane_worker import LaneWorker
from master.limits import Limits
from master.line_limit import LineLimit
from master.objects import Objects, Obtained
from master.records import Executed, Records
from master.strikes import Strikes
from master.supervisor import Supervisor
from master.turns import Turns
from master.virtio_gpu import ResponseType
from native.dataplane import CommandLimit, Lane, Plane, Status, TooLarge
from resource_table import Abilities, Policy, Resource, ResourceTable, TableError

log = logging.getLogger(__name__)

REFUSAL_INTERVAL = 1.0  # seconds between two log lines about contexts of programs in quarantine
_TOO_LARGE = {
    CommandLimit.SUBMIT: ("command size", "a command stream larger than half of the command ring"),
    CommandLimit.TRANSFER: ("staging memory", "a transfer larger than staging memory"),
}


class Contexts:
    """ctx_id -> Context. Also the owner of workers in use: it is told when one ends."""

    def __init__(
        self,
        plane: Plane,
        supervisor: Supervisor[LaneWorker],
        table: ResourceTable,
        events: EventSource,
        incidents: IncidentLog,
        strikes: Strikes,
        limits: Limits | None = None,
        share_worker: bool = False,
    ) -> None:
        self._plane = plane
        self._supervisor = supervisor
        self._table = table
        self._events = events
        self._incidents = incidents
        self._strikes = strikes
        self._allowance = Allowance(limits or Limits(), events)
        self._refusals = LineLimit(REFUSAL_INTERVAL, time.monotonic)
        self._share_worker = share_worker
        self._contexts: dict[int, Context] = {}
        self._served: dict[int, list[Context]] = {}
        """By worker, until it is buried. One that is shared forgets the destroyed ones when the next is made."""
        self._records = Records(plane)
        self._objects = Objects(plane, table, self._records, self.get, supervisor.listen)
        self._turns = Turns(plane, self._records, self.get)
        supervisor.owner = self

    def __iter__(self) -> Iterator[Context]:
        return iter(list(self._contexts.values()))

    def __len__(self) -> int:
        return len(self._contexts)

    def get(self, ctx_id: int) -> Context:
        """The context, alive or lost. Raises GuestError (INVALID_CONTEXT_ID)."""
        context = self._contexts.get(ctx_id)
        if context is None:
            raise GuestError(ResponseType.ERR_INVALID_CONTEXT_ID, f"no context {ctx_id}")
        return context

    def alive(self, ctx_id: int) -> Context:
        """The context if its worker lives. Raises GuestError (INVALID_CONTEXT_ID, UNSPEC)."""
        context = self.get(ctx_id)
        if context.lost:
            raise GuestError(ResponseType.ERR_UNSPEC, f"{context} is lost")
        return context

    # ---- what the guest does

    def create(self, ctx_id: int, name: str, capset_id: int) -> Context:
        """Takes a worker for a new context. `name` is printable. Raises GuestError.

        A program in quarantine is answered ERR_UNSPEC. Linux sends CTX_CREATE without a fence and goes on whatever the
        answer is; then each command of the context is answered ERR_INVALID_CONTEXT_ID at once, so nobody waits.
        """
        if ctx_id == 0 or ctx_id in self._contexts:
            raise GuestError(ResponseType.ERR_INVALID_CONTEXT_ID, f"context id {ctx_id}")
        if self._strikes.refuses(name):
            if (before := self._refusals.admit()) is not None:
                log.warning("refused ctx %d %s: in quarantine%s", ctx_id, name, before)
            raise GuestError(ResponseType.ERR_UNSPEC, f"{name} is in quarantine")
        existing = max(len(self.in_use()), len(self._contexts))  # lost ones have no worker
        self._allowance.check_context(ctx_id, name, existing)
        try:
            worker = self._worker()
        except OSError as error:
            raise GuestError(ResponseType.ERR_OUT_OF_MEMORY, f"no worker: {error}") from error
        self._allowance.context_made()
        worker.on_answer = self._objects.answered
        context = Context(ctx_id, name, worker, capset_id)
        worker.serves = "all contexts" if self._share_worker else str(context)
        self._plane.bind_lane(worker.lane, ctx_id)
        self._contexts[ctx_id] = context
        others = self._served.get(worker.worker_id, [])
        self._served[worker.worker_id] = [*(other for other in others if not other.destroyed), context]
        self.send(context, CreateContext(ctx_id, capset_id, name), lambda status: self._created(context, status))
        log.info("%s: created (worker %s)", context, worker.pid or "starting")
        self._events.publish(
            ContextCreated(**self._events.stamp(), ctx_id=ctx_id, program=name, pid=worker.pid)
        )
        return context

    def _worker(self) -> LaneWorker:
        """For a new context. Raises OSError."""
        if self._share_worker:
            for contexts in self._served.values():
                if contexts and not contexts[0].lost and contexts[0].worker.doom is None:
                    return contexts[0].worker
        return self._supervisor.take()

    def destroy(self, ctx_id: int) -> None:
        """The guest is done with it; what it placed before still runs. Raises GuestError."""
        context = self.get(ctx_id)
        for resource_id in list(context.resources):
            self._drop(context, self._table.get(resource_id))
        del self._contexts[ctx_id]
        self._plane.forget_context(ctx_id)
        context.destroyed = True
        if not context.lost:
            self.send(context, DestroyContext())
        log.info("%s: destroyed", context)
        if self._share_worker:
            self._ended(context)

    # ---- resources

    @property
    def abilities(self) -> Abilities:
        """What workers can do with memory that is shared."""
        return self._objects.abilities

    @abilities.setter
    def abilities(self, abilities: Abilities) -> None:
        self._objects.abilities = abilities

    def attach(self, context: Context, resource: Resource, executed: Executed) -> bool:
        """Gives the context the resource; executed(status) is called once its worker has it, now or later.

        False if that has to wait for something (see Objects.attach). Raises GuestError (OUT_OF_MEMORY), TableError.
        """
        if resource.resource_id in context.resources:
            executed(Status.OK)
            return True
        self._note(context, resource)
        try:
            return self._objects.attach(context, resource, executed)
        except (OSError, TableError) as error:
            self._drop(context, resource)
            raise GuestError(ResponseType.ERR_OUT_OF_MEMORY, f"{context}: {error}") from error

    def create_blob(self, context: Context, resource: Resource, executed: Executed) -> bool:
        """Has the context make a blob, which it is given; otherwise as attach(). If it is not executed well there is no
        such resource."""
        self._note(context, resource)
        try:
            return self._objects.create_blob(context, resource, executed)
        except OSError as error:
            self._drop(context, resource)
            raise GuestError(ResponseType.ERR_OUT_OF_MEMORY, f"{context}: {error}") from error

    def _note(self, context: Context, resource: Resource) -> None:
        host_blob = resource.blob if resource.policy is not Policy.GUEST_ONLY else None
        nbytes = host_blob.nbytes if host_blob is not None else resource.texture.nbytes
        self._check_room(context, nbytes)
        resource.attach_to(context.ctx_id)
        context.resources[resource.resource_id] = nbytes
        context.resource_bytes += nbytes
        if self._objects.tells_workers(resource):
            context.told.add(resource.resource_id)
        self._plane.attach_resource(resource.resource_id, context.ctx_id)

    def obtain_storage(self, resource: Resource, obtained: Obtained) -> None:
        """See Objects.obtain."""
        self._objects.obtain(resource, obtained)

    def in_turn(self, resource: Resource, act: Callable[[], None]) -> None:
        """See Turns.take."""
        self._turns.take(resource, act)

    def hurry(self, resource: Resource) -> None:
        """See Turns.hurry."""
        self._turns.hurry(resource)

    def _check_room(self, context: Context, nbytes: int) -> None:
        limits = self._allowance.limits
        if len(context.resources) >= limits.context_resources:
            words = f"{limits.context_resources} resources"
            self._over(context, "resources", words)
        elif context.resource_bytes + nbytes > limits.context_memory:
            words = f"{nbytes} bytes on top of {context.resource_bytes} in resources, of {limits.context_memory}"
            self._over(context, "memory", words)
        else:
            return
        raise GuestError(ResponseType.ERR_OUT_OF_MEMORY, f"{context}: {words}")

    def _over(self, context: Context, limit: str, words: str) -> None:
        """Told once for each context and limit."""
        if limit not in context.limits_told:
            context.limits_told.add(limit)
            self._allowance.tell(context.ctx_id, context.name, limit, words)

    def too_large(self, event: TooLarge) -> None:
        """The plane refused a command because of its size."""
        context = self._contexts.get(event.ctx_id)
        if context is not None:
            self._over(context, *_TOO_LARGE[event.limit])

    def detach(self, context: Context, resource: Resource, executed: Executed | None = None) -> bool:
        """The opposite of attach(). Raises GuestError (INVALID_RESOURCE_ID) if the context never had it."""
        if resource.resource_id not in context.resources:
            raise GuestError(
                ResponseType.ERR_INVALID_RESOURCE_ID, f"{context} has no resource {resource.resource_id}"
            )
        told = resource.resource_id in context.told
        self._drop(context, resource)
        if told:
            return self.send(context, DetachResource(resource.resource_id), executed)
        if executed is not None:
            executed(Status.OK)
        return True

    def detach_everywhere(self, resource: Resource) -> None:
        """Before a resource goes away."""
        for ctx_id in list(resource.contexts):
            self.detach(self._contexts[ctx_id], resource)

    def disown(self, resource: Resource) -> None:
        """A blob was not made: who attached it never had it, and is told nothing."""
        for ctx_id in list(resource.contexts):
            self._drop(self._contexts[ctx_id], resource)

    def _drop(self, context: Context, resource: Resource) -> None:
        context.resource_bytes -= context.resources.pop(resource.resource_id, 0)
        context.told.discard(resource.resource_id)
        resource.detach_from(context.ctx_id)
        self._plane.detach_resource(resource.resource_id, context.ctx_id)

    def reset(self) -> None:
        """Device reset: every context is killed. Nobody is to blame."""
        for context in self:  # the lost ones too, whose workers are buried
            self._plane.forget_context(context.ctx_id)
            if self._share_worker and not context.lost:
                self._ended(context)
        self._contexts.clear()
        for context in self.in_use():
            context.destroyed = True
            self._plane.lose_lane(context.worker.lane)
            context.worker.dismiss()

    # ---- messages in the ring

    def send(self, context: Context, message: Message, done: Executed | None = None) -> bool:
        """See Records.send."""
        return self._records.send(context, message, done)

    def work_done(self, token: int, status: Status) -> bool:
        """A message was executed. False if the token is not one of ours."""
        return self._records.work_done(token, status)

    def new_token(self) -> int:
        """A number for other work on a lane, different from those of messages."""
        return self._records.new_token()

    def _created(self, context: Context, status: Status) -> None:
        if status not in (Status.OK, Status.LOST):
            text = f"could not create the context ({status.name})"
            context.worker.kill(Cause(kind=CauseKind.STARTUP, text=text))

    # ---- what happens to workers

    def worker_faulted(self, worker: LaneWorker, fault: Fault) -> None:
        """Its engine complains of what the guest sent: a line for whoever debugs the guest program."""
        if worker.worker_id not in self._served or (before := worker.complaints.admit()) is None:
            return
        more = f" (and {fault.count - 1} more)" if fault.count > 1 else ""
        log.warning("%s: %s%s%s", worker.serves, fault.text, more, before)

    def worker_gone(self, worker: LaneWorker) -> None:
        """Its lane is lost already: fences have retired. Resources that only it held are lost."""
        self._objects.worker_gone(worker)
        for context in self._served.get(worker.worker_id, ()):
            if not context.destroyed:
                self._lose(context)

    def _lose(self, context: Context) -> None:
        context.lost = True
        for resource_id in list(context.resources):
            resource = self._table.get(resource_id)
            resource.context_died(context.ctx_id)
            if resource.lost:
                context.resources_lost.append(resource_id)
            self._plane.detach_resource(resource_id, context.ctx_id)
        context.resources.clear()
        context.resource_bytes = 0

    def worker_reaped(self, worker: LaneWorker) -> None:
        """Now it is known how it ended. A context that the guest had destroyed is lost all the same if its worker did
        not end by itself."""
        for context in self._served.pop(worker.worker_id, ()):
            if context.destroyed and self._share_worker:
                continue  # it ended before, and the worker went on for others
            if context.destroyed and worker.ended_as_it_should():
                self._ended(context)
            else:
                self._blame(context)

    def _ended(self, context: Context) -> None:
        event = ContextEnded(
            **self._events.stamp(), ctx_id=context.ctx_id, program=context.name, pid=context.worker.pid
        )
        self._events.publish(event)

    def _blame(self, context: Context) -> None:
        worker, cause = context.worker, context.worker.cause()
        incident = self._incidents.report(
            context.ctx_id, context.name, worker.pid, cause, worker.history(), context.resources_lost
        )
        log.error("context lost: %s", incident)
        # Nobody knows which of several contexts brought a shared worker down.
        if worker.serving and cause.kind not in NOT_THE_PROGRAMS and not self._share_worker:
            self._strikes.strike(context.name)

    def lane(self, number: int) -> Lane | None:
        """The lane of a worker in use, by its number."""
        contexts = self._served.get(number)
        return contexts[0].worker.lane if contexts and not contexts[0].worker.dead else None

    def lane_broken(self, number: int) -> None:
        """A worker broke the rules of its ring: it cannot be believed any more."""
        for worker in self._supervisor.workers():
            if worker.worker_id == number:
                worker.kill(Cause(kind=CauseKind.PROTOCOL, text="broke the rules of its ring"))

    def give_up_on_stuck(self, why: str) -> bool:
        """Kills the workers that somebody still waits for, but for those that wait for others themselves. False if
        there are none."""
        stuck = False
        for context in self.in_use():
            if context.worker.dead:
                continue
            if self._plane.progress(context.worker.lane).at_work:
                context.worker.give_up(Cause(kind=CauseKind.HANG, text=why))
                stuck = True
        return stuck

    def kill(self, ctx_id: int) -> bool:
        """Ends a context's worker at the operator's word. False if it has none that lives."""
        for context in self.in_use():
            if context.ctx_id == ctx_id and not context.worker.dead and context.worker.doom is None:
                context.worker.kill(Cause(kind=CauseKind.OPERATOR, text="killed by the operator"))
                return True
        return False

    def all(self) -> list[Context]:
        """Every context that the guest has, lost ones too, and those it destroyed whose workers are not buried yet."""
        ending = [context for context in self.in_use() if context.destroyed]
        return [*self._contexts.values(), *ending]

    def in_use(self) -> list[Context]:
        """Every context whose worker has not been buried, destroyed ones too."""
        return [context for contexts in self._served.values() for context in contexts]
