"""Sharing as the service arranges it, whatever an engine does: order, who waits for whom, and who does not.

The null engine's contents are bytes. Each way to share is tested: by mirrors, by memory that the master made, by
exports, and by exports that fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.device_lab import DeviceLab, gone, until
from tests.fake_vmm import FakeVmm, Rect, ResourceDescription, Resp, commands
from tests.fake_vmm.gpu import Gpu
from tests.fake_vmm.null_engine import NullStream
from tests.null_sharing_lab import (
    BUFFER,
    BUFFER_FORETOLD,
    FORETOLD,
    NBYTES,
    SIDE,
    TEXTURE,
    TIMELINES,
    WAYS,
    NullProgram,
    create,
    null_guest,
    null_service,
    share,
)
from tests.service_process import ServiceProcess
from tests.sharing_lab import cleaned_up

StartService = Callable[..., ServiceProcess]

FRAMES = 1000
PATIENCE = "--hang-timeout=600"
"""Nobody is given up on here."""

WHAT = pytest.mark.parametrize(
    "what",
    [TEXTURE, FORETOLD, BUFFER, BUFFER_FORETOLD],
    ids=["texture", "foretold texture", "buffer", "foretold buffer"],
)


@pytest.fixture(scope="module", params=WAYS)
def lab(request: pytest.FixtureRequest, start_service: StartService) -> Iterator[DeviceLab]:
    with null_service(start_service, request.param, PATIENCE) as lab:
        yield lab


@pytest.fixture(scope="module")
def vmm(lab: DeviceLab) -> Iterator[FakeVmm]:
    """One VM for all. Its driver can give each context a timeline of its own, by ring_idx 0."""
    with null_guest(lab, features=TIMELINES) as vmm:
        yield vmm


@pytest.fixture
def gpu(vmm: FakeVmm) -> Iterator[Gpu]:
    with cleaned_up(vmm.gpu) as gpu:
        yield gpu


# --- order ----------------------------------------------------------------------------------------------------------


@WHAT
def test_frames_come_in_order(gpu: Gpu, what: ResourceDescription) -> None:
    resource, (writer, reader) = share(gpu, what)
    checks = []
    for number in range(FRAMES):
        writer.fill(resource, number % 251)
        checks.append(reader.check(resource, number % 251))
    assert all(response.ok for response in gpu.wait_all(checks))
    assert not reader.sees(resource, FRAMES % 251)  # it does look


@WHAT
def test_all_write_in_turn(gpu: Gpu, what: ResourceDescription) -> None:
    resource, programs = share(gpu, what, 4)
    checks = []
    for number in range(FRAMES // 4):
        programs[number % 4].fill(resource, number % 251)
        checks += [program.check(resource, number % 251) for program in programs]
    assert all(response.ok for response in gpu.wait_all(checks))


def test_a_chain_of_programs(gpu: Gpu) -> None:
    """Each has the resource of the one before and one that it shares with the next."""
    programs = [NullProgram(gpu, f"program {number}") for number in range(5)]
    links = [create(gpu) for _ in programs]
    for number, program in enumerate(programs):
        for link in links[max(0, number - 1) : number + 1]:
            program.attach(link)
    checks = []
    for number in range(FRAMES // 5):
        programs[0].fill(links[0], number % 251)
        for program, source, target in zip(programs[1:], links, links[1:], strict=False):
            program.submit(NullStream().copy(source, target))
        checks.append(programs[-1].check(links[-1], number % 251))
    assert all(response.ok for response in gpu.wait_all(checks))


def test_what_one_is_sent_while_another_attaches(gpu: Gpu) -> None:
    """There is no moment at which the contents are in nobody's hands."""
    writer = NullProgram(gpu, "writer")
    checks = []
    reader = NullProgram(gpu, "reader")
    for number in range(60):
        resource = create(gpu, TEXTURE if number % 2 else FORETOLD)
        writer.attach(resource)
        writer.fill(resource, 1)
        reader = NullProgram(gpu, f"reader {number}") if number % 20 == 19 else reader
        reader.attach(resource)
        checks.append(reader.check(resource, 1))
        writer.fill(resource, 2)
        checks.append(reader.check(resource, 2))
        reader.fill(resource, 3)
        checks.append(writer.check(resource, 3))
    assert all(response.ok for response in gpu.wait_all(checks))


def test_dumb_buffers_come_in_order(gpu: Gpu) -> None:
    """What TRANSFER_TO_HOST_2D brings is seen by what comes after it alone, and is written over what was drawn."""
    frames = FRAMES // 4
    resource = gpu.create_resource_2d(SIDE, SIDE).resource_id
    gpu.resource_detach_backing(resource).check()
    pictures = gpu.memory.buffer(NBYTES * frames)
    gpu.resource_attach_backing(resource, pictures.segments()).check()
    pictures.write(b"".join(bytes([number]) * NBYTES for number in range(frames)))
    programs = [NullProgram(gpu, f"program {number}") for number in range(2)]
    for program in programs:
        program.attach(resource)
    answers = []
    half = NBYTES // 2
    for number in range(frames):
        whole, upper = Rect(SIDE, SIDE), Rect(SIDE, SIDE // 2)
        answers.append(gpu.submit(commands.transfer_to_host_2d(resource, whole, NBYTES * number)))
        answers += [program.check(resource, number) for program in programs]
        drawer, other = programs[:: 1 if number % 2 else -1]
        drawer.fill(resource, 255)
        answers.append(gpu.submit(commands.transfer_to_host_2d(resource, upper, NBYTES * number)))
        stream = NullStream().check(resource, number, half).check(resource, 255, half, half)
        answers.append(other.submit(stream, fenced=True))
    assert all(response.ok for response in gpu.wait_all(answers))


def test_many_at_once(gpu: Gpu) -> None:
    """All of them are copied wherever the order asks for it, since nobody says what a stream draws to."""
    programs = [NullProgram(gpu, f"program {number}") for number in range(2)]
    resources = [create(gpu) for _ in range(50)]
    for program in programs:
        for resource in resources:
            program.attach(resource)
    for number, resource in enumerate(resources):
        programs[number % 2].fill(resource, number)
    checks = [programs[1 - number % 2].check(resource, number) for number, resource in enumerate(resources)]
    wrong = [number for number, response in enumerate(gpu.wait_all(checks)) if not response.ok]
    assert not wrong
    for resource in resources:
        gpu.resource_unref(resource).check()


# --- who waits ------------------------------------------------------------------------------------------------------


def test_work_of_others_waits_until_the_driver_has_done_it(gpu: Gpu) -> None:
    """A stream may be executed and what it draws still on its way: the fence tells."""
    resource, (writer, reader) = share(gpu)
    reader.finish()
    drawn = writer.submit(NullStream().fill(resource, 1, NBYTES).delay(300), ring_idx=0)
    check = reader.check(resource, 1, ring_idx=0)
    assert gpu.wait(check).ok
    assert drawn.done and drawn.response.ok


def test_nobody_else_waits(lab: DeviceLab, gpu: Gpu) -> None:
    resource, (stuck, waiting) = share(gpu)
    own, (other, another) = share(gpu)
    lonely = NullProgram(gpu, "lonely")
    waiting.finish()
    stuck.hang()
    held = waiting.check(resource, 0, ring_idx=0)
    for number in range(50):
        other.fill(own, number)
        assert gpu.wait(another.check(own, number, ring_idx=0)).ok
        assert gpu.wait(lonely.submit(NullStream(), ring_idx=0)).ok
    assert not held.done
    lab.kill(lab.worker_of(stuck.ctx_id).pid)
    assert gpu.wait(held).ok


def test_who_shares_with_one_that_waits_waits_for_it_alone(lab: DeviceLab, gpu: Gpu) -> None:
    """A, B and C stand in a row: C has never heard of A, and waits for it only through B."""
    first, second = create(gpu), create(gpu)
    a, b, c = (NullProgram(gpu, name) for name in "abc")
    for program, resource in ((a, first), (b, first), (b, second), (c, second)):
        program.attach(resource)
    a.finish()
    b.finish()
    assert gpu.wait(c.check(second, 0, ring_idx=0)).ok
    a.hang()
    assert gpu.wait(c.check(second, 0, ring_idx=0)).ok
    b.fill(second, 1)
    held = c.check(second, 1, ring_idx=0)
    assert gpu.wait(NullProgram(gpu, "d").submit(NullStream(), ring_idx=0)).ok
    assert not held.done
    lab.kill(lab.worker_of(a.ctx_id).pid)
    assert gpu.wait(held).ok


def test_waiting_ends_with_the_attachment(lab: DeviceLab, gpu: Gpu) -> None:
    """What a context does after it has given the resource back has nothing to do with the others any more."""
    resource, (stuck, other) = share(gpu)
    other.finish()
    gpu.wait(other.detach(resource)).check()
    other.finish()
    stuck.hang()
    assert gpu.wait(other.submit(NullStream(), ring_idx=0)).ok
    lab.kill(lab.worker_of(stuck.ctx_id).pid)


def test_only_who_hangs_is_given_up(start_service: StartService) -> None:
    """The one that waits for it makes no progress either, but that is not its fault."""
    with null_service(start_service, "mirrored", "--hang-timeout=1") as lab, null_guest(lab) as vmm:
        gpu = vmm.gpu
        resource, (stuck, waiting) = share(gpu)
        waiting.finish()
        pid = lab.worker_of(stuck.ctx_id).pid
        stuck.hang()
        assert waiting.sees(resource, 0)
        until(lambda: gone(pid), "the end of the one that hangs")
        until(lambda: "context lost" in lab.log, "a blame")
        assert waiting.sees(resource, 0)
        assert lab.log.count("context lost") == 1
        assert gpu.wait(stuck.submit(NullStream(), fenced=True)).type == Resp.ERR_UNSPEC
