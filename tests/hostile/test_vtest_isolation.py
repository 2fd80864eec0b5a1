"""Clients of the vtest service that send rubbish, stop, vanish or lose their worker: nobody else may notice."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from bench.clients.build import Programs
from tests.conftest import ServiceFactory
from tests.fake_vtest.client import ConnectionLost, VtestClient
from tests.fake_vtest.protocol import Command, Texture, pack_words
from tests.service_lab import until
from tests.vtest_lab import GEARS, OPTIONS, MesaProgram, VtestLab, command, create_renderer, is_served
from tests.vtest_pictures import Picture, assert_same_picture, read_ppm

TEXTURE = pack_words(1, *Texture(target=2, format=1, bind=2, width=64, height=64).words())
"""RESOURCE_CREATE's arguments: something to draw to."""

RUBBISH = {
    "noise": bytes(range(255, -1, -1)) * 16,
    "text": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no such command": create_renderer() + pack_words(0, 4711),
    "command 0": create_renderer() + pack_words(0, 0),
    "no renderer": command(Command.SUBMIT_CMD, b"\0" * 8),
    "name without end": command(Command.CREATE_RENDERER, b"x" * 64, 0xFFFFFFFF),
    "submit of 16 GiB": create_renderer() + command(Command.SUBMIT_CMD, b"\0" * 64, 0xFFFFFFFF),
    "resource of no such target": create_renderer() + command(Command.RESOURCE_CREATE, b"\xff" * 40),
    "pixels of no resource": create_renderer() + command(Command.TRANSFER_GET, pack_words(9, *[0] * 10)),
    "stream of rubbish": create_renderer() + command(Command.SUBMIT_CMD, b"\xff" * 4096),
}

CUT_OFF = {
    "nothing": b"",
    "half a header": b"\x08\x00",
    "a header": command(Command.CREATE_RENDERER, b"", 10),
    "half a name": command(Command.CREATE_RENDERER, b"half", 10),
    "a session": create_renderer(),
    "a question": create_renderer() + command(Command.GET_CAPS),
    "half a resource": create_renderer() + command(Command.RESOURCE_CREATE, b"\0" * 8),
    "a resource": create_renderer() + command(Command.RESOURCE_CREATE, TEXTURE),
    "half a stream": create_renderer() + command(Command.SUBMIT_CMD, b"\0" * 4000, 1 << 20),
    "pixels": create_renderer()
    + command(Command.RESOURCE_CREATE, TEXTURE)
    + command(Command.TRANSFER_GET, pack_words(1, 0, 256, 0, 0, 0, 0, 64, 64, 1, 64 * 64 * 4)),
}


@pytest.fixture(scope="module")
def lab(start_vtest: ServiceFactory) -> Iterator[VtestLab]:
    service = start_vtest(OPTIONS)
    yield VtestLab(service)
    service.check_running()
    assert service.stop() == 0


@contextmanager
def drawing_on(lab: VtestLab, programs: Programs, gears: Picture, path: Path) -> Iterator[MesaProgram]:
    """A program that has drawn its first frame before, and draws on and rightly after what happens meanwhile."""
    with MesaProgram(programs, lab.service, *GEARS, picture=path) as program:
        yield program
        program.go()
        program.result()
    assert_same_picture(read_ppm(path), gears)


@pytest.fixture
def neighbour(lab: VtestLab, programs: Programs, gears: Picture, tmp_path: Path) -> Iterator[MesaProgram]:
    """A program that must not notice anything of a test."""
    with drawing_on(lab, programs, gears, tmp_path / "neighbour.ppm") as program:
        yield program


def ends(client: VtestClient) -> None:
    """Reads until the other side closes."""
    with pytest.raises(ConnectionLost):
        while True:
            client.receive(1)


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


# --- workers that die -----------------------------------------------------------------------------------------------


def test_a_worker_killed_in_a_frame_takes_one_program_along(
    lab: VtestLab, programs: Programs, gears: Picture, tmp_path: Path
) -> None:
    with lab.nothing_left(), drawing_on(lab, programs, gears, tmp_path / "other.ppm") as other:
        (others,) = lab.wait_for_workers(1)
        with MesaProgram(programs, lab.service, "--scene=heavy", "--seconds=600") as victim:
            worker = next(each for each in lab.wait_for_workers(2) if each.pid != others.pid)
            before = cpu_seconds(worker.pid)
            victim.go()
            until(lambda: cpu_seconds(worker.pid) > before + 0.3, "frames in the making")
            lab.kill(worker.pid)
            code, _complaints = victim.wait()
            assert code != 0
        blame = f"isorend: error: client lost: vtest {worker.number} isorend-bench-c (worker {worker.pid}): "
        until(lambda: blame + "killed by SIGKILL\n" in lab.log, "a line that says who it was")
        assert other.process.poll() is None and [each.pid for each in lab.workers()] == [others.pid]


def test_frames_go_on_while_workers_beside_them_die(lab: VtestLab, programs: Programs) -> None:
    paced = ("--scene=gears", "--frames=100", "--pace=50")
    with lab.nothing_left(), ExitStack() as stack:
        victims = [stack.enter_context(MesaProgram(programs, lab.service, *GEARS)) for _ in range(3)]
        doomed = lab.wait_for_workers(3)
        with MesaProgram(programs, lab.service, *paced) as program:
            worker = lab.wait_for_workers(4)[-1]
            before = cpu_seconds(worker.pid)
            program.go()
            until(lambda: cpu_seconds(worker.pid) > before, "frames in the making")
            for each in doomed:
                lab.kill(each.pid)
            for victim in victims:
                victim.go()
                assert victim.wait()[0] != 0
            assert program.result()["frames"] == 100  # and it has looked at a pixel of each


# --- what clients send ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", RUBBISH.values(), ids=RUBBISH.keys())
def test_rubbish_ends_the_connection_and_nothing_else(lab: VtestLab, sent: bytes) -> None:
    warnings = lab.log.count("isorend: warning: vtest ")
    with lab.nothing_left(), lab.connect() as connection:
        connection.send(sent)
        ends(connection)
        until(lambda: lab.log.count("isorend: warning: vtest ") > warnings, "a line about it")
    assert lab.log.count("isorend: warning: vtest ") == warnings + 1
    assert re.search(r"isorend: vtest \d+ \S+: gone \(exit code 4\)\n\Z", lab.log)


def test_rubbish_is_not_noticed_by_others(lab: VtestLab, neighbour: MesaProgram) -> None:
    with lab.nothing_left():
        for sent in RUBBISH.values():
            with lab.connect() as connection:
                connection.send(sent)
                ends(connection)


@pytest.mark.parametrize("sent", CUT_OFF.values(), ids=CUT_OFF.keys())
def test_a_client_that_vanishes_leaves_nothing(lab: VtestLab, sent: bytes) -> None:
    with lab.nothing_left(), lab.connect() as connection:
        connection.send(sent)
        lab.wait_for_workers(1)


def test_clients_that_vanish_at_once_leave_nothing(lab: VtestLab, neighbour: MesaProgram) -> None:
    with lab.nothing_left():
        for sent in (*CUT_OFF.values(), *[b""] * 10):
            with lab.connect() as connection:
                connection.send(sent)
        with lab.connect() as connection:
            assert is_served(connection)


def test_a_client_that_does_not_read_stops_itself_alone(lab: VtestLab, neighbour: MesaProgram) -> None:
    """Its worker waits for it, for ever if it likes; a new client is served beside it."""
    questions = create_renderer() + command(Command.GET_CAPS) * 4096
    with lab.nothing_left(), lab.connect() as silent:
        silent.socket.setblocking(False)
        sent = 0
        try:
            while sent < len(questions):
                sent += silent.socket.send(questions[sent:])
        except BlockingIOError:
            pass
        with lab.connect() as other:
            assert is_served(other)


def test_a_stopped_worker_is_nobody_elses_matter(lab: VtestLab) -> None:
    with lab.nothing_left(), lab.connect() as stopped:
        assert is_served(stopped)
        (worker,) = lab.wait_for_workers(1)
        os.kill(worker.pid, signal.SIGSTOP)
        with lab.connect() as other:
            assert is_served(other)
        os.kill(worker.pid, signal.SIGCONT)
        assert stopped.ping()
