"""One round: victims at work, each of them put to an end at a moment left to chance, neighbours beside them."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from tests.fake_vmm import FakeVmm, Resp
from tests.fake_vmm.command_queue import Pending
from tests.rogue.ends import End
from tests.rogue.lab import RogueLab
from tests.rogue.programs import PROGRAMS, UNCERTAIN, Neighbour, Victim
from tests.service_lab import gone, until

_LOST = {Resp.ERR_UNSPEC, Resp.ERR_INVALID_CONTEXT_ID}
_LONGEST_PAUSE = 0.003
_ANSWER = 60.0  # seconds, within which hangs have to have been found


class Round:
    """Plays one end, with one victim for each of `kinds` (programs.PROGRAMS). The seed decides what is left to chance.

    vmm: booted, its neighbours at work in it.
    """

    def __init__(
        self, lab: RogueLab, vmm: FakeVmm, neighbours: Sequence[Neighbour], end: End, kinds: Sequence[str], seed: str
    ) -> None:
        self._lab = lab
        self._gpu = vmm.gpu
        self._neighbours = neighbours
        self._end = end
        self._seed = f"{seed}:{end.name}"
        self._chance = random.Random(self._seed)
        self._pending: list[Pending] = []
        self._victims: dict[str, Victim] = {}
        self._ended: dict[str, tuple[int, str]] = {}  # by kind: the worker's process id, its title
        self._kinds = kinds

    def play(self) -> None:
        """Raises AssertionError, or what the VM finds wrong; with the seed in a note."""
        try:
            for kind in self._kinds:
                number = self._chance.randrange(1 << 32)
                name = f"{kind} {number:08x}"
                self._victims[kind] = PROGRAMS[kind](self._gpu, self._lab.hub, name, random.Random(number))
            for act in self._plan():
                act()
            self._settle()
            for kind, victim in self._victims.items():
                with _naming(kind):
                    self._examine(kind, victim)
            for neighbour in self._neighbours:
                neighbour.check()
            self._clean_up()
        except BaseException as error:
            error.add_note(f"round {self._seed!r} with {', '.join(self._kinds)}; ended: {self._ended}")
            raise

    def _plan(self) -> list[Callable[[], None]]:
        """What everybody does, in one order: the victims' own is kept, chance mixes them."""
        chance = self._chance
        parts: list[list[Callable[[], None]]] = []
        for kind, victim in self._victims.items():
            before, after = chance.randrange(1, 5), chance.randrange(1, 5)
            end = self._ending(kind, victim)
            parts.append([self._step(victim)] * before + [end] + [self._step(victim)] * after)
        parts.append([self._breathe] * chance.randrange(6))
        parts += [[self._neighbourly(neighbour)] * 4 for neighbour in self._neighbours]
        order = [number for number, part in enumerate(parts) for _ in part]
        chance.shuffle(order)
        streams = [iter(part) for part in parts]
        return [next(streams[number]) for number in order]

    def _ending(self, kind: str, victim: Victim) -> Callable[[], None]:
        def end() -> None:
            worker = victim.worker()
            if worker is not None:
                self._ended[kind] = worker.pid, worker.title
                self._end.befall(worker)

        return end

    def _step(self, victim: Victim) -> Callable[[], None]:
        def step() -> None:
            before = len(victim.pending)
            if self._chance.random() < 0.5:
                with self._gpu.batch():
                    victim.step()
            else:
                victim.step()
            self._pending += victim.pending[before:]

        return step

    def _neighbourly(self, neighbour: Neighbour) -> Callable[[], None]:
        return lambda: self._pending.append(neighbour.step())

    def _breathe(self) -> None:
        """Lets the others go on for a moment, so that what comes next meets them elsewhere."""
        self._lab.hub.pump()
        self._gpu.reap()
        time.sleep(self._chance.uniform(0, _LONGEST_PAUSE))

    def _settle(self) -> None:
        """Everything is answered, in order: Linux takes the fences of all contexts for one timeline."""
        self._pending += [victim.question() for victim in self._victims.values()]
        self._gpu.wait_all(self._pending, _ANSWER)
        completed = [pending.completed_at for pending in self._pending]
        assert completed == sorted(completed), "fences were retired out of order"

    def _examine(self, kind: str, victim: Victim) -> None:
        certain = self._end.certain and kind not in UNCERTAIN
        if certain:
            pid, _ = self._ended[kind]
            until(lambda: self._is_over(victim, pid), f"the end of worker {pid}")
            for pending in (victim.question(), victim.question()):
                answer = self._gpu.wait(pending, _ANSWER)
                assert answer.type in _LOST, answer
            until(lambda: self._lab.loss_of(victim.ctx_id, victim.name), "a blame in the log")
        loss = self._lab.loss_of(victim.ctx_id, victim.name)
        if loss is not None:
            early = "|did not start" if kind in UNCERTAIN else ""
            assert re.search(self._end.cause + early, loss.cause), loss
            if certain:
                assert loss.pid == self._ended[kind][0], loss
        alive = self._gpu.wait(victim.question(), _ANSWER)
        assert alive.ok or alive.type in _LOST, alive

    def _is_over(self, victim: Victim, pid: int) -> bool:
        """Some are found out only when they are asked for something."""
        if gone(pid):
            return True
        self._gpu.wait(victim.question(), _ANSWER)
        return False

    def _is_done_with(self, pid: int) -> bool:
        """Whether it is over. One that lives on in spite of what it did is a spare now: nobody may get it."""
        if not gone(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return gone(pid)

    def _clean_up(self) -> None:
        for kind, victim in self._victims.items():
            with _naming(kind):
                wrong = [answer for answer in victim.clean_up() if not answer.ok]
                assert not wrong, wrong
        for pid, title in self._ended.values():
            until(partial(self._is_done_with, pid), f"the end of {title} ({pid})")
        assert not self._gpu.control.outstanding
        assert self._gpu.control.queue.free_descriptors == self._gpu.control.queue.size


@contextmanager
def _naming(kind: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        error.add_note(f"victim: {kind}")
        raise
