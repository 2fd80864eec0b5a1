"""The figures of a run and the verdict on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.demo.accident import Killed
from bench.demo.program import Program
from bench.demo.service import LostContext, is_running
from tests.fake_vmm import FakeVmm

# A lit scene has thousands; a cleared target has one.
_FEWEST_COLOURS = 256
_DISPLAY_S = 30.0


@dataclass(frozen=True, slots=True)
class ContextResult:
    """A guest context's figures. pid: its worker's. frames: rendered ones. Times in microseconds."""

    name: str
    pid: int
    frames: int
    lost: bool
    fence_p50_us: float
    fence_p99_us: float


@dataclass(frozen=True, slots=True)
class ServiceResult:
    """What ran: process id, engine and renderer of the service."""

    pid: int
    engine: str
    renderer: str


@dataclass(frozen=True, slots=True)
class DisplayResult:
    """What was shown on the VMM's display at the end, and whether every pixel arrived as the guest reads it back."""

    name: str
    size: tuple[int, int]
    as_read_back: bool


@dataclass(frozen=True, slots=True)
class Results:
    """A whole run. seconds: how long the programs played. problems: why the run is a failure, empty if it is not."""

    contexts: list[ContextResult]
    killed: Killed
    others_longest_pause_ms: float
    display: DisplayResult
    service: ServiceResult
    size: tuple[int, int]
    seconds: float
    problems: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        values: dict[str, Any] = {"ok": not self.problems, **asdict(self)}
        path.write_text(json.dumps(values, indent=2) + "\n")


def context_result(program: Program, losses: Sequence[LostContext]) -> ContextResult:
    """A context is lost if the service says so, or if the guest was answered an error."""
    p50, p99 = program.fence_us() or (0.0, 0.0)
    lost = bool(program.errors) or program.ctx_id in {loss.ctx_id for loss in losses}
    return ContextResult(program.name, program.pid, program.frames, lost, round(p50, 1), round(p99, 1))


def show_on_display(vmm: FakeVmm, program: Program) -> DisplayResult:
    """Scan a program's target out to the VMM's display and compare what arrives with what it read back."""
    assert vmm.display is not None and program.picture is not None
    display, wanted = vmm.display, program.picture
    program.player.show()
    vmm.gpu.wait(program.player.flush()).check("RESOURCE_FLUSH")

    def arrived() -> bool:
        pixels = display.framebuffer()
        return pixels is not None and np.array_equal(pixels[:, :, 2::-1], wanted)

    try:
        display.wait_for(arrived, f"the picture of {program.name}", timeout=_DISPLAY_S)
    except TimeoutError:
        return DisplayResult(program.name, program.player.scene.size, False)
    return DisplayResult(program.name, program.player.scene.size, True)


def find_problems(
    programs: Sequence[Program], killed: Killed, losses: Sequence[LostContext], display: DisplayResult
) -> list[str]:
    """What is not as it should be, a line each."""
    problems = []
    if killed.fence_response.startswith("OK"):
        problems.append(f"{killed.name}'s interrupted submit was answered {killed.fence_response}")
    if killed.next_response.startswith("OK"):
        problems.append(f"{killed.name} is dead, but its next submit was answered {killed.next_response}")
    named = [(loss.ctx_id, loss.name, loss.pid, loss.cause) for loss in losses]
    if named != [(killed.ctx_id, killed.name, killed.pid, "killed by SIGKILL")]:
        problems.append(f"the service reported {[loss.line for loss in losses]}")
    for program in programs:
        problems += _program_problems(program, killed)
    if not display.as_read_back:
        problems.append(f"the display does not show what {display.name} drew")
    return problems


def _program_problems(program: Program, killed: Killed) -> list[str]:
    problems = []
    if program.errors:
        problems.append(f"{program.name} was answered {program.errors[0]} ({len(program.errors)} errors)")
    if program.frames != program.submitted or not program.frames:
        problems.append(f"{program.name} rendered {program.frames} of {program.submitted} frames")
    if program.name != killed.name and not is_running(program.pid):
        problems.append(f"the worker of {program.name} (process {program.pid}) is gone")
    if program.picture is None:
        problems.append(f"there is no picture of {program.name}")
    elif len(np.unique(program.picture.reshape(-1, 3), axis=0)) < _FEWEST_COLOURS:
        problems.append(f"the picture of {program.name} is all but empty")
    return problems
