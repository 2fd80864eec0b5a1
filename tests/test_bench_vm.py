"""What bench.workloads.vm reads from guest programs, with a VM that is played."""

from __future__ import annotations

from typing import Any, cast

import pytest

from bench.workloads.vm import GuestFailure, GuestPrograms
from tests.vm.guest_process import Completed
from tests.vm.qemu import Vm

KMSCUBE = """Using display 0x55e0 with EGL version 1.5
  renderer: "virgl (LLVMPIPE (LLVM 19.1.7, 256 bits))"
Rendered 79 frames in 2.010973 sec (39.284474 fps)
Rendered 299 frames in 7.910848 sec (37.796202 fps)
"""
GLMARK2 = """    GL_RENDERER:    virgl (LLVMPIPE (LLVM 19.1.7, 256 bits))
    Surface Size:   5120x2160 fullscreen
[build] use-vbo=true:duration=3: FPS: 60 FrameTime: 16.000 ms
[buffer] duration=3: FPS: 33 FrameTime: 32.000 ms
"""


class PlayedVm:
    """Answers every program the same; notes what it is asked."""

    def __init__(self, answer: str, code: int = 0) -> None:
        self.answer = Completed(code, answer)
        self.said: list[str] = []
        self.qmp = self

    def execute(self, command: str) -> None:
        self.said.append(command)

    def run(self, script: str, timeout: float) -> Completed:
        self.said.append(script)
        return self.answer


def programs(vm: PlayedVm) -> GuestPrograms:
    return GuestPrograms(cast(Vm, cast(Any, vm)), frames=300, seconds=3)


def test_kmscube_counts_from_its_first_frame_to_its_last_while_the_vm_goes_on() -> None:
    vm = PlayedVm(KMSCUBE)
    assert programs(vm).kmscube() == {"kmscube": 37.796202}
    assert vm.said == ["cont", "exec kmscube -c 300", "stop"]


def test_glmark2_scenes_are_told_apart() -> None:
    rates = programs(PlayedVm(GLMARK2)).off_screen()
    assert rates == {"glmark2 build, off-screen": 1000 / 16, "glmark2 buffer, off-screen": 1000 / 32}


@pytest.mark.parametrize(
    "vm",
    [
        PlayedVm(GLMARK2.replace("[buffer]", "[desktop]")),
        PlayedVm("Error: Failed to set crtc: -22\n" + GLMARK2),
        PlayedVm(GLMARK2, code=1),
    ],
)
def test_a_run_of_glmark2_that_is_not_whole_fails(vm: PlayedVm) -> None:
    with pytest.raises(GuestFailure):
        programs(vm).off_screen()


def test_surroundings_are_what_the_programs_say() -> None:
    assert programs(PlayedVm("1280,800\n" + KMSCUBE + GLMARK2)).surroundings() == {
        "renderer": "virgl (LLVMPIPE (LLVM 19.1.7, 256 bits))",
        "mode": "1280,800",
        "surface": "5120x2160",
    }
    with pytest.raises(GuestFailure, match="no GL"):
        programs(PlayedVm("no display")).surroundings()
