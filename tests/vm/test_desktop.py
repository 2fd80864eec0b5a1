"""A GL desktop in a real guest: the compositor shows what its clients draw, and every one has a worker of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.service_process import ServiceProcess
from tests.vm import picture
from tests.vm.conftest import VmFactory
from tests.vm.desktop import Desktop, Window, parse_scene, running_desktop
from tests.vm.picture import Pixels
from tests.vm.qemu import Vm
from tests.vm.test_deaths import kill_worker, worker_named
from tests.vm.test_guest import GL_TIMEOUT_S, program_workers
from tests.vm.waiting import wait_until
from tests.vm.workers import WorkerProcess

_SCENE = """
Layer 5 (pos 0x50000000):
\tView 0 (role xdg_toplevel, PID 255, surface ID 16, top-level window 'Demo' of demo, 0x55e2adf4efc0):
\t\tposition: (785, 425) -> (1185, 725)
\t\t[not opaque]
\t\tSHM buffer
\t\t\twidth: 400, height: 300
\tView 1 (role wl_subsurface, PID 255, surface ID 21, sub-surface, 0x55e2adfe6920):
\t[view is under parent view layer]
\t\tposition: (-4, 586) -> (1147, 687)
\t\tdmabuf buffer
\t\t\t[2 references may use buffer content]

Layer 6 (pos 0x2):
\tView 0 (role (null), PID 190, surface ID 15, background for output Virtual-1, 0x55e2adddeca0):
\t\tposition: (0, 0) -> (1280, 800)
"""


def shows_primaries(pixels: Pixels) -> bool:
    """Whether red, green and blue are all there, as in each picture that the GL clients draw."""
    values = pixels.reshape(-1, 3).astype(int)
    strongest = values.max(axis=1)
    others = values.sum(axis=1) - strongest
    pure = values[(strongest > 64) & (others < strongest)].argmax(axis=1)
    return bool((np.bincount(pure, minlength=3) > values.shape[0] // 500).all())


def shows_many_colours(pixels: Pixels) -> bool:
    """As weston-simple-shm's rings do."""
    return len(picture.colours(pixels)) > 200


_GEARS = "es2gears_wayland"


@dataclass(frozen=True)
class Client:
    """A program of the desktop, and what its picture has to look like."""

    program: str
    is_gl: bool
    looks_right: Callable[[Pixels], bool]


CLIENTS = [
    Client("weston-simple-egl", True, shows_primaries),
    Client(_GEARS, True, shows_primaries),
    Client("weston-subsurfaces", True, shows_primaries),
    Client("weston-simple-shm", False, shows_many_colours),
]


@pytest.fixture(scope="module")
def desktop(vm_service: ServiceProcess, vm_factory: VmFactory) -> Iterator[Desktop]:
    """Weston and the four clients."""
    vm = vm_factory(vm_service.socket_path)
    with running_desktop(vm, "desktop") as desktop:
        for client in CLIENTS:
            window = desktop.open(client.program, is_gl=client.is_gl)
            print(f"{window.program}: window {tuple(window.frame)}, picture {tuple(window.content)}")
        yield desktop


def content(vm: Vm, window: Window, path: Path) -> Pixels:
    """The middle of what a window shows now."""
    return window.content.middle().of(picture.load(vm.screendump(path)))


def wait_until_it_changes(vm: Vm, window: Window, path: Path) -> None:
    """Until two screendumps, the later of which is kept, differ in the middle of a window."""
    before = content(vm, window, path).copy()
    changed = f"a change of {window.program} at {tuple(window.content)}"
    wait_until(lambda: not np.array_equal(before, content(vm, window, path)), changed, GL_TIMEOUT_S)


def gl_workers(service: ServiceProcess) -> dict[str, WorkerProcess]:
    """By program; 15 bytes of a name is what Linux keeps."""
    names = ["weston", *(client.program for client in CLIENTS if client.is_gl)]
    return {name: worker_named(service, name) for name in names}


def test_scene_is_parsed() -> None:
    demo, part, background = parse_scene(_SCENE)
    assert (demo.pid, demo.role, demo.is_gl) == (255, "xdg_toplevel", False)
    assert demo.rectangle == (785, 425, 1185, 725)
    assert demo.rectangle.middle() == (885, 500, 1085, 650)
    assert (part.role, part.is_gl, part.rectangle.left) == ("wl_subsurface", True, -4)
    assert (background.pid, background.is_gl) == (190, False)
    assert demo.rectangle.overlaps(part.rectangle)
    assert not demo.rectangle.middle().overlaps(demo.rectangle._replace(left=1085))


def test_every_gl_program_has_a_worker_of_its_own(desktop: Desktop, vm_service: ServiceProcess) -> None:
    workers = gl_workers(vm_service)
    assert len({worker.pid for worker in workers.values()}) == len(workers)
    assert len({worker.ctx_id for worker in workers.values()}) == len(workers)
    # The one that draws in shared memory has none.
    assert {worker.name for worker in program_workers(vm_service)} == {name[:15] for name in workers}


def test_all_windows_show_what_their_clients_draw(desktop: Desktop, vm_out_dir: Path) -> None:
    path = vm_out_dir / "windows.png"

    def wrong() -> list[str]:
        pixels = picture.load(desktop.vm.screendump(path))
        return [
            window.program
            for window, client in zip(desktop.windows, CLIENTS, strict=True)
            if not client.looks_right(window.content.middle().of(pixels))
        ]

    # A triangle that turns is a line now and then.
    wait_until(lambda: not wrong(), f"four right windows in {path}", GL_TIMEOUT_S)
    for window in desktop.windows:
        wait_until_it_changes(desktop.vm, window, vm_out_dir / "windows-later.png")
    desktop.check_running()


def test_a_clients_worker_ends_and_the_other_windows_go_on(
    desktop: Desktop, vm_service: ServiceProcess, vm_out_dir: Path
) -> None:
    path = vm_out_dir / "windows-without-gears.png"
    compositor = worker_named(vm_service, "weston")
    kill_worker(vm_service, worker_named(vm_service, _GEARS))
    (lost,) = (window for window in desktop.windows if window.program == _GEARS)
    desktop.windows.remove(lost)
    for window in desktop.windows:
        wait_until_it_changes(desktop.vm, window, path)
    desktop.check_running()
    assert worker_named(vm_service, "weston") == compositor
    # What the dead worker drew last is there as long as its client is.
    assert shows_primaries(content(desktop.vm, lost, path))
    lost.process.kill()
    vm_service.check_running()


def test_a_window_that_comes_after_a_death_shows_its_picture(desktop: Desktop, vm_out_dir: Path) -> None:
    window = desktop.open(_GEARS, is_gl=True)
    path = vm_out_dir / "windows-again.png"
    wait_until(lambda: shows_primaries(content(desktop.vm, window, path)), f"gears in {path}", GL_TIMEOUT_S)
    desktop.check_running()
