"""Contexts that share something come, go and are killed at every step of every order: who is left goes on, what both
had seen is still there, and nothing is kept that was theirs.

Mostly on the null engine, whose contents are bytes and whose workers are there at once, in all ways to share.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from tests import newer_mesa
from tests.control_commands import told
from tests.device_lab import OPTIONS, DeviceLab, gone, until
from tests.fake_vmm import FakeVmm, ResourceDescription, Resp, commands
from tests.fake_vmm.command_queue import Pending
from tests.fake_vmm.gpu import Gpu
from tests.fake_vmm.null_engine import NullStream
from tests.fake_vmm.virgl.protocol import Bind
from tests.null_sharing_lab import (
    BUFFER_FORETOLD,
    FORETOLD,
    NBYTES,
    TEXTURE,
    WAYS,
    NullProgram,
    create,
    null_guest,
    null_service,
    share,
)
from tests.service_process import ServiceProcess
from tests.sharing_lab import PICTURE, SHARED_PICTURE, Program, assert_all, canvas, cleaned_up, shade

StartService = Callable[..., ServiceProcess]

PATIENCE = "--hang-timeout=600"
"""Nobody is given up on here."""

SEED = os.environ.get("ISOREND_ROGUE_SEED", "1")

A, B = "ab"
ATTACH_A, ATTACH_B, DETACH_A, DETACH_B, UNREF = SCRIPT = ("attach a", "attach b", "detach a", "detach b", "unref")
ORDERS = list(itertools.permutations(SCRIPT))
"""Those too in which something is given back that nobody has."""
SENSIBLE = [
    order
    for order in ORDERS
    if order.index(ATTACH_A) < order.index(ATTACH_B)  # the others are the same with the names changed
    and order.index(ATTACH_A) < order.index(DETACH_A)
    and order.index(ATTACH_B) < order.index(DETACH_B)
]
BIG = ResourceDescription(2048, 2048, bind=TEXTURE.bind)
BIG_BYTES = 4 * 2048 * 2048


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def lab(way: str, start_service: StartService) -> Iterator[DeviceLab]:
    with null_service(start_service, way, PATIENCE, "--spawn-rate=100000/1") as lab:
        yield lab


@pytest.fixture(scope="module")
def vmm(lab: DeviceLab) -> Iterator[FakeVmm]:
    """One for all. Once it has left there are as many descriptors and mappings of shared memory as before."""
    lab.wait_until_idle()
    maps = mapped(lab.pid)
    with null_guest(lab) as vmm:
        yield vmm
    assert mapped(lab.pid) == maps


@pytest.fixture
def gpu(lab: DeviceLab, vmm: FakeVmm) -> Iterator[Gpu]:
    with cleaned_up(vmm.gpu) as gpu:
        yield gpu
    assert resources(lab) == 0


def resources(lab: DeviceLab) -> int:
    """How many the service knows."""
    (status,) = cast(list[dict[str, int]], told(lab.service, "status"))
    return status["resources"]


def mapped(pid: int) -> int:
    """Shared memory that a process has mapped, in pieces."""
    return sum("/memfd:" in line for line in Path(f"/proc/{pid}/maps").read_text().splitlines())


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def kill(lab: DeviceLab, program: NullProgram) -> None:
    """Ends a program's worker. Who waits for it in the queue has its answer later."""
    os.kill(lab.worker_of(program.ctx_id).pid, signal.SIGKILL)


# --- every order ----------------------------------------------------------------------------------------------------


@dataclass
class Story:
    """A resource and two programs, to which the steps of a script happen. After each step who has the resource writes
    to it and all see it. durable: contents are in memory that is nobody's in particular.
    """

    lab: DeviceLab
    gpu: Gpu
    resource: int
    programs: dict[str, NullProgram]
    durable: bool
    attached: set[str] = field(default_factory=set)
    exists: bool = True
    dead: str = ""
    byte: int | None = 0
    """What is in it; None: nobody can know."""

    def play(self, order: tuple[str, ...], victim: str = "", when: int = -1) -> None:
        """The victim's worker is killed before that step, or after the last one."""
        for number, step in enumerate(order):
            if victim and number == when:
                self._kill(victim)
            self._step(step)
            self._use()
        if victim and when == len(order):
            self._kill(victim)
            self._use()

    def _live(self) -> list[NullProgram]:
        return [self.programs[name] for name in sorted(self.attached - {self.dead}) if self.exists]

    def _kill(self, victim: str) -> None:
        kill(self.lab, self.programs[victim])
        self.dead = victim
        if not self._live() and victim in self.attached and not self.durable:
            self.byte = None

    def _step(self, step: str) -> None:
        name = step[-1]
        if step == UNREF:
            response = self.gpu.resource_unref(self.resource)
            assert response.ok, response
            self.exists = False
            return
        program = self.programs[name]
        attach = step.startswith("attach")
        response = self.gpu.wait((program.attach if attach else program.detach)(self.resource))
        if name == self.dead:
            return  # whatever it is told
        can = self.exists and (attach or name in self.attached)
        assert response.type == (Resp.OK_NODATA if can else Resp.ERR_INVALID_RESOURCE_ID), (step, response)
        if attach and self.exists:
            self.attached.add(name)
        else:
            self._give_up(name)

    def _give_up(self, name: str) -> None:
        if self.attached == {name} and not self.durable:
            self.byte = None  # nobody has it any more
        self.attached.discard(name)

    def _use(self) -> None:
        live = self._live()
        wanted: list[Pending] = []
        if self.byte is not None:
            wanted += [program.check(self.resource, self.byte) for program in live]
        for program in live:
            self.byte = (self.byte or 0) % 250 + 1
            program.fill(self.resource, self.byte)
            wanted += [other.check(self.resource, self.byte) for other in live]
        unwanted = [
            program.check(self.resource, 0)
            for name, program in self.programs.items()
            if name == self.dead or name not in self.attached or not self.exists
        ]
        answers = self.gpu.wait_all(wanted)
        assert all(answer.ok for answer in answers), [answer.ok for answer in answers]
        assert not any(answer.ok for answer in self.gpu.wait_all(unwanted))


def told_in(order: tuple[str, ...], victim: str = "", when: int = -1) -> str:
    """For a message."""
    steps = list(order)
    if victim:
        steps.insert(when, f"kill {victim}")
    return ", ".join(steps)


@pytest.mark.parametrize("what", [TEXTURE, FORETOLD, BUFFER_FORETOLD], ids=["texture", "foretold", "buffer"])
def test_every_order(lab: DeviceLab, gpu: Gpu, way: str, what: ResourceDescription) -> None:
    programs = {name: NullProgram(gpu, name) for name in (A, B)}
    for program in programs.values():
        program.finish()
    durable = way == "memfd" and what is not TEXTURE
    before = [footprint_of(lab, program) for program in programs.values()]
    for order in ORDERS:
        try:
            Story(lab, gpu, create(gpu, what), programs, durable).play(order)
        except BaseException as error:
            error.add_note(told_in(order))
            raise
    assert [footprint_of(lab, program) for program in programs.values()] == before
    assert resources(lab) == 0


def footprint_of(lab: DeviceLab, program: NullProgram) -> tuple[int, int]:
    """Descriptors and shared mappings of a program's worker."""
    program.finish()
    pid = lab.worker_of(program.ctx_id).pid
    return open_files(pid), mapped(pid)


def test_a_death_at_every_step_of_every_order(lab: DeviceLab, gpu: Gpu, way: str) -> None:
    """Two in three of them, which ones is left to chance."""
    chance = random.Random(f"{SEED}-{way}")
    stories = list(itertools.product(SENSIBLE, (A, B), range(len(SCRIPT) + 1)))
    survivor = NullProgram(gpu, "survivor")
    survivor.finish()
    before = footprint_of(lab, survivor)
    for order, victim, when in chance.sample(stories, len(stories) * 2 // 3):
        what = chance.choice([TEXTURE, FORETOLD])
        dying = NullProgram(gpu, "dying")
        programs = {victim: dying, A if victim == B else B: survivor}
        resource = create(gpu, what)
        try:
            Story(lab, gpu, resource, programs, way == "memfd" and what is FORETOLD).play(order, victim, when)
        except BaseException as error:
            error.add_note(f"{told_in(order, victim, when)}; {what}")
            raise
        dying.destroy()
    assert footprint_of(lab, survivor) == before


def test_killed_at_any_moment(lab: DeviceLab, gpu: Gpu, way: str) -> None:
    """In the midst of attaching, drawing and copying, none of which is waited for."""
    chance = random.Random(f"{SEED}-{way}-moments")
    survivor = NullProgram(gpu, "survivor")
    for number in range(20):
        big = number % 4 == 0
        what, nbytes = (BIG, BIG_BYTES) if big else (chance.choice([TEXTURE, FORETOLD]), NBYTES)
        resource = create(gpu, what)
        dying = NullProgram(gpu, f"dying {number}")
        worker = lab.worker_of(dying.ctx_id).pid
        first, second = chance.sample([survivor, dying], 2)
        first.attach(resource)
        pending = [first.fill(resource, 1, nbytes)]
        second.attach(resource)
        pending.append(second.check(resource, 1, nbytes))
        for _ in range(chance.randrange(8)):
            writer, reader = chance.sample([survivor, dying], 2)
            writer.fill(resource, 2, nbytes)
            pending.append(reader.check(resource, 2, nbytes))
        time.sleep(chance.uniform(0, 0.02 if big else 0.002))
        os.kill(worker, signal.SIGKILL)
        survivor.fill(resource, 3, nbytes)
        pending.append(survivor.check(resource, 3, nbytes))
        gpu.wait_all(pending)
        assert pending[-1].response.ok
        dying.destroy()
        gpu.resource_unref(resource).check()
        assert not survivor.sees(resource, 3, nbytes)


# --- while something is under way -----------------------------------------------------------------------------------


def held_share(gpu: Gpu, what: ResourceDescription = TEXTURE) -> tuple[int, NullProgram, NullProgram, Pending]:
    """A resource whose home does nothing any more, and another program that is about to get it; its next answer."""
    resource = create(gpu, what)
    home, late = NullProgram(gpu, "home"), NullProgram(gpu, "late")
    home.attach(resource)
    home.fill(resource, 7)
    home.finish()
    late.finish()
    home.hang()
    late.attach(resource)
    late.fill(resource, 8)
    return resource, home, late, late.check(resource, 8)


def test_home_killed_while_others_wait_for_its_object(lab: DeviceLab, gpu: Gpu) -> None:
    """They go on without what it held."""
    resource, home, late, held = held_share(gpu)
    third = NullProgram(gpu, "third")
    third.attach(resource)
    also_held = third.check(resource, 8)
    kill(lab, home)
    assert gpu.wait(held).ok
    assert gpu.wait(also_held).ok
    third.fill(resource, 9)
    assert late.sees(resource, 9)
    gpu.resource_unref(resource).check()


@pytest.mark.parametrize("order", range(6))
def test_whatever_happens_while_an_export_is_awaited(lab: DeviceLab, gpu: Gpu, order: int) -> None:
    """Nobody is stuck, and what is left works."""
    chance = random.Random(f"{SEED}-{order}")
    resource, home, late, held = held_share(gpu)
    third = NullProgram(gpu, "third")
    acts: dict[str, Callable[[], object]] = {
        "third attaches": lambda: third.attach(resource),
        "third draws": lambda: third.fill(resource, 9),
        "late gives it back": lambda: late.detach(resource),
        "home gives it back": lambda: home.detach(resource),
        "unref": lambda: gpu.submit(commands.resource_unref(resource)),
        "late leaves": lambda: late.destroy(),
        "late is killed": lambda: kill(lab, late) if late.ctx_id in gpu.contexts else None,
        "another is made": lambda: third.attach(create(gpu)),
    }
    names = chance.sample(list(acts), chance.randrange(1, len(acts)))
    try:
        for name in names:
            acts[name]()
        kill(lab, home)
        gpu.wait_all([held, third.submit(NullStream(), fenced=True)])
        other, (one, two) = share(gpu)
        one.fill(other, 5)
        assert two.sees(other, 5)
        assert third.context.run(b"").ok
    except BaseException as error:
        error.add_note(", ".join(names))
        raise


@pytest.fixture
def exporting(start_service: StartService) -> Iterator[DeviceLab]:
    """A service for one VM alone."""
    with null_service(start_service, "exported", PATIENCE) as lab:
        yield lab


def test_the_device_is_reset_while_an_export_is_awaited(exporting: DeviceLab) -> None:
    with null_guest(exporting) as vmm:
        held_share(vmm.gpu)
        vmm.reboot()
        resource, (one, two) = share(vmm.gpu)
        one.fill(resource, 5)
        assert two.sees(resource, 5)


def test_the_vm_leaves_while_an_export_is_awaited(exporting: DeviceLab) -> None:
    with null_guest(exporting) as vmm:
        home, late = NullProgram(vmm.gpu, "another's home"), NullProgram(vmm.gpu, "also late")
        for what in (TEXTURE, FORETOLD):
            home.attach(create(vmm.gpu, what))
        home.hang()
        held_share(vmm.gpu)
        for resource in (1, 2):
            late.attach(resource)


def test_who_waits_goes_on_when_the_other_dies(lab: DeviceLab, gpu: Gpu) -> None:
    """It waits for work of the dead one, which will never be done: its own is."""
    resource, (stuck, waiting) = share(gpu)
    stuck.fill(resource, 1)
    assert waiting.sees(resource, 1)
    stuck.hang()
    own = [waiting.check(resource, 1)]
    waiting.fill(resource, 2)
    own.append(waiting.check(resource, 2))
    kill(lab, stuck)
    assert all(answer.ok for answer in gpu.wait_all(own))
    gpu.resource_unref(resource).check()


def test_who_waits_is_killed_itself(lab: DeviceLab, gpu: Gpu) -> None:
    resource, (stuck, waiting) = share(gpu)
    waiting.finish()
    pids = [lab.worker_of(program.ctx_id).pid for program in (stuck, waiting)]
    stuck.hang()
    held = waiting.check(resource, 0)
    third = NullProgram(gpu, "third")
    third.attach(resource)
    kill(lab, waiting)
    assert gpu.wait(held).type == Resp.ERR_UNSPEC
    kill(lab, stuck)
    third.fill(resource, 4)
    assert third.sees(resource, 4)
    until(lambda: all(map(gone, pids)), "the end of both")
    gpu.resource_unref(resource).check()


def test_all_who_had_it_die(lab: DeviceLab, gpu: Gpu, way: str) -> None:
    """What was shared is in the table: the next one finds it."""
    resource, programs = share(gpu)
    programs[0].fill(resource, 1)
    assert programs[1].sees(resource, 1)
    for program in programs:
        kill(lab, program)
        until(lambda program=program: not program.context.run(b"").ok, "its end")  # type: ignore[misc]
    heir = NullProgram(gpu, "heir")
    heir.attach(resource)
    assert heir.sees(resource, 1)
    gpu.resource_unref(resource).check()


# --- virgl ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["mirrored", "zero copy"])
def virgl_lab(request: pytest.FixtureRequest, start_service: StartService) -> Iterator[DeviceLab]:
    service = start_service(OPTIONS, env=newer_mesa.environment() if request.param == "zero copy" else {})
    yield DeviceLab(service)
    assert service.stop() == 0


@pytest.mark.parametrize("victim", [0, 1], ids=["home", "other"])
@pytest.mark.parametrize("bind", [PICTURE, SHARED_PICTURE], ids=["late", "foretold"])
def test_pictures_outlive_a_program(virgl_lab: DeviceLab, victim: int, bind: Bind) -> None:
    """It is killed in the midst of its work, with more of it waiting."""
    with virgl_lab.guest() as vmm:
        gpu = vmm.gpu
        shared, own = canvas(gpu, bind=bind), canvas(gpu)
        programs = [Program(gpu, f"program {number}", shared, own) for number in range(2)]
        dying, survivor = programs[victim], programs[1 - victim]
        dying.paint(shared, shade(1))
        assert_all(survivor.picture(shared), 1)
        worker = virgl_lab.worker_of(dying.ctx_id).pid
        for number in range(200):
            dying.paint(own, shade(number))
            survivor.copy_row(own, 0, shared)
        os.kill(worker, signal.SIGKILL)
        assert_all(survivor.picture(shared), 1)
        survivor.paint(shared, shade(2))
        heir = Program(gpu, "heir", shared)
        assert_all(heir.picture(shared), 2)
        heir.paint(shared, shade(3))
        assert_all(survivor.picture(shared), 3)
