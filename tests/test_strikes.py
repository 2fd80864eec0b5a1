"""master.strikes."""

from __future__ import annotations

import logging

import pytest

from master import strikes as strikes_module
from master.events import Event, EventSource, Quarantined, Released
from master.limits import Rate
from master.strikes import MAX_NAMES, WHOLE_GUEST, Strikes


class Scene:
    """Strikes with a clock of the test's own."""

    def __init__(self, per_program: Rate | None = None, whole_guest: Rate | None = None, suffix: str = "") -> None:
        self.now = 0.0
        self.told: list[Event] = []
        events = EventSource("desk", now=lambda: 1700000000.0)
        events.publish = self.told.append
        self.strikes = Strikes(events, per_program, whole_guest, suffix, now=lambda: self.now)

    def strike(self, program: str, times: int = 1) -> None:
        for _ in range(times):
            self.strikes.strike(program)

    def names(self) -> list[str]:
        return [entry.program for entry in self.strikes.quarantined()]


def test_without_a_rate_nobody_is_refused() -> None:
    scene = Scene()
    scene.strike("a", 1000)
    assert not scene.strikes.refuses("a") and not scene.told


def test_a_name_is_put_away_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(Rate(3, 60.0))
    scene.strike("crasher", 2)
    scene.strike("other", 2)
    assert not scene.strikes.refuses("crasher")
    scene.strike("crasher")
    assert scene.strikes.refuses("crasher") and not scene.strikes.refuses("other")
    assert scene.told == [Quarantined(service="desk", time=1700000000.0, program="crasher", strikes=3)]
    assert [r.getMessage() for r in caplog.records] == [
        "quarantine: crasher gets no contexts until released (3 strikes)"
    ]
    scene.strike("crasher", 10)  # those that still run may go on to crash
    assert len(scene.told) == 1


def test_old_strikes_do_not_count() -> None:
    scene = Scene(Rate(3, 60.0))
    for _ in range(10):
        scene.strike("now and then")
        scene.now += 30.0
    assert not scene.told
    scene.strike("now and then")
    scene.now += 1.0
    scene.strike("now and then")
    assert scene.strikes.refuses("now and then")


def test_quarantine_does_not_end_by_itself() -> None:
    scene = Scene(Rate(1, 1.0))
    scene.strike("crasher")
    scene.now += 1e9
    assert scene.strikes.refuses("crasher") and not scene.strikes.is_idle()


def test_names_do_not_help_against_the_guests_own_rate(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(Rate(3, 60.0), Rate(5, 60.0))
    for number in range(5):
        assert not scene.strikes.refuses("innocent")
        scene.strike(f"name {number}")
    assert scene.strikes.refuses("innocent") and scene.names() == [WHOLE_GUEST]
    assert "quarantine: the whole guest gets no contexts" in caplog.text


def test_release_of_one_of_the_guest_and_of_all(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    scene = Scene(Rate(1, 60.0), Rate(3, 60.0))
    for program in "abc":
        scene.strike(program)
    assert scene.names() == ["a", "b", WHOLE_GUEST, "c"]
    assert scene.strikes.release("a") == ["a"]
    assert scene.strikes.refuses("a")  # the guest is refused
    assert scene.strikes.release(WHOLE_GUEST) == [WHOLE_GUEST]
    assert not scene.strikes.refuses("a") and scene.strikes.refuses("b")
    scene.strike("a")
    assert scene.names() == ["b", "c", "a"]  # the guest starts anew
    assert scene.strikes.release(None) == ["b", "c", "a"] and scene.names() == []
    assert scene.strikes.release("a") == scene.strikes.release(None) == []
    assert [event.program for event in scene.told if isinstance(event, Released)] == ["a", "", "b", "c", "a"]
    assert "quarantine: the whole guest is released" in caplog.text


def test_names_as_they_are_shown() -> None:
    scene = Scene(Rate(1, 60.0), Rate(2, 60.0), suffix="(uid 1000)")
    scene.strike("a", 2)
    scene.strike("b")
    assert scene.names() == ["a (uid 1000)", "(uid 1000)", "b (uid 1000)"]
    assert scene.strikes.release("a (uid 1000)") == ["a (uid 1000)"]
    assert scene.strikes.release("") == ["(uid 1000)"]


def test_any_number_of_names_is_remembered_in_bounded_memory() -> None:
    scene = Scene(Rate(3, 60.0))
    for number in range(10 * MAX_NAMES):
        scene.strike(f"name {number}")
        scene.now += 1.0  # sixty of them count at a time
    assert not scene.told and len(scene.strikes._names) <= MAX_NAMES
    assert not scene.strikes.is_idle()
    scene.now += 61.0
    assert scene.strikes.is_idle()


def test_more_names_than_can_be_remembered_are_the_guests_own_fault() -> None:
    scene = Scene(Rate(3, 1e9))
    for number in range(MAX_NAMES + 1):
        assert not scene.strikes.refuses("innocent")
        scene.strike(f"name {number}")
    assert scene.names() == [WHOLE_GUEST] and not scene.strikes._names


def test_more_strikes_than_can_be_remembered_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strikes_module, "MAX_STRIKES", 100)
    scene = Scene(Rate(1000, 1e9))
    for number in range(101):
        scene.strike(f"name {number % 2}")
    assert scene.names() == [WHOLE_GUEST]
