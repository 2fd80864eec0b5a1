"""Workers that have been taken over and lie: to the master, about their work, in the memory that they share with it.

The rounds are those of test_worker_death, where the seed is explained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from xprocess.xprocess import XProcess

from tests.hostile.test_worker_death import FEWER_ROUNDS, seeds
from tests.rogue.ends import CHANNEL_LIES, RING_LIES, End
from tests.rogue.lab import rogue_lab
from tests.rogue.programs import NullNeighbour
from tests.rogue.world import Worlds


@pytest.fixture(scope="module")
def worlds(xprocess: XProcess, service_environment: dict[str, str]) -> Iterator[Worlds]:
    options = ["--engine=null", "--hang-timeout=1"]
    with rogue_lab(xprocess, options, service_environment) as lab, closing(Worlds(lab, NullNeighbour)) as worlds:
        yield worlds


@pytest.mark.parametrize("end", [*CHANNEL_LIES, *RING_LIES], ids=lambda end: end.name)
def test_lies(worlds: Worlds, end: End) -> None:
    worlds.play(end, seeds(FEWER_ROUNDS))
