"""A stock Debian guest under a stock QEMU with the isorend service as its GPU.

One guest serves all the tests of this module, in order: the console is looked at before the first GL program runs.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psutil
import pytest

from tests.service_process import ServiceProcess
from tests.vm import picture
from tests.vm.guest_process import GuestProcess
from tests.vm.qemu import Vm
from tests.vm.waiting import wait_until
from tests.vm.workers import WorkerProcess, context_workers

# TCG, software GL on the host and one or two CPUs for both.
GL_TIMEOUT_S = 240.0
# A worker that has used this much more CPU time has rendered, not merely lived.
WORK_CPU_S = 0.2

# kmscube prints this every two seconds and when its -c count is reached; -c N says N - 1 or N.
_RENDERED = re.compile(r"^Rendered (\d+) frames", re.MULTILINE)

# A GL compositor without a display, kept repainting by a client that draws in shared memory: a GL program that needs
# neither DRM master nor a second GL context.
_HEADLESS_WESTON = """
weston --backend=headless --renderer=gl --width=320 --height=240 --idle-time=0 --no-config --socket="headless-$$" &
until [ -S "$XDG_RUNTIME_DIR/headless-$$" ]; do sleep 0.2; done
WAYLAND_DISPLAY="headless-$$" exec weston-simple-shm
"""


# The framebuffer console has a context of its own, named after the process that loaded the driver.
_CONSOLE_CONTEXT = "insmod"


def program_workers(service: ServiceProcess) -> list[WorkerProcess]:
    """The workers of guest programs, without the framebuffer console's."""
    service.check_running()
    return [worker for worker in context_workers(service.pid) if worker.name != _CONSOLE_CONTEXT]


def rendered_frames(program: GuestProcess) -> int:
    """How many frames kmscube has said it rendered."""
    assert program.poll() is None, program.output()
    counts = _RENDERED.findall(program.output())
    return int(counts[-1]) if counts else 0


def worker_of(service: ServiceProcess, name: str) -> WorkerProcess:
    """The worker of the newest context of a guest program, waited for; it has already done some work."""

    def found() -> WorkerProcess | None:
        workers = [worker for worker in program_workers(service) if worker.name.startswith(name)]
        return workers[-1] if workers else None

    worker = wait_until(found, f"a worker of {name}", GL_TIMEOUT_S)
    assert worker is not None
    return worker


def wait_until_it_works(worker: WorkerProcess) -> None:
    """Waits until a worker has used WORK_CPU_S more CPU time. Raises psutil.NoSuchProcess if it dies."""
    before = worker.cpu_seconds()
    wait_until(lambda: worker.cpu_seconds() - before > WORK_CPU_S, f"work of {worker}", GL_TIMEOUT_S)


def is_gone(worker: WorkerProcess) -> bool:
    """Whether a worker's process has ended (a zombie has)."""
    try:
        return psutil.Process(worker.pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def running(vm: Vm, script: str) -> Iterator[GuestProcess]:
    """A guest program that is killed at the end."""
    program = vm.spawn(script)
    try:
        yield program
    finally:
        program.kill(signal.SIGKILL)


@contextmanager
def two_programs(vm: Vm, service: ServiceProcess) -> Iterator[tuple[GuestProcess, WorkerProcess, WorkerProcess]]:
    """kmscube on the display and a headless GL weston: (kmscube, its worker, weston's worker), all at work."""
    with running(vm, "exec stdbuf -oL kmscube") as cube, running(vm, _HEADLESS_WESTON) as weston:
        workers = worker_of(service, "kmscube"), worker_of(service, "weston")
        wait_until(lambda: rendered_frames(cube) > 0, "kmscube's first frames", GL_TIMEOUT_S)
        for worker in workers:
            wait_until_it_works(worker)
        assert weston.poll() is None, weston.output()
        yield cube, *workers


def assert_is_cube(path: Path) -> None:
    """kmscube's picture: a smoothly shaded cube in the middle of a plain grey background."""
    pixels = picture.load(path)
    (background, _), *_ = picture.colours(pixels).most_common(1)
    height, width, _ = pixels.shape
    assert all(abs(channel - 128) <= 2 for channel in background)
    assert len(picture.colours(pixels)) > 500
    assert 0.05 < picture.foreground_fraction(pixels) < 0.7
    assert tuple(pixels[height // 2, width // 2]) != background
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert all(tuple(corner) == background for corner in corners)


def test_console_text_shows_on_the_2d_path(guest: Vm, vm_service: ServiceProcess, vm_out_dir: Path) -> None:
    assert guest.gpu_driver() == "virtio_gpu"
    assert program_workers(vm_service) == []
    pixels = picture.load(guest.screendump(vm_out_dir / "console.png"))
    assert 0.001 < picture.foreground_fraction(pixels) < 0.5


def test_eglinfo_names_virgl(guest: Vm) -> None:
    code, output = guest.run("eglinfo -B -p surfaceless", GL_TIMEOUT_S)
    assert code == 0, output
    renderers = re.findall(r"renderer: (.*)", output)
    assert renderers, output
    assert all(renderer.startswith("virgl") for renderer in renderers), output


def test_kmscube_runs_200_frames(guest: Vm) -> None:
    code, output = guest.run("exec kmscube -c 200", GL_TIMEOUT_S)
    assert code == 0, output
    assert re.search(r"renderer: \"virgl", output), output
    assert max(map(int, _RENDERED.findall(output))) >= 199


def test_screendump_is_a_cube_that_turns(guest: Vm, vm_out_dir: Path) -> None:
    with running(guest, "exec stdbuf -oL kmscube") as cube:
        paths = []
        for name in ("kmscube-1.png", "kmscube-2.png"):
            seen = rendered_frames(cube)
            wait_until(lambda seen=seen: rendered_frames(cube) > seen, "kmscube's next frames", GL_TIMEOUT_S)  # type: ignore[misc]
            paths.append(guest.screendump(vm_out_dir / name))
    for path in paths:
        assert_is_cube(path)
    assert paths[0].read_bytes() != paths[1].read_bytes()


def test_two_programs_have_a_worker_process_each(guest: Vm, vm_service: ServiceProcess) -> None:
    with two_programs(guest, vm_service) as (_, cube_worker, weston_worker):
        assert cube_worker.pid != weston_worker.pid
        assert cube_worker.ctx_id != weston_worker.ctx_id
        assert {cube_worker.engine, weston_worker.engine} == {"virgl"}
        assert vm_service.pid not in (cube_worker.pid, weston_worker.pid)
    wait_until(lambda: program_workers(vm_service) == [], "the end of the workers", GL_TIMEOUT_S)


def test_a_killed_worker_leaves_the_other_at_work(guest: Vm, vm_service: ServiceProcess, vm_out_dir: Path) -> None:
    with two_programs(guest, vm_service) as (cube, cube_worker, weston_worker):
        os.kill(weston_worker.pid, signal.SIGKILL)
        wait_until(lambda: is_gone(weston_worker), "the end of weston's worker", 60)
        seen = rendered_frames(cube)
        wait_until(lambda: rendered_frames(cube) > seen, "kmscube's next frames", GL_TIMEOUT_S)
        wait_until_it_works(cube_worker)
        assert_is_cube(guest.screendump(vm_out_dir / "kmscube-after-kill.png"))
    with two_programs(guest, vm_service) as (_, cube_worker, weston_worker):
        os.kill(cube_worker.pid, signal.SIGKILL)
        wait_until(lambda: is_gone(cube_worker), "the end of kmscube's worker", 60)
        wait_until_it_works(weston_worker)
    vm_service.check_running()
    assert guest.run("exec kmscube -c 20", GL_TIMEOUT_S).code == 0


@pytest.mark.parametrize("how", ["reboot", "sysrq"])
def test_reboot_works_twice(
    guest: Vm, vm_service: ServiceProcess, vm_out_dir: Path, how: Literal["reboot", "sysrq"]
) -> None:
    boot_id = "cat /proc/sys/kernel/random/boot_id"
    before = guest.run(boot_id).output
    guest.reboot(how)
    assert guest.run(boot_id).output != before
    assert guest.gpu_driver() == "virtio_gpu"
    pixels = picture.load(guest.screendump(vm_out_dir / f"console-after-{how}.png"))
    assert 0.001 < picture.foreground_fraction(pixels) < 0.5
    code, output = guest.run("exec kmscube -c 20", GL_TIMEOUT_S)
    assert code == 0, output
    vm_service.check_running()
