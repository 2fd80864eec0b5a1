"""`isorend release`."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from master import cli
from master.commands.terminal import printable
from tests.control_lab import HOSTILE, FakeService, RunningControl, running_control


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningControl]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    service = FakeService(quarantined=["glxgears", "", HOSTILE])
    with running_control(tmp_path / "isorend", service) as running:
        yield running


@pytest.mark.parametrize(
    ("argument", "asked", "said"), [("glxgears", "glxgears", "glxgears"), ("--guest", "", "the guest")]
)
def test_one(control: RunningControl, argument: str, asked: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["release", argument]) == 0
    assert capsys.readouterr().out == f"vm-1: released {said}\n"
    assert control.service.released == [asked]
    assert cli.main(["release", argument]) == 1
    assert capsys.readouterr().err == f"isorend: vm-1: {asked or 'the guest'} is not in quarantine\n"


def test_a_name_that_cannot_be_typed(control: RunningControl, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["release", printable(HOSTILE)]) == 0
    assert control.service.released == [HOSTILE]
    assert capsys.readouterr().out == f"vm-1: released {printable(HOSTILE)}\n"


def test_all(control: RunningControl, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["release", "--all"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("vm-1: released glxgears, the guest, [bold red]evil[/]\\x1b")
    assert output.removesuffix("\n").isprintable()
    assert cli.main(["release", "--all"]) == 1
    assert capsys.readouterr().err == "isorend: vm-1: nothing is in quarantine\n"
    assert control.service.released == [None, None]


def test_json(control: RunningControl, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["release", "--all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"service": "vm-1", "released": ["glxgears", "", HOSTILE]}


@pytest.mark.parametrize("arguments", [[], [""], ["glxgears", "--all"], ["--guest", "--all"], ["a", "b"]])
def test_wrong_arguments(control: RunningControl, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["release", *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert control.service.released == []
