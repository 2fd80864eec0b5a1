"""master.line_limit."""

from master.line_limit import LineLimit


class Clock:
    """A clock that stands still."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_then_one_in_each_interval() -> None:
    clock = Clock()
    lines = LineLimit(2.0, clock, burst=3)
    assert [lines.admit() for _ in range(5)] == ["", "", "", None, None]
    clock.now += 1.9
    assert lines.admit() is None
    clock.now += 0.2
    assert lines.admit() == " (3 others before)"
    assert lines.admit() is None
    clock.now += 1000.0
    assert [lines.admit() for _ in range(4)] == [" (1 others before)", "", "", None]
