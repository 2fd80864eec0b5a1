"""The benchmarks' GL client, the program that starts it, and the workloads that run it: do they do what they say?"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from bench.clients.build import Programs, build
from bench.clients.programs import Client, Program, ProgramFailed, Report, first_frame_ms, run_together
from bench.vtest_servers import PEER, SOCKET_NAME, Renderer, start_bare, start_isorend, start_peer
from bench.workloads.clients import Case, Round
from bench.workloads.neighbours import light_report

SCENES = ("gears", "draws", "upload", "heavy", "light")
SMALL_LOAD = {"draws": ["--load=200"], "upload": ["--load=1"], "heavy": ["--load=20"]}
needs_peer = pytest.mark.skipif(shutil.which(PEER) is None, reason=f"{PEER} is not installed")

Picture = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def programs() -> Programs:
    return build()


@pytest.fixture(scope="module")
def bare(programs: Programs) -> Iterator[Renderer]:
    """The client renders by itself."""
    with ExitStack() as stack:
        yield start_bare(stack)


@pytest.fixture(scope="module")
def ours(programs: Programs) -> Iterator[Renderer]:
    """isorend's vtest service."""
    with ExitStack() as stack:
        yield start_isorend(stack, "--spares=1")


def draw(renderer: Renderer, directory: Path, scene: str, *options: str) -> tuple[Report, Picture]:
    """A few frames of a scene, and the last of them."""
    path = directory / f"{renderer.driver}-{scene}.ppm"
    load = [] if any(option.startswith("--load") for option in options) else SMALL_LOAD.get(scene, [])
    # Where the program runs, /tmp is another directory; its working directory is not.
    argv = [str(renderer.programs.client), f"--scene={scene}", "--frames=3", f"--dump={path.name}", *load, *options]
    done = subprocess.run(
        renderer.command(argv), env=renderer.environment(), cwd=directory, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return Report.parse(done.stdout), np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("scene", SCENES)
def test_scenes_draw_something_of_their_size(scene: str, bare: Renderer, tmp_path: Path) -> None:
    report, picture = draw(bare, tmp_path, scene, "--size=160x120")
    assert picture.shape == (120, 160, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) >= 3
    assert report.frames == 3 and report.missed == 0
    assert 0 < report.p50_us <= report.p99_us <= report.max_us
    assert report.seconds > 0 and report.first_frame_ms > 0
    assert "llvmpipe" in report.renderer


def test_gears_are_three_of_three_colours(bare: Renderer, tmp_path: Path) -> None:
    _, picture = draw(bare, tmp_path, "gears")
    for channel in range(3):
        others = [other for other in range(3) if other != channel]
        strong = picture[..., channel] > 2 * picture[..., others].max(axis=2).astype(int) + 20
        assert strong.mean() > 0.01, f"no gear of colour {channel}"


@pytest.mark.parametrize("scene", SCENES)
def test_a_vtest_server_gives_the_same_picture(scene: str, bare: Renderer, ours: Renderer, tmp_path: Path) -> None:
    _, here = draw(bare, tmp_path, scene, "--size=96x96")
    report, there = draw(ours, tmp_path, scene, "--size=96x96")
    assert report.renderer.startswith("virgl")
    difference = np.abs(here.astype(int) - there)
    # Shaders go through one more translation, so a pixel on an edge may fall on its other side.
    assert np.mean(difference.max(axis=2) > 8) < 0.02


def test_load_changes_the_work(bare: Renderer, tmp_path: Path) -> None:
    _, few = draw(bare, tmp_path, "draws", "--load=4")
    _, many = draw(bare, tmp_path, "draws", "--load=400")
    assert len(np.unique(few.reshape(-1, 3), axis=0)) < len(np.unique(many.reshape(-1, 3), axis=0))


def test_paced_frames_come_at_their_rate(bare: Renderer, tmp_path: Path) -> None:
    report, _ = draw(bare, tmp_path, "light", "--pace=50", "--size=16x16")
    # Two periods lie between three frames, however late each was.
    assert report.seconds >= 2 / 50


def test_a_late_frame_makes_others_missed(bare: Renderer, tmp_path: Path) -> None:
    report, _ = draw(bare, tmp_path, "heavy", "--pace=1000", "--size=512x512", "--load=300")
    assert report.missed >= 2
    assert report.seconds * 1000 >= report.frames + report.missed - 1


def test_waiting_client_goes_on_when_told(bare: Renderer) -> None:
    with Client(bare, "light", 0.05) as client:
        client.wait_ready()
        assert client.process.poll() is None
        client.go()
        assert client.report().frames > 0


def test_waiting_client_ends_with_its_input(bare: Renderer) -> None:
    with Client(bare, "light", 0.05) as client:
        client.wait_ready()
        with pytest.raises(ProgramFailed, match="standard input ended"):
            client.finish()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "--scene is missing"),
        (["--scene=cube"], 'there is none of the name "cube"'),
        (["--scene=gears"], "give one of --seconds and --frames"),
        (["--scene=gears", "--frames=1", "--seconds=1"], "give one of --seconds and --frames"),
        (["--scene=gears", "--frames=-1"], "not a whole number"),
        (["--scene=gears", "--frames=1x"], "not a whole number"),
        (["--scene=gears", "--seconds=nan"], "not a number"),
        (["--scene=gears", "--frames=1", "--load=3"], "the scene gears has none"),
        (["--scene=draws", "--frames=1", "--load=0"], "not a whole number"),
        (["--scene=gears", "--frames=1", "--size=10"], "is not WIDTHxHEIGHT"),
        (["--scene=gears", "--frames=1", "--size=10x10x10"], "is not WIDTHxHEIGHT"),
        (["--scene=gears", "--frames"], "needs a value"),
        (["--scene=gears", "--frames=1", "more"], "unexpected argument more"),
        (["--fast"], "unknown option --fast"),
    ],
)
def test_wrong_command_lines_get_one_line(arguments: list[str], complaint: str, programs: Programs) -> None:
    done = subprocess.run([programs.client, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_client_of_a_dead_server_fails(bare: Renderer, programs: Programs) -> None:
    nobody = Renderer("nobody", bare.directory, "virpipe", programs)
    with pytest.raises(ProgramFailed):
        first_frame_ms(nobody, "light")


def test_entered_program_sees_the_directory_as_tmp(bare: Renderer, tmp_path: Path) -> None:
    (bare.directory / "mark").write_text("here")
    before = time.monotonic_ns()
    with Program(
        bare, ["sh", "-c", 'cat /tmp/mark; echo; echo "$ISOREND_BENCH_STARTED_NS"; ls /proc/self/fd | wc -l']
    ) as program:
        text, started, _ = program.finish().splitlines()
    assert text == "here"
    assert before <= int(started) <= time.monotonic_ns()


def test_entered_program_keeps_its_name_and_is_found_under_tmp(bare: Renderer, tmp_path: Path) -> None:
    hidden = tmp_path / "a-program"
    shutil.copy("/bin/cat", hidden)
    with Program(bare, [str(hidden), "/proc/self/comm"]) as program:
        assert program.finish() == "a-program\n"


@pytest.mark.parametrize(("argv", "code"), [([], 2), (["/nowhere", "true"], 1), (["{}", "no-such-program"], 127)])
def test_enter_says_what_is_wrong(argv: list[str], code: int, programs: Programs, tmp_path: Path) -> None:
    words = [word.format(tmp_path) for word in argv]
    done = subprocess.run([programs.enter, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert done.stderr.startswith("isorend-bench-enter: ") and done.stderr.count("\n") == 1


def test_clients_together_measure_one_window(ours: Renderer) -> None:
    reports = run_together(ours, "light", 0.2, 3)
    assert len(reports) == 3
    assert all(report.seconds >= 0.2 and report.frames > 0 for report in reports)


@needs_peer
def test_the_peer_serves_the_same_client(programs: Programs) -> None:
    with ExitStack() as stack:
        peer = start_peer(stack)
        assert (peer.directory / SOCKET_NAME).is_socket()
        assert sum(report.frames for report in run_together(peer, "gears", 0.1, 2)) > 0
        assert peer.pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(peer.pid, 0)


def test_light_client_is_paced_beside_a_heavy_one(ours: Renderer) -> None:
    with Client(ours, "heavy", 60.0, "--load=50", "--size=128x128", warm_up=0) as heavy:
        heavy.wait_ready()
        report = light_report(ours, 0.3, heavy)
        assert heavy.process.poll() is None
    assert report.seconds >= 0.3
    assert 1 <= report.frames <= 0.3 * 60 + 2 + 60 * (report.seconds - 0.3)


def test_summary_is_the_geometric_mean(bare: Renderer) -> None:
    latest = Round()
    cases = [Case(scene, 1, lambda _, rate=rate: rate) for scene, rate in (("a", 2.0), ("b", 8.0))]  # type: ignore[misc]
    for case in cases:
        assert latest.note("ours", case.name, case.rate, bare)() == {case.name: case.rate(bare)}
    assert math.isclose(latest.mean("ours", "all", cases)()["all"], 4.0)
