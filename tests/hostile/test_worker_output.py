"""Workers that have been taken over and write: on the service's terminal, into its log, without end."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from xprocess.xprocess import XProcess

from master.worker_log import ALL_BURST, ALL_INTERVAL, LINE_CHARACTERS
from tests.rogue.deeds import FORGED, OUTPUT_MARK
from tests.rogue.hub import RogueWorker
from tests.rogue.lab import RogueLab, losses, rogue_lab
from tests.service_lab import until


@pytest.fixture
def lab(xprocess: XProcess, service_environment: dict[str, str]) -> Iterator[RogueLab]:
    options = ["--engine=null", "--sandbox=off", "--spares=1"]
    with rogue_lab(xprocess, options, service_environment) as lab:
        yield lab


def spare(lab: RogueLab) -> RogueWorker:
    lab.hub.until(lab.hub.spares, "a spare")
    return lab.hub.spares()[0]


def streams(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)]


def flags(pid: int) -> list[str]:
    """Of the service's own output, as the kernel has them."""
    infos = [Path(f"/proc/{pid}/fdinfo/{fd}").read_text() for fd in (1, 2)]
    return [match[0] for info in infos if (match := re.search(r"^flags:.*$", info, re.MULTILINE))]


def test_a_worker_has_no_stream_of_the_services(lab: RogueLab) -> None:
    worker = spare(lab)
    reading, *writing = streams(worker.pid)
    assert writing[0] == writing[1] and all(name.startswith("pipe:") for name in (reading, *writing))
    assert not {reading, *writing} & set(streams(lab.pid))


def test_what_it_writes_is_in_the_log_under_its_name_and_nothing_else_happens(lab: RogueLab) -> None:
    worker = spare(lab)
    before, its_flags = lab.log, flags(lab.pid)
    worker.order("abuse-output")
    until(lambda: OUTPUT_MARK in lab.log, "its words in the log")
    assert lab.log.startswith(before)
    assert flags(lab.pid) == its_flags
    new = lab.log[len(before) :].splitlines()
    own = [line for line in new if re.match(rf"isorend: (?:\w+: )?worker {worker.pid} \(spare\): ", line)]
    assert new == own and len([line for line in own if FORGED in line]) == 2
    assert losses(lab.log) == []
    assert all(line.isascii() and line.isprintable() and len(line) < LINE_CHARACTERS + 100 for line in own)
    worker.order("exit-with", "0")
    until(lambda: f"ended: spare (worker {worker.pid}): exited with code 0" in lab.log, "a line of the service's own")


def test_a_flood_is_a_trickle_and_others_are_served(lab: RogueLab) -> None:
    worker = spare(lab)
    worker.order("flood-output")
    until(lambda: lab.log.count("others before)") >= 2, "a trickle")
    size = len(lab.log)
    os.kill(worker.pid, 9)
    until(lambda: f"ended: spare (worker {worker.pid}): killed by SIGKILL" in lab.log, "its end")
    assert len(lab.log) - size < (ALL_BURST + 1 / ALL_INTERVAL) * (LINE_CHARACTERS + 100)
    lab.hub.until(lambda: [other for other in lab.hub.spares() if other is not worker], "another spare")
