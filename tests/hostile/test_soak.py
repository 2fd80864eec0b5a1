"""A short soak (tests.soak): two minutes of what `make soak` does for half an hour."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.soak.figures import GROWTH_LIMIT, Figure, growth, memory_figures, slope

MINUTES = float(os.environ.get("ISOREND_SOAK_MINUTES", "2"))
SEED = os.environ.get("ISOREND_ROGUE_SEED", "1")
MIB = 1 << 20


@pytest.mark.timeout(60 * MINUTES + 600)
def test_two_minutes_leave_nothing_behind(service_environment: dict[str, str]) -> None:
    command = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "tests.soak"]
    soak = subprocess.run(
        [*command, f"--minutes={MINUTES}", f"--seed={SEED}"],
        env={**os.environ, **service_environment, "COLUMNS": "120"},
        capture_output=True,
        text=True,
    )
    print(soak.stdout)
    assert soak.returncode == 0, soak.stdout + soak.stderr
    (contexts,) = re.findall(r"\bcontexts\W+(\d+)", soak.stdout)
    (incidents,) = re.findall(r"\bincidents\W+(\d+)", soak.stdout)
    assert int(contexts) > 0 and int(incidents) > 0


def test_memory_that_grows_is_seen() -> None:
    steady = [MIB * (10 + index % 2) for index in range(40)]
    growing = [MIB * (10 + index) for index in range(40)]
    warming_up = [MIB * min(index, 10) for index in range(40)]
    assert abs(growth(steady)) <= MIB and abs(slope(steady)) < MIB / 10
    assert growth(growing) > GROWTH_LIMIT and round(slope(growing)) == MIB
    assert growth(warming_up) == 0 and slope(warming_up) == 0
    assert [figure.good for figure in memory_figures("a", "master", growing)] == [False, True]
    assert all(figure.good for figure in memory_figures("a", "master", steady))


def test_what_is_left_is_too_much() -> None:
    assert Figure("fds left", 0, 0).good
    assert not Figure("fds left", 1, 0).good
    assert Figure("contexts", 1000).good
