"""master.supervisor with a real launcher, real workers of the null engine and a real plane."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ipc import messages
from ipc.channel import Channel, channel_pair
from ipc.messages import (
    CreateContext,
    Denied,
    DestroyContext,
    EngineName,
    Exited,
    Fault,
    Message,
    Spawned,
    SpawnFailed,
)
from master import supervisor as supervisor_module
from master.blame import Cause, CauseKind
from master.lane_worker import LaneWorker
from master.supervisor import NoWorkers
from native.dataplane import COMPLETE, Plane, Status, WorkDone
from native.owned_fd import OwnedFd
from tests.device_lab import gone
from tests.vm.waiting import wait_until
from tests.worker_nursery import WorkerNursery, worker_nursery

LIMIT = 30.0
NOT_WANTED = Cause(kind=CauseKind.OPERATOR, text="not wanted")
CREATE = CreateContext(1, 0, "program").encode()
NOT_A_MESSAGE = b"\xff" * 8


class Owner:
    """Notes what it is told, and whether the lane was lost by then."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self.told: list[tuple[str, LaneWorker]] = []
        self.lane_lost: list[bool] = []

    def worker_faulted(self, worker: LaneWorker, fault: Fault) -> None:
        self.told.append((fault.text, worker))

    def worker_gone(self, worker: LaneWorker) -> None:
        self.told.append(("gone", worker))
        self.lane_lost.append(is_lost(self._plane, worker))

    def worker_reaped(self, worker: LaneWorker) -> None:
        assert worker.lane.handle and worker.channel.fileno() >= 0  # what it had is still there to be asked
        self.told.append(("reaped", worker))

    def of(self, worker: LaneWorker) -> list[str]:
        """What it was told of one worker."""
        return [what for what, whose in self.told if whose is worker]


def is_lost(plane: Plane, worker: LaneWorker) -> bool:
    """Whether the worker's lane refuses work."""
    try:
        plane.send(worker.lane, 1, DestroyContext().encode())
    except BrokenPipeError:
        return True
    return False


def open_files() -> set[tuple[str, str]]:
    """This process's descriptors: number and what is behind."""
    gc.collect()
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            found.add((fd.name, os.readlink(fd)))
        except FileNotFoundError:  # the one that lists
            continue
    return found


def children() -> set[int]:
    """All processes below this one."""
    return {process.pid for process in psutil.Process().children(recursive=True)}


def launcher_of(worker: LaneWorker) -> psutil.Process:
    """Whoever forked it; in a sandbox that is the first process of a pid namespace, which another has made."""
    launcher = psutil.Process(worker.pid).parent()
    assert launcher is not None and os.getpid() in {parent.pid for parent in launcher.parents()[:2]}
    return launcher


@pytest.fixture
def nursery() -> Iterator[WorkerNursery]:
    """One spare, nothing started."""
    with worker_nursery(spares=1) as nursery:
        yield nursery


@pytest.fixture
def owner(nursery: WorkerNursery) -> Owner:
    owner = Owner(nursery.plane)
    nursery.supervisor.owner = owner
    return owner


# --- giving workers out ---------------------------------------------------------------------------------------------


def test_the_first_worker_says_what_it_can_and_is_a_spare(nursery: WorkerNursery) -> None:
    first = nursery.started()
    assert first.serving and first.ready is not None and first.ready.engine is EngineName.NULL
    assert [(capset.capset_id, capset.version) for capset in first.capsets] == [(1, 1)]
    assert nursery.supervisor.take() is first


def test_without_spares_the_first_is_kept_and_the_rest_are_started_when_asked_for() -> None:
    with worker_nursery(spares=0) as nursery:
        first = nursery.started()
        assert nursery.supervisor.take() is first
        nursery.driver.turn(3)
        assert nursery.supervisor.workers() == [first]
        second = nursery.supervisor.take()
        assert second is not first and not second.serving
        nursery.until(lambda: second.serving, "a worker that was started cold")


def test_spares_are_refilled() -> None:
    with worker_nursery(spares=2) as nursery:
        nursery.started()
        nursery.until_spares_serve(2)
        taken = nursery.supervisor.take()
        spares = nursery.until_spares_serve(2, taken)
        again = nursery.supervisor.take()
        assert again in spares
        nursery.until_spares_serve(2, taken, again)
        assert len({worker.pid for worker in nursery.supervisor.workers()}) == 4
        assert len({worker.worker_id for worker in nursery.supervisor.workers()}) == 4


def test_refilling_lets_those_that_were_given_out_start_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with worker_nursery(spares=2) as nursery:
        nursery.started()
        nursery.until_spares_serve(2)
        monkeypatch.setattr(supervisor_module, "REFILL_DELAY", 1000.0)
        taken = [nursery.supervisor.take() for _ in range(3)]
        nursery.until(lambda: all(worker.serving for worker in taken), "those that were given out")
        assert nursery.supervisor.workers() == taken  # the third was started at once, and no spare since


def test_a_burst_is_refilled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "REFILL_DELAY", 0.0)
    with worker_nursery(spares=2) as nursery:
        nursery.started()
        taken = [nursery.supervisor.take() for _ in range(4)]
        nursery.until_spares_serve(2, *taken)
        nursery.driver.turn(5)
        assert len(nursery.supervisor.workers()) == 6


def test_a_warm_spare_is_preferred_to_one_that_is_starting() -> None:
    with worker_nursery(spares=2) as nursery:
        task = nursery.start()
        cold, warm = nursery.supervisor.workers()
        nursery.driver.loop.remove_reader(cold.channel)  # so that nobody hears that it serves
        nursery.until(task.done, "the worker that is heard")
        assert task.result() is warm
        assert nursery.supervisor.take() is warm
        assert nursery.supervisor.take() is cold
        third = nursery.supervisor.take()  # the loop has not run: there is no other spare yet
        assert third not in (cold, warm) and third.pid == 0


def test_a_lane_takes_work_before_its_process_exists(nursery: WorkerNursery) -> None:
    done: list[WorkDone] = []
    nursery.on_work_done = done.append
    nursery.started()
    nursery.supervisor.take()
    cold = nursery.supervisor.take()
    assert cold.pid == 0
    assert nursery.plane.send(cold.lane, 1, CREATE, COMPLETE, 9)
    nursery.until(lambda: done, "the work that was placed early")
    assert [(each.token, each.status) for each in done] == [(9, Status.OK)]


def test_a_spare_that_has_ended_is_not_given_out(nursery: WorkerNursery) -> None:
    first = nursery.started()
    os.kill(first.pid, signal.SIGKILL)
    wait_until(first.has_ended, "the end that the supervisor has not noticed", LIMIT)  # the loop does not turn
    assert not first.dead
    assert nursery.supervisor.take() is not first


def test_without_a_launcher_there_are_no_workers(nursery: WorkerNursery) -> None:
    with pytest.raises(OSError, match="no launcher"):
        nursery.supervisor.take()
    nursery.started()
    nursery.supervisor.close()
    before = open_files()
    with pytest.raises(OSError, match="no launcher"):
        nursery.supervisor.take()
    nursery.driver.turn(3)
    assert nursery.supervisor.workers() == []
    assert open_files() <= before


# --- ends -----------------------------------------------------------------------------------------------------------


def test_death_loses_the_lane_before_the_owner_is_told(nursery: WorkerNursery, owner: Owner) -> None:
    done: list[tuple[WorkDone, list[str]]] = []
    nursery.on_work_done = lambda event: done.append((event, owner.of(worker)))
    worker = nursery.started()
    assert nursery.supervisor.take() is worker
    os.kill(worker.pid, signal.SIGSTOP)
    nursery.plane.send(worker.lane, 1, CREATE, COMPLETE, 5)
    os.kill(worker.pid, signal.SIGKILL)
    nursery.until(lambda: "reaped" in owner.of(worker), "its burial")
    nursery.until(lambda: done, "the end of what it was asked")
    assert owner.of(worker) == ["gone", "reaped"]
    assert owner.lane_lost == [True]
    assert done[0][0].status is Status.LOST
    assert worker.wait_status is not None and os.WTERMSIG(worker.wait_status) == signal.SIGKILL
    assert worker.doom is None and worker not in nursery.supervisor.workers()
    assert not psutil.pid_exists(worker.pid)


def test_a_spare_that_does_not_start_is_ended(nursery: WorkerNursery, monkeypatch: pytest.MonkeyPatch) -> None:
    nursery.started()
    nursery.until_spares_serve(1)
    nursery.supervisor.take()
    monkeypatch.setattr(supervisor_module, "START_LIMIT", 0.5)
    slow = nursery.supervisor.take()
    nursery.driver.loop.remove_reader(slow.channel)  # nobody hears that it serves
    nursery.until(lambda: slow.dead, "its end")
    assert slow.doom is not None and slow.doom.kind is CauseKind.STARTUP
    assert "did not start" in slow.doom.text


def test_an_exit_gives_the_wait_status(nursery: WorkerNursery, owner: Owner) -> None:
    worker = nursery.started()
    nursery.supervisor.take()
    nursery.plane.send(worker.lane, 1, CREATE)
    nursery.plane.send(worker.lane, 1, DestroyContext().encode())
    nursery.until(lambda: "reaped" in owner.of(worker), "its burial")
    assert worker.wait_status == 0


@pytest.mark.parametrize("heard", ["in time", "with its end"])
def test_a_worker_that_refuses_a_record_says_why_before_it_ends(
    nursery: WorkerNursery, owner: Owner, heard: str
) -> None:
    worker = nursery.started()
    nursery.supervisor.take()
    if heard == "with its end":
        nursery.driver.loop.remove_reader(worker.channel)
    nursery.plane.send(worker.lane, 1, NOT_A_MESSAGE)
    nursery.until(lambda: "reaped" in owner.of(worker), "its burial")
    assert worker.wait_status is not None and os.waitstatus_to_exitcode(worker.wait_status) == 3
    complaint, *rest = owner.of(worker)
    assert complaint.startswith("control record") and rest == ["gone", "reaped"]
    assert worker.faults == [complaint]


def test_one_that_is_killed_before_it_exists_is_killed_once_it_does(nursery: WorkerNursery, owner: Owner) -> None:
    nursery.started()
    nursery.supervisor.take()
    cold = nursery.supervisor.take()
    cold.kill(NOT_WANTED)
    assert cold.pid == 0 and cold.doom == NOT_WANTED
    nursery.until(lambda: "reaped" in owner.of(cold), "its burial")
    assert cold.wait_status == signal.SIGKILL
    assert owner.of(cold) == ["gone", "reaped"]


def test_a_dead_spare_is_replaced_and_no_matter_of_the_owner(
    nursery: WorkerNursery, owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    spare = nursery.started()
    os.kill(spare.pid, signal.SIGKILL)
    nursery.until(lambda: spare not in nursery.supervisor.workers(), "its burial")
    (other,) = nursery.until_spares_serve(1)
    assert other is not spare
    assert "gone" not in owner.of(spare) and not nursery.fatal
    assert caplog.messages == [
        f"a worker that served nobody ended: spare (worker {spare.pid}): killed by SIGKILL"
    ]


def test_a_first_worker_that_cannot_start() -> None:
    with worker_nursery(spares=1, engine=EngineName.VIRGL, render_node=Path("/dev/null/no-such-node")) as nursery:
        task = nursery.start()
        nursery.until(task.done, "the refusal")
        with pytest.raises(NoWorkers, match="first worker"):
            task.result()


# --- the launcher ---------------------------------------------------------------------------------------------------


def test_a_launcher_that_dies_young_is_fatal(
    nursery: WorkerNursery, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "LAUNCHER_GRACE", 1000.0)
    worker = nursery.started()
    nursery.supervisor.take()
    (spare,) = nursery.until_spares_serve(1, worker)
    os.kill(launcher_of(worker).pid, signal.SIGKILL)
    nursery.until(lambda: nursery.fatal, "that it gives up")
    assert len(nursery.fatal) == 1 and "launcher" in nursery.fatal[0]
    assert owner.of(worker) == ["gone", "reaped"] and owner.lane_lost == [True]
    assert worker.doom is not None and worker.doom.kind is CauseKind.LAUNCHER and worker.wait_status is None
    assert nursery.supervisor.workers() == []
    wait_until(lambda: gone(worker.pid) and gone(spare.pid), "the end of its workers", LIMIT)


def test_a_launcher_that_has_lived_is_replaced(
    nursery: WorkerNursery, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "LAUNCHER_GRACE", 0.0)
    worker = nursery.started()
    nursery.supervisor.take()
    (spare,) = nursery.until_spares_serve(1, worker)
    before = launcher_of(worker).pid
    os.kill(before, signal.SIGKILL)
    nursery.until(lambda: "reaped" in owner.of(worker), "the end of its workers")
    (other,) = nursery.until_spares_serve(1)
    assert other is not spare and launcher_of(other).pid != before
    wait_until(lambda: gone(before), "the end of the launcher", LIMIT)
    assert not nursery.fatal
    assert nursery.supervisor.take() is other


def pidfd_of(worker: LaneWorker) -> OwnedFd:
    return OwnedFd(os.pidfd_open(worker.pid))


@pytest.mark.parametrize(
    "lie",
    ["spawned twice", "spawned as something else", "failed after it was spawned", "ended while it lives"],
)
def test_a_launcher_that_lies_is_ended(
    nursery: WorkerNursery, owner: Owner, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    monkeypatch.setattr(supervisor_module, "LAUNCHER_GRACE", 0.0)
    worker = nursery.started()
    assert nursery.supervisor.take() is worker
    nursery.until_spares_serve(1, worker)
    launcher = launcher_of(worker).pid
    cold = nursery.supervisor.take() if lie == "spawned as something else" else worker
    if cold is not worker:  # the spare: as if it had not been spawned
        assert cold.pidfd is not None
        nursery.driver.loop.remove_reader(cold.pidfd)
        cold.pidfd.close()
        cold.pidfd = None
    said: dict[str, tuple[Message, list[OwnedFd]]] = {
        "spawned twice": (Spawned(worker.worker_id), [pidfd_of(worker)]),
        "spawned as something else": (Spawned(cold.worker_id), [OwnedFd(os.memfd_create("no pidfd"))]),
        "failed after it was spawned": (SpawnFailed(worker.worker_id, 2**32 - 1), []),
        "ended while it lives": (Exited(worker.worker_id, 0), []),
    }
    ours, theirs = channel_pair()
    channel = nursery.supervisor._channel
    assert channel is not None
    with Channel(theirs, messages.FROM_LAUNCHER) as end:
        message, fds = said[lie]
        end.send(message, fds)
        for fd in (fd for _, fds in said.values() for fd in fds):
            fd.close()
        monkeypatch.setattr(channel, "recv_nowait", Channel(ours, messages.FROM_LAUNCHER).recv_nowait)
        nursery.supervisor._hear_launcher()
    wait_until(lambda: gone(launcher) and gone(worker.pid), "the end of the launcher and its workers", LIMIT)
    assert owner.of(worker) == ["gone", "reaped"]
    assert worker.doom is not None and worker.doom.kind is CauseKind.LAUNCHER and not nursery.fatal
    nursery.until_spares_serve(1)


def test_what_the_launcher_says_of_nobody_is_nothing(nursery: WorkerNursery) -> None:
    worker = nursery.started()
    before = open_files()
    nursery.supervisor._on_launcher(Spawned(4711), [pidfd_of(worker)])
    for message in (Exited(4711, 0), SpawnFailed(4711, 1), Denied(4711, "ptrace", audit=False)):
        nursery.supervisor._on_launcher(message, [])
    assert open_files() == before and nursery.supervisor.take() is worker


def test_a_worker_that_cannot_be_started_has_an_errno_in_words(
    nursery: WorkerNursery, owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    nursery.started()
    nursery.supervisor.take()
    for errno_, words in ((12, "Cannot allocate memory"), (2**32 - 1, "error 4294967295")):
        cold = nursery.supervisor._spawn()
        nursery.supervisor._on_launcher(SpawnFailed(cold.worker_id, errno_), [])
        assert cold.doom == Cause(kind=CauseKind.STARTUP, text=f"could not be started: {words}")
        assert owner.of(cold) == ["gone", "reaped"] and words in caplog.text


def test_what_the_sandbox_denied_is_remembered_or_told(
    nursery: WorkerNursery, owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    worker = nursery.started()
    nursery.supervisor.take()
    worker.serves = "ctx 1 kmscube"
    nursery.supervisor._on_launcher(Denied(worker.worker_id, "ptrace\x1b", audit=True), [])
    assert worker.denied is None
    line = f"audit: ctx 1 kmscube (worker {worker.pid}) made a system call that the sandbox would forbid: "
    assert caplog.messages == [line + r"ptrace\x1b"]
    nursery.supervisor._on_launcher(Denied(worker.worker_id, "ptrace", audit=False), [])
    os.kill(worker.pid, signal.SIGKILL)
    nursery.until(lambda: "reaped" in owner.of(worker), "its burial")
    assert worker.cause() == Cause(
        kind=CauseKind.SYSCALL, text="made a system call that the sandbox forbids: ptrace", syscall="ptrace"
    )


# --- close ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["warm", "starting", "dying", "unstarted"])
def test_close_leaves_nothing(nursery: WorkerNursery, when: str) -> None:
    others = children()
    before = open_files()
    if when == "starting":
        task = nursery.start()
        nursery.until(lambda: nursery.supervisor.workers()[0].pid, "a process")
        task.cancel()
    elif when != "unstarted":
        worker = nursery.started()
        nursery.supervisor.take()
        nursery.until_spares_serve(1, worker)
        if when == "dying":
            os.kill(worker.pid, signal.SIGKILL)
    pids = children() - others
    if when != "unstarted":
        assert len(pids) >= 2 and open_files() > before
    nursery.supervisor.close()
    assert not {pid for pid in pids if psutil.pid_exists(pid)}
    assert nursery.supervisor.workers() == []
    wait_until(lambda: open_files() <= before, "that all files are closed", LIMIT)
