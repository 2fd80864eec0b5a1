"""master.user_strikes."""

from master.events import EventSource
from master.limits import Rate
from master.peer import Peer
from master.user_strikes import MAX_USERS, UserStrikes


def peer(uid: int, program: str = "glxgears") -> Peer:
    return Peer(1, uid, uid, program)


def test_users_are_kept_apart() -> None:
    strikes = UserStrikes(EventSource("desk"), Rate(1, 1000.0))
    strikes.strike(peer(1000))
    strikes.strike(peer(1001, ""))
    assert strikes.refuses(peer(1000)) and not strikes.refuses(peer(1001))
    assert strikes.refuses(peer(1001, ""))
    assert [entry.program for entry in strikes.quarantined()] == ["glxgears (uid 1000)", "unknown program (uid 1001)"]
    assert strikes.release("glxgears (uid 1001)") == []
    assert strikes.release("glxgears (uid 1000)") == ["glxgears (uid 1000)"]
    assert strikes.release(None) == ["unknown program (uid 1001)"]
    assert not strikes.refuses(peer(1001, ""))


def test_never() -> None:
    strikes = UserStrikes(EventSource("desk"), None)
    strikes.strike(peer(1000))
    assert not strikes.refuses(peer(1000)) and strikes.release(None) == []


def test_users_are_bounded_and_those_in_quarantine_stay() -> None:
    strikes = UserStrikes(EventSource("desk"), Rate(2, 1e9))
    for _ in range(2):
        strikes.strike(peer(1))
    for uid in range(2, 5 * MAX_USERS):
        strikes.strike(peer(uid))
    assert len(strikes._users) == MAX_USERS and strikes.refuses(peer(1))
