"""The whole demo: from starting the service to the files and the last line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
from PIL import Image
from rich.console import Console

from bench.demo.accident import Accident
from bench.demo.contact_sheet import Card, contact_sheet
from bench.demo.errors import DemoFailed
from bench.demo.performance import Performance
from bench.demo.program import Program
from bench.demo.progress import Progress, table
from bench.demo.results import Results, ServiceResult, context_result, find_problems, show_on_display
from bench.demo.scenes import demo_scenes
from bench.demo.service import DemoService
from tests.fake_vmm import FakeVmm, FakeVmmError

VICTIM = "marbles"
SHOWN = "sea"
SUMMARY, SHEET, LOG = "summary.json", "demo.png", "service.log"

_MIB = 1 << 20
_BASE_RAM = 128 * _MIB
# Colour and depth of three programs, four bytes a pixel each, and some more for what is not page-aligned.
_RAM_PER_PIXEL = 32


def show(out: Path, seconds: float, size: tuple[int, int]) -> int:
    """Run for at least `seconds` with pictures of `size` pixels, and leave the files in the directory `out`.

    Returns the exit code: 0 only if exactly the killed context was lost and the others rendered every frame.
    """
    console = Console(highlight=False)
    for name in (SUMMARY, SHEET):
        (out / name).unlink(missing_ok=True)
    with DemoService() as service:
        try:
            results, programs = _play(service, console, seconds, size)
        except (DemoFailed, FakeVmmError, TimeoutError, psutil.Error) as reason:
            _fail(f"{reason}; the service's last words: {service.last_words()}")
            return 1
        finally:
            service.keep_log(out / LOG)
    _save_pictures(out, programs, results)
    results.save(out / SUMMARY)
    return _report(console, out, programs, results)


def _play(
    service: DemoService, console: Console, seconds: float, size: tuple[int, int]
) -> tuple[Results, Sequence[Program]]:
    console.print("starting the service and three guest programs ...")
    with FakeVmm.connect(service.socket_path, ram=_ram(size)) as vmm:
        engine, renderer = service.rendering()
        console.print(f"the service is process {service.pid}; it renders by {engine}: {renderer}", soft_wrap=True)
        programs = [Program(vmm.gpu, scene) for scene in demo_scenes(size)]
        for program in programs:
            program.pid = service.worker(program.ctx_id).pid
        victim = next(program for program in programs if program.name == VICTIM)
        with Progress(console, programs, seconds) as progress:
            accident = Accident(service, vmm.gpu, victim, progress.say)
            performance = Performance(vmm, programs, accident, seconds, progress)
            took = performance.run()
        shown = next(program for program in programs if program.name == SHOWN)
        display = show_on_display(vmm, shown)
        losses = service.lost_contexts()
        results = Results(
            contexts=[context_result(program, losses) for program in programs],
            killed=performance.killed,
            others_longest_pause_ms=round(performance.others_longest_pause_ms(), 1),
            display=display,
            service=ServiceResult(service.pid, engine, renderer),
            size=size,
            seconds=round(took, 3),
            problems=find_problems(programs, performance.killed, losses, display),
        )
    code = service.wait()
    if code:
        results.problems.append(f"the service ended with exit code {code}")
    return results, programs


def _ram(size: tuple[int, int]) -> int:
    """Bytes of guest memory."""
    pixels = size[0] * size[1] * _RAM_PER_PIXEL
    return _BASE_RAM + (pixels + _MIB - 1) // _MIB * _MIB


def _save_pictures(out: Path, programs: Sequence[Program], results: Results) -> None:
    cards = []
    for program, context in zip(programs, results.contexts, strict=True):
        if program.picture is None:
            continue
        Image.fromarray(program.picture).save(out / f"{program.name}.png")
        figures = (
            f"worker {context.pid}  ·  {context.frames} frames",
            f"fence p50 {context.fence_p50_us / 1000:.1f} ms  ·  p99 {context.fence_p99_us / 1000:.1f} ms",
        )
        cards.append(Card(program.picture, program.name, figures, program.state, context.lost))
    if cards:
        killed, service = results.killed, results.service
        subtitle = (
            f"{len(cards)} guest programs, a worker process for each  ·  {service.engine} on {service.renderer}  ·  "
            f"{results.size[0]} x {results.size[1]}  ·  {results.seconds:.1f} s"
        )
        footer = (
            f"After {killed.at_s:.1f} s worker {killed.pid} was killed in the middle of a submit; its fence retired "
            f"with {killed.fence_response} {killed.fence_retired_ms:.1f} ms later."
        )
        contact_sheet("isorend demo", subtitle, cards, footer).save(out / SHEET)


def _report(console: Console, out: Path, programs: Sequence[Program], results: Results) -> int:
    killed = results.killed
    console.print()
    console.print(table(programs, f"{results.seconds:.1f} s of three guest programs", rates=False))
    console.print(f"{killed.name}: its next submit after the kill was answered {killed.next_response}")
    console.print(f"the others: at most {results.others_longest_pause_ms:.0f} ms between two frames around the kill")
    if results.display.as_read_back:
        console.print(f"the display shows {results.display.name}, every pixel as the guest reads it back")
    console.print(f"pictures and figures: {out}/{SHEET}, {out}/{SUMMARY}", soft_wrap=True)
    if results.problems:
        _fail("; ".join(results.problems))
        return 1
    others = " and ".join(program.name for program in programs if program.name != killed.name)
    console.print(f"[bold green]ok[/]: only {killed.name} was lost; {others} rendered every frame")
    return 0


def _fail(message: str) -> None:
    print(f"isorend demo: failed: {' '.join(message.split())}", file=sys.stderr)
