"""Blobs as a guest of QEMU's generic device has them: real workers of the null engine, a front end that maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.device_lab import DeviceLab, gone, until
from tests.fake_vmm import BlobMem, FakeVmm, Feature, Resp
from tests.fake_vmm.gpu import Gpu
from tests.fake_vmm.null_engine import NullStream
from tests.null_sharing_lab import NullProgram, null_guest, null_service
from tests.service_process import ServiceProcess

StartService = Callable[..., ServiceProcess]

SIZE = 8192
NAME = 7
WAYS = ["memfd", "exported"]


@pytest.fixture(scope="module", params=WAYS)
def lab(request: pytest.FixtureRequest, start_service: StartService) -> Iterator[DeviceLab]:
    with null_service(start_service, request.param, "--hang-timeout=600") as lab:
        yield lab


@pytest.fixture
def vmm(lab: DeviceLab) -> Iterator[FakeVmm]:
    with null_guest(lab, generic=True) as vmm:
        yield vmm


@pytest.fixture
def gpu(vmm: FakeVmm) -> Gpu:
    return vmm.gpu


def named(program: NullProgram, size: int = SIZE, name: int = NAME) -> NullProgram:
    """The program has an object of this name."""
    program.submit(NullStream().blob(name, size))
    return program


def test_what_a_context_writes_the_guest_sees_and_the_other_way_round(gpu: Gpu) -> None:
    maker = named(NullProgram(gpu, "maker"))
    blob = gpu.create_blob(SIZE, context=maker.context, blob_id=NAME)
    blob.map()
    maker.fill(blob.resource_id, 5, SIZE)
    maker.finish()
    assert blob.read(0, SIZE) == b"\5" * SIZE
    blob.write(b"\6" * SIZE)
    assert maker.sees(blob.resource_id, 6, SIZE)
    reader = NullProgram(gpu, "reader")
    reader.attach(blob.resource_id)
    assert reader.sees(blob.resource_id, 6, SIZE)
    blob.unref()


def test_a_mapping_survives_its_maker(lab: DeviceLab, gpu: Gpu) -> None:
    maker = named(NullProgram(gpu, "maker"))
    blob = gpu.create_blob(SIZE, context=maker.context, blob_id=NAME)
    blob.map()
    blob.write(b"\7" * SIZE)
    pid = lab.worker_of(maker.ctx_id).pid
    lab.kill(pid)
    until(lambda: gone(pid), "its end")
    reader = NullProgram(gpu, "reader")
    reader.attach(blob.resource_id)
    assert reader.sees(blob.resource_id, 7, SIZE) and blob.read(0, SIZE) == b"\7" * SIZE
    blob.unref()


def test_objects_that_there_are_not(gpu: Gpu) -> None:
    maker = named(NullProgram(gpu, "maker"))
    for name, size in ((NAME + 1, SIZE), (NAME, SIZE // 2)):
        response = gpu.resource_create_blob(90, BlobMem.HOST3D, 0, size, ctx_id=maker.ctx_id, blob_id=name)
        assert response.type == Resp.ERR_INVALID_PARAMETER
    assert gpu.resource_unref(90).type == Resp.ERR_INVALID_RESOURCE_ID


def test_mapped_and_unmapped_many_times(gpu: Gpu) -> None:
    maker = NullProgram(gpu, "maker")
    for number in range(200):
        blob = gpu.create_blob(SIZE, context=named(maker).context, blob_id=NAME)
        blob.map()
        blob.write(bytes([number]) * SIZE)
        assert maker.sees(blob.resource_id, number, SIZE)
        blob.unref()


def test_a_driver_that_begins_anew(lab: DeviceLab, vmm: FakeVmm) -> None:
    """QEMU's generic device does not say that it was reset: the queue begins at its beginning."""
    maker = named(NullProgram(vmm.gpu, "maker"))
    blob = vmm.gpu.create_blob(SIZE, context=maker.context, blob_id=NAME)
    blob.map()
    vmm.reboot()
    again = named(NullProgram(vmm.gpu, "again"))
    successor = vmm.gpu.create_blob(SIZE, context=again.context, blob_id=NAME)
    assert successor.resource_id == blob.resource_id
    successor.map()
    successor.write(b"\1" * SIZE)
    assert again.sees(successor.resource_id, 1, SIZE)
    successor.unref()
    lab.check_running()


def test_a_pause_is_no_reset(lab: DeviceLab, vmm: FakeVmm) -> None:
    maker = named(NullProgram(vmm.gpu, "maker"))
    blob = vmm.gpu.create_blob(SIZE, context=maker.context, blob_id=NAME)
    blob.map()
    vmm.pause()
    vmm.resume()
    blob.write(b"\2" * SIZE)
    assert maker.sees(blob.resource_id, 2, SIZE)
    blob.unref()


def test_features(vmm: FakeVmm) -> None:
    wanted = Feature.RESOURCE_BLOB | Feature.CONTEXT_INIT
    assert vmm.features & wanted == wanted
