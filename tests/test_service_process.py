"""The service as child of pytest: how it starts, ends and fails; and what it must and must not have loaded."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psutil
import pytest
from xprocess.xprocess import XProcess

from tests.conftest import ServiceFactory
from tests.fake_vmm import FakeVmm
from tests.fake_vmm.scene_player import ScenePlayer
from tests.fake_vmm.virgl.triangle import TriangleScene
from tests.service_process import PROGRAM, ServiceEnded, ServiceProcess, forget_crashed_runs
from tests.vm.waiting import wait_until
from tests.vm.workers import context_workers

# What loads drivers, and drivers.
LOADERS = ("libvirglrenderer", "libEGL.", "libGL", "libOpenGL", "libvulkan.", "libepoxy", "libgbm")
DRIVERS = ("libEGL_", "libGLX_", "libgallium", "swrast_", "kms_swrast_", "libvulkan_", "libLLVM", "libnvidia")

# Our own modules that only workers and their launcher have a use for.
THEIRS = ("_engines.", "_sandbox.", "libseccomp")


def loaded(pid: int, names: tuple[str, ...]) -> set[str]:
    """Those files mapped into a process whose names begin with one of `names`."""
    files = {Path(region.path).name for region in psutil.Process(pid).memory_maps()}
    return {name for name in files if name.startswith(names)}


def draw(vmm: FakeVmm) -> ScenePlayer:
    """A guest program that has drawn a frame and shown it."""
    player = ScenePlayer(vmm.gpu, TriangleScene("loader"))
    vmm.gpu.wait(player.frame(0, 0)).check()
    player.show()
    vmm.gpu.wait(player.flush()).check()
    return player


def test_the_master_loads_no_driver(service: ServiceProcess, vmm: FakeVmm) -> None:
    player = draw(vmm)
    assert loaded(service.pid, ("_dataplane",))
    assert loaded(service.pid, (*LOADERS, *DRIVERS, *THEIRS)) == set()
    player.destroy()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into a worker")
def test_workers_load_drivers_and_their_launcher_does_not(service: ServiceProcess, vmm: FakeVmm) -> None:
    player = draw(vmm)
    (worker,) = context_workers(service.pid)
    assert loaded(worker.pid, LOADERS)
    assert loaded(worker.pid, DRIVERS)
    assert len(loaded(worker.pid, THEIRS)) == len(THEIRS)
    # The launcher holds the code that its children run, but forks them before a driver is there: drivers have threads.
    launcher = psutil.Process(psutil.Process(worker.pid).ppid())
    assert launcher.pid != service.pid
    assert loaded(launcher.pid, DRIVERS) == set()
    assert launcher.num_threads() == 1
    player.destroy()


def test_it_ends_with_its_front_end_and_takes_its_processes_along(service_factory: ServiceFactory) -> None:
    service = service_factory(keep_listening=False)
    with FakeVmm.connect(service.socket_path) as vmm:
        vmm.gpu.create_context("short")
        family = psutil.Process(service.pid).children(recursive=True)
        assert len(family) > 2
        assert service.socket_path.is_socket()
    assert service.wait() == 0
    assert psutil.wait_procs(family, timeout=30)[1] == []
    assert not service.socket_path.exists()


def test_wrong_start_is_told_with_the_log(start_service: ServiceFactory) -> None:
    with pytest.raises(ServiceEnded, match="--spares"):
        start_service(["--spares=x"])


def test_a_service_of_a_crashed_run_is_ended_and_forgotten(xprocess: XProcess) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = Path(str(xprocess.rootdir)) / f"service-{gone.pid}-1"
    left.mkdir()
    process = subprocess.Popen([PROGRAM, "1000"], executable="sleep")
    try:
        # Its arguments can be read a little later than Popen returns.
        wait_until(lambda: psutil.Process(process.pid).cmdline(), "the process's arguments", 30)
        (left / "xprocess.PID").write_text(str(process.pid))
        forget_crashed_runs(xprocess)
        process.wait(30)
    finally:
        process.kill()
    assert not left.exists()


def test_another_program_with_a_left_pid_is_spared(xprocess: XProcess) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = Path(str(xprocess.rootdir)) / f"service-{gone.pid}-1"
    left.mkdir()
    (left / "xprocess.PID").write_text(str(os.getppid()))
    forget_crashed_runs(xprocess)
    assert not left.exists()
    assert psutil.pid_exists(os.getppid())
