"""Contexts are processes: what happens to one when its worker ends, and that nothing happens to the others."""

from __future__ import annotations

import signal
import struct
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.device_lab import OPTIONS, DeviceLab, assert_draws, assert_is_triangle, gone, triangle, until
from tests.fake_vmm import FakeVmm, Resp, commands
from tests.fake_vmm.scene_player import ScenePlayer
from tests.fake_vmm.virgl.many_draws import ManyDrawsScene
from tests.service_process import ServiceProcess

StartService = Callable[..., ServiceProcess]

COLORS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 1.0, 0.0), (1.0, 0.0, 1.0))
HANG = struct.pack("<II", 3, 0)  # null_engine.h: never return
ABORT = struct.pack("<II", 2, 0)
FAIL = struct.pack("<II", 4, 0)
DELAY = 5


@pytest.fixture(scope="module")
def lab(start_service: StartService) -> Iterator[DeviceLab]:
    service = start_service(OPTIONS)
    yield DeviceLab(service)
    assert service.stop() == 0


@pytest.fixture(scope="module")
def null_lab(start_service: StartService) -> Iterator[DeviceLab]:
    """Workers that draw nothing and do as they are told; one that does not move for a second is taken for hanging."""
    service = start_service([*OPTIONS, "--engine=null", "--hang-timeout=1"])
    yield DeviceLab(service)
    assert service.stop() == 0


@pytest.fixture
def vmm(lab: DeviceLab) -> Iterator[FakeVmm]:
    """A VM; afterwards the service holds what it held before."""
    with lab.guest() as vmm:
        yield vmm


@pytest.fixture
def null_vmm(null_lab: DeviceLab) -> Iterator[FakeVmm]:
    before = null_lab.wait_until_idle()
    with null_lab.vmm(display=False) as vmm:
        yield vmm
    null_lab.check_running()
    null_lab.wait_for_footprint(before)


def blame(lab: DeviceLab, name: str, cause: str) -> bool:
    """Whether the log blames the context `name` for it."""
    return any("context lost" in line and name in line and cause in line for line in lab.log.splitlines())


# --- processes ------------------------------------------------------------------------------------------------------


def test_each_context_is_a_process_that_bears_its_name(lab: DeviceLab, vmm: FakeVmm) -> None:
    names = ("kmscube", "weston", "glmark2 -b build")
    players = [triangle(vmm.gpu, name, color) for name, color in zip(names, COLORS, strict=False)]
    for player in players:
        assert_draws(player)
    workers = lab.workers()
    assert [(worker.ctx_id, worker.name, worker.engine) for worker in workers] == [
        (player.context.ctx_id, player.name, "virgl") for player in players
    ]
    assert len({worker.pid for worker in workers}) == 3
    players[1].destroy()
    left = [players[0].context.ctx_id, players[2].context.ctx_id]
    until(lambda: [worker.ctx_id for worker in lab.workers()] == left, "its end")
    assert gone(workers[1].pid)
    assert_draws(players[0])
    assert_draws(players[2])
    assert "context lost" not in lab.log


def test_names_that_are_no_text(lab: DeviceLab, vmm: FakeVmm) -> None:
    for ctx_id, name in enumerate((b"", b"\xff\x00\xfe", b"a\nb\x1b[31m", b"%s%n", b"x" * 64), 1):
        vmm.gpu.ctx_create(ctx_id, name).check()
        worker = lab.worker_of(ctx_id)
        assert worker.name.isprintable()
    assert "\x1b[31m" not in lab.log
    assert {worker.name for worker in lab.workers()} >= {"unnamed", "a?b?[31m", "%s%n", "x" * 64}


def test_four_programs_at_once_draw_their_own_pictures(vmm: FakeVmm) -> None:
    players = [triangle(vmm.gpu, f"program {i}", color) for i, color in enumerate(COLORS)]
    frames = []
    with vmm.gpu.batch():
        for index in range(20):
            frames += [player.frame(index / 20, index) for player in players]
    assert all(response.ok for response in vmm.gpu.wait_all(frames))
    for player in players:
        assert_draws(player)


def test_a_context_id_can_be_used_again_at_once(lab: DeviceLab, vmm: FakeVmm) -> None:
    """CTX_DESTROY frees the id, although the old worker may still have work to finish."""
    scene = ManyDrawsScene(400)
    first = ScenePlayer(vmm.gpu, scene)
    ctx_id = first.context.ctx_id
    old = lab.worker_of(ctx_id).pid
    pending = [first.frame(0, index) for index in range(4)]
    vmm.gpu.ctx_destroy(ctx_id).check()
    vmm.gpu.ctx_create(ctx_id, "successor").check()
    assert all(response.ok for response in vmm.gpu.wait_all(pending))
    until(lambda: gone(old), "the end of the old worker")
    assert lab.worker_of(ctx_id).name == "successor"


# --- workers that die -----------------------------------------------------------------------------------------------


def test_worker_killed_in_the_middle_of_a_submit(lab: DeviceLab, vmm: FakeVmm) -> None:
    gpu = vmm.gpu
    neighbour = triangle(gpu, "neighbour")
    busy = ScenePlayer(gpu, ManyDrawsScene(1200, "unlucky"))
    ctx_id = busy.context.ctx_id
    worker = lab.worker_of(ctx_id)
    with gpu.batch():
        pending = [busy.frame(0, index) for index in range(20)]
        theirs = [neighbour.frame(0.0, index) for index in range(5)]
    gpu.control.wait(pending[0])
    lab.kill(worker.pid)
    responses = gpu.wait_all(pending)
    assert responses[0].ok
    assert {response.type for response in responses if not response.ok} == {Resp.ERR_UNSPEC}
    assert not responses[-1].ok
    assert all(response.ok for response in gpu.wait_all(theirs))
    until(lambda: blame(lab, f"ctx {ctx_id} unlucky (worker {worker.pid})", "killed by SIGKILL"), "a blame")

    # The context is an error from now on, until the guest destroys it; its id is free then.
    assert gpu.wait(busy.frame(0, 0)).type == Resp.ERR_UNSPEC
    assert gpu.submit_3d(ctx_id, bytes(4), fenced=False).type == Resp.ERR_UNSPEC
    assert gpu.ctx_attach_resource(ctx_id, neighbour.scene.target.resid).type == Resp.ERR_UNSPEC
    assert gpu.ctx_create(ctx_id, "too early").type == Resp.ERR_INVALID_CONTEXT_ID
    assert_draws(neighbour)
    gpu.ctx_destroy(ctx_id).check()
    gpu.ctx_create(ctx_id, "phoenix").check()
    assert lab.worker_of(ctx_id).name == "phoenix"
    assert gpu.submit_3d(ctx_id, b"").ok


def test_resources_outlive_the_worker(lab: DeviceLab, vmm: FakeVmm) -> None:
    """They are the guest's, not the worker's: only their contents are lost."""
    gpu = vmm.gpu
    dying = triangle(gpu, "dying")
    assert_draws(dying)
    target = dying.scene.target
    lab.kill(lab.worker_of(dying.context.ctx_id).pid)
    until(lambda: blame(lab, "dying", "SIGKILL"), "a blame")
    heir = gpu.create_context("heir")
    gpu.ctx_attach_resource(heir.ctx_id, target.resid).check()
    assert gpu.submit_3d(heir.ctx_id, b"").ok
    gpu.resource_unref(target.resid).check()


def test_idle_worker_killed(lab: DeviceLab, vmm: FakeVmm) -> None:
    idle = vmm.gpu.create_context("idle")
    lab.kill(lab.worker_of(idle.ctx_id).pid, signal.SIGABRT)
    until(lambda: blame(lab, "idle", "SIGABRT"), "a blame")
    assert vmm.gpu.submit_3d(idle.ctx_id, b"").type == Resp.ERR_UNSPEC
    idle.destroy()


def test_spare_killed(lab: DeviceLab, vmm: FakeVmm) -> None:
    """Nobody's loss: there is another one, and the next context is fine."""
    until(lambda: len(lab.spares()) == 1, "a spare")
    spare = lab.spares()[0]
    lab.kill(spare)
    assert_draws(triangle(vmm.gpu))
    until(lambda: lab.spares() and spare not in lab.spares(), "another spare")


def test_worker_killed_before_it_serves(null_lab: DeviceLab, null_vmm: FakeVmm) -> None:
    """More contexts at once than spares: some get a worker that has not even been forked. It is killed at birth."""
    gpu = null_vmm.gpu
    contexts = [gpu.create_context(f"newborn-{i}") for i in range(6)]
    pending = [context.submit(b"") for context in contexts]
    master = {null_lab.pid, *null_lab.launchers()}
    for process in null_lab.processes():
        if process.pid not in master:
            null_lab.kill(process.pid)
            break
    responses = gpu.wait_all(pending)
    assert sum(not response.ok for response in responses) <= 1
    after = [gpu.submit_3d(context.ctx_id, b"").ok for context in contexts]
    assert sum(after) >= 5
    for context in contexts:
        context.destroy()


def test_workers_killed_while_the_guest_resets(lab: DeviceLab, vmm: FakeVmm) -> None:
    """The device is reset just when workers die by themselves; and lost contexts do not haunt the next driver."""
    for _ in range(3):
        players = [triangle(vmm.gpu, f"p{i}") for i in range(2)]
        assert_draws(players[0])
        lab.kill(lab.worker_of(players[0].context.ctx_id).pid)
        vmm.reboot()
    assert_draws(triangle(vmm.gpu))


def test_launcher_killed(lab: DeviceLab, vmm: FakeVmm) -> None:
    """All contexts are lost with it; a new launcher makes new ones."""
    player = triangle(vmm.gpu, "orphan")
    assert_draws(player)
    launcher = lab.launcher()
    until(lambda: age(launcher) > 6, "the launcher's coming of age: one that dies young would end the service")
    lab.kill(launcher)
    until(lambda: blame(lab, "orphan", "the launcher ended"), "a blame")
    assert vmm.gpu.wait(player.frame(0, 0)).type == Resp.ERR_UNSPEC
    assert lab.launcher() != launcher
    assert_draws(triangle(vmm.gpu, "second life"))


def age(pid: int) -> float:
    """Seconds since a process was started."""
    return time.time() - psutil.Process(pid).create_time()


# --- workers that misbehave (null engine) ---------------------------------------------------------------------------


def test_hanging_worker_is_killed_and_blamed(null_lab: DeviceLab, null_vmm: FakeVmm) -> None:
    gpu = null_vmm.gpu
    hanging, other = gpu.create_context("stuck"), gpu.create_context("fine")
    stuck = hanging.submit(HANG)
    unfenced = hanging.submit(HANG, fenced=False)
    assert gpu.control.wait(unfenced).response.ok  # answered when placed
    assert gpu.submit_3d(other.ctx_id, b"", fenced=False).ok  # does not stand behind the other's fence
    assert gpu.wait(stuck).type == Resp.ERR_UNSPEC
    until(lambda: blame(null_lab, "stuck", "made no progress for 1 s"), "a blame")
    assert gpu.submit_3d(other.ctx_id, b"").ok
    assert gpu.submit_3d(hanging.ctx_id, b"").type == Resp.ERR_UNSPEC
    hanging.destroy()


def test_unfenced_hang_with_a_full_ring_does_not_stop_the_others(null_lab: DeviceLab, null_vmm: FakeVmm) -> None:
    gpu = null_vmm.gpu
    hanging, other = gpu.create_context("plugged"), gpu.create_context("fine")
    hanging.submit(HANG, fenced=False)
    big = HANG + bytes(500_000)
    blocked = [hanging.submit(big, fenced=False) for _ in range(8)]
    for _ in range(50):
        assert gpu.submit_3d(other.ctx_id, b"").ok
    gpu.control.wait_all(blocked)
    until(lambda: blame(null_lab, "plugged", "made no progress"), "a blame")
    hanging.destroy()


def test_context_destroyed_while_it_hangs(null_lab: DeviceLab, null_vmm: FakeVmm) -> None:
    hanging = null_vmm.gpu.create_context("goodbye")
    pid = null_lab.worker_of(hanging.ctx_id).pid
    hanging.submit(HANG, fenced=False)
    hanging.destroy()
    until(lambda: gone(pid), "the end of the worker")


def test_aborting_worker(null_lab: DeviceLab, null_vmm: FakeVmm) -> None:
    context = null_vmm.gpu.create_context("assertion")
    assert context.run(ABORT).type == Resp.ERR_UNSPEC
    until(lambda: blame(null_lab, "assertion", "SIGABRT"), "a blame")
    context.destroy()


def test_failing_submit_is_an_error_of_that_submit_alone(null_vmm: FakeVmm) -> None:
    context = null_vmm.gpu.create_context("sloppy")
    assert context.run(FAIL).type == Resp.ERR_UNSPEC
    assert context.run(b"\0\0\0\0").ok
    context.destroy()


# --- fences ---------------------------------------------------------------------------------------------------------


def test_fences_come_back_in_order_over_all_contexts(null_vmm: FakeVmm) -> None:
    """Linux takes fences without ring_idx for one timeline: a later one signals every earlier one."""
    gpu = null_vmm.gpu
    contexts = [gpu.create_context(f"c{i}") for i in range(4)]
    with gpu.batch():
        pending = [contexts[i % 4].submit(struct.pack("<II", DELAY, 7 * (3 - i % 4))) for i in range(80)]
    assert all(response.ok for response in gpu.wait_all(pending))
    assert [p.completed_at for p in pending] == sorted(p.completed_at for p in pending)


def test_fences_do_not_hold_up_what_is_not_fenced(null_vmm: FakeVmm) -> None:
    gpu = null_vmm.gpu
    context = gpu.create_context("slow")
    slow = context.submit(struct.pack("<II", DELAY, 700))
    assert gpu.display_info().ok
    assert gpu.submit_3d(context.ctx_id, b"\0\0\0\0", fenced=False).ok
    assert not slow.done
    assert gpu.wait(slow).ok


def test_ring_idx_is_ignored_when_not_negotiated(null_vmm: FakeVmm) -> None:
    """The flag comes back, but the fence is on the one timeline there is."""
    gpu = null_vmm.gpu
    context = gpu.create_context("rings")
    slow = context.submit(struct.pack("<II", DELAY, 300))
    with gpu.batch():
        quick = [
            gpu.submit(commands.submit_3d(context.ctx_id, b"\0\0\0\0"), fenced=True, ring_idx=index)
            for index in (0, 1, 63, 64, 255)
        ]
    responses = gpu.wait_all(quick)
    assert slow.done
    assert [response.ring_idx for response in responses] == [0, 1, 63, 64, 255]
    assert all(response.ok for response in responses)


def test_pictures_after_all_that(lab: DeviceLab, vmm: FakeVmm) -> None:
    player = triangle(vmm.gpu)
    vmm.gpu.wait(player.frame(0.0, 0)).check()
    assert_is_triangle(player.picture(), player.scene)  # type: ignore[arg-type]
