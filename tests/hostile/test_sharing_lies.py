"""Workers that have been taken over lie about the storage of their objects, and scribble over what they share.

Where the master can see the lie it ends the worker; either way nobody else is harmed: who shared with it goes on, with
what it has of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from xprocess.xprocess import XProcess

from tests.fake_vmm import BlobFlag, BlobMem, FakeVmm, Feature, commands
from tests.fake_vmm.null_engine import NullStream
from tests.hostile.test_worker_death import GROWTH_LIMIT
from tests.null_sharing_lab import ABILITIES_VARIABLE, NBYTES, NullProgram, create, share
from tests.rogue.lab import RogueLab, rogue_lab
from tests.rogue.sharing_lies import BLOB_LIES, EXPORT_LIES
from tests.service_lab import until

ALL_FEATURES = Feature.VIRGL | Feature.EDID | Feature.RESOURCE_UUID | Feature.RESOURCE_BLOB | Feature.CONTEXT_INIT
BLOB_BYTES = 8192


@pytest.fixture(scope="module")
def exporting(xprocess: XProcess, service_environment: dict[str, str]) -> Iterator[RogueLab]:
    """Workers whose objects can leave them."""
    env = {**service_environment, ABILITIES_VARIABLE: "export"}
    with rogue_lab(xprocess, ["--engine=null", "--hang-timeout=2", "--spawn-rate=100000/1"], env) as lab:
        yield lab


@pytest.fixture(scope="module")
def mirroring(xprocess: XProcess, service_environment: dict[str, str]) -> Iterator[RogueLab]:
    options = ["--engine=null", "--hang-timeout=2", "--spawn-rate=100000/1"]
    with rogue_lab(xprocess, options, service_environment) as lab:
        yield lab


@pytest.fixture(scope="module")
def vmm(exporting: RogueLab) -> Iterator[FakeVmm]:
    """For all lies; in the end nothing is left of them."""
    before, resident = exporting.wait_until_idle(), exporting.resident()
    with exporting.vmm(display=False, features=ALL_FEATURES) as vmm:
        yield vmm
    exporting.check_running()
    exporting.wait_for_footprint(before)
    assert exporting.resident() - resident < GROWTH_LIMIT


def liar(lab: RogueLab, vmm: FakeVmm, lie: str) -> NullProgram:
    """A program whose worker will tell that lie."""
    program = NullProgram(vmm.gpu, f"liar {lie}"[:60])
    worker = lab.hub.worker_of(program.ctx_id)
    lab.hub.until(lambda: worker.ready, "its thread")
    worker.order("lie-about-storage", lie)
    lab.hub.until(lambda: "lie-about-storage" in worker.did, "the order")
    return program


def assert_ended(lab: RogueLab, program: NullProgram) -> None:
    """The master has seen it, and has ended its worker for no other reason."""
    until(lambda: lab.loss_of(program.ctx_id, program.name), "a blame in the log")
    loss = lab.loss_of(program.ctx_id, program.name)
    assert loss is not None
    assert "broke the channel" in loss.cause or "say what" in loss.cause, loss
    assert not program.context.run(b"").ok


@pytest.mark.parametrize("lie", EXPORT_LIES)
def test_lies_about_an_export(exporting: RogueLab, vmm: FakeVmm, lie: str) -> None:
    gpu = vmm.gpu
    resource, (neighbour, friend) = share(gpu)
    program = liar(exporting, vmm, lie)
    lied = create(gpu)
    program.attach(lied)
    program.fill(lied, 1)
    neighbour.attach(lied)
    neighbour.fill(lied, 2)
    assert neighbour.sees(lied, 2)
    assert_ended(exporting, program)
    neighbour.fill(resource, 3)
    assert friend.sees(resource, 3)
    friend.attach(lied)
    neighbour.fill(lied, 4)
    assert friend.sees(lied, 4)
    for each in (program, neighbour, friend):
        each.destroy()
    for each_resource in (resource, lied):
        gpu.resource_unref(each_resource).check()


@pytest.mark.parametrize("lie", BLOB_LIES)
def test_lies_about_a_blob(exporting: RogueLab, vmm: FakeVmm, lie: str) -> None:
    gpu = vmm.gpu
    neighbour = NullProgram(gpu, "neighbour")
    program = liar(exporting, vmm, lie)
    program.submit(NullStream().blob(1, BLOB_BYTES))
    lied = gpu.new_resource_id()
    flags = BlobFlag.MAPPABLE | BlobFlag.SHAREABLE
    made = gpu.submit(
        commands.resource_create_blob(lied, BlobMem.HOST3D, flags, BLOB_BYTES, ctx_id=program.ctx_id, blob_id=1),
        fenced=True,
    )
    neighbour.attach(lied)
    check = neighbour.submit(NullStream(), fenced=True)
    gpu.wait(made)
    assert gpu.wait(check).ok
    assert_ended(exporting, program)
    other = create(gpu)
    neighbour.attach(other)
    neighbour.fill(other, 3)
    assert neighbour.sees(other, 3)
    for each in (program, neighbour):
        each.destroy()
    for resource in (other, lied):
        gpu.resource_unref(resource)


def test_an_export_that_nobody_asked_for(exporting: RogueLab, vmm: FakeVmm) -> None:
    program = NullProgram(vmm.gpu, "liar unasked")
    worker = exporting.hub.worker_of(program.ctx_id)
    exporting.hub.until(lambda: worker.ready, "its thread")
    worker.order("export-unasked")
    assert_ended(exporting, program)
    program.destroy()


def test_scribbling_over_a_mirror(mirroring: RogueLab) -> None:
    """Contents are spoiled for those who share them with the one who does it, and nothing else is."""
    before = mirroring.wait_until_idle()
    with mirroring.vmm(display=False) as vmm:
        gpu = vmm.gpu
        own, (neighbour, friend) = share(gpu)
        rogue = NullProgram(gpu, "scribbler")
        spoiled = create(gpu)
        for program in (rogue, neighbour, friend):
            program.attach(spoiled)
        rogue.finish()
        worker = mirroring.hub.worker_of(rogue.ctx_id)
        mirroring.hub.until(lambda: worker.ready, "its thread")
        worker.order("scribble-mirrors", "1")
        for number in range(300):
            writer, reader = (neighbour, friend)[:: 1 if number % 2 else -1]
            writer.fill(spoiled, number % 251)
            reader.check(spoiled, number % 251)  # whatever it finds
            rogue.fill(spoiled, 0)
            writer.fill(own, number % 251)
            assert gpu.wait(reader.check(own, number % 251)).ok
        assert not mirroring.loss_of(neighbour.ctx_id, neighbour.name)
        mirroring.kill(worker.pid)
        neighbour.fill(spoiled, 5)
        friend.sees(spoiled, 5, NBYTES)  # perhaps not: the version that it left may make the next one look old
        neighbour.fill(spoiled, 6)
        assert friend.sees(spoiled, 6, NBYTES)
    mirroring.check_running()
    mirroring.wait_for_footprint(before)
