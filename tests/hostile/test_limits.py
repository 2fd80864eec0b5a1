"""As many of everything as a guest may have, one more, and all of it back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.device_lab import OPTIONS, DeviceLab
from tests.fake_vmm import FakeVmm, Format, Rect, Resp, commands
from tests.hostile.conftest import MEBIBYTE, TEXTURE
from tests.service_process import ServiceProcess

MAX_CONTEXTS = 256
MAX_RESOURCES = 1 << 16


@pytest.fixture(scope="module")
def null_lab(start_service: Callable[..., ServiceProcess]) -> Iterator[DeviceLab]:
    """Workers without a driver, since there will be many."""
    service = start_service([*OPTIONS, "--engine=null", "--spawn-rate=100000/1"])
    yield DeviceLab(service)
    assert service.stop() == 0


@pytest.fixture
def vmm(null_lab: DeviceLab) -> Iterator[FakeVmm]:
    before = null_lab.wait_until_idle()
    with null_lab.vmm(display=False) as vmm:
        yield vmm
    null_lab.check_running()
    null_lab.wait_for_footprint(before)


def many(vmm: FakeVmm, make: Callable[[int], commands.GpuCommand], numbers: range) -> list[int]:
    """The response types of a command for each of the numbers, by batches."""
    types: list[int] = []
    for start in range(0, len(numbers), 128):
        with vmm.gpu.batch():
            pending = [vmm.gpu.submit(make(number)) for number in numbers[start : start + 128]]
        types += [response.type for response in vmm.gpu.wait_all(pending)]
    return types


def test_contexts(vmm: FakeVmm) -> None:
    ids = range(1, MAX_CONTEXTS + 1)
    assert set(many(vmm, lambda i: commands.ctx_create(i, f"c{i}"), ids)) == {Resp.OK_NODATA}
    assert vmm.gpu.ctx_create(1000, "one too many").type == Resp.ERR_OUT_OF_MEMORY
    with vmm.gpu.batch():
        pending = [vmm.gpu.submit(commands.submit_3d(i, b"\0\0\0\0"), fenced=True) for i in ids[:200]]
    assert all(response.ok for response in vmm.gpu.wait_all(pending))
    assert set(many(vmm, commands.ctx_destroy, ids)) == {Resp.OK_NODATA}


# AddressSanitizer keeps freed memory to catch its use.
grows_by_sanitizer = pytest.mark.skipif(
    os.environ.get("ISOREND_TEST_SANITIZED") == "1", reason="sanitizers hold freed memory back; run without them"
)


@grows_by_sanitizer
def test_resources(null_lab: DeviceLab, vmm: FakeVmm) -> None:
    ids = range(1, MAX_RESOURCES + 1)
    assert set(many(vmm, lambda i: commands.resource_create_3d(i, TEXTURE), ids)) == {Resp.OK_NODATA}
    assert vmm.gpu.resource_create_3d(1 << 31, TEXTURE).type == Resp.ERR_OUT_OF_MEMORY
    full = null_lab.resident()
    assert set(many(vmm, commands.resource_unref, ids)) == {Resp.OK_NODATA}
    assert set(many(vmm, lambda i: commands.resource_create_3d(i, TEXTURE), ids)) == {Resp.OK_NODATA}
    assert null_lab.resident() < full + 32 * MEBIBYTE


def test_memory_of_2d_resources(vmm: FakeVmm) -> None:
    """A gibibyte, whether it is touched or not."""
    gpu = vmm.gpu
    for resource_id in range(1, 5):
        assert gpu.resource_create_2d(resource_id, Format.B8G8R8X8, 8192, 8192).ok
    assert gpu.resource_create_2d(5, Format.B8G8R8X8, 1, 1).type == Resp.ERR_OUT_OF_MEMORY
    assert gpu.resource_unref(3).ok
    assert gpu.resource_create_2d(5, Format.B8G8R8X8, 1, 1).ok
    assert gpu.resource_create_2d(6, Format.B8G8R8X8, 8192, 8192).type == Resp.ERR_OUT_OF_MEMORY


@grows_by_sanitizer
def test_the_same_again_and_again_does_not_grow(null_lab: DeviceLab, vmm: FakeVmm) -> None:
    gpu = vmm.gpu
    page = vmm.memory.allocate(4096)

    def once(resource_id: int, ctx_id: int) -> None:
        with gpu.batch():
            pending = [
                gpu.submit(command, fenced=True)
                for command in (
                    commands.resource_create_2d(resource_id, Format.B8G8R8X8, 16, 16),
                    commands.resource_attach_backing(resource_id, [(page, 4096)]),
                    commands.ctx_attach_resource(ctx_id, resource_id),
                    commands.transfer_to_host_2d(resource_id, Rect(16, 16)),
                    commands.set_scanout(0, resource_id, Rect(16, 16)),
                    commands.resource_flush(resource_id, Rect(16, 16)),
                    commands.submit_3d(ctx_id, b"\0\0\0\0"),
                    commands.resource_unref(resource_id),
                    commands.resource_unref(4711),
                )
            ]
        assert [response.ok for response in gpu.wait_all(pending)] == [True] * 8 + [False]

    context = gpu.create_context("tireless")
    for _ in range(300):
        once(1, context.ctx_id)
    before = null_lab.resident()
    for _ in range(3000):
        once(1, context.ctx_id)
    assert null_lab.resident() - before < 8 * MEBIBYTE


def test_contexts_that_come_and_go(null_lab: DeviceLab, vmm: FakeVmm) -> None:
    footprints = set()
    for _ in range(4):
        for index in range(10):
            context = vmm.gpu.create_context(f"fly {index}")
            context.run(b"\0\0\0\0").check()
            context.destroy()
        footprints.add(null_lab.wait_until_idle())
    assert len(footprints) == 1
