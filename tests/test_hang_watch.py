"""master.hang_watch, with a clock and a worker of the test's own."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from master.blame import Cause, CauseKind
from master.hang_watch import DEBT_LIMIT, HangWatch
from master.worker import START_LIMIT
from native.dataplane import LaneProgress

TIMEOUT = 10.0


@dataclass
class FakeWorker:
    worker_id: int = 1
    lane: object = None
    dead: bool = False
    serving: bool = True
    killed: str = ""

    def give_up(self, why: Cause) -> None:
        assert why.kind is CauseKind.HANG
        self.dead, self.killed = True, why.text


@dataclass
class FakeContext:
    worker: FakeWorker = field(default_factory=FakeWorker)
    destroyed: bool = False


class Scene:
    """Plane, loop and contexts in one; looks once a second."""

    def __init__(self) -> None:
        self.now = 0.0
        self.context = FakeContext()
        self.state = dict.fromkeys(LaneProgress.__slots__, 0)
        everything = cast(Any, self)
        self.watch = HangWatch(everything, everything, everything, TIMEOUT)

    def call_later(self, _delay: float, _call: object) -> asyncio.TimerHandle | None:
        return None

    def time(self) -> float:
        return self.now

    def in_use(self) -> list[FakeContext]:
        return [self.context]

    def progress(self, _lane: object) -> LaneProgress:
        state: dict[str, Any] = dict(self.state)
        return LaneProgress(**state)

    def lives(self, seconds: float, **step: int) -> bool:
        """Whether the worker is alive after so long, its progress growing by `step` each second."""
        for _ in range(int(seconds)):
            self.now += 1.0
            for name, more in step.items():
                self.state[name] += more
            self.watch._look()
        return not self.context.worker.dead


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_an_idle_worker_may_sleep(scene: Scene) -> None:
    assert scene.lives(100 * TIMEOUT)


@pytest.mark.parametrize("awaited", ["waiting", "backlog"])
def test_one_that_stands_still_while_others_wait_is_killed(scene: Scene, awaited: str) -> None:
    scene.state[awaited] = 1
    assert scene.lives(TIMEOUT - 1)
    assert not scene.lives(3)
    assert "no progress" in scene.context.worker.killed


@pytest.mark.parametrize("destroyed", [False, True])
def test_one_that_waits_for_others_may_wait(scene: Scene, destroyed: bool) -> None:
    scene.state.update(backlog=3, blocked=1)
    scene.context.destroyed = destroyed
    assert scene.lives(2 * DEBT_LIMIT * TIMEOUT)
    scene.state["waiting"] = 1  # and owes something itself
    assert not scene.lives(TIMEOUT + 3)


def test_one_that_stood_behind_others_has_its_own_time(scene: Scene) -> None:
    scene.state.update(backlog=3, blocked=1)
    assert scene.lives(10 * TIMEOUT)
    scene.state["blocked"] = 0
    assert scene.lives(TIMEOUT - 1)
    assert not scene.lives(3)


def test_one_that_moves_is_left_alone(scene: Scene) -> None:
    scene.state["waiting"] = 1
    assert scene.lives(3 * DEBT_LIMIT * TIMEOUT, oldest=1, begun=1)


def test_words_that_go_to_and_fro_are_no_progress(scene: Scene) -> None:
    scene.state.update(waiting=1, oldest=1)
    for second in range(int(TIMEOUT) + 3):
        scene.state["begun"] = second % 2
        scene.lives(1)
    assert scene.context.worker.dead


def test_progress_without_the_oldest_answer_is_believed_for_a_while_only(scene: Scene) -> None:
    scene.state.update(waiting=2, oldest=1)
    assert scene.lives(DEBT_LIMIT * TIMEOUT - 1, begun=1, completed=1)
    assert not scene.lives(3, begun=1, completed=1)
    assert "owed an answer" in scene.context.worker.killed


def test_a_destroyed_context_has_to_end(scene: Scene) -> None:
    scene.context.destroyed = True
    assert not scene.lives(TIMEOUT + 2)


def test_a_driver_may_take_its_time_to_load_but_not_for_ever(scene: Scene) -> None:
    scene.context.worker.serving = False
    scene.state["waiting"] = 1
    assert scene.lives(START_LIMIT - 1)
    assert not scene.lives(3)
