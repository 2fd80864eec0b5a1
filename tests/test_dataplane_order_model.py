"""Random programs of several contexts against a model of the queue's order.

The model knows the order in which commands were given, and nothing of points and barriers. Every work of a context
reads and writes all resources that it has. Held against it: no work reaches a worker before all work has been finished
that it shares a resource with; every mirrored resource is then as the work before it left it; nobody waits but for
somebody who has something to do and shared a resource; and in the end everything has been done.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from native.dataplane import LaneProgress, WorkDone
from tests.fake_vmm import commands
from tests.order_rig import CONTROL, FENCE, IN, OUT, SUBMIT, TEXTURE, OrderRig, order_rig
from tests.plane_rig import PlayedWorker, Record

CONTEXTS, RESOURCES = (1, 2, 3, 4, 5), tuple(range(10, 18))
STEPS = 250


@dataclass(eq=False)
class Job:
    """A work of a context, numbered in queue order."""

    number: int
    life: Life
    touches: frozenset[int]
    waits_for: list[Job]
    sees: dict[int, int]
    """What it has to find in mirrored resources: the number of the work before it."""
    placed: bool = False
    finished: bool = False


@dataclass(eq=False)
class Life:
    """A context from its making to its end."""

    ctx_id: int
    machine: Machine
    resources: set[int] = field(default_factory=set)


@dataclass(eq=False)
class Machine:
    """A worker: objects by resource, which of them it wrote since it last copied out, versions of mirrors it has seen;
    the records that it has begun and not finished; resources that it ever had; whether a context of its ended."""

    worker: PlayedWorker
    objects: dict[int, int] = field(default_factory=dict)
    dirty: set[int] = field(default_factory=set)
    seen: dict[int, int] = field(default_factory=dict)
    begun: list[tuple[Record, Job | None]] = field(default_factory=list)
    had: set[int] = field(default_factory=set)
    ended: bool = False
    dead: bool = False


class Program:
    """The rig, the model, and a random number generator that decides everything."""

    def __init__(self, rig: OrderRig, seed: int) -> None:
        self.rig = rig
        self.random = random.Random(seed)
        self.lives: dict[int, Life] = {}
        self.machines: list[Machine] = []
        self.jobs: list[Job] = []
        self.mirrored: set[int] = set()
        self.mirrors: dict[int, tuple[int, int]] = {}
        self.latest: dict[int, int] = {}
        self.slots: list[tuple[Machine, int]] = []
        self.syncs: dict[int, list[Job]] = {}
        self.token = 1000
        for resource_id in RESOURCES:
            rig.plane.set_resource(resource_id, TEXTURE)
        for resource_id in RESOURCES[::2]:
            rig.plane.set_mirrored(resource_id, 0)
            self.mirrored.add(resource_id)
            self.mirrors[resource_id] = (0, 0)

    # ---- the guest

    def begin(self, ctx_id: int) -> None:
        alive = [machine for machine in self.machines if not machine.dead]
        if alive and self.random.random() < 0.2:
            machine = self.random.choice(alive)
            self.rig.open_context(ctx_id, machine.worker)
        else:
            machine = Machine(self.rig.open_context(ctx_id))
            self.machines.append(machine)
        self.lives[ctx_id] = Life(ctx_id, machine)

    def end(self, ctx_id: int) -> None:
        life = self.lives.pop(ctx_id)
        life.machine.ended = True
        if self.random.random() < 0.5:
            for resource_id in life.resources:
                self.rig.plane.detach_resource(resource_id, ctx_id)
        self.rig.plane.forget_context(ctx_id)

    def attach(self, life: Life, resource_id: int) -> None:
        self.rig.plane.attach_resource(resource_id, life.ctx_id)
        life.resources.add(resource_id)
        life.machine.had.add(resource_id)

    def detach(self, life: Life, resource_id: int) -> None:
        self.rig.plane.detach_resource(resource_id, life.ctx_id)
        life.resources.discard(resource_id)

    def work(self, life: Life) -> None:
        number, touches = len(self.jobs) + 1, frozenset(life.resources)
        others = (job for job in self.jobs if not job.finished and job.life.machine is not life.machine)
        before = [job for job in others if job.touches & touches]
        sees = {resource_id: self.latest.get(resource_id, 0) for resource_id in touches & self.mirrored}
        job = Job(number, life, touches, before, sees)
        self.jobs.append(job)
        self.latest.update(dict.fromkeys(touches, number))
        if life.machine.dead:
            job.finished = True
            self.forget_contents(life.machine)
        fenced, ring_idx = self.random.random() < 0.5, self.random.choice([None, None, None, 0, 2])
        self.rig.submit(life.ctx_id, number, fenced=fenced, ring_idx=ring_idx if fenced else None)

    def sync(self, resource_id: int) -> None:
        self.token += 1
        self.syncs[self.token] = [job for job in self.jobs if not job.finished and resource_id in job.touches]
        self.rig.plane.sync(resource_id, self.token)

    # ---- Python

    def reserve(self, life: Life) -> None:
        if not life.machine.dead:
            self.token += 1
            self.rig.plane.reserve(life.machine.worker.lane, life.ctx_id, self.token)
            self.slots.append((life.machine, self.token))

    def fill(self) -> None:
        machine, slot = self.slots.pop(self.random.randrange(len(self.slots)))
        if not machine.dead:
            self.rig.plane.fill(machine.worker.lane, slot, self.random.choice([b"", b"filled"]))

    # ---- workers

    def take(self, machine: Machine) -> bool:
        """One record: executed, and finished later if somebody wants to know."""
        record = machine.worker.take()
        if record is None:
            return False
        job = None
        if record.type == SUBMIT:
            job = self.jobs[int.from_bytes(record.payload, "little") - 1]
            self.draw(machine, job)
        elif record.type in (OUT, IN):
            self.copy(machine, record.type == OUT, machine.worker.copied(record))
        else:
            assert record.type in (FENCE, CONTROL)
        machine.begun.append((record, job))
        return True

    def draw(self, machine: Machine, job: Job) -> None:
        assert job.life.machine is machine and not job.placed
        late = [other.number for other in job.waits_for if not other.finished]
        assert not late, f"{job.number} came before {late} had finished"
        job.placed = True
        for resource_id, expected in job.sees.items():
            assert expected < 0 or machine.objects.get(resource_id, 0) == expected, f"{job.number} saw old contents"
        for resource_id in job.touches:
            machine.objects[resource_id] = job.number
            machine.dirty.add(resource_id)

    def copy(self, machine: Machine, out: bool, resource_id: int) -> None:
        version, contents = self.mirrors[resource_id]
        if out and resource_id in machine.dirty:
            machine.dirty.discard(resource_id)
            machine.seen[resource_id] = version + 1
            self.mirrors[resource_id] = version + 1, machine.objects[resource_id]
        elif not out and machine.seen.get(resource_id, 0) != version:
            machine.seen[resource_id] = version
            machine.objects[resource_id] = contents
            machine.dirty.discard(resource_id)

    def finish(self, machine: Machine) -> bool:
        """What was begun up to the next record that somebody waits for, then that."""
        if not machine.begun:
            return False
        while machine.begun:
            record, _ = machine.begun.pop(0)
            if record.flags:
                self.finished_before(machine, record)
                machine.worker.complete(record.seq)
                self.rig.wait_until(
                    lambda: self.progress(machine).completed == machine.worker.completed, "it"
                )
                break
        return True

    def finished_before(self, machine: Machine, record: Record) -> None:
        """A fence says that all before it is finished; of one ring_idx, but a played driver has only one."""
        waiting = {job.number for _, job in machine.begun if job is not None}
        for job in self.jobs:
            if job.life.machine is machine and job.placed and job.number not in waiting:
                job.finished = True

    def kill(self, machine: Machine) -> None:
        machine.dead = True
        machine.begun.clear()
        for job in self.jobs:
            if job.life.machine is machine:
                job.finished = True
        self.forget_contents(machine)
        self.rig.plane.lose_lane(machine.worker.lane)

    def forget_contents(self, machine: Machine) -> None:
        """What it alone had is gone, so nobody can say what those see that came after."""
        lost = {resource_id for job in self.jobs if job.life.machine is machine for resource_id in job.touches}
        for job in self.jobs:
            for resource_id in lost & job.sees.keys():
                job.sees[resource_id] = -1
        self.latest.update(dict.fromkeys(lost, -1))

    # ---- what holds at all times

    def check(self) -> None:
        self.rig.pump()
        for event in self.rig.events:
            assert isinstance(event, WorkDone)
            late = [job.number for job in self.syncs.pop(event.token) if not job.finished]
            assert not late, f"synchronised before {late} had finished"
        self.rig.events.clear()
        self.rig.gpu.reap()
        for machine in self.machines:
            reserved = any(keeper is machine for keeper, _ in self.slots)
            if not machine.dead and not reserved and self.progress(machine).blocked:
                assert any(self.may_hold_up(machine, other) for other in self.machines), "it waits for nobody"

    def may_hold_up(self, machine: Machine, other: Machine) -> bool:
        """Its own points do so where a context ended on it: that one is no neighbour any more, but one who left."""
        if other.dead or not machine.had & other.had or (other is machine and not machine.ended):
            return False
        progress = self.progress(other)
        return progress.waiting > 0 or (progress.backlog > 0 and other is not machine)

    def progress(self, machine: Machine) -> LaneProgress:
        return self.rig.plane.progress(machine.worker.lane)

    def step(self) -> None:
        dice, ctx_id = self.random.random(), self.random.choice(CONTEXTS)
        life, resource_id = self.lives.get(ctx_id), self.random.choice(RESOURCES)
        machine = self.random.choice(self.machines) if self.machines else None
        if life is None:
            self.begin(ctx_id)
        elif dice < 0.32:
            self.work(life)
        elif dice < 0.42:
            self.attach(life, resource_id)
        elif dice < 0.46:
            self.detach(life, resource_id)
        elif dice < 0.48:
            self.end(ctx_id)
        elif dice < 0.50:
            self.reserve(life)
        elif dice < 0.54:
            self.sync(resource_id)
        elif dice < 0.57 and self.slots:
            self.fill()
        elif dice < 0.575 and machine is not None and not machine.dead:
            self.kill(machine)
        elif machine is not None and not machine.dead:
            for _ in range(self.random.randrange(4)):
                (self.take if self.random.random() < 0.6 else self.finish)(machine)

    def run_out(self) -> None:
        """Everything goes on as far as it can."""
        while self.slots:
            self.fill()
        alive = [machine for machine in self.machines if not machine.dead]
        while any([self.take(machine) or self.finish(machine) for machine in alive]):
            self.check()
        assert not self.syncs
        assert all(job.placed or job.life.machine.dead for job in self.jobs)
        for machine in alive:
            progress = self.progress(machine)
            assert (progress.waiting, progress.backlog) == (0, 0)
        assert self.rig.plane.queue_open(0) == 0


@pytest.mark.parametrize("seed", range(20))
def test_random_programs(seed: int) -> None:
    with order_rig() as rig:
        rig.plane.set_ring_idx(True)
        program = Program(rig, seed)
        for _ in range(STEPS):
            program.step()
            program.check()
        program.run_out()
        assert rig.gpu.wait(rig.command(commands.submit_3d(99, b"\0\0\0\0"))).type == 0x1204  # the plane still answers
