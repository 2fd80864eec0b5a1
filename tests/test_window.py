"""master.window."""

from master.limits import Rate
from master.window import Window


def test_what_is_old_does_not_count() -> None:
    window = Window(Rate(3, 10.0))
    for now in (0.0, 1.0, 2.0):
        assert not window.full(now)
        window.add(now)
    assert window.full(2.0) and window.full(9.9)
    assert window.count(10.0) == 2 and not window.full(10.0)
    window.add(10.5)
    assert window.full(10.5) and window.count(11.0) == 2


def test_memory_is_bounded_by_the_rate() -> None:
    window = Window(Rate(5, 1e9))
    for now in range(1000):
        window.add(now)
    assert len(window) == window.count(1000.0) == 5
    window.clear()
    assert window.count(1000.0) == 0
