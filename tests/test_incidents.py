"""master.incidents."""

from __future__ import annotations

from master.blame import MAX_RESOURCES_LISTED, Cause, CauseKind
from master.events import Event, EventSource
from master.history import History
from master.incidents import INCIDENTS_KEPT, IncidentLog

CAUSE = Cause(kind=CauseKind.HANG, text="made no progress")


def test_numbered_published_and_kept() -> None:
    told: list[Event] = []
    events = EventSource("desk", now=lambda: 1700000000.0)
    events.publish = told.append
    log = IncidentLog(events)
    history = History(last_commands=("a", "b"), under_way="b", fences=3)
    first = log.report(1, "kmscube", 4711, CAUSE, history, {9, 7})
    second = log.report(2, "glxgears", 0, CAUSE)
    assert told == log.latest() == [first, second] and len(log) == 2
    assert (first.number, second.number, first.service, first.time) == (1, 2, "desk", 1700000000.0)
    assert (first.last_commands, first.under_way, first.fences) == (("a", "b"), "b", 3)
    assert (first.resources_lost, first.resources_lost_count) == ((7, 9), 2)


def test_memory_is_bounded() -> None:
    log = IncidentLog(EventSource("desk"))
    for number in range(INCIDENTS_KEPT + 5):
        log.report(number, "program", 1, CAUSE, None, range(MAX_RESOURCES_LISTED + 10))
    assert len(log) == INCIDENTS_KEPT + 5 and len(log.latest()) == INCIDENTS_KEPT
    assert log.latest()[0].number == 6
    assert len(log.latest()[0].resources_lost) == MAX_RESOURCES_LISTED
    assert log.latest()[0].resources_lost_count == MAX_RESOURCES_LISTED + 10
