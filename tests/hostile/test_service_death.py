"""The launcher, the master and the VM are killed, each with workers at work and workers being started."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Iterator

import psutil
import pytest

from master.supervisor import LAUNCHER_GRACE
from tests.conftest import ServiceFactory
from tests.device_lab import OPTIONS, DeviceLab, assert_draws, gone, triangle, until
from tests.fake_vmm import FakeVmm
from tests.fake_vmm.command_queue import Pending
from tests.fake_vmm.scene_player import ScenePlayer
from tests.fake_vmm.virgl.endless import EndlessScene
from tests.fake_vmm.virgl.many_draws import ManyDrawsScene
from tests.rogue.lab import losses
from tests.service_lab import wait_until_gone
from tests.service_process import ServiceProcess

_BUSY = struct.pack("<II", 1, 1_000_000_000)  # null_engine.h: keeps a processor busy for eleven days
PROGRAMS = 3


@pytest.fixture(params=["virgl", "null"])
def service(request: pytest.FixtureRequest, service_factory: ServiceFactory) -> ServiceProcess:
    return service_factory([*OPTIONS, f"--engine={request.param}"])


@pytest.fixture
def lab(service: ServiceProcess) -> DeviceLab:
    return DeviceLab(service)


def begin_work(vmm: FakeVmm) -> list[Pending]:
    """Some programs draw and as many are about to: their workers are being started."""
    players = [ScenePlayer(vmm.gpu, ManyDrawsScene(400, f"busy {i}")) for i in range(PROGRAMS)]
    with vmm.gpu.batch():
        pending = [player.frame(0.0, index) for index in range(4) for player in players]
    return pending + [vmm.gpu.create_context(f"new {i}").submit(b"") for i in range(PROGRAMS)]


def age(pid: int) -> float:
    """Seconds since a process was started."""
    return time.time() - psutil.Process(pid).create_time()


@pytest.mark.parametrize(
    ("service", "which"), [("virgl", 0), ("null", -1)], ids=["outermost", "innermost"], indirect=["service"]
)
def test_launcher_killed(lab: DeviceLab, which: int) -> None:
    """All contexts are lost with it, and nothing else: a new one makes new workers."""
    lab.settle()
    until(lambda: age(lab.launchers()[-1]) > LAUNCHER_GRACE + 1, "a launcher that does not die young")
    with lab.vmm() as vmm:
        for pending in begin_work(vmm):
            vmm.gpu.control.wait(pending)
        before = lab.settle()
        contexts = {context.ctx_id for context in vmm.gpu.contexts.values()}
        under_way = begin_work(vmm)
        processes = [process.pid for process in lab.processes() if process.pid != lab.pid]
        os.kill(lab.launchers()[which], signal.SIGKILL)
        vmm.gpu.wait_all(under_way)
        wait_until_gone(processes)
        until(lambda: {loss.ctx_id for loss in losses(lab.log)} >= contexts, "blames for all of them")
        assert all("the launcher ended" in loss.cause for loss in losses(lab.log))
        for context in list(vmm.gpu.contexts.values()):
            assert not context.run(b"").ok
            context.destroy()
        again = begin_work(vmm)
        assert all(response.ok for response in vmm.gpu.wait_all(again))
        for context in list(vmm.gpu.contexts.values())[PROGRAMS:]:
            context.destroy()
        assert lab.settle().processes <= before.processes
    lab.check_running()


def test_master_killed(service: ServiceProcess, lab: DeviceLab) -> None:
    """No process of it lives on: neither those at work, nor those being started."""
    vmm = FakeVmm.connect(service.socket_path)
    try:
        begin_work(vmm)
        processes = [process.pid for process in lab.processes()]
        assert len(processes) > PROGRAMS
        os.kill(lab.pid, signal.SIGKILL)
        wait_until_gone(processes)
    finally:
        vmm.disconnect(graceful=False)


def test_front_end_killed(service: ServiceProcess, lab: DeviceLab) -> None:
    """Its workers end, and nothing of it is left for the next one."""
    before = lab.wait_until_idle()
    for _ in range(3):
        vmm = FakeVmm.connect(service.socket_path)
        begin_work(vmm)
        vmm.disconnect(graceful=False)
        lab.wait_until_idle()
    lab.wait_for_footprint(before)
    with lab.vmm() as vmm:
        assert all(response.ok for response in vmm.gpu.wait_all(begin_work(vmm)))


def test_everything_ends_with_the_only_front_end(service_factory: ServiceFactory) -> None:
    service = service_factory(OPTIONS, keep_listening=False)
    lab = DeviceLab(service)
    vmm = FakeVmm.connect(service.socket_path)
    begin_work(vmm)
    processes = [process.pid for process in lab.processes()]
    vmm.disconnect(graceful=False)
    assert service.wait() == 0
    assert all(map(gone, processes))


# ---- programs that never end


@pytest.fixture
def impatient(service_factory: ServiceFactory, request: pytest.FixtureRequest) -> Iterator[DeviceLab]:
    """A service that takes a context for hanging after two seconds; the parameter is its engine."""
    lab = DeviceLab(service_factory([*OPTIONS, "--hang-timeout=2", f"--engine={request.param}"]))
    before = lab.wait_until_idle()
    yield lab
    lab.check_running()
    lab.wait_for_footprint(before)


def wait_for_hang(lab: DeviceLab, name: str) -> None:
    """Until the log blames a context of that name for making no progress."""
    until(lambda: any(loss.name == name and "made no progress" in loss.cause for loss in losses(lab.log)), "a blame")


@pytest.mark.parametrize("impatient", ["virgl"], indirect=True)
def test_endless_shader(impatient: DeviceLab) -> None:
    lab = impatient
    with lab.vmm() as vmm:
        neighbour = triangle(vmm.gpu)
        assert_draws(neighbour)
        endless = ScenePlayer(vmm.gpu, EndlessScene())
        worker = lab.worker_of(endless.context.ctx_id)
        with vmm.gpu.batch():
            hanging = endless.frame(0.0, 0)
            theirs = [neighbour.frame(0.0, index) for index in range(20)]
        assert not vmm.gpu.wait(hanging).ok
        assert all(response.ok for response in vmm.gpu.wait_all(theirs))
        wait_for_hang(lab, endless.name)
        until(lambda: gone(worker.pid), "the end of its worker")
        assert_draws(neighbour)
        assert not endless.context.run(b"").ok


@pytest.mark.parametrize("impatient", ["null"], indirect=True)
def test_endless_engine(impatient: DeviceLab) -> None:
    lab = impatient
    with lab.vmm() as vmm:
        other, endless = vmm.gpu.create_context("other"), vmm.gpu.create_context("endless")
        with vmm.gpu.batch():
            hanging = endless.submit(_BUSY)
            theirs = [other.submit(b"") for _ in range(20)]
        assert not vmm.gpu.wait(hanging).ok
        assert all(response.ok for response in vmm.gpu.wait_all(theirs))
        wait_for_hang(lab, endless.name)
        assert other.run(b"").ok
        assert not endless.run(b"").ok
