"""master.contexts with real workers of the null engine: what the table, the guest and the log are told."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from ipc.messages import CreateContext, DetachResource, EngineName, Fault, Message
from master.blame import Cause, CauseKind, Incident
from master.context import Context
from master.context_status import context_status
from master.contexts import Contexts
from master.errors import GuestError
from master.events import Event, EventSource, LimitReached
from master.incidents import IncidentLog
from master.lane_worker import LaneWorkers
from master.launch import LaunchSettings
from master.limits import Limits, Rate
from master.strikes import Strikes
from master.supervisor import Supervisor
from master.virtio_gpu import ResponseType
from native.dataplane import CommandLimit, Status, TooLarge, WorkDone
from native.texture import Texture
from resource_table import Resource, ResourceTable
from tests.worker_nursery import WorkerNursery, worker_nursery

ONE, OTHER = 1, 2
TEXTURE = Texture(2, 1, 2, 64, 32, 1, 1, 0, 0, 1)


class Scene:
    """Contexts on a nursery's workers, with a table of their own."""

    def __init__(self, nursery: WorkerNursery, limits: Limits) -> None:
        self.nursery = nursery
        self.plane = nursery.plane
        self.table = ResourceTable()
        self.events: list[Event] = []
        source = EventSource("test")
        source.publish = self.events.append
        self.incidents = IncidentLog(source)
        self.strikes = Strikes(source, Rate(2, 1000.0))
        self.contexts = Contexts(
            nursery.plane, nursery.supervisor, self.table, source, self.incidents, self.strikes, limits
        )
        self.foreign: list[WorkDone] = []
        nursery.on_work_done = self._work_done

    @property
    def lost(self) -> list[Incident]:
        """What happened so far."""
        return self.incidents.latest()

    def _work_done(self, done: WorkDone) -> None:
        if not self.contexts.work_done(done.token, done.status):
            self.foreign.append(done)

    def resource(self, resource_id: int, texture: Texture = TEXTURE) -> Resource:
        """A v1 resource, known to the plane as a guest's would be."""
        resource = self.table.create_3d(resource_id, texture)
        self.plane.set_resource(resource_id, texture)
        return resource

    def served(self, ctx_id: int, name: str = "program") -> Context:
        """A context whose worker has made it."""
        context = self.contexts.create(ctx_id, name, 0)
        self.nursery.until(lambda: context.worker.serving and context.worker.pid, "its worker")
        return context

    def ask(self, context: Context, message: Message) -> Status:
        """What the worker says to a message."""
        answers: list[Status] = []
        self.contexts.send(context, message, answers.append)
        self.nursery.until(lambda: answers, f"the answer to {message}")
        assert len(answers) == 1
        return answers[0]

    def give(self, context: Context, resource: Resource) -> Status:
        """Attaches, and tells the worker."""
        answers: list[Status] = []
        self.contexts.attach(context, resource, answers.append)
        self.nursery.until(lambda: answers, f"resource {resource.resource_id} at {context}")
        assert len(answers) == 1
        return answers[0]

    def buried(self, context: Context) -> None:
        """Waits until its worker is forgotten."""
        self.nursery.until(lambda: context not in self.contexts.in_use(), f"the burial of {context}")

    def die(self, context: Context) -> None:
        """Its worker is killed by somebody, and buried."""
        os.kill(context.worker.pid, signal.SIGKILL)
        self.buried(context)

    def close(self) -> None:
        self.contexts.reset()
        for resource in self.table:
            self.plane.remove_resource(resource.resource_id)
        self.table.clear()
        self.nursery.until(lambda: not self.contexts.in_use(), "the end of all contexts")
        self.nursery.pump()  # nothing may be left for the next scene, whose tokens are the same
        assert not self.foreign


@pytest.fixture(scope="module")
def nursery() -> Iterator[WorkerNursery]:
    with worker_nursery(spares=2) as nursery:
        nursery.started()
        yield nursery
        assert not nursery.fatal


@pytest.fixture
def limits() -> Limits:
    """Those of `scene`."""
    return Limits(context_memory=1 << 20, contexts=8, context_resources=4, spawns=Rate(1000, 1.0))


@pytest.fixture
def scene(nursery: WorkerNursery, limits: Limits) -> Iterator[Scene]:
    scene = Scene(nursery, limits)
    yield scene
    scene.close()


def hang(text: str) -> Cause:
    return Cause(kind=CauseKind.HANG, text=text)


def ignore(_status: Status) -> None:
    """Nobody wants to know."""


def refusal(error: pytest.ExceptionInfo[GuestError]) -> ResponseType:
    return error.value.response


# --- ids ------------------------------------------------------------------------------------------------------------


def test_create_and_destroy(scene: Scene) -> None:
    context = scene.served(ONE, "kmscube")
    assert scene.contexts.get(ONE) is scene.contexts.alive(ONE) is context
    assert list(scene.contexts) == scene.contexts.in_use() == [context] and len(scene.contexts) == 1
    assert str(context) == "ctx 1 kmscube"
    scene.contexts.destroy(ONE)
    assert len(scene.contexts) == 0 and context.destroyed
    scene.buried(context)
    assert context.worker.wait_status == 0 and not scene.lost
    assert not psutil.pid_exists(context.worker.pid)


@pytest.mark.parametrize("ctx_id", [0, ONE])
def test_ids_that_cannot_be_taken(scene: Scene, ctx_id: int) -> None:
    context = scene.contexts.create(ONE, "first", 0)
    with pytest.raises(GuestError) as error:
        scene.contexts.create(ctx_id, "second", 0)
    assert refusal(error) is ResponseType.ERR_INVALID_CONTEXT_ID
    assert scene.contexts.in_use() == [context]


def test_unknown_ids(scene: Scene) -> None:
    for call in (scene.contexts.get, scene.contexts.alive, scene.contexts.destroy):
        with pytest.raises(GuestError) as error:
            call(ONE)
        assert refusal(error) is ResponseType.ERR_INVALID_CONTEXT_ID


def test_an_id_is_free_as_soon_as_its_context_is_destroyed(scene: Scene) -> None:
    first = scene.served(ONE)
    os.kill(first.worker.pid, signal.SIGSTOP)  # it lives on for as long as this test wants
    scene.contexts.destroy(ONE)
    second = scene.contexts.create(ONE, "second", 0)
    assert second.worker is not first.worker
    assert scene.contexts.in_use() == [first, second] and list(scene.contexts) == [second]
    assert scene.give(second, scene.resource(1)) is Status.OK
    os.kill(first.worker.pid, signal.SIGCONT)
    scene.buried(first)
    assert not second.lost and scene.contexts.alive(ONE) is second and not scene.lost


@pytest.mark.parametrize("limits", [Limits(contexts=1)])
def test_no_more_contexts_than_the_limit(scene: Scene) -> None:
    first = scene.served(ONE)
    os.kill(first.worker.pid, signal.SIGSTOP)
    for _ in range(2):  # with the context there, and then with nothing of it but the worker
        with pytest.raises(GuestError) as error:
            scene.contexts.create(OTHER, "one too many", 0)
        assert refusal(error) is ResponseType.ERR_OUT_OF_MEMORY
        if ONE in {context.ctx_id for context in scene.contexts}:
            scene.contexts.destroy(ONE)
    os.kill(first.worker.pid, signal.SIGCONT)
    scene.buried(first)
    scene.contexts.create(OTHER, "in its place", 0)


@pytest.mark.parametrize("limits", [Limits(contexts=1)])
def test_lost_contexts_count_until_they_are_destroyed(scene: Scene) -> None:
    scene.die(scene.served(ONE))
    with pytest.raises(GuestError) as error:
        scene.contexts.create(OTHER, "one too many", 0)
    assert refusal(error) is ResponseType.ERR_OUT_OF_MEMORY
    scene.contexts.destroy(ONE)
    scene.contexts.create(OTHER, "in its place", 0)


def test_without_workers_there_is_no_context(nursery: WorkerNursery) -> None:
    kind = LaneWorkers(nursery.plane, EngineName.NULL, nursery.driver.loop)
    idle = Supervisor(nursery.driver.loop, kind, 0, LaunchSettings(), nursery.fatal.append)
    source = EventSource("test")
    contexts = Contexts(nursery.plane, idle, ResourceTable(), source, IncidentLog(source), Strikes(source, None))
    with pytest.raises(GuestError) as error:
        contexts.create(ONE, "program", 0)
    assert refusal(error) is ResponseType.ERR_OUT_OF_MEMORY
    assert not contexts.in_use() and len(contexts) == 0


# --- resources ------------------------------------------------------------------------------------------------------


def test_attach_and_detach(scene: Scene) -> None:
    context, resource = scene.served(ONE), scene.resource(7)
    assert scene.give(context, resource) is Status.OK
    assert (set(context.resources), resource.contexts, resource.home) == ({7}, [ONE], ONE)
    answers: list[Status] = []
    assert scene.contexts.attach(context, resource, answers.append) and answers == [Status.OK]  # it has it already
    scene.contexts.detach(context, resource)
    assert (set(context.resources), resource.contexts, resource.home) == (set(), [], None)
    with pytest.raises(GuestError) as error:
        scene.contexts.detach(context, resource)
    assert refusal(error) is ResponseType.ERR_INVALID_RESOURCE_ID and not resource.lost


def test_home_moves_on_when_the_guest_destroys_it(scene: Scene) -> None:
    one, other, resource = scene.served(ONE), scene.served(OTHER), scene.resource(7)
    assert scene.give(one, resource) is scene.give(other, resource) is Status.OK
    assert (resource.contexts, resource.home) == ([ONE, OTHER], ONE)
    scene.contexts.destroy(ONE)
    assert (resource.contexts, resource.home, resource.lost) == ([OTHER], OTHER, False)
    assert set(other.resources) == {7}


def test_a_death_loses_what_its_worker_was_home_of(scene: Scene) -> None:
    one, other = scene.served(ONE), scene.served(OTHER)
    home, guest = scene.resource(7), scene.resource(8)
    picture = scene.table.create_2d(9, 2, 16, 16)
    scene.plane.set_resource(9, TEXTURE)
    for resource in (home, picture):
        scene.give(one, resource)
    scene.give(other, guest)
    scene.give(one, guest)
    scene.die(one)
    assert one.lost and not one.resources
    assert (home.lost, home.home, home.contexts) == (True, None, [])
    assert (guest.lost, guest.home, guest.contexts) == (False, OTHER, [OTHER])
    assert not picture.lost  # its contents are here
    assert scene.give(other, home) is Status.OK
    assert (home.lost, home.home) == (False, OTHER)  # anew, and empty


def test_detach_everywhere_tells_each_worker(scene: Scene) -> None:
    one, other, resource = scene.served(ONE), scene.served(OTHER), scene.resource(7)
    for context in (one, other):
        scene.give(context, resource)
    scene.contexts.detach_everywhere(resource)
    assert not resource.contexts and not one.resources and not other.resources
    for context in (one, other):  # a worker that had not heard of it would refuse
        assert scene.give(context, resource) is Status.OK


# --- messages -------------------------------------------------------------------------------------------------------


def test_answers_of_the_worker(scene: Scene) -> None:
    context = scene.served(ONE)
    assert scene.ask(context, DetachResource(4711)) is Status.INVALID_RESOURCE
    assert scene.give(context, scene.resource(1)) is Status.OK


def test_tokens_are_different_and_only_ours_are_taken(scene: Scene) -> None:
    tokens = [scene.contexts.new_token(), scene.contexts.new_token()]
    answers: list[Status] = []
    scene.contexts.send(scene.served(ONE), DetachResource(1), answers.append)
    assert tokens[0] != tokens[1]
    assert not any(scene.contexts.work_done(token, Status.OK) for token in (*tokens, 0))
    scene.nursery.until(lambda: answers, "the worker's answer")
    assert scene.contexts.new_token() > max(tokens) + 1


def test_a_lost_context_answers_at_once(scene: Scene) -> None:
    context = scene.served(ONE)
    scene.die(context)
    assert scene.contexts.get(ONE) is context
    with pytest.raises(GuestError) as error:
        scene.contexts.alive(ONE)
    assert refusal(error) is ResponseType.ERR_UNSPEC


def test_what_waits_is_answered_when_the_worker_dies(scene: Scene) -> None:
    context = scene.served(ONE)
    assert scene.give(context, scene.resource(1)) is Status.OK
    os.kill(context.worker.pid, signal.SIGSTOP)
    answers: list[Status] = []
    assert scene.contexts.send(context, DetachResource(1), answers.append)
    os.kill(context.worker.pid, signal.SIGKILL)
    scene.nursery.until(lambda: answers, "an answer")
    assert answers == [Status.LOST]
    if not context.worker.dead:
        scene.nursery.until(lambda: context.worker.dead, "its end")
    if context in scene.contexts.in_use():  # its lane refuses work until it is freed
        assert scene.contexts.send(context, DetachResource(1), answers.append)
        assert answers == [Status.LOST] * 2


# --- blame ----------------------------------------------------------------------------------------------------------


def test_a_death_nobody_asked_for_is_blamed(scene: Scene) -> None:
    context = scene.served(ONE, "glxgears")
    scene.die(context)
    assert [str(incident).partition(";")[0] for incident in scene.lost] == [
        f"ctx 1 glxgears (worker {context.worker.pid}): killed by SIGKILL"
    ]
    scene.contexts.destroy(ONE)
    assert len(scene.lost) == 1 and len(scene.contexts) == 0
    assert scene.served(ONE).worker is not context.worker


def test_blame_says_why_we_killed_it(scene: Scene) -> None:
    context = scene.served(ONE)
    context.worker.kill(hang("made no progress"))
    scene.buried(context)
    assert [incident.cause for incident in scene.lost] == [hang("made no progress")]


def test_blame_has_the_last_complaint(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    context = scene.served(ONE)
    scene.plane.send(context.worker.lane, 1, b"\xff" * 8)
    scene.buried(context)
    (incident,) = scene.lost
    assert incident.cause.kind is CauseKind.EXIT and incident.cause.text.startswith("exited with code 3 (")
    assert "; its last complaint: control record" in incident.cause.text
    assert f"{context}: control record" in caplog.text


def test_a_context_that_cannot_be_made_is_lost(scene: Scene) -> None:
    context = scene.served(ONE)
    assert scene.ask(context, CreateContext(ONE, 0, "again")) is Status.INVALID_PARAMETER  # the worker has one
    assert not context.worker.doom
    scene.contexts.send(
        context, CreateContext(ONE, 0, "again"), lambda status: scene.contexts._created(context, status)
    )
    scene.buried(context)
    assert "could not create the context (INVALID_PARAMETER)" in scene.lost[0].cause.text


def test_a_destroyed_context_that_does_not_end_well_is_blamed(scene: Scene) -> None:
    context = scene.served(ONE)
    os.kill(context.worker.pid, signal.SIGSTOP)
    scene.contexts.destroy(ONE)
    scene.die(context)
    assert [incident.cause.signal for incident in scene.lost] == ["SIGKILL"]
    assert not context.lost


def test_a_destroyed_context_that_hangs_is_too(scene: Scene) -> None:
    context = scene.served(ONE)
    os.kill(context.worker.pid, signal.SIGSTOP)
    scene.contexts.destroy(ONE)
    context.worker.give_up(hang("did not end"))
    scene.buried(context)
    assert [incident.cause for incident in scene.lost] == [hang("did not end")]


def test_a_broken_lane_dooms_its_worker_alone(scene: Scene) -> None:
    one, other = scene.served(ONE), scene.served(OTHER)
    assert scene.contexts.lane(one.worker.worker_id) is one.worker.lane
    scene.contexts.lane_broken(one.worker.worker_id)
    scene.buried(one)
    assert [(incident.cause.kind, incident.cause.text) for incident in scene.lost] == [
        (CauseKind.PROTOCOL, "broke the rules of its ring")
    ]
    assert scene.contexts.lane(one.worker.worker_id) is None
    assert scene.give(other, scene.resource(1)) is Status.OK


def test_only_the_stuck_are_given_up(scene: Scene) -> None:
    idle, stuck = scene.served(ONE), scene.served(OTHER)
    for context in (idle, stuck):  # nothing waits any more
        assert scene.ask(context, DetachResource(1)) is Status.INVALID_RESOURCE
    os.kill(stuck.worker.pid, signal.SIGSTOP)
    answers: list[Status] = []
    scene.contexts.send(stuck, DetachResource(1), answers.append)
    scene.contexts.give_up_on_stuck("did not finish")
    scene.nursery.until(lambda: answers, "an answer")
    scene.buried(stuck)
    assert answers == [Status.LOST]
    assert [(incident.ctx_id, incident.cause) for incident in scene.lost] == [(OTHER, hang("did not finish"))]
    assert scene.give(idle, scene.resource(1)) is Status.OK


# --- reset ----------------------------------------------------------------------------------------------------------


def test_reset_ends_everything_and_blames_nobody(scene: Scene) -> None:
    lost, alive, destroyed = scene.served(ONE), scene.served(OTHER), scene.served(3)
    scene.die(lost)
    assert len(scene.lost) == 1
    os.kill(destroyed.worker.pid, signal.SIGSTOP)
    scene.contexts.destroy(3)
    scene.contexts.reset()
    assert len(scene.contexts) == 0 and set(scene.contexts.in_use()) == {alive, destroyed}
    again = [scene.contexts.create(ctx_id, "after", 0) for ctx_id in (ONE, OTHER, 3)]  # no id is held by the plane
    scene.buried(alive)
    scene.buried(destroyed)
    assert len(scene.lost) == 1 and scene.contexts.in_use() == again
    for number, context in enumerate(again, 1):
        assert scene.give(context, scene.resource(number)) is Status.OK


def test_reset_before_a_worker_has_started(scene: Scene) -> None:
    contexts = [scene.contexts.create(ctx_id, "early", 0) for ctx_id in range(1, 5)]  # more than there are spares
    assert any(context.worker.pid == 0 for context in contexts)
    scene.contexts.reset()
    scene.nursery.until(lambda: not scene.contexts.in_use(), "the end of all")
    assert not scene.lost


# --- limits ---------------------------------------------------------------------------------------------------------


def test_too_many_resources_are_one_contexts_trouble(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    one, other = scene.served(ONE, "hoarder"), scene.served(OTHER)
    resources = [scene.resource(number) for number in range(1, 7)]
    for resource in resources[:4]:
        assert scene.contexts.attach(one, resource, ignore)
    for resource in resources[4:]:
        with pytest.raises(GuestError) as error:
            scene.contexts.attach(one, resource, ignore)
        assert refusal(error) is ResponseType.ERR_OUT_OF_MEMORY
    assert scene.contexts.attach(one, resources[0], ignore)  # it has it
    assert scene.contexts.attach(other, resources[4], ignore)
    scene.contexts.detach(one, resources[0])
    assert scene.contexts.attach(one, resources[5], ignore)
    assert caplog.messages == ["over the limit: ctx 1 hoarder: 4 resources"]
    assert [e.limit for e in scene.events if isinstance(e, LimitReached)] == ["resources"]


def test_memory_is_counted_by_what_is_attached(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    context = scene.served(ONE, "hoarder")
    half = Texture(2, 1, 2, 512, 256, 1, 1, 0, 0, 1)
    resources = [scene.resource(1, half), scene.resource(2, half), scene.resource(3)]
    for resource in resources[:2]:
        assert scene.contexts.attach(context, resource, ignore)
    assert context.resource_bytes == 1 << 20
    for _ in range(3):
        with pytest.raises(GuestError) as error:
            scene.contexts.attach(context, resources[2], ignore)
        assert refusal(error) is ResponseType.ERR_OUT_OF_MEMORY
    assert resources[2].contexts == [] and len(caplog.messages) == 1 and "ctx 1 hoarder" in caplog.messages[0]
    scene.contexts.detach(context, resources[0])
    assert scene.contexts.attach(context, resources[2], ignore)
    assert context.resource_bytes == (1 << 19) + TEXTURE.nbytes
    scene.contexts.detach_everywhere(resources[1])
    scene.contexts.detach_everywhere(resources[2])
    assert context.resource_bytes == 0


@pytest.mark.parametrize("limits", [Limits(spawns=Rate(2, 1000.0))])
def test_contexts_made_too_fast(scene: Scene) -> None:
    scene.contexts.create(ONE, "spawner", 0)
    scene.contexts.create(OTHER, "spawner", 0)
    with pytest.raises(GuestError) as error:
        scene.contexts.create(3, "spawner", 0)
    assert refusal(error) is ResponseType.ERR_OUT_OF_MEMORY


def test_commands_that_are_too_large_are_told_of(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    context = scene.served(ONE, "program")
    scene.contexts.too_large(TooLarge(context.worker.worker_id, ONE, CommandLimit.SUBMIT))
    scene.contexts.too_large(TooLarge(context.worker.worker_id, 4711, CommandLimit.SUBMIT))  # gone meanwhile
    assert caplog.messages == [
        "over the limit: ctx 1 program: a command stream larger than half of the command ring"
    ]


# --- strikes and the operator ---------------------------------------------------------------------------------------


def test_a_program_that_goes_on_dying_gets_no_context(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        scene.die(scene.served(ONE, "crasher"))
        scene.contexts.destroy(ONE)
    for ctx_id in (ONE, OTHER):
        with pytest.raises(GuestError) as error:
            scene.contexts.create(ctx_id, "crasher", 0)
        assert refusal(error) is ResponseType.ERR_UNSPEC
    assert caplog.text.count("refused ctx") == 1 and len(scene.contexts) == 0
    scene.served(ONE, "another")
    scene.contexts.reset()
    with pytest.raises(GuestError):  # a reboot does not help
        scene.contexts.create(ONE, "crasher", 0)
    assert scene.strikes.release("crasher") == ["crasher"]
    scene.contexts.create(ONE, "crasher", 0)


def test_the_operators_kill_is_an_incident_and_no_strike(scene: Scene) -> None:
    for number in range(1, 4):
        context = scene.served(ONE, "program")
        assert scene.contexts.kill(ONE) and not scene.contexts.kill(ONE)
        scene.buried(context)
        assert not scene.contexts.kill(ONE) and not scene.contexts.kill(4711)
        scene.contexts.destroy(ONE)
        assert len(scene.lost) == number and scene.lost[-1].cause.kind is CauseKind.OPERATOR
    assert not scene.strikes.quarantined()


def test_an_incident_says_what_there_was(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    context = scene.served(ONE, "glxgears")
    for number in (7, 8):
        assert scene.give(context, scene.resource(number)) is Status.OK
    os.kill(context.worker.pid, signal.SIGSTOP)
    answers: list[Status] = []
    scene.contexts.send(context, DetachResource(4711), answers.append)
    scene.die(context)
    (incident,) = scene.lost
    assert incident.last_commands == (
        "CreateContext (record 1)", "AttachResource 7 (record 2)", "AttachResource 8 (record 3)",
        "DetachResource 4711 (record 4)",
    )  # fmt: skip
    assert (incident.resources_lost, incident.resources_lost_count, incident.fences) == ((7, 8), 2, 1)
    line = f"context lost: ctx 1 glxgears (worker {context.worker.pid}): killed by SIGKILL"
    assert caplog.messages[-1] == line + "; last command: DetachResource 4711 (record 4); 2 resources lost"


def test_events_of_a_life(scene: Scene) -> None:
    context = scene.served(ONE, "glxgears")
    scene.contexts.destroy(ONE)
    scene.buried(context)
    scene.die(scene.served(ONE, "kmscube"))
    told = [(event.KIND, getattr(event, "ctx_id", 0), getattr(event, "program", "")) for event in scene.events]
    assert told == [
        ("context-created", ONE, "glxgears"), ("context-ended", ONE, "glxgears"),
        ("context-created", ONE, "kmscube"), ("incident", ONE, "kmscube"),
    ]  # fmt: skip


def test_floods_of_complaints_are_a_few_lines(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    one, other = scene.served(ONE, "noisy"), scene.served(OTHER, "calm")
    for number in range(1000):
        scene.contexts.worker_faulted(one.worker, Fault(1, f"complaint {number}"))
    scene.contexts.worker_faulted(other.worker, Fault(3, "illegal resource"))
    assert len(caplog.messages) < 50 and caplog.messages[-1] == "ctx 2 calm: illegal resource (and 2 more)"


# --- status ---------------------------------------------------------------------------------------------------------


def test_status_through_a_life(scene: Scene) -> None:
    context = scene.contexts.create(ONE, "glxgears", 0)
    scene.nursery.until(lambda: context.worker.serving and context.worker.pid, "its worker")
    scene.give(context, scene.resource(7))
    running = context_status(context)
    assert (running.ctx_id, running.program, running.pid) == (ONE, "glxgears", context.worker.pid)
    assert (running.state, running.resources, running.resource_bytes) == ("running", 1, TEXTURE.nbytes)
    assert running.memory_bytes > 0 and running.seconds >= 0
    os.kill(context.worker.pid, signal.SIGSTOP)
    scene.contexts.send(context, DetachResource(7), lambda _status: None)
    assert context_status(context).fences == 1
    scene.contexts.destroy(ONE)
    assert [context_status(one).state for one in scene.contexts.all()] == ["ending"]
    os.kill(context.worker.pid, signal.SIGCONT)
    scene.buried(context)
    assert scene.contexts.all() == []
    lost = scene.served(ONE)
    scene.die(lost)
    status = context_status(lost)
    assert (status.state, status.memory_bytes, status.fences) == ("lost", 0, 0)
    assert scene.contexts.all() == [lost]
