"""Guest contexts: each is one worker process.

With share_worker they are all one process, the resource model that most renderers have; that is for comparing the two.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ipc.messages import AttachResource, CreateContext, DestroyContext, DetachResource, Fault, Message
from master.blame import Blame
from master.errors import GuestError
from master.lane_worker import LaneWorker
from master.supervisor import Supervisor
from master.virtio_gpu import ResponseType
from native.dataplane import COMPLETE, Lane, Plane, Status, Texture
from resource_table import Resource, ResourceTable

log = logging.getLogger(__name__)

MAX_CONTEXTS = 256


@dataclass(eq=False, slots=True)
class Context:
    """A guest context. Once destroyed by the guest it lives on until its worker has ended."""

    ctx_id: int
    name: str
    worker: LaneWorker
    lost: bool = False
    destroyed: bool = False
    resources: set[int] = field(default_factory=set)

    def __str__(self) -> str:
        return f"ctx {self.ctx_id} {self.name}"


class Contexts:
    """ctx_id -> Context. Also the owner of workers in use: it is told when one ends."""

    def __init__(
        self,
        plane: Plane,
        supervisor: Supervisor[LaneWorker],
        table: ResourceTable,
        on_blame: Callable[[Blame], None],
        share_worker: bool = False,
    ) -> None:
        self._plane = plane
        self._supervisor = supervisor
        self._table = table
        self._on_blame = on_blame
        self._share_worker = share_worker
        self._contexts: dict[int, Context] = {}
        self._served: dict[int, list[Context]] = {}
        """By worker, until it is buried. One that is shared forgets the destroyed ones when the next is made."""
        self._next_token = 1
        self._waiting: dict[int, Callable[[Status], None]] = {}
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
        """Takes a worker for a new context. Raises GuestError."""
        if ctx_id == 0 or ctx_id in self._contexts:
            raise GuestError(ResponseType.ERR_INVALID_CONTEXT_ID, f"context id {ctx_id}")
        if max(len(self.in_use()), len(self._contexts)) >= MAX_CONTEXTS:  # lost ones have no worker
            raise GuestError(ResponseType.ERR_OUT_OF_MEMORY, f"{MAX_CONTEXTS} contexts")
        try:
            worker = self._worker()
        except OSError as error:
            raise GuestError(ResponseType.ERR_OUT_OF_MEMORY, f"no worker: {error}") from error
        context = Context(ctx_id, name, worker)
        self._plane.bind_lane(worker.lane, ctx_id)
        self._contexts[ctx_id] = context
        before = self._served.get(worker.worker_id, [])
        self._served[worker.worker_id] = [*(other for other in before if not other.destroyed), context]
        self.send(context, CreateContext(ctx_id, capset_id, name), lambda status: self._created(context, status))
        log.info("%s: created (worker %s)", context, worker.pid or "starting")
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

    def attach(self, context: Context, resource: Resource, v1: Texture) -> AttachResource | None:
        """Notes that the context has the resource. Returns what its worker must be told, or None if it had it
        already."""
        if not resource.attach_to(context.ctx_id):
            return None
        context.resources.add(resource.resource_id)
        self._plane.attach_resource(resource.resource_id, context.ctx_id)
        return AttachResource(
            resource.resource_id,
            v1.target,
            v1.format,
            v1.bind,
            v1.width,
            v1.height,
            v1.depth,
            v1.array_size,
            v1.last_level,
            v1.nr_samples,
            v1.flags,
        )

    def detach(self, context: Context, resource: Resource) -> DetachResource | None:
        """The opposite of attach(); None if the context never had it."""
        if resource.resource_id not in context.resources:
            return None
        self._drop(context, resource)
        return DetachResource(resource.resource_id)

    def detach_everywhere(self, resource: Resource) -> None:
        """Before a resource goes away."""
        for ctx_id in list(resource.contexts):
            context = self._contexts[ctx_id]
            message = self.detach(context, resource)
            if message is not None and not context.lost:
                self.send(context, message)

    def _drop(self, context: Context, resource: Resource) -> None:
        context.resources.discard(resource.resource_id)
        resource.detach_from(context.ctx_id)
        self._plane.detach_resource(resource.resource_id, context.ctx_id)

    def reset(self) -> None:
        """Device reset: every context is killed. Nobody is to blame."""
        for context in self:  # the lost ones too, whose workers are buried
            self._plane.forget_context(context.ctx_id)
        self._contexts.clear()
        for context in self.in_use():
            context.destroyed = True
            self._plane.lose_lane(context.worker.lane)
            context.worker.kill("device reset")

    # ---- messages in the ring

    def send(self, context: Context, message: Message, done: Callable[[Status], None] | None = None) -> bool:
        """Places a message behind everything of the context; done(status) is called when it has been executed.

        False if the worker is so far behind that the message has to wait for room.
        """
        token = 0
        if done is not None:
            token, self._next_token = self._next_token, self._next_token + 1
            self._waiting[token] = done
        try:
            flags = COMPLETE if done else 0
            return self._plane.send(context.worker.lane, context.ctx_id, message.encode(), flags, token)
        except BrokenPipeError:
            if done is not None:
                del self._waiting[token]
                done(Status.LOST)
            return True

    def work_done(self, token: int, status: Status) -> bool:
        """A message that send() placed was executed. False if the token is not one of ours."""
        done = self._waiting.pop(token, None)
        if done is None:
            return False
        done(status)
        return True

    def new_token(self) -> int:
        """A number for other work on a lane, different from those of messages."""
        token, self._next_token = self._next_token, self._next_token + 1
        return token

    def _created(self, context: Context, status: Status) -> None:
        if status not in (Status.OK, Status.LOST):
            context.worker.kill(f"could not create the context ({status.name})")

    # ---- what happens to workers

    def worker_faulted(self, worker: LaneWorker, fault: Fault) -> None:
        """Its engine complains of what the guest sent: a line for whoever debugs the guest program."""
        contexts = self._served.get(worker.worker_id)
        if contexts:
            more = f" (and {fault.count - 1} more)" if fault.count > 1 else ""
            log.warning("%s: %s%s", ", ".join(map(str, contexts)), fault.text, more)

    def worker_gone(self, worker: LaneWorker) -> None:
        """Its lane is lost already: fences have retired. Resources that only it held are lost."""
        for context in self._served.get(worker.worker_id, ()):
            if not context.destroyed:
                self._lose(context)

    def _lose(self, context: Context) -> None:
        context.lost = True
        for resource_id in list(context.resources):
            resource = self._table.get(resource_id)
            resource.context_died(context.ctx_id)
            self._plane.detach_resource(resource_id, context.ctx_id)
        context.resources.clear()

    def worker_reaped(self, worker: LaneWorker) -> None:
        """Now it is known how it ended."""
        for context in self._served.pop(worker.worker_id, ()):
            expected = context.destroyed and (worker.doom is not None or worker.wait_status == 0)
            if not expected:
                self._on_blame(Blame(context.ctx_id, context.name, worker.pid, worker.cause()))

    def lane(self, number: int) -> Lane | None:
        """The lane of a worker in use, by its number."""
        contexts = self._served.get(number)
        return contexts[0].worker.lane if contexts and not contexts[0].worker.dead else None

    def lane_broken(self, number: int) -> None:
        """A worker broke the rules of its ring: it cannot be believed any more."""
        for worker in self._supervisor.workers():
            if worker.worker_id == number:
                worker.kill("broke the rules of its ring")

    def give_up_on_stuck(self, why: str) -> None:
        """Kills the workers that somebody still waits for."""
        for context in self.in_use():
            if context.worker.dead:
                continue
            progress = self._plane.progress(context.worker.lane)
            if progress.waiting or progress.backlog:
                context.worker.kill(why)
                self._plane.lose_lane(context.worker.lane)

    def in_use(self) -> list[Context]:
        """Every context whose worker has not been buried, destroyed ones too."""
        return [context for contexts in self._served.values() for context in contexts]
