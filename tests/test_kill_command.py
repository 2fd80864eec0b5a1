"""`isorend kill`."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from master import cli
from tests.control_lab import FakeService, RunningControl, context, running_control


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningControl]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with running_control(tmp_path / "isorend", FakeService(contexts=[context(3)])) as running:
        yield running


def test_one_is_killed(control: RunningControl, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["kill", "3"]) == 0
    assert capsys.readouterr().out == "vm-1: ended the worker of ctx 3\n"
    assert cli.main(["kill", "3", "--json", "--service=vm-1"]) == 0
    assert json.loads(capsys.readouterr().out) == {"service": "vm-1", "killed": 3}
    assert control.service.killed == [3, 3]


def test_there_is_no_such_context(control: RunningControl, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["kill", "4"]) == 1
    assert capsys.readouterr().err == "isorend: vm-1: there is no context 4 with a worker that lives\n"


@pytest.mark.parametrize("arguments", [[], ["x"], ["-1"], ["4294967296"], ["3", "4"], ["3", "--service="]])
def test_wrong_arguments(control: RunningControl, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["kill", *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert control.service.killed == []
