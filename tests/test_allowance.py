"""master.allowance."""

from __future__ import annotations

import pytest

from master.allowance import REPEAT_INTERVAL, Allowance
from master.errors import GuestError
from master.events import Event, EventSource, LimitReached
from master.limits import Limits, Rate
from master.virtio_gpu import ResponseType


class Scene:
    def __init__(self, limits: Limits) -> None:
        self.now = 0.0
        self.told: list[Event] = []
        events = EventSource("desk")
        events.publish = self.told.append
        self.allowance = Allowance(limits, events, now=lambda: self.now)

    def refused(self, existing: int = 0) -> bool:
        try:
            self.allowance.check_context(7, "spawner", existing)
        except GuestError as error:
            assert error.response is ResponseType.ERR_OUT_OF_MEMORY
            return True
        self.allowance.context_made()
        return False


def test_contexts_at_a_time() -> None:
    scene = Scene(Limits(contexts=2))
    assert [scene.refused(existing) for existing in (0, 1, 2, 300)] == [False, False, True, True]


def test_contexts_in_a_time(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(Limits(spawns=Rate(2, 10.0)))
    assert [scene.refused() for _ in range(5)] == [False, False, True, True, True]
    scene.now += 10.0
    assert [scene.refused() for _ in range(3)] == [False, False, True]
    assert [record.getMessage() for record in caplog.records] == [
        "over the limit: ctx 7 spawner: contexts made too fast (2/10 s)",
        "over the limit: ctx 7 spawner: contexts made too fast (2/10 s) (2 others before)",
    ]
    event = scene.told[0]
    assert isinstance(event, LimitReached) and (event.ctx_id, event.program, event.limit) == (7, "spawner", "spawns")


def test_a_flood_is_a_line_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(Limits(contexts=1))
    for _ in range(1000):
        scene.refused(existing=1)
        scene.now += REPEAT_INTERVAL / 500
    assert len(caplog.records) == len(scene.told) == 2
