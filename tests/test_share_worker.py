"""--share-worker: all contexts in one process, the model that isorend is compared with."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.device_lab import OPTIONS, DeviceLab, assert_draws, gone, triangle, until
from tests.fake_vmm import FakeVmm, ResourceDescription, Resp, commands
from tests.service_process import ServiceProcess

StartService = Callable[..., ServiceProcess]

ONE = 1
COLORS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 1.0, 0.0))


@pytest.fixture
def lab(start_service: StartService) -> Iterator[DeviceLab]:
    service = start_service([*OPTIONS, "--share-worker"])
    yield DeviceLab(service)
    assert service.stop() == 0


@pytest.fixture
def vmm(lab: DeviceLab) -> Iterator[FakeVmm]:
    with lab.vmm() as vmm:
        yield vmm


def shared_workers(lab: DeviceLab) -> list[int]:
    """Process ids of workers that are shared."""
    titles = ((process.pid, " ".join(process.cmdline())) for process in lab.processes())
    return [pid for pid, title in titles if re.search("isorend: shared", title)]


def test_contexts_come_and_go_in_one_process(lab: DeviceLab, vmm: FakeVmm) -> None:
    players = [triangle(vmm.gpu, f"program {i}", color) for i, color in enumerate(COLORS)]
    (pid,) = shared_workers(lab)
    frames = []
    with vmm.gpu.batch():
        for index in range(20):
            frames += [player.frame(index / 20, index) for player in players]
    assert all(response.ok for response in vmm.gpu.wait_all(frames))
    for player in players:
        assert_draws(player)
    players[1].destroy()
    assert_draws(players[0])
    for player in (players[0], players[2]):
        player.destroy()
    successor = triangle(vmm.gpu, "successor")
    assert_draws(successor)
    assert shared_workers(lab) == [pid]
    assert "context lost" not in lab.log


def test_a_resource_of_two_contexts_is_one_object(vmm: FakeVmm) -> None:
    gpu = vmm.gpu
    painter, viewer = triangle(gpu, "painter"), triangle(gpu, "viewer", COLORS[1])
    target = painter.scene.target.resid
    gpu.ctx_attach_resource(viewer.context.ctx_id, target).check()
    gpu.wait(painter.frame(0.0, 0)).check()
    painted = painter.picture()
    painter.backings[target].write(bytes(len(painter.backings[target].read())))
    painter.context, own = viewer.context, painter.context  # read back as the other context sees it
    assert (painter.picture() == painted).all() and painted.any()
    painter.context = own
    gpu.ctx_detach_resource(own.ctx_id, target).check()  # the other one still has it
    painter.context = viewer.context
    assert (painter.picture() == painted).all()


def test_a_context_takes_all_its_attachments_with_it(vmm: FakeVmm) -> None:
    """Enough of them that one removal moves others: whoever gets the id next can attach them all again."""
    gpu = vmm.gpu
    gpu.ctx_create(ONE).check()
    resources = [gpu.new_resource_id() for _ in range(40)]
    for resource in resources:
        gpu.resource_create_3d(resource, ResourceDescription(8, 8)).check()
    for _ in range(2):
        with gpu.batch():
            attached = [gpu.submit(commands.ctx_attach_resource(ONE, each), fenced=True) for each in resources]
        assert all(response.ok for response in gpu.wait_all(attached))
        gpu.ctx_destroy(ONE).check()
        gpu.ctx_create(ONE).check()


def test_all_contexts_die_together(lab: DeviceLab, vmm: FakeVmm) -> None:
    gpu = vmm.gpu
    players = [triangle(gpu, name) for name in ("first", "second")]
    (pid,) = shared_workers(lab)
    lab.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid), "its end")
    for player in players:
        until(lambda player=player: gpu.wait(player.frame(0.0, 0)).type == Resp.ERR_UNSPEC, "the loss")  # type: ignore[misc]
    until(lambda: lab.log.count("context lost") == 2, "a line about each")
    assert_draws(triangle(gpu, "third"))
