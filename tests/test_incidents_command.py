"""`isorend incidents`: all of them, one of them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from master import cli
from tests.control_lab import HOSTILE, FakeService, RunningControl, incident, running_control


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningControl]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    details = {
        "under_way": "SUBMIT_3D, 4096 bytes",
        "last_commands": ("TRANSFER_TO_HOST_3D of resource 7", f"create {HOSTILE}"),
        "resources_lost": (7, 8),
        "resources_lost_count": 300,
        "fences": 2,
    }
    listed = [incident(1), incident(2, HOSTILE), incident(3, "glmark2", **details)]
    with running_control(tmp_path / "isorend", FakeService(listed=listed)) as running:
        yield running


def test_the_table(control: RunningControl, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["incidents"]) == 0
    output = capsys.readouterr().out
    lines = output.splitlines()
    assert lines[0].split() == ["NO.", "TIME", "CTX", "PROGRAM", "WORKER", "CAUSE"]
    assert lines[1].split()[0] == "1" and lines[1].endswith("killed by SIGKILL")
    assert len(lines) == 4
    assert all(letter.isprintable() or letter == "\n" for letter in output)
    assert "[bold red]evil[/]" in lines[2]


@pytest.mark.parametrize("which", ["--last", "3"])
def test_the_details_of_one(control: RunningControl, which: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["incidents", which]) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[0] == "incident 3 of vm-1"
    for words in (
        "ctx 3 glmark2 (worker 4712)",
        "killed by SIGKILL",
        "signal SIGKILL",
        "SUBMIT_3D, 4096 bytes",
        "2 retired",
        "300 resources: 7, 8, ...",
        "  TRANSFER_TO_HOST_3D of resource 7\n",
        "[bold red]evil[/]",
    ):
        assert words in output
    assert all(letter.isprintable() or letter == "\n" for letter in output)


def test_json(control: RunningControl, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["incidents", "--json"]) == 0
    assert [one["number"] for one in json.loads(capsys.readouterr().out)] == [1, 2, 3]
    assert cli.main(["incidents", "2", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert (one["number"], one["program"]) == (2, HOSTILE)


def test_none(control: RunningControl, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["incidents", "4"]) == 1
    assert capsys.readouterr().err == "isorend: vm-1: no incident 4 (any more)\n"
    control.service.listed = []
    assert cli.main(["incidents"]) == 0
    assert capsys.readouterr().out == "vm-1: no incidents\n"
    assert cli.main(["incidents", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert cli.main(["incidents", "--last"]) == 1
    assert capsys.readouterr().err == "isorend: vm-1: no incidents\n"


@pytest.mark.parametrize("arguments", [["x"], ["0"], ["3", "--last"], ["3", "4"]])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["incidents", *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
