"""Contexts that are lost, programs that go on losing them, guests that want too much: what is said of them."""

from __future__ import annotations

import json
import os
import signal
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import ServiceFactory
from tests.control_commands import followed, isorend, told
from tests.device_lab import OPTIONS, DeviceLab, gone, until
from tests.fake_vmm import FakeVmm, Rect, ResourceDescription, Resp, commands
from tests.fake_vmm.guest_objects import GuestContext
from tests.hostile.conftest import TEXTURE
from tests.service_process import ServiceProcess

ABORT, HANG = struct.pack("<II", 2, 0), struct.pack("<II", 3, 0)
"""What ends a worker of the null engine."""
STRIKES = 3
STRIKES_OF_THE_GUEST = 8


class Lab(DeviceLab):
    """A service that `isorend status` and its like can reach."""

    def __init__(self, service: ServiceProcess) -> None:
        super().__init__(service)
        self.process = service


@pytest.fixture
def lab(service_factory: ServiceFactory) -> Lab:
    strikes = [f"--strikes={STRIKES}/1000", f"--guest-strikes={STRIKES_OF_THE_GUEST}/1000"]
    limits = ["--max-memory=256M", "--max-contexts=4", "--spawn-rate=1000/10"]
    return Lab(service_factory([*OPTIONS, "--engine=null", "--hang-timeout=1", *strikes, *limits]))


@pytest.fixture
def vmm(lab: Lab) -> Iterator[FakeVmm]:
    with lab.vmm(display=False) as vmm:
        yield vmm


def incidents(lab: Lab) -> list[dict[str, Any]]:
    found = told(lab.process, "incidents")
    assert isinstance(found, list)
    return found


def status(lab: Lab) -> dict[str, Any]:
    (found,) = json.loads(isorend(lab.process, "status", "--json").stdout)
    assert isinstance(found, dict)
    return found


def lose(lab: Lab, context: GuestContext) -> int:
    """Its worker is killed, and the service has said so; the worker's pid."""
    lines = lab.log.count("context lost")
    pid = lab.worker_of(context.ctx_id).pid
    lab.kill(pid)
    until(lambda: lab.log.count("context lost") > lines, "a line about it")
    return pid


# --- one incident ---------------------------------------------------------------------------------------------------


def test_a_killed_worker_in_the_log_in_the_incidents_and_on_the_stream(lab: Lab, vmm: FakeVmm) -> None:
    with followed(lab.process) as events:
        context = vmm.gpu.create_context("kmscube")
        vmm.gpu.resource_create_3d(7, TEXTURE).check()
        vmm.gpu.submit(commands.ctx_attach_resource(context.ctx_id, 7), fenced=True)
        context.run(b"\0\0\0\0").check()
        pid = lose(lab, context)
        until(lambda: len(incidents(lab)) == 1, "the incident")
        isorend(lab.process, "kill", "4711")
        events.send_signal(signal.SIGINT)
        lines = [json.loads(line) for line in events.communicate(timeout=30)[0].splitlines()]
    line = f"context lost: ctx {context.ctx_id} kmscube (worker {pid}): killed by SIGKILL; last command: SUBMIT_3D of "
    assert line in lab.log and "; 1 resource lost\n" in lab.log
    (incident,) = incidents(lab)
    assert (incident["program"], incident["pid"], incident["number"]) == ("kmscube", pid, 1)
    assert incident["cause"]["kind"] == "signal" and incident["cause"]["signal"] == "SIGKILL"
    assert incident["resources_lost"] == [7] and incident["under_way"] == ""
    assert [words.split()[0] for words in incident["last_commands"]] == ["CreateContext", "AttachResource", "SUBMIT_3D"]
    assert [event["kind"] for event in lines] == ["context-created", "incident"]
    assert lines[1]["pid"] == pid


def test_what_it_was_at_when_it_aborted(lab: Lab, vmm: FakeVmm) -> None:
    context = vmm.gpu.create_context("assertion")
    assert not context.run(ABORT).ok
    until(lambda: len(incidents(lab)) == 1, "the incident")
    (incident,) = incidents(lab)
    assert incident["cause"]["signal"] == "SIGABRT"
    assert incident["under_way"].startswith("SUBMIT_3D of 8 bytes") and incident["fences"] == 1


def test_a_hang_of_a_context_that_was_destroyed_is_one_too(lab: Lab, vmm: FakeVmm) -> None:
    context = vmm.gpu.create_context("leaves a mess")
    pid = lab.worker_of(context.ctx_id).pid
    hanging = context.submit(HANG)
    context.destroy()
    until(lambda: len(incidents(lab)) == 1, "the incident")
    assert not vmm.gpu.wait(hanging).ok
    (incident,) = incidents(lab)
    assert incident["cause"] == {"kind": "hang", "text": "made no progress for 1 s", "signal": None, "syscall": None}
    until(lambda: gone(pid), "the end of its worker")


def test_resets_front_ends_that_leave_and_ends_are_none(lab: Lab) -> None:
    with lab.vmm(display=False) as vmm:
        vmm.gpu.create_context("reset").submit(HANG)
        vmm.front_end.reset_device()  # without stopping the queues, which would wait for it
        vmm.stop()
        vmm.boot()
        vmm.gpu.create_context("ends well").destroy()
        vmm.gpu.create_context("left behind")
    lab.wait_until_idle()
    assert "context lost" not in lab.log and incidents(lab) == []


def test_the_operator_ends_a_context(lab: Lab, vmm: FakeVmm) -> None:
    for number in range(1, STRIKES + 2):
        context = vmm.gpu.create_context("victim")
        pid = lab.worker_of(context.ctx_id).pid
        assert isorend(lab.process, "kill", str(context.ctx_id)).returncode == 0
        until(lambda: len(incidents(lab)) == number, "the incident")  # noqa: B023
        assert context.run(b"\0\0\0\0").type == Resp.ERR_UNSPEC
        assert incidents(lab)[-1]["cause"]["kind"] == "operator" and incidents(lab)[-1]["pid"] == pid
        context.destroy()
    assert status(lab)["quarantined"] == []


def test_names_cannot_write_to_the_log(lab: Lab, vmm: FakeVmm) -> None:
    lose(lab, vmm.gpu.create_context("\x1b[2J\r\ncontext lost: \x9b"))
    assert "\x1b" not in lab.log and "\x9b" not in lab.log and "\r" not in lab.log
    assert len([line for line in lab.log.splitlines() if line.startswith("context lost")]) == 0
    assert str(incidents(lab)[0]["program"]).isprintable()


# --- strikes --------------------------------------------------------------------------------------------------------


def crash(lab: Lab, vmm: FakeVmm, name: str) -> bool:
    """Whether it got a context, whose worker it ends then."""
    if vmm.gpu.ctx_create(50, name).type == Resp.ERR_UNSPEC:
        assert vmm.gpu.submit_3d(50, ABORT, fenced=True).type == Resp.ERR_INVALID_CONTEXT_ID
        return False
    before = lab.log.count("context lost")
    assert not vmm.gpu.submit_3d(50, ABORT, fenced=True).ok
    until(lambda: lab.log.count("context lost") > before, "the incident")
    vmm.gpu.ctx_destroy(50).check()
    return True


def test_a_program_that_goes_on_crashing_is_refused_until_released(lab: Lab) -> None:
    with lab.vmm(display=False) as vmm:
        assert [crash(lab, vmm, "crasher") for _ in range(STRIKES + 2)] == [True] * STRIKES + [False] * 2
        assert vmm.gpu.ctx_create(100, "crasher").type == Resp.ERR_UNSPEC
        vmm.gpu.create_context("innocent").run(b"\0\0\0\0").check()
        vmm.reboot()
        assert vmm.gpu.ctx_create(100, "crasher").type == Resp.ERR_UNSPEC
    with lab.vmm(display=False) as vmm:  # nor does another front end
        assert vmm.gpu.ctx_create(100, "crasher").type == Resp.ERR_UNSPEC
        assert [entry["program"] for entry in status(lab)["quarantined"]] == ["crasher"]
        assert isorend(lab.process, "release", "crasher").returncode == 0
        vmm.gpu.ctx_create(100, "crasher").check()
    assert "quarantine: crasher gets no contexts until released (3 strikes)" in lab.log
    assert "quarantine: crasher is released" in lab.log


def test_a_guest_of_many_names_is_refused_as_a_whole(lab: Lab, vmm: FakeVmm) -> None:
    names = [f"name {number}" for number in range(STRIKES_OF_THE_GUEST + 2)]
    assert [crash(lab, vmm, name) for name in names] == [True] * STRIKES_OF_THE_GUEST + [False] * 2
    assert vmm.gpu.ctx_create(100, "innocent").type == Resp.ERR_UNSPEC
    assert [entry["program"] for entry in status(lab)["quarantined"]] == [""]
    assert isorend(lab.process, "release", "--guest").returncode == 0
    vmm.gpu.ctx_create(100, "innocent").check()


# --- limits ---------------------------------------------------------------------------------------------------------


def test_over_a_limit_a_context_is_told_and_nobody_else(lab: Lab, vmm: FakeVmm) -> None:
    gpu = vmm.gpu
    hoarder, neighbour = gpu.create_context("hoarder"), gpu.create_context("neighbour")
    for resource_id in range(1, 10):
        gpu.resource_create_3d(resource_id, ResourceDescription(4096, 4096)).check()  # 64 MiB, by its size
    answers = [
        gpu.wait(gpu.submit(commands.ctx_attach_resource(hoarder.ctx_id, resource_id), fenced=True)).type
        for resource_id in range(1, 8)
    ]
    assert answers == [Resp.OK_NODATA] * 4 + [Resp.ERR_OUT_OF_MEMORY] * 3
    gpu.wait(gpu.submit(commands.ctx_attach_resource(neighbour.ctx_id, 8), fenced=True)).check()
    hoarder.run(b"\0\0\0\0").check()
    others = [gpu.ctx_create(ctx_id, "more").type for ctx_id in range(100, 105)]
    assert others == [Resp.OK_NODATA] * 2 + [Resp.ERR_OUT_OF_MEMORY] * 3
    lines = [line for line in lab.log.splitlines() if "over the limit" in line]
    assert len(lines) == 2 and f"ctx {hoarder.ctx_id} hoarder: " in lines[0] and "4 contexts" in lines[1]
    shown = {entry["ctx_id"]: entry for entry in status(lab)["contexts"]}
    assert (shown[hoarder.ctx_id]["resources"], shown[hoarder.ctx_id]["resource_bytes"]) == (4, 256 << 20)
    assert shown[neighbour.ctx_id]["resources"] == 1 and incidents(lab) == []


def test_a_command_that_is_too_large_is_a_line_and_no_more(lab: Lab, vmm: FakeVmm) -> None:
    context = vmm.gpu.create_context("verbose")
    pages = vmm.memory.buffer(2 << 20)
    for _ in range(3):
        answer = vmm.gpu.wait(vmm.gpu.submit(commands.submit_3d(context.ctx_id, pages), fenced=True))
        assert answer.type == Resp.ERR_OUT_OF_MEMORY
    context.run(b"\0\0\0\0").check()
    until(lambda: "over the limit: ctx" in lab.log, "a line about it")
    assert lab.log.count("over the limit") == 1


# --- resources of the dead ------------------------------------------------------------------------------------------


def test_what_the_guest_has_of_a_dead_context(lab: Lab, vmm: FakeVmm) -> None:
    """Fences retire, commands are answered with errors, its resources can be given to others, 2D goes on."""
    gpu = vmm.gpu
    context, other = gpu.create_context("dies"), gpu.create_context("lives")
    gpu.resource_create_3d(7, TEXTURE).check()
    gpu.wait(gpu.submit(commands.ctx_attach_resource(context.ctx_id, 7), fenced=True)).check()
    pid = lab.worker_of(context.ctx_id).pid
    os.kill(pid, signal.SIGSTOP)
    fenced = [context.submit(b"\0\0\0\0") for _ in range(50)]
    lab.kill(pid)
    assert {response.type for response in gpu.wait_all(fenced)} == {Resp.ERR_UNSPEC}
    assert context.run(b"\0\0\0\0").type == Resp.ERR_UNSPEC
    assert gpu.wait(gpu.submit(commands.ctx_attach_resource(context.ctx_id, 7), fenced=True)).type == Resp.ERR_UNSPEC
    gpu.wait(gpu.submit(commands.ctx_attach_resource(other.ctx_id, 7), fenced=True)).check()
    other.run(b"\0\0\0\0").check()
    picture = gpu.create_resource_2d(64, 64)
    assert gpu.flush(picture.resource_id, Rect(64, 64), fenced=True).ok
    until(lambda: len(incidents(lab)) == 1, "the incident")
    assert incidents(lab)[0]["fences"] == 50 and incidents(lab)[0]["resources_lost"] == [7]
