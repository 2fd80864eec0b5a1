"""master.contexts with real workers of the null engine: what the table, the guest and the log are told."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from ipc.messages import AttachResource, CreateContext, DetachResource, EngineName, Message
from master import contexts as contexts_module
from master.blame import Blame
from master.contexts import Context, Contexts
from master.errors import GuestError
from master.lane_worker import LaneWorkers
from master.launch import LaunchSettings
from master.supervisor import Supervisor
from master.virtio_gpu import ResponseType
from native.dataplane import Status, Texture, WorkDone
from resource_table import Resource, ResourceTable
from tests.worker_nursery import WorkerNursery, worker_nursery

ONE, OTHER = 1, 2
TEXTURE = Texture(2, 1, 2, 64, 32, 1, 1, 0, 0, 1)


class Scene:
    """Contexts on a nursery's workers, with a table of their own."""

    def __init__(self, nursery: WorkerNursery) -> None:
        self.nursery = nursery
        self.plane = nursery.plane
        self.table = ResourceTable()
        self.blames: list[Blame] = []
        self.contexts = Contexts(nursery.plane, nursery.supervisor, self.table, self.blames.append)
        self.foreign: list[WorkDone] = []
        nursery.on_work_done = self._work_done

    def _work_done(self, done: WorkDone) -> None:
        if not self.contexts.work_done(done.token, done.status):
            self.foreign.append(done)

    def resource(self, resource_id: int) -> Resource:
        """A v1 resource, known to the plane as a guest's would be."""
        resource = self.table.create_3d(resource_id, TEXTURE)
        self.plane.set_resource(resource_id, TEXTURE)
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
        message = self.contexts.attach(context, resource, TEXTURE)
        assert message is not None
        return self.ask(context, message)

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
def scene(nursery: WorkerNursery) -> Iterator[Scene]:
    scene = Scene(nursery)
    yield scene
    scene.close()


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
    assert context.worker.wait_status == 0 and not scene.blames
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
    assert not second.lost and scene.contexts.alive(ONE) is second and not scene.blames


def test_no_more_contexts_than_the_limit(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts_module, "MAX_CONTEXTS", 1)
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


def test_lost_contexts_count_until_they_are_destroyed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts_module, "MAX_CONTEXTS", 1)
    scene.die(scene.served(ONE))
    with pytest.raises(GuestError) as error:
        scene.contexts.create(OTHER, "one too many", 0)
    assert refusal(error) is ResponseType.ERR_OUT_OF_MEMORY
    scene.contexts.destroy(ONE)
    scene.contexts.create(OTHER, "in its place", 0)


def test_without_workers_there_is_no_context(nursery: WorkerNursery) -> None:
    kind = LaneWorkers(nursery.plane, EngineName.NULL)
    idle = Supervisor(nursery.driver.loop, kind, 0, LaunchSettings(), nursery.fatal.append)
    contexts = Contexts(nursery.plane, idle, ResourceTable(), lambda _blame: None)
    with pytest.raises(GuestError) as error:
        contexts.create(ONE, "program", 0)
    assert refusal(error) is ResponseType.ERR_OUT_OF_MEMORY
    assert not contexts.in_use() and len(contexts) == 0


# --- resources ------------------------------------------------------------------------------------------------------


def test_attach_and_detach(scene: Scene) -> None:
    context, resource = scene.served(ONE), scene.resource(7)
    message = scene.contexts.attach(context, resource, TEXTURE)
    assert message == AttachResource(7, 2, 1, 2, 64, 32, 1, 1, 0, 0, 1)
    assert (context.resources, resource.contexts, resource.home) == ({7}, [ONE], ONE)
    assert scene.contexts.attach(context, resource, TEXTURE) is None  # it has it: nothing to tell
    assert scene.contexts.detach(context, resource) == DetachResource(7)
    assert (context.resources, resource.contexts, resource.home) == (set(), [], None)
    assert scene.contexts.detach(context, resource) is None
    assert not resource.lost


def test_home_moves_on_when_the_guest_destroys_it(scene: Scene) -> None:
    one, other, resource = scene.served(ONE), scene.served(OTHER), scene.resource(7)
    assert scene.give(one, resource) is scene.give(other, resource) is Status.OK
    assert (resource.contexts, resource.home) == ([ONE, OTHER], ONE)
    scene.contexts.destroy(ONE)
    assert (resource.contexts, resource.home, resource.lost) == ([OTHER], OTHER, False)
    assert other.resources == {7}


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
    assert scene.blames == [Blame(ONE, "glxgears", context.worker.pid, "killed by SIGKILL")]
    scene.contexts.destroy(ONE)
    assert len(scene.blames) == 1 and len(scene.contexts) == 0
    assert scene.served(ONE).worker is not context.worker


def test_blame_says_why_we_killed_it(scene: Scene) -> None:
    context = scene.served(ONE)
    context.worker.kill("made no progress")
    scene.buried(context)
    assert [blame.cause for blame in scene.blames] == ["made no progress (killed by SIGKILL)"]


def test_blame_has_the_last_complaint(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    context = scene.served(ONE)
    scene.plane.send(context.worker.lane, 1, b"\xff" * 8)
    scene.buried(context)
    (blame,) = scene.blames
    assert blame.cause.startswith("exited with code 3; its last complaint: control record")
    assert f"{context}: control record" in caplog.text


def test_a_context_that_cannot_be_made_is_lost(scene: Scene) -> None:
    context = scene.served(ONE)
    assert scene.ask(context, CreateContext(ONE, 0, "again")) is Status.INVALID_PARAMETER  # the worker has one
    assert not context.worker.doom
    scene.contexts.send(
        context, CreateContext(ONE, 0, "again"), lambda status: scene.contexts._created(context, status)
    )
    scene.buried(context)
    assert "could not create the context (INVALID_PARAMETER)" in scene.blames[0].cause


def test_a_destroyed_context_that_does_not_end_well_is_blamed(scene: Scene) -> None:
    context = scene.served(ONE)
    os.kill(context.worker.pid, signal.SIGSTOP)
    scene.contexts.destroy(ONE)
    scene.die(context)
    assert [blame.cause for blame in scene.blames] == ["killed by SIGKILL"]
    assert not context.lost


def test_a_destroyed_context_that_we_kill_is_not(scene: Scene) -> None:
    context = scene.served(ONE)
    os.kill(context.worker.pid, signal.SIGSTOP)
    scene.contexts.destroy(ONE)
    context.worker.kill("did not end")
    scene.buried(context)
    assert not scene.blames


def test_a_broken_lane_dooms_its_worker_alone(scene: Scene) -> None:
    one, other = scene.served(ONE), scene.served(OTHER)
    assert scene.contexts.lane(one.worker.worker_id) is one.worker.lane
    scene.contexts.lane_broken(one.worker.worker_id)
    scene.buried(one)
    assert [blame.cause for blame in scene.blames] == ["broke the rules of its ring (killed by SIGKILL)"]
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
    assert [(blame.ctx_id, blame.cause) for blame in scene.blames] == [(OTHER, "did not finish (killed by SIGKILL)")]
    assert scene.give(idle, scene.resource(1)) is Status.OK


# --- reset ----------------------------------------------------------------------------------------------------------


def test_reset_ends_everything_and_blames_nobody(scene: Scene) -> None:
    lost, alive, destroyed = scene.served(ONE), scene.served(OTHER), scene.served(3)
    scene.die(lost)
    scene.blames.clear()
    os.kill(destroyed.worker.pid, signal.SIGSTOP)
    scene.contexts.destroy(3)
    scene.contexts.reset()
    assert len(scene.contexts) == 0 and set(scene.contexts.in_use()) == {alive, destroyed}
    again = [scene.contexts.create(ctx_id, "after", 0) for ctx_id in (ONE, OTHER, 3)]  # no id is held by the plane
    scene.buried(alive)
    scene.buried(destroyed)
    assert not scene.blames and scene.contexts.in_use() == again
    for number, context in enumerate(again, 1):
        assert scene.give(context, scene.resource(number)) is Status.OK


def test_reset_before_a_worker_has_started(scene: Scene) -> None:
    contexts = [scene.contexts.create(ctx_id, "early", 0) for ctx_id in range(1, 5)]  # more than there are spares
    assert any(context.worker.pid == 0 for context in contexts)
    scene.contexts.reset()
    scene.nursery.until(lambda: not scene.contexts.in_use(), "the end of all")
    assert not scene.blames
