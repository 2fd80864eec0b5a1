"""`isorend status`: what people see, what programs read, what reaches nobody's terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from master import cli
from master.status import ContextStatus
from tests.control_lab import HOSTILE, LIMIT_S, FakeService, RunningControl, context, running_control

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "isorend"


@pytest.fixture
def control(where: Path) -> Iterator[RunningControl]:
    service = FakeService(contexts=[context(), context(4, HOSTILE)], quarantined=["glxgears", ""])
    with running_control(where, service) as running:
        yield running


def test_the_table(control: RunningControl, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "vm-1  for VMs, pid 4711, up 1m15s, sandbox enforce"
    assert lines[1] == "1 VMM connected, 2 contexts, 2 spare workers, 14 resources, no incidents"
    assert lines[2] == "rendering by virgl: llvmpipe"
    assert lines[4].split() == ["CTX", "PROGRAM", "WORKER", "STATE", "FENCES", "QUEUE", "SUBMITS", "MEMORY", "AGE"]
    assert lines[5].split() == ["3", "kmscube", "4712", "running", "1", "2", "345", "96", "MiB", "0s"]
    assert lines[8].split() == ["QUARANTINED", "INCIDENTS", "SINCE"]
    assert lines[9].split()[:2] == ["glxgears", "3"]
    assert lines[10].startswith("the whole guest")
    assert all(line == line.rstrip() for line in lines)


def test_a_guests_words_are_only_shown(control: RunningControl, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["status"])
    output = capsys.readouterr().out
    assert r"[bold red]evil[/]\x1b[2J\x1b]0;mine\x07\u202e\n\x9b" in output
    assert all(letter.isprintable() or letter == "\n" for letter in output)


def test_json_is_one_document(control: RunningControl, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--json"]) == 0
    output = capsys.readouterr().out
    assert output.isascii() and "\x1b" not in output
    (status,) = json.loads(output)
    assert status["service"] == "vm-1"
    assert [context["program"] for context in status["contexts"]] == ["kmscube", HOSTILE]


def test_several_services(control: RunningControl, where: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running_control(where, FakeService(name="desk")):
        assert cli.main(["status"]) == 0
        output = capsys.readouterr().out
        assert output.splitlines()[0].startswith("desk ") and "\nvm-1 " in output
        assert cli.main(["status", "--service=desk", "--json"]) == 0
        assert [status["service"] for status in json.loads(capsys.readouterr().out)] == ["desk"]


def test_no_service(capsys: pytest.CaptureFixture[str], where: Path) -> None:
    for arguments, words in (([], "no service runs"), (["--service=desk"], "no service named desk runs")):
        assert cli.main(["status", *arguments]) == 1
        output = capsys.readouterr()
        assert output.out == "" and output.err == f"isorend: {words} (looked in {where})\n"


def test_a_service_that_has_been_killed(where: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (where / "vm-1").mkdir(parents=True, mode=0o700)
    where.chmod(0o700)
    code = f"import socket; socket.socket(socket.AF_UNIX).bind({str(where / 'vm-1' / 'request.sock')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert cli.main(["status"]) == 1
    assert "no service runs" in capsys.readouterr().err


def test_a_status_of_another_version(
    control: RunningControl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("master.commands.status.ask", lambda service, command: {"service": "vm-1"})
    assert cli.main(["status"]) == 1
    assert capsys.readouterr().err.startswith("isorend: the service is of another version")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--watch", "--json"], "no meaning with --json"),
        (["--watch"], "needs a terminal"),
        (["--service=a/b"], "is not a name"),
        (["--watch", "--interval=0"], "not a number"),
        (["desk"], "unrecognized arguments"),
    ],
)
def test_wrong_arguments(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["status", *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


class Terminal:
    """`isorend status` on a terminal of 80 columns. text: what it has been sent so far."""

    def __init__(self, *arguments: str) -> None:
        self.text = ""
        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
        code = (
            "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"  # Ctrl-C is for us
            "from master.cli import main; sys.exit(main())"
        )
        command = [sys.executable, "-c", code, "status", *arguments]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while text not in self.text:
            assert select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))[0], self.text
            self.text += os.read(self._ours, 65536).decode()

    def press(self, key: bytes) -> None:
        os.write(self._ours, key)

    def end(self) -> int:
        """Waits for its end. Returns the exit code."""
        try:
            return self.process.wait(LIMIT_S)
        finally:
            self.process.kill()
            os.close(self._ours)


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_watch_goes_on_until_told(control: RunningControl, key: bytes) -> None:
    terminal = Terminal("--watch", "--interval=0.1")
    terminal.wait_for("kmscube")
    control.service.contexts = [context(9, "later")]
    terminal.wait_for("later")
    assert "\x1b[?1049h" in terminal.text  # a screen of its own
    terminal.press(key)
    terminal.wait_for("\x1b[?1049l")
    assert terminal.end() == 0


def test_watch_outlives_services(control: RunningControl) -> None:
    terminal = Terminal("--watch", "--interval=0.1")
    terminal.wait_for("kmscube")
    control.end()
    terminal.wait_for("no service runs")
    terminal.press(b"q")
    assert terminal.end() == 0


def test_a_terminal_of_80_columns_shows_all(where: Path) -> None:
    name = "a-program-with-a-name-that-is-longer-than-its-column"
    contexts = [
        ContextStatus(
            ctx_id=1234, program=name, pid=4194304, state="starting", fences=99999, queued=99999, submits=99999999,
            memory_bytes=4 << 30, seconds=359999
        )
    ]  # fmt: skip
    with running_control(where, FakeService(contexts=contexts)):
        terminal = Terminal()
        terminal.wait_for("starting")
        assert terminal.end() == 0
    shown = terminal.text.replace("\r", "")
    assert "…" not in shown
    for word in ("1234", "4194304", "99999999", "4096 MiB", "4d03h"):
        assert word in shown
