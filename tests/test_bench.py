"""The bench's runner, its report and its command line, on workloads that measure nothing."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from bench import __main__ as command
from bench import report, runner, workloads
from bench.workload import Better, Settings, Step, WorkloadUnavailable


class Scripted:
    """A workload whose sides answer what they are told to, and which notes who was asked."""

    name = "scripted"
    summary = "answers from a list"
    unit = "MB/s"
    better: Better = "higher"

    def __init__(self, make_steps: Callable[[Scripted], Sequence[Step]]) -> None:
        self.asked: list[str] = []
        self.closed = False
        self._make_steps = make_steps

    def open(self, _settings: Settings, stack: ExitStack) -> Sequence[Step]:
        stack.callback(self._close)
        return self._make_steps(self)

    def _close(self) -> None:
        self.closed = True

    def side(self, name: str, *rounds: Mapping[str, float]) -> Callable[[], Mapping[str, float]]:
        values = iter(rounds)

        def measure() -> Mapping[str, float]:
            self.asked.append(name)
            return next(values)

        return measure


def two_steps(workload: Scripted) -> list[Step]:
    return [
        Step(
            "copies",
            workload.side("ours", {"small": 10, "big": 30}, {"small": 20, "big": 30}, {"small": 40, "big": 30}),
            workload.side("peer", {"small": 5}, {"small": 20}, {"small": 10}),
            "the peer",
            workload.side("limit", {"big": 60}, {"big": 50}, {"big": 70}),
            "memcpy",
        ),
        Step("wait", workload.side("wait", {"a wait": 3}, {"a wait": 1}, {"a wait": 2}), unit="µs", better="lower"),
    ]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(rounds=3, quick=True, out=tmp_path)


def test_sides_take_turns_and_rounds_are_paired(settings: Settings) -> None:
    workload = Scripted(two_steps)
    results = runner.run(workload, settings)
    assert workload.asked == [
        "ours", "peer", "limit", "wait",
        "peer", "ours", "limit", "wait",
        "ours", "peer", "limit", "wait",
    ]  # fmt: skip
    assert workload.closed
    small, big, wait = results.rows
    assert (small.ours, small.peer, small.ratios) == ([10, 20, 40], [5, 20, 10], [2, 1, 4])
    assert (big.peer, big.ratios, big.limit, big.peer_name) == ([], [], 60, "")
    assert (wait.unit, wait.better, wait.limit) == ("µs", "lower", None)


def test_the_file_has_what_readers_of_it_expect(settings: Settings) -> None:
    data, picture = report.save(runner.run(Scripted(two_steps), settings), settings.out)
    assert (data.name, picture.name) == ("scripted.json", "scripted.png")
    read = json.loads(data.read_text())
    rows = read.pop("rows")
    assert read == {"workload": "scripted", "unit": "MB/s", "better": "higher"}
    assert rows[0] == {
        "case": "small", "ours": [10, 20, 40], "peer": [5, 20, 10], "peer_name": "the peer",
        "ratio_median": 2, "ratio_min": 1, "ratio_max": 4, "limit": None, "limit_name": "",
    }  # fmt: skip
    assert rows[1]["limit"] == 60 and rows[1]["limit_name"] == "memcpy" and rows[1]["ratio_median"] is None
    assert rows[2]["unit"] == "µs" and rows[2]["better"] == "lower"
    assert Image.open(picture).format == "PNG"


def test_the_table_has_medians_spreads_and_ratios(settings: Settings) -> None:
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    report.show(runner.run(Scripted(two_steps), settings), console)
    text = console.export_text()
    small = next(line for line in text.splitlines() if "small" in line)
    assert "20.0 (10.0 … 40.0)" in small and "10.0 (5.00 … 20.0)" in small and "2.00 (1.00 … 4.00)" in small
    big = next(line for line in text.splitlines() if "big" in line)
    assert "60.0" in big and "0.500" in big and "limit: memcpy" in text and "peer: the peer" in text


def test_steps_may_share_a_case_only_against_different_peers(settings: Settings) -> None:
    def steps(peer: str) -> Callable[[Scripted], list[Step]]:
        def make(workload: Scripted) -> list[Step]:
            one = [{"case": 1.0}] * 3
            first, second = (workload.side(name, *one) for name in ("first", "second"))
            return [Step("a", first, workload.side("x", *one), "x"), Step("b", second, workload.side("y", *one), peer)]

        return make

    assert len(runner.run(Scripted(steps("y")), settings).rows) == 2
    with pytest.raises(ValueError, match="share case 'case'"):
        runner.run(Scripted(steps("x")), settings)


def test_a_peer_without_its_case_of_ours_is_an_error(settings: Settings) -> None:
    def steps(workload: Scripted) -> list[Step]:
        return [Step("a", workload.side("ours", *[{"case": 1.0}] * 3), workload.side("p", *[{"cafe": 1.0}] * 3), "p")]

    workload = Scripted(steps)
    with pytest.raises(ValueError, match="nothing of ours for case 'cafe'"):
        runner.run(workload, settings)
    assert workload.closed


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """As the only workload of the command line."""
    workload = Scripted(two_steps)
    module = ModuleType("bench.workloads.scripted")
    monkeypatch.setattr(module, "WORKLOAD", workload, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(workloads, "NAMES", ("scripted",))
    return workload


def test_command_line_runs_a_workload(scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["scripted", "--quick", "--rounds", "3", "--out", str(tmp_path / "new" / "out")]) == 0
    assert len(scripted.asked) == 12
    assert "answers from a list" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == ["scripted.json", "scripted.png"]


def test_a_workload_that_cannot_run_says_so_in_a_line(
    scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def open_nothing(_settings: Settings, _stack: ExitStack) -> Sequence[Step]:
        raise WorkloadUnavailable("glmark2 is missing;\ninstall glmark2-x11")

    monkeypatch.setattr(scripted, "open", open_nothing)
    assert command.main(["--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "bench: scripted: glmark2 is missing; install glmark2-x11\n"
    assert not list(tmp_path.iterdir())


def test_a_workload_that_fails_does_not_keep_the_others_from_running(
    scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Scripted(lambda _: [Step("broken", dict[str, float]().popitem)])  # type: ignore[arg-type]
    modules = {"broken": broken, "scripted": scripted}
    monkeypatch.setattr(workloads, "NAMES", tuple(modules))
    monkeypatch.setattr(workloads, "load", modules.__getitem__)
    assert command.main(["--rounds", "1", "--out", str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert output.err == "bench: broken: failed\n" and "popitem" in output.out
    assert broken.closed and (tmp_path / "scripted.json").exists()


def test_list_names_every_workload(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert tuple(line.split()[0] for line in lines) == workloads.NAMES
    assert all(len(line.split()) > 3 for line in lines)
    assert [workloads.load(name).name for name in workloads.NAMES] == list(workloads.NAMES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["glxgears"], "no workload 'glxgears'"),
        (["--rounds", "0"], "'0' is not a number from 1"),
        (["--rounds", "x"], "'x' is not a number from 1"),
        (["--rounds=1e3"], "'1e3' is not a number from 1"),
        (["--fast"], "unrecognized arguments: --fast"),
        (["--out", "/proc/none"], "cannot write to /proc/none"),
    ],
)
def test_wrong_command_lines_cost_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
