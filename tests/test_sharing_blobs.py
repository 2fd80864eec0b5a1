"""Blobs that several parties have: contexts, the guest through its host-visible region, the display."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.control_commands import told
from tests.device_lab import OPTIONS, DeviceLab, until
from tests.fake_vmm import PAGE_SIZE, BlobFlag, BlobMem, FakeVmm, Feature, GuestBlob, Resp, commands
from tests.fake_vmm.gpu import Gpu
from tests.fake_vmm.null_engine import NullStream
from tests.fake_vmm.virgl.encoder import CommandStream
from tests.fake_vmm.virgl.protocol import Bind, Format, Target
from tests.fake_vmm.virgl.resources import Resource
from tests.null_sharing_lab import NullProgram, null_service
from tests.service_process import ServiceProcess
from tests.sharing_lab import Canvas, Program, buffer, cleaned_up

StartService = Callable[..., ServiceProcess]

SIZE = 2 * PAGE_SIZE
FRAMES = 200
CYCLES = 1000
SHARED = BlobFlag.MAPPABLE | BlobFlag.SHAREABLE
PIPE_RESOURCE_CREATE = 48  # virgl_protocol.h
ALL_FEATURES = Feature.VIRGL | Feature.EDID | Feature.RESOURCE_UUID | Feature.RESOURCE_BLOB | Feature.CONTEXT_INIT


@pytest.fixture(scope="module", params=["memfd", "exported"])
def null_lab(request: pytest.FixtureRequest, start_service: StartService) -> Iterator[DeviceLab]:
    """Blobs lie in memory of the master's, or in an object's."""
    with null_service(start_service, request.param, "--hostmem=16M", "--spawn-rate=100000/1") as lab:
        yield lab


@pytest.fixture(scope="module")
def null_vmm(null_lab: DeviceLab) -> Iterator[FakeVmm]:
    before = null_lab.wait_until_idle()
    with null_lab.vmm(generic=True) as vmm:
        yield vmm
    null_lab.check_running()
    null_lab.wait_for_footprint(before)


@pytest.fixture
def gpu(null_vmm: FakeVmm) -> Iterator[Gpu]:
    """Nothing is mapped in the end."""
    with cleaned_up(null_vmm.gpu) as gpu:
        yield gpu
    assert null_vmm.window is not None
    until(lambda: null_vmm.window is not None and not null_vmm.window.mappings, "the end of all mappings")


def blob_of(program: NullProgram, blob_id: int = 1, size: int = SIZE) -> GuestBlob:
    """An object of the program's as a resource, which it has itself."""
    program.submit(NullStream().blob(blob_id, size))
    blob = program.gpu.create_blob(size, context=program.context, blob_id=blob_id, flags=SHARED)
    program.attach(blob.resource_id)
    return blob


# --- null -----------------------------------------------------------------------------------------------------------


def test_all_see_the_same_bytes(gpu: Gpu) -> None:
    maker, other, third = (NullProgram(gpu, name) for name in ("maker", "other", "third"))
    blob = blob_of(maker)
    blob.map()
    blob.write(b"\x21" * SIZE)
    assert maker.sees(blob.resource_id, 0x21, SIZE)
    for program in (other, third):
        program.attach(blob.resource_id)
        assert program.sees(blob.resource_id, 0x21, SIZE)
    other.submit(NullStream().fill(blob.resource_id, 0x42, SIZE), fenced=True)
    assert maker.sees(blob.resource_id, 0x42, SIZE)
    assert blob.read() == b"\x42" * SIZE
    blob.write(b"\x43", start=SIZE - 1)
    assert gpu.wait(third.submit(NullStream().check(blob.resource_id, 0x43, 1, SIZE - 1), fenced=True)).ok
    blob.unref()


def test_frames_in_a_blob_come_in_order(gpu: Gpu) -> None:
    writer, reader = NullProgram(gpu, "writer"), NullProgram(gpu, "reader")
    blob = blob_of(writer)
    reader.attach(blob.resource_id)
    checks = []
    for number in range(FRAMES):
        writer.fill(blob.resource_id, number % 251, SIZE)
        checks.append(reader.check(blob.resource_id, number % 251, SIZE))
    assert all(response.ok for response in gpu.wait_all(checks))
    blob.unref()


def test_many_cycles_leave_nothing(null_lab: DeviceLab, gpu: Gpu) -> None:
    """Made, mapped, written, seen, unmapped and dropped, a thousand times; two in a place at once, and each in two
    contexts."""
    programs = [NullProgram(gpu, f"program {number}") for number in range(2)]
    for program in programs:
        program.finish()
    null_lab.settle()  # workers of other tests have gone
    pids = [null_lab.pid, *(null_lab.worker_of(program.ctx_id).pid for program in programs)]
    before = [holds(pid) for pid in pids]
    checks = []
    for number in range(CYCLES):
        maker, other = programs[:: 1 if number % 2 else -1]
        blob = blob_of(maker, number + 1)
        blob.map()
        blob.write(bytes([number % 251]) * SIZE)
        other.attach(blob.resource_id)
        checks.append(other.check(blob.resource_id, number % 251, SIZE))
        if number % 3 == 0:
            gpu.wait(checks[-1])
            blob.unmap()
            blob.map()
        gpu.wait(checks[-1])
        blob.unref()
    assert all(check.response.ok for check in checks)
    for program in programs:
        program.finish()
    until(lambda: [holds(pid) for pid in pids] == before, f"{before} instead of {[holds(pid) for pid in pids]}")
    assert resources(null_lab) == 0


def resources(lab: DeviceLab) -> int:
    """How many the service knows."""
    (status,) = cast(list[dict[str, int]], told(lab.service, "status"))
    return status["resources"]


def holds(pid: int) -> tuple[int, int]:
    """Open descriptors, and pieces of shared memory that are mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return len(os.listdir(f"/proc/{pid}/fd")), sum("/memfd:" in line for line in maps)


def test_a_mapped_blob_outlives_its_maker(null_lab: DeviceLab, gpu: Gpu) -> None:
    maker, other = NullProgram(gpu, "maker"), NullProgram(gpu, "other")
    blob = blob_of(maker)
    blob.map()
    other.attach(blob.resource_id)
    maker.fill(blob.resource_id, 7, SIZE)
    assert other.sees(blob.resource_id, 7, SIZE)
    null_lab.kill(null_lab.worker_of(maker.ctx_id).pid)
    assert blob.read() == b"\7" * SIZE
    blob.write(b"\x08" * SIZE)
    assert other.sees(blob.resource_id, 8, SIZE)
    heir = NullProgram(gpu, "heir")
    heir.attach(blob.resource_id)
    assert heir.sees(blob.resource_id, 8, SIZE)
    blob.unmap()
    blob.map()
    assert blob.read() == b"\x08" * SIZE
    blob.unref()


def test_reset_with_blobs_that_are_shared_and_mapped(null_vmm: FakeVmm) -> None:
    assert null_vmm.window is not None
    for _ in range(3):
        maker, other = NullProgram(null_vmm.gpu, "maker"), NullProgram(null_vmm.gpu, "other")
        for number in range(1, 5):
            blob = blob_of(maker, number)
            other.attach(blob.resource_id)
            blob.map()
        assert other.sees(blob.resource_id, 0, SIZE)
        null_vmm.reboot()
        assert null_vmm.window.mappings == ()


@pytest.mark.parametrize(
    ("mem", "flags", "size", "blob_id"),
    [
        (BlobMem.HOST3D, SHARED, 0, 1),
        (BlobMem.HOST3D, SHARED, SIZE - 1, 1),
        (BlobMem.HOST3D, SHARED, PAGE_SIZE, 1),
        (BlobMem.HOST3D, SHARED, 1 << 40, 1),
        (BlobMem.HOST3D, SHARED, 1 << 63, 1),
        (BlobMem.HOST3D, SHARED, (1 << 64) - PAGE_SIZE, 1),
        (BlobMem.HOST3D, SHARED, SIZE, 2),
        (BlobMem.HOST3D, SHARED, SIZE, (1 << 64) - 1),
        (BlobMem.HOST3D, 1 << 31, SIZE, 1),
        (BlobMem.HOST3D, BlobFlag.CREATE_GUEST_HANDLE, SIZE, 1),
        (BlobMem.GUEST, SHARED, SIZE, 0),
        (0, SHARED, SIZE, 1),
        (4, SHARED, SIZE, 1),
    ],
)
def test_blobs_that_cannot_be(gpu: Gpu, mem: int, flags: int, size: int, blob_id: int) -> None:
    """The object of SIZE bytes that the context has is still there for one who asks well."""
    maker, other = NullProgram(gpu, "maker"), NullProgram(gpu, "other")
    maker.submit(NullStream().blob(1, SIZE))
    resource = gpu.new_resource_id()
    response = gpu.resource_create_blob(resource, mem, flags, size, ctx_id=maker.ctx_id, blob_id=blob_id)
    assert not response.ok
    assert gpu.resource_unref(resource).type == Resp.ERR_INVALID_RESOURCE_ID
    assert not gpu.resource_create_blob(resource, BlobMem.HOST3D, SHARED, SIZE, ctx_id=other.ctx_id, blob_id=1).ok
    own, (one, two) = gpu.new_resource_id(), (maker, other)
    maker.submit(NullStream().blob(3, SIZE))
    gpu.resource_create_blob(own, BlobMem.HOST3D, SHARED, SIZE, ctx_id=maker.ctx_id, blob_id=3).check()
    one.attach(own)
    two.attach(own)
    one.fill(own, 1, SIZE)
    assert two.sees(own, 1, SIZE)


@pytest.mark.parametrize("offset", [1, PAGE_SIZE - 1, (16 << 20) - PAGE_SIZE, 16 << 20, 1 << 40, (1 << 64) - PAGE_SIZE])
def test_places_in_the_region_that_are_none(gpu: Gpu, offset: int) -> None:
    program = NullProgram(gpu, "program")
    blob = blob_of(program)
    assert gpu.resource_map_blob(blob.resource_id, offset).type == Resp.ERR_INVALID_PARAMETER
    assert gpu.resource_unmap_blob(blob.resource_id).type == Resp.ERR_UNSPEC
    blob.map()
    program.fill(blob.resource_id, 9, SIZE)
    program.finish()
    assert blob.read() == b"\x09" * SIZE
    blob.unref()


def test_unmapped_and_dropped_in_one_breath(null_vmm: FakeVmm, gpu: Gpu) -> None:
    """In whatever order the guest says it, whoever still has it; and its place is free at once."""
    program, other = NullProgram(gpu, "program"), NullProgram(gpu, "other")
    for number in range(1, 41):
        blob = blob_of(program, number)
        other.attach(blob.resource_id)
        gpu.resource_map_blob(blob.resource_id, 0).check()
        with gpu.batch():
            unmap = gpu.submit(commands.resource_unmap_blob(blob.resource_id))
            unref = gpu.submit(commands.resource_unref(blob.resource_id))
            if number % 2:
                unmap, unref = unref, unmap
        gpu.wait_all([unmap, unref])
        assert null_vmm.window is not None and null_vmm.window.mappings == ()
    program.finish()
    other.finish()


# --- guest blobs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def virgl_lab(start_service: StartService) -> Iterator[DeviceLab]:
    service = start_service([*OPTIONS, "--hostmem=16M"])
    yield DeviceLab(service)
    assert service.stop() == 0


def test_a_guest_blob_is_shown_as_it_is(virgl_lab: DeviceLab) -> None:
    """A flush is enough: nothing is transferred."""
    before = virgl_lab.wait_until_idle()
    with virgl_lab.vmm(features=ALL_FEATURES) as vmm:
        display, side = vmm.display, 64
        assert display is not None

        def shows(blue: int) -> bool:
            picture = display.framebuffer()
            return picture is not None and bool((picture[5, :, 0] == blue).all())

        blob = vmm.gpu.create_blob(4 * side * side, mem=BlobMem.GUEST, flags=BlobFlag(0), scattered=True)
        blob.pixels.write(b"\x10\x20\x30\xff" * (side * side))
        blob.show_as(side, side)
        display.wait_for(lambda: shows(0x10), "the blob's picture")
        blob.pixels.write(b"\x40\x50\x60\xff" * side, 4 * side * 5)
        blob.show_as(side, side)
        display.wait_for(lambda: shows(0x40), "what was written since")
        blob.unref()
    virgl_lab.check_running()
    virgl_lab.wait_for_footprint(before)


# --- virgl ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def virgl(virgl_lab: DeviceLab) -> Iterator[Gpu]:
    before = virgl_lab.wait_until_idle()
    with virgl_lab.vmm(generic=True) as vmm:
        yield vmm.gpu
    virgl_lab.check_running()
    virgl_lab.wait_for_footprint(before)


def announce(program: Program, blob_id: int, what: Resource) -> None:
    """PIPE_RESOURCE_CREATE."""
    words: list[int] = [what.target, what.format, what.bind, what.width, what.height, what.depth, what.array_size]
    words += [what.last_level, what.nr_samples, what.flags, blob_id]
    program.submit(CommandStream().emit(PIPE_RESOURCE_CREATE, words))


def test_virgls_own_blobs(virgl: Gpu) -> None:
    """A buffer that the guest has mapped: what it writes there two GL programs see, and what they write it sees."""
    gpu = virgl
    maker, other = Program(gpu, "maker"), Program(gpu, "other")
    what = Resource(0, Target.BUFFER, Format.R8_UNORM, Bind.VERTEX_BUFFER, SIZE)
    announce(maker, 5, what)
    blob = gpu.create_blob(SIZE, context=maker.context, blob_id=5, flags=SHARED)
    shared = Canvas(gpu, Resource(blob.resource_id, what.target, what.format, what.bind, SIZE), gpu.memory.buffer(SIZE))
    maker.attach(shared)
    other.attach(shared)
    blob.map()
    data = random.Random(5).randbytes(SIZE)
    blob.write(data)
    for program in (maker, other):
        seen = buffer(gpu, SIZE)
        program.attach(seen)
        program.copy_bytes(seen, 0, shared, 0, SIZE)
        assert program.read(seen) == data
    for program, place in ((other, 0), (maker, 1000)):
        program.write(shared, b"written by GL...", place)
        program.finish()
        assert blob.read(place, 16) == b"written by GL..."
    blob.unref()
