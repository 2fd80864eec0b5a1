"""The host-visible region of a running service, seen from a guest in a VM that is QEMU's generic device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.device_lab import OPTIONS, DeviceLab, until
from tests.fake_vmm import (
    PAGE_SIZE,
    BlobFlag,
    BlobMem,
    CommandFailed,
    FakeVmm,
    Feature,
    GuestBlob,
    GuestContext,
    NullStream,
    ProtocolFeature,
    Request,
    Resp,
    commands,
)
from tests.fake_vmm.protocol import BackEndRequest, bits
from tests.service_process import ServiceProcess

StartService = Callable[..., ServiceProcess]
HOSTMEM = 16 << 20
SIZE = 2 * PAGE_SIZE


@pytest.fixture(scope="module")
def lab(start_service: StartService) -> Iterator[DeviceLab]:
    service = start_service([*OPTIONS, "--engine=null", "--hostmem=16M", "--hang-timeout=60"])
    yield DeviceLab(service)
    assert service.stop() == 0


@pytest.fixture
def vmm(lab: DeviceLab) -> Iterator[FakeVmm]:
    with lab.vmm(generic=True) as vmm:
        yield vmm


def program(vmm: FakeVmm) -> GuestContext:
    """A context with an object of SIZE bytes for each blob id from 1 to 16."""
    context = vmm.gpu.create_context("program")
    stream = NullStream()
    for blob_id in range(1, 17):
        stream.blob(blob_id, SIZE)
    context.run(bytes(stream)).check()
    return context


def blob_of(context: GuestContext, blob_id: int = 1) -> GuestBlob:
    """One of its objects as a resource that it can use itself."""
    blob = context.gpu.create_blob(SIZE, context=context, blob_id=blob_id)
    context.attach(blob)
    return blob


def asked(vmm: FakeVmm, request: BackEndRequest) -> int:
    """How often the VMM has been asked for that."""
    assert vmm.channel is not None
    return sum(message.request == request for message in vmm.channel.requests)


def wait_until_asked(vmm: FakeVmm, request: BackEndRequest, count: int = 1) -> None:
    until(lambda: asked(vmm, request) == count, f"{count} of {request.name}")


def hold(vmm: FakeVmm) -> None:
    assert vmm.channel is not None
    vmm.channel.hold()


def release(vmm: FakeVmm) -> None:
    assert vmm.channel is not None
    vmm.channel.release()


def test_guest_and_worker_see_the_same_bytes(vmm: FakeVmm) -> None:
    assert vmm.window is not None and vmm.window.size == HOSTMEM
    context = program(vmm)
    blob = blob_of(context)
    blob.map()
    context.run(bytes(NullStream().fill(blob, 0x5A, SIZE))).check()
    assert blob.read() == b"\x5a" * SIZE
    blob.write(b"\x11" * 100, 300)
    context.run(bytes(NullStream().check(blob, 0x11, 100, 300).check(blob, 0x5A, 300))).check()


def test_a_blob_can_be_mapped_again_and_again(vmm: FakeVmm) -> None:
    context = program(vmm)
    blobs = [blob_of(context, number) for number in range(1, 13)]
    for _ in range(3):
        for number, blob in enumerate(blobs):
            blob.map()
            blob.write(bytes([number]) * 10)
        assert [blob.read(0, 1)[0] for blob in blobs] == list(range(12))
        for blob in blobs:
            blob.unmap()
    assert vmm.window is not None and vmm.window.mappings == ()


def test_a_mapping_changes_no_guest_ram(vmm: FakeVmm, lab: DeviceLab) -> None:
    """The table that comes after it has one region more, which is not mapped here as memory of the guest."""
    context = program(vmm)
    blob = blob_of(context)
    tables = vmm.front_end.log.count(Request.SET_MEM_TABLE)
    blob.map()
    until(lambda: vmm.front_end.log.count(Request.SET_MEM_TABLE) == tables + 1, "a memory table")
    vmm.front_end.get_features()  # the table has been served before this
    with pytest.raises(CommandFailed):
        slot = vmm.window.slots()[0] if vmm.window is not None else None
        assert slot is not None
        vmm.gpu.resource_create_blob(4711, BlobMem.GUEST, 0, SIZE, segments=[(slot.gpa, SIZE)]).check()
    blob.unmap()


def test_wrong_places(vmm: FakeVmm) -> None:
    context = program(vmm)
    blob, other = blob_of(context), blob_of(context, 2)
    gpu = vmm.gpu
    for offset in (1, HOSTMEM, HOSTMEM - PAGE_SIZE, 1 << 63):
        assert gpu.resource_map_blob(blob.resource_id, offset).type == Resp.ERR_INVALID_PARAMETER
    assert gpu.resource_unmap_blob(blob.resource_id).type == Resp.ERR_UNSPEC
    blob.map()
    assert gpu.resource_map_blob(blob.resource_id, SIZE).type == Resp.ERR_UNSPEC
    assert gpu.resource_map_blob(other.resource_id, PAGE_SIZE).type == Resp.ERR_INVALID_PARAMETER
    assert asked(vmm, BackEndRequest.SHMEM_MAP) == 1
    other.map()


def test_a_vmm_that_refuses(vmm: FakeVmm) -> None:
    blob = blob_of(program(vmm))
    assert vmm.window is not None
    vmm.window.refuse = True
    with pytest.raises(CommandFailed):
        blob.map()
    vmm.window.refuse = False
    blob.map()


def test_a_late_answer_holds_up_nobody_else(vmm: FakeVmm) -> None:
    context = program(vmm)
    blob = blob_of(context)
    hold(vmm)
    pending = vmm.gpu.submit(commands.resource_map_blob(blob.resource_id, 0))
    wait_until_asked(vmm, BackEndRequest.SHMEM_MAP)
    context.run(bytes(NullStream().fill(blob, 1, SIZE))).check()
    assert vmm.gpu.display_info().ok and not pending.done
    release(vmm)
    assert vmm.gpu.wait(pending).ok


def test_a_place_is_taken_anew_while_it_is_being_given_back(vmm: FakeVmm) -> None:
    context = program(vmm)
    first, second = blob_of(context), blob_of(context, 2)
    first.map()
    hold(vmm)
    with vmm.gpu.batch():
        commands_of = (
            commands.resource_unmap_blob(first.resource_id),
            commands.resource_unref(first.resource_id),
            commands.resource_map_blob(second.resource_id, 0),
        )
        pending = [vmm.gpu.submit(command) for command in commands_of]
    wait_until_asked(vmm, BackEndRequest.SHMEM_UNMAP)
    release(vmm)
    assert all(response.ok for response in vmm.gpu.wait_all(pending))
    context.run(bytes(NullStream().fill(second, 7, SIZE))).check()
    assert vmm.window is not None and vmm.window.read(0, 4) == b"\7\7\7\7"


def test_a_mapped_blob_that_is_dropped_is_unmapped(vmm: FakeVmm) -> None:
    blob = blob_of(program(vmm))
    blob.map()
    vmm.gpu.resource_unref(blob.resource_id).check()
    wait_until_asked(vmm, BackEndRequest.SHMEM_UNMAP)
    assert vmm.window is not None
    until(lambda: vmm.window is not None and not vmm.window.mappings, "the end of the mapping")


def test_a_stop_does_not_wait_for_the_vmm(vmm: FakeVmm) -> None:
    """It answers nothing before its queues have stopped, whatever has been asked."""
    context = program(vmm)
    blob, other = blob_of(context), blob_of(context, 2)
    blob.map()
    hold(vmm)
    with vmm.gpu.batch():
        unmap = vmm.gpu.submit(commands.resource_unmap_blob(blob.resource_id))
        map_ = vmm.gpu.submit(commands.resource_map_blob(other.resource_id, 0))
    wait_until_asked(vmm, BackEndRequest.SHMEM_UNMAP)
    vmm.front_end.set_timeout(4)  # less than what a hanging worker would get
    vmm.pause()
    vmm.resume()
    assert vmm.gpu.wait(unmap).ok and not vmm.gpu.wait(map_).ok
    release(vmm)
    assert vmm.gpu.resource_map_blob(other.resource_id, 0).ok


def test_a_pause_leaves_what_is_mapped(vmm: FakeVmm) -> None:
    context = program(vmm)
    blob = blob_of(context)
    blob.map()
    vmm.pause()
    vmm.resume()
    context.run(bytes(NullStream().fill(blob, 3, SIZE))).check()
    assert blob.read(0, 2) == b"\3\3"
    blob.unmap()
    assert asked(vmm, BackEndRequest.SHMEM_UNMAP) == 1


@pytest.mark.parametrize("held", [False, True])
def test_a_reset_forgets_what_is_mapped_and_unmaps_nothing(vmm: FakeVmm, held: bool) -> None:
    """QEMU would die of an SHMEM_UNMAP: closing the FakeVmm raises then."""
    context = program(vmm)
    blob, other = blob_of(context), blob_of(context, 2)
    blob.map()
    if held:
        hold(vmm)
        vmm.gpu.submit(commands.resource_map_blob(other.resource_id, SIZE))
        wait_until_asked(vmm, BackEndRequest.SHMEM_MAP, 2)
    vmm.reboot()
    release(vmm)
    context = program(vmm)
    for blob_id in (1, 2, 3):
        again = blob_of(context, blob_id)
        again.map()
        context.run(bytes(NullStream().fill(again, blob_id, SIZE))).check()
        assert again.read(0, 1)[0] == blob_id
    assert vmm.window is not None and len(vmm.window.mappings) == 3


def test_a_guest_that_leaves_with_everything_mapped(lab: DeviceLab) -> None:
    before = lab.wait_until_idle()
    with lab.vmm(generic=True) as vmm:
        context = program(vmm)
        for blob_id in range(1, 17):
            blob_of(context, blob_id).map()
        hold(vmm)
        blob = vmm.gpu.create_blob(SIZE, mem=BlobMem.GUEST, flags=BlobFlag.SHAREABLE)
        context.attach(blob)
        vmm.disconnect(graceful=False)
    lab.wait_for_footprint(before)


def test_a_vmm_without_the_region(lab: DeviceLab) -> None:
    without = bits([feature for feature in ProtocolFeature if feature is not ProtocolFeature.SHMEM])
    with lab.vmm(generic=True, protocol_features=without) as vmm:
        assert vmm.window is None and Request.GET_SHMEM_CONFIG not in vmm.front_end.log
        context = program(vmm)
        blob = blob_of(context)
        assert not vmm.gpu.resource_map_blob(blob.resource_id, 0).ok
        assert asked(vmm, BackEndRequest.SHMEM_MAP) == 0
        context.run(bytes(NullStream().fill(blob, 1, SIZE))).check()


def test_the_gpu_device_has_none(lab: DeviceLab) -> None:
    with lab.vmm() as vmm:
        assert vmm.window is None
        assert not vmm.features & Feature.RESOURCE_BLOB


def test_without_host_visible_memory(start_service: StartService) -> None:
    service = start_service([*OPTIONS, "--engine=null", "--hostmem=0"])
    with FakeVmm.connect(service.socket_path, generic=True) as vmm:
        assert not vmm.front_end.has(ProtocolFeature.SHMEM) and vmm.window is None
        blob = blob_of(program(vmm))
        assert not vmm.gpu.resource_map_blob(blob.resource_id, 0).ok
    assert service.stop() == 0


def test_the_window_of_a_guest_is_as_large_as_said(start_service: StartService) -> None:
    service = start_service([*OPTIONS, "--engine=null", "--hostmem=8G"])
    with FakeVmm.connect(service.socket_path, generic=True) as vmm:
        assert vmm.window is not None and vmm.window.size == 8 << 30
        blob = blob_of(program(vmm))
        vmm.gpu.resource_map_blob(blob.resource_id, (8 << 30) - SIZE).check()
        (mapping,) = vmm.window.mappings
        assert mapping.offset == (8 << 30) - SIZE and os.fstat(mapping.fd).st_size >= SIZE
    assert service.stop() == 0
