"""tests.piglit.compare and what is read of piglit's results; piglit itself is run by `make piglit` only."""

from __future__ import annotations

from tests.piglit.compare import MISSING, Comparison, Results
from tests.piglit.run import parse_results

BOTH: Results = {("draw", ""): "pass", ("clip", ""): "fail", ("clip", "left/top"): "fail"}


def test_equal_results_agree() -> None:
    comparison = Comparison(BOTH, dict(BOTH))
    assert comparison.disagreements() == []
    assert comparison.tests_to_repeat() == []
    assert comparison.counts() == [("fail", 2, 2), ("pass", 1, 1)]


def test_what_differs_every_time_is_different() -> None:
    comparison = Comparison({**BOTH, ("clip", "left/top"): "pass", ("clip", ""): "warn"}, BOTH)
    assert comparison.tests_to_repeat() == ["clip"]
    comparison.add_runs({("clip", ""): "crash", ("clip", "left/top"): "pass"}, BOTH)
    test, subtest = comparison.disagreements()
    assert not test.flaky and not subtest.flaky
    assert str(test) == "clip: ours warn 1x, crash 1x; theirs fail 2x"
    assert str(subtest) == "clip: left/top: ours pass 2x; theirs fail 2x"


def test_a_result_that_both_have_given_makes_a_test_flaky() -> None:
    comparison = Comparison({**BOTH, ("draw", ""): "timeout"}, BOTH)
    comparison.add_runs({("draw", ""): "timeout"}, {("draw", ""): "pass"})
    assert [disagreement.flaky for disagreement in comparison.disagreements()] == [False]
    comparison.add_runs({("draw", ""): "pass"}, {("draw", ""): "pass"})
    assert [disagreement.flaky for disagreement in comparison.disagreements()] == [True]


def test_a_report_names_what_is_flaky_and_what_is_different_and_not_every_subtest() -> None:
    many: Results = {("clip", f"{number}"): "pass" for number in range(10)}
    comparison = Comparison({**many, ("sync", ""): "fail"}, {("sync", ""): "pass"})
    comparison.add_runs({**many, ("sync", ""): "pass"}, {("sync", ""): "pass"})
    *different, more, flaky = comparison.report()
    assert [line.split(": ours")[0] for line in different] == [f"different: clip: {number}" for number in range(5)]
    assert more.strip() == "and 5 more subtests of clip"
    assert flaky == "flaky: sync: ours fail 1x, pass 1x; theirs pass 2x"


def test_a_case_that_one_side_lacks_is_different() -> None:
    comparison = Comparison(BOTH, {("draw", ""): "pass"})
    comparison.add_runs(BOTH, {})
    assert {disagreement.case for disagreement in comparison.disagreements()} == {("clip", ""), ("clip", "left/top")}
    assert all(disagreement.theirs == [MISSING] * 2 for disagreement in comparison.disagreements())
    assert not any(disagreement.flaky for disagreement in comparison.disagreements())


def test_results_are_read_with_their_subtests() -> None:
    report = {
        "results_version": 10,
        "tests": {
            "spec@draw": {"result": "pass", "subtests": {"__type__": "Subtests"}},
            "spec@clip": {"result": "fail", "subtests": {"left/top": "fail", "__type__": "Subtests"}},
        },
    }
    assert parse_results(report) == {
        ("spec@draw", ""): "pass",
        ("spec@clip", ""): "fail",
        ("spec@clip", "left/top"): "fail",
    }
