"""The way of one worker, from the fork to its end.

`run` is the list of the stages; what may still be done in each is explained in `lockdown`. There is one thread of
ours. It spends its life in the consumer's C loop and comes back to Python for control records and for the end.
"""

import dataclasses
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from context_worker import cgroups, lockdown, shader_cache, title
from context_worker.engine import Engine, EngineError
from context_worker.exit_code import ExitCode
from context_worker.lockdown import Confinement, Stage
from context_worker.namespaces import SelfReference
from context_worker.null import NullEngine
from context_worker.profiles import profile_for
from context_worker.virgl import VirglEngine
from context_worker.vtest import serve_vtest
from ipc import messages
from ipc.channel import FDS_PATIENCE, Channel
from ipc.errors import ChannelClosed, ProtocolError
from ipc.handles import Handles
from ipc.messages import (
    AttachResource,
    CapsetsDone,
    CreateBlob,
    CreateContext,
    DestroyContext,
    DetachResource,
    EngineName,
    Exported,
    Message,
    ObjectToResource,
    ResourceToObject,
)
from native import sandbox
from native.engines import Broken, Consumer, Control, EngineFault, HungUp, Status

log = logging.getLogger(__name__)

_DRAIN_MS = 60_000


class RingDescriptors(NamedTuple):
    """What the commands of a guest context come through, in SpawnWorker's order."""

    ring: int
    staging: int
    worker_doorbell: int
    master_doorbell: int


@dataclass(frozen=True)
class WorkerStart:
    """What a worker is born with: its engine and its descriptors, all its own. Without `ring` it is a vtest worker.

    shader_cache: where the driver keeps shaders. shared: it serves all guest contexts, and not one. max_shader_bytes:
    the text of one shader. launcher: who forked it. reporter: to the launcher, for the listener of its system call
    filter. output_fd: for what it writes to standard output and error. proc_fd: the host's /proc, cgroup_fd: its own
    cgroup, -1 without; none of these is kept.
    """

    engine: EngineName
    render_node: str | None
    shader_cache: Path
    shared: bool
    max_shader_bytes: int
    launcher: SelfReference
    confinement: Confinement
    channel_fd: int
    output_fd: int
    ring: RingDescriptors | None
    reporter: socket.socket
    proc_fd: int = -1
    cgroup_fd: int = -1


def run(start: WorkerStart) -> NoReturn:
    """Be a worker, in a process that was forked for it. Never returns: the process ends here."""
    code = ExitCode.BUG
    try:
        be_born(start)
        stage = Stage.BORN
        lockdown.restrict(start.confinement, for_vtest=start.ring is None)
        stage = Stage.RESTRICTED
        lockdown.confine(start.confinement, start.shader_cache)
        stage = Stage.CONFINED
        accepts = messages.TO_LANE_WORKER if start.ring else messages.TO_VTEST_WORKER
        channel = Channel.from_fd(start.channel_fd, accepts)
        engine = load(start, channel)
        stage = Stage.LOADED
        if engine is None:
            code = ExitCode.NO_ENGINE
        else:
            consumer = open_ring(start.ring, start.channel_fd, engine) if start.ring else None
            profile = profile_for(start.render_node, start.engine, for_vtest=start.ring is None)
            lockdown.seal(start.confinement, profile, start.reporter)
            stage = Stage.SEALED
            introduce(channel, engine)
            code = serve(channel, engine, consumer, start.shared) if consumer else serve_vtest(channel, engine)
    except ChannelClosed:
        code = ExitCode.OK
    except BaseException:
        log.exception("ends after the stage %s", stage.name if "stage" in locals() else "before any")
    finally:
        # Without exit handlers: those of a driver would meet threads that are still at work.
        logging.shutdown()
        os._exit(code)


def be_born(start: WorkerStart) -> None:
    """Stage BORN: let go of everything that is the launcher's."""
    lockdown.leave_streams(start.output_fd)
    title.log_to_master()
    start.launcher.die_with()
    if start.cgroup_fd >= 0:
        cgroups.join(start.cgroup_fd)
    if start.proc_fd >= 0:
        lockdown.separate(start.confinement, start.proc_fd)
    os.setsid()  # a scheduling group of its own (sched(7), autogroup): a busy worker does not hold up an idle one
    lockdown.close_all_but({0, 1, 2, start.channel_fd, start.reporter.fileno(), *(start.ring or ())})
    lockdown.reset_signals()
    sandbox.install_abort_handler(ExitCode.ABORTED)
    title.set_title(title.spare_title(start.engine) if start.ring else title.vtest_spare_title(start.engine))


def load(start: WorkerStart, channel: Channel) -> Engine | None:
    """Stage LOADED: start the engine; None if it does not start here, which the master is told."""
    try:
        if start.engine is EngineName.NULL:
            return NullEngine()
        os.environ.update(shader_cache.environment(start.shader_cache))
        return VirglEngine(
            start.render_node, for_vtest=start.ring is None, max_shader_bytes=start.max_shader_bytes
        )
    except EngineError as error:
        log.error("%s", error)
        channel.send(messages.fault(str(error)))
        return None


def open_ring(ring: RingDescriptors, channel_fd: int, engine: Engine) -> Consumer:
    """Map the ring and the staging memory; nothing in them is looked at yet but their header."""
    return Consumer(
        ring_fd=ring.ring,
        staging_fd=ring.staging,
        worker_doorbell_fd=ring.worker_doorbell,
        master_doorbell_fd=ring.master_doorbell,
        channel_fd=channel_fd,
        engine=engine.native,
    )


def introduce(channel: Channel, engine: Engine) -> None:
    """Tell the master what there is: Ready, the capability sets, CapsetsDone."""
    found = engine.description
    channel.send(messages.ready(engine.name, found.capabilities, found.renderer, found.version))
    for capset in engine.capsets():
        channel.send(capset)
    channel.send(CapsetsDone())


def serve(channel: Channel, engine: Engine, consumer: Consumer, shared: bool) -> ExitCode:
    """Stage SEALED: execute what comes through the ring until the end."""
    decisions = Decisions(engine, consumer, channel, shared)
    while True:
        wake = consumer.run()
        match wake:
            case Control():
                try:
                    ended = decisions.decide(wake)
                except ProtocolError as error:
                    return _refuse(channel, f"control record {wake.seq}: {error}")
                if ended:
                    return ExitCode.OK
            case EngineFault():
                log.debug("%s (%d errors)", wake.text, wake.count)  # for the master to log, once for all workers
                channel.send(messages.fault(wake.text, wake.count))
            case HungUp():
                log.debug("the master is gone")
                return ExitCode.OK
            case Broken():
                return _refuse(channel, f"command ring: {wake.text}")


def _refuse(channel: Channel, text: str) -> ExitCode:
    log.error("%s", text)
    channel.send(messages.fault(text))
    return ExitCode.PROTOCOL


class Decisions:
    """What Python does about control records. Their descriptors come through `channel`, and so go the answers."""

    def __init__(self, engine: Engine, consumer: Consumer, channel: Channel, shared: bool) -> None:
        self._engine = engine
        self._consumer = consumer
        self._channel = channel
        self._handles = Handles(channel)
        self._shared = shared
        self._has_context = False
        self._handlers: dict[type[Message], Callable[[int, Any], Status]] = {
            CreateContext: self._create_context,
            AttachResource: engine.attach_resource,
            DetachResource: lambda ctx_id, message: engine.detach_resource(ctx_id, message.resource_id),
            ResourceToObject: self._resource_to_object,
            ObjectToResource: self._object_to_resource,
            CreateBlob: self._create_blob,
        }

    def decide(self, control: Control) -> bool:
        """Do what an open control record says and answer it; True when it was the last. Raises ProtocolError,
        ChannelClosed."""
        message = messages.decode(control.payload, messages.CONTROL)
        if isinstance(message, DestroyContext):
            if not self._consumer.drain(_DRAIN_MS):
                log.warning("the renderer does not finish")
            if self._shared:
                self._engine.destroy_context(control.ctx_id)
            self._consumer.finish(Status.OK)
            return not self._shared  # the end of the process is the quickest way to clear up after one
        status = self._handlers[type(message)](control.ctx_id, message)
        if status is not Status.OK:
            log.debug("%s: %s", message, status.name)  # not louder: a guest can make any number of these
        self._consumer.finish(status)
        return False

    def _create_context(self, _ctx_id: int, message: CreateContext) -> Status:
        if self._has_context and not self._shared:
            return Status.INVALID_PARAMETER
        if self._shared:
            title.set_title(title.shared_title(self._engine.name))
        else:
            title.set_title(title.context_title(message.ctx_id, message.name, self._engine.name))
        status = self._engine.create_context(message)
        self._has_context = self._has_context or status is Status.OK
        return status

    def _resource_to_object(self, ctx_id: int, message: ResourceToObject) -> Status:
        return self._engine.resource_to_object(ctx_id, message, self._handles.take(message.ticket))

    def _object_to_resource(self, ctx_id: int, message: ObjectToResource) -> Status:
        status, export = self._engine.object_to_resource(ctx_id, message)
        if export is None:
            return status
        layout = export.layout
        answer = Exported(message.ticket, export.kind, **dataclasses.asdict(layout), map_info=export.map_info)
        with export.fd as fd:
            try:
                self._channel.send(answer, [fd], FDS_PATIENCE)
            except OSError as error:  # others have too many descriptors under way
                log.warning("a resource cannot leave: %s", error)
                return Status.FAILED
        return status

    def _create_blob(self, ctx_id: int, message: CreateBlob) -> Status:
        storage = self._handles.take(message.ticket) if message.ticket else None
        status, made = self._engine.create_blob(ctx_id, message, storage)
        if made is not None:
            self._channel.send(made)
        return status
