"""Workers end in every way there is, at moments left to chance: nobody else notices, and nothing is left of them.

A failure names its round's seed. ISOREND_ROGUE_SEED chooses another one, ISOREND_ROGUE_ROUNDS how many rounds of each
are played.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import pytest
from xprocess.xprocess import XProcess

from tests.rogue.ends import CRASHES, HANGS, MEMORY, SANDBOX, SPIN, End
from tests.rogue.lab import rogue_lab
from tests.rogue.programs import NullNeighbour, VirglNeighbour
from tests.rogue.world import Worlds

SEED = os.environ.get("ISOREND_ROGUE_SEED", "1")
ROUNDS = int(os.environ.get("ISOREND_ROGUE_ROUNDS", "2"))
FEWER_ROUNDS = (ROUNDS + 2) // 3
"""Of what takes its time."""

GROWTH_LIMIT = 8 << 20
"""Bytes of the master's own memory: what dozens of rounds may leave behind for good. One worker that is not forgotten,
with its ring and staging memory's page tables, is 100 KiB."""


@pytest.fixture(scope="module")
def null_worlds(xprocess: XProcess, service_environment: dict[str, str]) -> Iterator[Worlds]:
    """Workers that draw nothing and are there at once. Those that do not move for a second are taken for hanging."""
    options = ["--engine=null", "--hang-timeout=1", "--max-memory=256M"]
    with rogue_lab(xprocess, options, service_environment) as lab, closing(Worlds(lab, NullNeighbour)) as worlds:
        resident = lab.resident()
        yield worlds
        assert lab.resident() - resident < GROWTH_LIMIT


@pytest.fixture(scope="module")
def virgl_worlds(xprocess: XProcess, service_environment: dict[str, str]) -> Iterator[Worlds]:
    """Workers that draw."""
    with (
        rogue_lab(xprocess, ["--hang-timeout=3"], service_environment) as lab,
        closing(Worlds(lab, VirglNeighbour)) as worlds,
    ):
        yield worlds


def seeds(count: int) -> list[str]:
    """Of so many rounds."""
    return [f"{SEED}-{number}" for number in range(count)]


@pytest.mark.parametrize("end", [*CRASHES, *SANDBOX, *HANGS, MEMORY], ids=lambda end: end.name)
def test_ends(null_worlds: Worlds, end: End) -> None:
    null_worlds.play(end, seeds(FEWER_ROUNDS if end in HANGS or end is MEMORY else ROUNDS))


@pytest.mark.parametrize("end", [*CRASHES, *SANDBOX, SPIN], ids=lambda end: end.name)
def test_ends_of_workers_that_draw(virgl_worlds: Worlds, end: End) -> None:
    virgl_worlds.play(end, seeds(FEWER_ROUNDS))
