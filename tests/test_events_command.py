"""`isorend events`: followed by a person, by a program, until the end of either."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from master import cli
from master.events import ContextEnded, Event, FrontEndChanged, LimitReached, Quarantined, Released
from tests.control_lab import HOSTILE, LIMIT_S, RunningControl, created, incident, running_control

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningControl]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with running_control(tmp_path / "isorend") as running:
        yield running


@contextmanager
def following(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`isorend events`, once it watches."""
    code = "import sys; from master.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "events", *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "TZ": "UTC"}
    ) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "watching vm-1; Ctrl-C ends this\n"
            yield process
        finally:
            process.kill()


def test_a_line_each(control: RunningControl) -> None:
    at = {"service": "vm-1", "time": 1e9}
    events: tuple[Event, ...] = (
        FrontEndChanged(**at, connected=True),  # type: ignore[arg-type]
        created(),
        incident(2),
        Quarantined(**at, program="kmscube", strikes=3),  # type: ignore[arg-type]
        Quarantined(**at, program="", strikes=9),  # type: ignore[arg-type]
        Released(**at, program="kmscube"),  # type: ignore[arg-type]
        LimitReached(**at, ctx_id=3, program="kmscube", limit="256 contexts"),  # type: ignore[arg-type]
        ContextEnded(**at, ctx_id=4, program="glxgears", pid=0),  # type: ignore[arg-type]
        FrontEndChanged(**at, connected=False, reason="it broke the protocol"),  # type: ignore[arg-type]
    )
    with following() as process:
        control.publish(*events)
        control.end()
        output, errors = process.communicate(timeout=LIMIT_S)
    assert errors == "vm-1 has ended\n"
    assert process.returncode == 0
    start = "2001-09-09 01:46:40  vm-1  "
    assert output.splitlines() == [
        f"{start}front-end: connected",
        f"{start}context-created: ctx 3 kmscube (worker 4712)",
        f"{start}incident: 2, ctx 3 kmscube (worker 4712): killed by SIGKILL",
        f"{start}quarantined: kmscube, after 3 incidents",
        f"{start}quarantined: the whole guest, after 9 incidents",
        f"{start}released: kmscube",
        f"{start}limit: ctx 3 kmscube: 256 contexts",
        f"{start}context-ended: ctx 4 glxgears (worker starting)",
        f"{start}front-end: gone: it broke the protocol",
    ]


def test_lines_of_json(control: RunningControl) -> None:
    with following("--json") as process:
        control.publish(created(HOSTILE), incident())
        control.end()
        output, _ = process.communicate(timeout=LIMIT_S)
    assert output.isascii() and "\x1b" not in output
    first, second = map(json.loads, output.splitlines())
    assert (first["kind"], first["program"]) == ("context-created", HOSTILE)
    assert second["cause"]["signal"] == "SIGKILL"


def test_a_guests_words_are_only_shown(control: RunningControl) -> None:
    with following() as process:
        control.publish(created(HOSTILE), incident(program=HOSTILE, under_way=HOSTILE))
        control.end()
        output, _ = process.communicate(timeout=LIMIT_S)
    assert len(output.splitlines()) == 2
    assert all(letter.isprintable() or letter == "\n" for letter in output)
    assert "[bold red]evil[/]" in output


@dataclass(frozen=True, slots=True, kw_only=True)
class Unheard(Event):
    KIND: ClassVar[str] = "unheard"
    program: str


def test_an_event_that_is_not_known(control: RunningControl) -> None:
    with following() as process:
        control.publish(Unheard(service="vm-1", time=1e30, program=HOSTILE))
        control.end()
        output, _ = process.communicate(timeout=LIMIT_S)
    assert output.startswith('-  vm-1  unheard: {"program": "[bold red]evil')
    assert len(output.splitlines()) == 1 and output.removesuffix("\n").isprintable()


def test_ctrl_c_is_a_good_end(control: RunningControl) -> None:
    with following() as process:
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, output, errors) == (0, "", "\n")


def test_whoever_reads_may_leave(control: RunningControl) -> None:
    with following() as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        control.publish(created())
        assert process.wait(LIMIT_S) == 0
        assert process.stderr.read() == ""


def test_one_of_several_must_be_chosen(
    control: RunningControl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.control_lab import FakeService

    with running_control(tmp_path / "isorend", FakeService(name="desk")):
        assert cli.main(["events"]) == 1
        assert capsys.readouterr().err == "isorend: several services run, choose one with --service: desk, vm-1\n"
        with following("--service=vm-1"):
            pass
