"""A VM with neighbours at work, which is kept for the next test as long as nothing fails in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.fake_vmm import FakeVmm
from tests.rogue.ends import End
from tests.rogue.lab import RogueLab
from tests.rogue.programs import PROGRAMS, MakeNeighbour, Neighbour
from tests.rogue.round import Round
from tests.service_lab import Footprint

NEIGHBOURS = 2


@dataclass(frozen=True)
class _World:
    vmm: FakeVmm
    neighbours: Sequence[Neighbour]
    footprint: Footprint


class Worlds:
    """Of one service."""

    def __init__(self, lab: RogueLab, make_neighbour: MakeNeighbour) -> None:
        self._lab = lab
        self._make_neighbour = make_neighbour
        self._kept: _World | None = None

    def play(self, end: End, seeds: Sequence[str]) -> None:
        """A round for each seed, with victims of every kind. Afterwards the service holds what it held before, or
        AssertionError says what not."""
        with self._world() as world:
            for seed in seeds:
                Round(self._lab, world.vmm, world.neighbours, end, list(PROGRAMS), seed).play()
            self._lab.wait_for_footprint(world.footprint)

    @contextmanager
    def _world(self) -> Iterator[_World]:
        world, self._kept = self._kept or self._make(), None
        try:
            yield world
        except BaseException:
            world.vmm.disconnect(graceful=False)
            raise
        self._kept = world

    def _make(self) -> _World:
        vmm = FakeVmm.connect(self._lab.service.socket_path)
        neighbours = [self._make_neighbour(vmm.gpu, f"neighbour {number}") for number in range(NEIGHBOURS)]
        return _World(vmm, neighbours, self._lab.settle())

    def close(self) -> None:
        if self._kept is not None:
            self._kept.vmm.disconnect()
