"""`isorend demo` as people run it: its files, its figures, its words, what it does with wrong arguments."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import psutil
import pytest
from PIL import Image

from bench.demo.accident import Killed
from bench.demo.program import Program
from bench.demo.results import DisplayResult, find_problems
from bench.demo.service import LostContext

ROOT = Path(__file__).resolve().parent.parent
SIZE = (320, 240)
PROGRAMS = ["knot", "marbles", "sea"]
VICTIM = "marbles"
TIMEOUT_S = 240


def command(*arguments: str | Path) -> list[str]:
    """`isorend demo` in this Python, whether the package is installed or not."""
    code = (
        "import sys; from bench.demo.command import COMMAND; from master.cli import Parser; "
        "parser = Parser(prog='isorend demo'); COMMAND.configure(parser); sys.exit(COMMAND.run(parser.parse_args()))"
    )
    return [sys.executable, "-c", code, *map(str, arguments)]


def run_demo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


@dataclass(frozen=True)
class Run:
    """A finished run."""

    out: Path
    code: int
    stdout: str
    stderr: str
    summary: dict[str, Any]

    def context(self, name: str) -> dict[str, Any]:
        (found,) = [context for context in self.summary["contexts"] if context["name"] == name]
        return dict(found)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("demo") / "made" / "by it"
    done = run_demo("--out", out, "--seconds", "3", "--size", f"{SIZE[0]}x{SIZE[1]}")
    assert done.returncode == 0, done.stdout + done.stderr
    return Run(out, done.returncode, done.stdout, done.stderr, json.loads((out / "summary.json").read_text()))


def test_summary_has_the_keys_that_are_promised(run: Run) -> None:
    assert [context["name"] for context in run.summary["contexts"]] == PROGRAMS
    for context in run.summary["contexts"]:
        assert set(context) == {"name", "pid", "frames", "lost", "fence_p50_us", "fence_p99_us"}
    assert {"contexts", "killed", "service", "seconds"} <= set(run.summary)
    assert run.summary["seconds"] >= 3
    assert run.summary["service"]["engine"] == "virgl"
    assert run.summary["service"]["renderer"]
    assert (run.summary["ok"], run.summary["problems"]) == (True, [])


def test_exactly_the_killed_context_is_lost(run: Run) -> None:
    assert [context["name"] for context in run.summary["contexts"] if context["lost"]] == [VICTIM]
    killed = run.summary["killed"]
    assert (killed["name"], killed["pid"]) == (VICTIM, run.context(VICTIM)["pid"])
    assert killed["fence_response"].startswith("ERR_")
    assert killed["next_response"].startswith("ERR_")
    assert killed["service_log"].endswith(f"{VICTIM} (worker {killed['pid']}): killed by SIGKILL")
    assert killed["service_log"] in (run.out / "service.log").read_text()


def test_every_program_rendered_in_a_process_of_its_own(run: Run) -> None:
    contexts = run.summary["contexts"]
    assert len({context["pid"] for context in contexts} | {run.summary["service"]["pid"]}) == 4
    for context in contexts:
        assert context["frames"] > 0
        assert 0 < context["fence_p50_us"] <= context["fence_p99_us"]


def test_pictures_are_lit_scenes_and_differ(run: Run) -> None:
    pictures = []
    for name in PROGRAMS:
        with Image.open(run.out / f"{name}.png") as image:
            assert (image.size, image.mode) == (SIZE, "RGB")
            pictures.append(np.asarray(image).astype(int))
    for picture in pictures:
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 2000
    for one, other in zip(pictures, pictures[1:] + pictures[:1], strict=True):
        assert np.abs(one - other).mean() > 10


def test_contact_sheet_shows_all_of_them(run: Run) -> None:
    with Image.open(run.out / "demo.png") as sheet:
        assert sheet.width > 3 * 480
        assert sheet.height > 480 * SIZE[1] / SIZE[0]
        colours = sheet.convert("RGB").getcolors(sheet.width * sheet.height)
    assert colours is not None
    assert len(colours) > 10_000


def test_it_says_what_happened(run: Run) -> None:
    assert run.stderr == ""
    pid = run.context(VICTIM)["pid"]
    assert f"{VICTIM}: worker {pid} got SIGKILL in the middle of a submit" in run.stdout
    assert f"context lost: ctx 2 {VICTIM} (worker {pid}): killed by SIGKILL" in run.stdout
    for context in run.summary["contexts"]:
        state = r"lost: killed by SIGKILL" if context["lost"] else r"every frame rendered"
        assert re.search(rf"{context['name']} +{context['pid']} +{context['frames']} .*{state}", run.stdout)
    assert f"only {VICTIM} was lost" in run.stdout.splitlines()[-1]


def test_nothing_stays_behind(run: Run) -> None:
    for pid in [run.summary["service"]["pid"], *(context["pid"] for context in run.summary["contexts"])]:
        assert not psutil.pid_exists(pid)


# The verdict

KILLED = Killed(
    name="marbles", ctx_id=2, pid=1 << 30, signal="SIGKILL", at_s=1.5, submit_frames=16, submit_bytes=100_000,
    fence_response="ERR_UNSPEC", fence_retired_ms=1.0, next_response="ERR_UNSPEC", service_log="",
)  # fmt: skip
LOSS = LostContext(2, "marbles", KILLED.pid, "killed by SIGKILL", "ctx 2 marbles: killed by SIGKILL")
SHOWN = DisplayResult("sea", (64, 64), as_read_back=True)


def program(name: str, **changes: Any) -> Program:
    """A program that did all right, but for the changes."""
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    pid = KILLED.pid if name == KILLED.name else os.getpid()
    values = {"name": name, "pid": pid, "frames": 90, "submitted": 90, "errors": [], "picture": picture, **changes}
    return cast(Program, SimpleNamespace(**values))


def problems(
    *, sea: Program | None = None, killed: Killed = KILLED, losses: Sequence[LostContext] = (LOSS,),
    display: DisplayResult = SHOWN,
) -> list[str]:  # fmt: skip
    programs = [program("knot"), program("marbles"), sea or program("sea")]
    return find_problems(programs, killed, losses, display)


def test_a_good_run_has_no_problems() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (lambda: problems(sea=program("sea", frames=89)), "sea rendered 89 of 90 frames"),
        (lambda: problems(sea=program("sea", frames=0, submitted=0)), "sea rendered 0 of 0 frames"),
        (lambda: problems(sea=program("sea", errors=["ERR_UNSPEC"])), "sea was answered ERR_UNSPEC"),
        (lambda: problems(sea=program("sea", pid=1 << 30)), "worker of sea .* is gone"),
        (lambda: problems(sea=program("sea", picture=None)), "no picture of sea"),
        (
            lambda: problems(sea=program("sea", picture=np.zeros((64, 64, 3), np.uint8))),
            "picture of sea is all but empty",
        ),
        (lambda: problems(killed=replace(KILLED, fence_response="OK_NODATA")), "interrupted submit was answered OK"),
        (lambda: problems(killed=replace(KILLED, next_response="OK_NODATA")), "next submit was answered OK"),
        (lambda: problems(losses=[]), "service reported"),
        (lambda: problems(losses=[LOSS, replace(LOSS, ctx_id=3, name="sea")]), "service reported"),
        (lambda: problems(losses=[replace(LOSS, cause="made no progress for 10 s")]), "service reported"),
        (lambda: problems(display=replace(SHOWN, as_read_back=False)), "display does not show"),
    ],
)
def test_whatever_else_happens_is_a_problem(found: Callable[[], list[str]], words: str) -> None:
    (problem,) = found()
    assert re.search(words, problem)


# Wrong arguments


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--out"),
        (["--out", "/proc/demo"], "/proc/demo"),
        (["--out", "/dev/null"], "/dev/null"),
        (["--out", "/dev/null/demo"], "/dev/null/demo"),
        (["--out", "{tmp}", "--size", "640"], "'640'"),
        (["--out", "{tmp}", "--size", "0x480"], "'0x480'"),
        (["--out", "{tmp}", "--size", "640x99999"], "'640x99999'"),
        (["--out", "{tmp}", "--seconds", "0"], "'0'"),
        (["--out", "{tmp}", "--seconds", "nan"], "'nan'"),
        (["--out", "{tmp}", "--seconds", "long"], "'long'"),
        (["--out", "{tmp}", "--vm", "--size", "640x480"], "--vm"),
        (["--out", "{tmp}", "more"], "more"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(arguments: list[str], reason: str, tmp_path: Path) -> None:
    done = run_demo(*(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("isorend demo: ")
    assert reason in line
    assert list(tmp_path.iterdir()) == []


# Ended early


def wait_until(condition: Callable[[], object], awaited: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"no {awaited}"
        time.sleep(0.02)


def workers_below(pid: int) -> int:
    """How many context workers a demo has started."""
    count = 0
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            count += ": ctx " in " ".join(process.cmdline())
    return count


@contextmanager
def long_demo(out: Path) -> Iterator["subprocess.Popen[str]"]:
    """A demo that would go on for minutes; all its contexts are there."""
    argv = command("--out", out, "--seconds", "600")
    demo = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: workers_below(demo.pid) == len(PROGRAMS), "worker for each program")
        yield demo
    finally:
        if demo.poll() is None:
            demo.kill()
            demo.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_service_too(number: signal.Signals, tmp_path: Path) -> None:
    """Sent to the demo alone: on a terminal the service would get Ctrl-C itself."""
    with long_demo(tmp_path) as demo:
        started = psutil.Process(demo.pid).children(recursive=True)
        demo.send_signal(number)
        _, stderr = demo.communicate(timeout=TIMEOUT_S)
    assert (demo.returncode, stderr) == (130, "isorend demo: interrupted\n")
    _, alive = psutil.wait_procs(started, timeout=TIMEOUT_S)
    assert alive == []
    assert not (tmp_path / "summary.json").exists()


def test_a_service_that_dies_is_told_in_one_line(tmp_path: Path) -> None:
    with long_demo(tmp_path) as demo:
        started = psutil.Process(demo.pid).children(recursive=True)
        (service,) = psutil.Process(demo.pid).children()
        service.kill()
        _, stderr = demo.communicate(timeout=TIMEOUT_S)
    assert demo.returncode == 1
    (line,) = stderr.splitlines()
    assert line.startswith("isorend demo: failed: ")
    _, alive = psutil.wait_procs(started, timeout=TIMEOUT_S)
    assert alive == []
    assert not (tmp_path / "summary.json").exists()


def test_on_a_terminal_there_is_a_live_table(tmp_path: Path) -> None:
    text = run_on_terminal("--out", tmp_path, "--seconds", "2", "--size", "160x120")
    assert text.count("\x1b[1A") > 10  # the cursor goes up to draw the table anew
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert re.search(r"program +worker +frames +fps +p50 µs +p99 µs +state", plain)
    rows = re.findall(r"^.*(?:every frame rendered|lost: killed by SIGKILL) *$", plain, re.MULTILINE)
    assert len(rows) >= len(PROGRAMS)


def run_on_terminal(*arguments: str | Path) -> str:
    """What a successful demo writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    demo = subprocess.Popen(command(*arguments), cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    written = bytearray()
    try:
        with suppress(OSError):  # EIO: nobody has the terminal open any more
            while True:
                written += os.read(ours, 1 << 16)
        assert demo.wait(TIMEOUT_S) == 0, written.decode()
    finally:
        os.close(ours)
        if demo.poll() is None:
            demo.kill()
            demo.wait()
    return written.decode().replace("\r\n", "\n")
