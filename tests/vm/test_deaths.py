"""Workers of a desktop in a real guest are killed: a client's, then the compositor's. The guest kernel must not mind.

Linux learns of a lost context by error responses that it logs and does not hand on, so that a program whose context is
lost may go on without a picture; but it can be ended, and so can everything else.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.service_lab import gone
from tests.service_process import ServiceProcess
from tests.vm import picture
from tests.vm.conftest import VmFactory
from tests.vm.desktop import BACKGROUND, client, compositor
from tests.vm.guest_process import GuestProcess
from tests.vm.qemu import Vm
from tests.vm.test_guest import (
    GL_TIMEOUT_S,
    assert_is_cube,
    program_workers,
    rendered_frames,
    running,
    wait_until_it_works,
)
from tests.vm.waiting import wait_until
from tests.vm.workers import WorkerProcess

# Sooner than Linux would look by itself, which is after two minutes.
HUNG_TASK_S = 15
_ALARM = re.compile(
    r"^.*(blocked for more than|hung_task|timed out|timeout|soft lockup|kernel BUG|BUG:|WARNING:|Oops|Call Trace).*$",
    re.MULTILINE,
)
"""What Linux logs when something hangs or is wrong with itself."""


@pytest.fixture(scope="module")
def quiet_guest(vm_service: ServiceProcess, vm_factory: VmFactory) -> Vm:
    """A guest of this module's own, whose kernel looks out for tasks that hang."""
    vm = vm_factory(vm_service.socket_path)
    script = f"echo {HUNG_TASK_S} >/proc/sys/kernel/hung_task_timeout_secs; cat /proc/sys/kernel/hung_task_timeout_secs"
    assert vm.run(script).output.strip() == str(HUNG_TASK_S)
    return vm


def alarms(vm: Vm) -> list[str]:
    """What the guest kernel has logged since it was started that should worry somebody."""
    return [match.group() for match in _ALARM.finditer(vm.run("dmesg").output)]


def uptime(vm: Vm) -> float:
    """Seconds, by the guest's clock."""
    return float(vm.run("cat /proc/uptime").output.split()[0])


def worker_named(service: ServiceProcess, name: str) -> WorkerProcess:
    """The worker of the newest context of a program with exactly this name, as far as Linux keeps it (15 bytes)."""

    def found() -> WorkerProcess | None:
        workers = [worker for worker in program_workers(service) if worker.name == name[:15]]
        return workers[-1] if workers else None

    worker = wait_until(found, f"a worker of {name}", GL_TIMEOUT_S)
    assert worker is not None
    return worker


def kill_worker(service: ServiceProcess, worker: WorkerProcess) -> None:
    """Ends it as a crash would, and waits until the service has said so."""
    os.kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: gone(worker.pid), f"the end of {worker}", GL_TIMEOUT_S)
    line = f"context lost: ctx {worker.ctx_id} {worker.name} (worker {worker.pid}): killed by SIGKILL"
    wait_until(lambda: line in service.log, line, GL_TIMEOUT_S)


@contextmanager
def desktop(vm: Vm, service: ServiceProcess, name: str) -> Iterator[tuple[GuestProcess, WorkerProcess]]:
    """Weston with a client that has it repaint all the time: (weston, its worker), at work. The name is the socket's,
    which a killed one leaves behind."""
    with running(vm, compositor(name)) as weston, running(vm, client(name, "weston-simple-shm")) as painter:
        worker = worker_named(service, "weston")
        wait_until_it_works(worker)
        assert weston.poll() is None, weston.output()
        assert painter.poll() is None, painter.output()
        yield weston, worker


def wait_for_desktop(vm: Vm, path: Path) -> None:
    """Until the display shows the desktop's background with something on it; the screendump is kept."""

    def is_desktop() -> bool:
        colours = picture.colours(picture.load(vm.screendump(path)))
        (most, count), *_ = colours.most_common(1)
        return count < colours.total() and all(abs(a - b) <= 2 for a, b in zip(most, BACKGROUND, strict=True))

    wait_until(is_desktop, f"a desktop in {path}", GL_TIMEOUT_S)


def test_the_clients_worker_then_the_compositors(quiet_guest: Vm, vm_service: ServiceProcess, vm_out_dir: Path) -> None:
    vm = quiet_guest
    before = alarms(vm)
    with desktop(vm, vm_service, "first") as (weston, weston_worker):
        wait_for_desktop(vm, vm_out_dir / "desktop.png")
        with running(vm, client("first", "weston-simple-egl")) as egl:
            victim = worker_named(vm_service, "weston-simple-egl")
            wait_until_it_works(victim)
            kill_worker(vm_service, victim)
            wait_until_it_works(weston_worker)
        assert egl.poll() is not None
        wait_until_it_works(weston_worker)
        assert weston.poll() is None, weston.output()
        wait_for_desktop(vm, vm_out_dir / "desktop-after-client.png")

        kill_worker(vm_service, weston_worker)
        killed_at = uptime(vm)
        wait_until(lambda: uptime(vm) > killed_at + 2 * HUNG_TASK_S, "the guest's time to complain", GL_TIMEOUT_S)
    assert weston.poll() is not None
    assert alarms(vm) == before

    with running(vm, "exec stdbuf -oL kmscube") as cube:
        wait_until(lambda: rendered_frames(cube) > 0, "kmscube's first frames", GL_TIMEOUT_S)
        assert_is_cube(vm.screendump(vm_out_dir / "kmscube-after-deaths.png"))
    with desktop(vm, vm_service, "second"):
        wait_for_desktop(vm, vm_out_dir / "desktop-again.png")
    assert alarms(vm) == before
    vm_service.check_running()
