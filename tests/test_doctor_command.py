"""`isorend doctor`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from master import cli
from master.commands import doctor
from master.doctor.findings import Finding

GOOD = [Finding("user namespaces", True, True, "made"), Finding("udmabuf", False, False, "no /dev/udmabuf", "load it")]
BAD = [*GOOD, Finding("sandbox\x1b[2J", False, True, "[red]seccomp[/] is missing", "another kernel")]


def examine(findings: list[Finding], monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    asked: list[Path | None] = []

    def found(render_node: Path | None) -> list[Finding]:
        asked.append(render_node)
        return findings

    monkeypatch.setattr(doctor, "_examine", found)
    return asked


def test_all_is_well(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = examine(GOOD, monkeypatch)
    assert cli.main(["doctor", "--render-node=/dev/dri/renderD129"]) == 0
    assert asked == [Path("/dev/dri/renderD129")]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["ok", "user", "namespaces", "made"],
        ["optional", "udmabuf", "no", "/dev/udmabuf"],
        ["->", "load", "it"],
        ["All", "that", "is", "needed", "is", "there."],
    ]


def test_something_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    examine(BAD, monkeypatch)
    assert cli.main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert "missing   sandbox\\x1b[2J   [red]seccomp[/] is missing" in output
    assert output.endswith("Missing: 1, see above.\n") and "\x1b" not in output


def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    examine(BAD, monkeypatch)
    assert cli.main(["doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert [finding["verdict"] for finding in told["findings"]] == ["ok", "optional", "missing"]
    assert set(told["findings"][0]) == {"verdict", "name", "ok", "required", "found", "hint"}


def test_the_real_thing() -> None:
    """Whatever this host lacks: it says so, and the exit code agrees."""
    program = Path(sys.executable).parent / "isorend"
    done = subprocess.run(
        [program, "doctor", "--json"], capture_output=True, text=True, timeout=200, check=False, env=os.environ
    )
    told = json.loads(done.stdout)
    names = {finding["name"] for finding in told["findings"]}
    assert {"virglrenderer", "KVM", "udmabuf", "sandboxed worker", "capability sets"} <= names
    assert done.returncode == (0 if told["ok"] else 1)
    assert "Traceback" not in done.stderr
