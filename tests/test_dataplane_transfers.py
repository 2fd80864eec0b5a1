"""What a 3D transfer touches in guest memory, in staging memory and in the record, against a model in plain Python."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native.texture import Texture
from tests.fake_vmm import Box, Resp, commands
from tests.plane_rig import MEBIBYTE, PlaneRig, PlayedWorker, plane_rig

CTX, RESOURCE = 1, 7
BUFFER, TEXTURE_2D, TEXTURE_3D, CUBE, ARRAY = 0, 2, 3, 4, 7
BLOCKS = {1: (1, 1, 4), 64: (1, 1, 1), 66: (1, 1, 3), 31: (1, 1, 16), 14: (2, 1, 4), 105: (4, 4, 8), 107: (4, 4, 16)}
"""virgl format -> block width, height and bytes: B8G8R8A8, R8, R8G8B8, R32G32B32A32_FLOAT, a 4:2:2, DXT1, DXT3."""


@dataclass(frozen=True)
class Case:
    """A transfer and what it is of."""

    texture: Texture
    box: Box
    level: int
    stride: int
    layer_stride: int
    offset: int
    backing: int


def rows_of(case: Case) -> list[int] | None:
    """Where each row of the box begins in the backing, layer by layer; None if the transfer is impossible."""
    texture, box = case.texture, case.box
    width, height, size = (1, 1, 1) if texture.target == BUFFER else BLOCKS[texture.format]
    if case.level > texture.last_level:
        return None
    level_width, level_height = (max(1, n >> case.level) for n in (texture.width, texture.height))
    layers = max(1, texture.depth >> case.level) if texture.target == TEXTURE_3D else texture.array_size
    for at, length, limit in ((box.x, box.width, level_width), (box.y, box.height, level_height),
                              (box.z, box.depth, layers)):  # fmt: skip
        if length == 0 or at + length > limit:
            return None
    row, rows = row_bytes(case), -(-box.height // height)
    stride = case.stride or -(-level_width // width) * size
    if case.stride and box.height > 1 and case.stride < row:
        return None
    if case.layer_stride and box.depth > 1 and case.layer_stride < stride * (rows - 1) + row:
        return None
    layer_stride = case.layer_stride or stride * -(-level_height // height)
    starts = [case.offset + z * layer_stride + y * stride for z in range(box.depth) for y in range(rows)]
    return starts if max(starts) + row <= case.backing else None


def row_bytes(case: Case) -> int:
    width, _, size = (1, 1, 1) if case.texture.target == BUFFER else BLOCKS[case.texture.format]
    return -(-case.box.width // width) * size


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Mostly possible ones."""
    target = draw(st.sampled_from([BUFFER, TEXTURE_2D, TEXTURE_3D, CUBE, ARRAY]))
    format = 64 if target == BUFFER else draw(st.sampled_from(sorted(BLOCKS)))
    flat = target == BUFFER
    width, height = draw(st.integers(1, 70)), 1 if flat else draw(st.integers(1, 40))
    depth = draw(st.integers(1, 9)) if target == TEXTURE_3D else 1
    array_size = 6 if target == CUBE else draw(st.integers(1, 5)) if target == ARRAY else 1
    last_level = 0 if flat else draw(st.integers(0, 3))
    level = draw(st.integers(0, last_level + draw(st.sampled_from([0, 0, 0, 1]))))
    extents = [max(1, n >> level) for n in (width, height, depth)]
    extents[2] = extents[2] if target == TEXTURE_3D else array_size
    at, size = [], []
    for extent in extents:
        start = draw(st.integers(0, extent - 1))
        at.append(start)
        size.append(draw(st.integers(0, extent - start + draw(st.sampled_from([0, 0, 0, 0, 1])))))
    stride = draw(st.one_of(st.just(0), st.integers(0, 1500)))
    layer_stride = draw(st.one_of(st.just(0), st.integers(0, 20_000)))
    texture = Texture(target, format, 8, width, height, depth, array_size, last_level, 0, 0)
    box = Box(size[0], size[1], size[2], x=at[0], y=at[1], z=at[2])
    backing = draw(st.sampled_from([200_000, 20_000, 1000]))
    return Case(texture, box, level, stride, layer_stride, draw(st.integers(0, 3000)), backing)


@pytest.fixture(scope="module")
def rig() -> Iterator[PlaneRig]:
    with plane_rig() as rig:
        rig.worker(CTX)
        yield rig


@pytest.fixture
def worker(rig: PlaneRig) -> PlayedWorker:
    return rig.workers[0]


def set_resource(rig: PlaneRig, case: Case) -> list[tuple[int, int]]:
    """The case's resource with scattered backing, attached to the context; the backing's pieces."""
    rig.plane.remove_resource(RESOURCE)
    pages = rig.memory.buffer(case.backing, scattered=True)
    segments = pages.segments()
    pages.free()
    rig.plane.set_resource(RESOURCE, case.texture)
    rig.plane.set_backing(RESOURCE, rig.entries(segments))
    rig.plane.attach_resource(RESOURCE, CTX)
    return segments


def gather(rig: PlaneRig, segments: list[tuple[int, int]]) -> bytes:
    return b"".join(rig.memory.read(gpa, length) for gpa, length in segments)


def scatter(rig: PlaneRig, segments: list[tuple[int, int]], data: bytes) -> None:
    for gpa, length in segments:
        rig.memory.write(gpa, data[:length])
        data = data[length:]


@settings(max_examples=200, deadline=None)
@given(case=cases(), to_host=st.booleans())
def test_transfer(case: Case, to_host: bool) -> None:
    with plane_rig() as rig:
        check_transfer(rig, rig.worker(CTX), case, to_host)


def check_transfer(rig: PlaneRig, worker: PlayedWorker, case: Case, to_host: bool) -> None:
    segments = set_resource(rig, case)
    data = os.urandom(case.backing)
    scatter(rig, segments, data)
    make = commands.transfer_to_host_3d if to_host else commands.transfer_from_host_3d
    strides = {"level": case.level, "stride": case.stride, "layer_stride": case.layer_stride}
    pending = rig.gpu.submit(make(CTX, RESOURCE, case.box, offset=case.offset, **strides))
    starts, row = rows_of(case), row_bytes(case)
    if starts is None:
        assert rig.gpu.wait(pending).type == Resp.ERR_INVALID_PARAMETER
        return
    record = worker.wait()
    transfer = worker.transfer(record)
    box = case.box
    assert record.type == (2 if to_host else 3)
    assert transfer[:8] == (RESOURCE, case.level, box.x, box.y, box.z, box.width, box.height, box.depth)
    assert transfer.stride == row
    assert transfer.length == row * len(starts) == transfer.layer_stride * box.depth
    span = slice(transfer.offset, transfer.offset + transfer.length)
    rows = [slice(start, start + row) for start in starts]
    if to_host:
        assert worker.staging[span] == b"".join(data[part] for part in rows)
        worker.complete(record.seq)
        assert rig.gpu.wait(pending).ok
    else:
        read = os.urandom(transfer.length)
        worker.staging[span] = read
        worker.complete(record.seq)
        assert rig.gpu.wait(pending).ok
        wanted = bytearray(data)
        for number, part in enumerate(rows):
            wanted[part] = read[number * row : (number + 1) * row]
        assert gather(rig, segments) == wanted


@given(case=cases())
@settings(max_examples=100, deadline=None)
def test_valid_textures(case: Case) -> None:
    """Everything the cases are made of could exist, and stops to when one number is beyond."""
    texture = case.texture
    assert texture.is_valid()
    for change in ({"target": 9}, {"width": 0}, {"height": 0}, {"depth": 0}, {"array_size": 0}, {"format": 0},
                   {"format": 0xFFFF_FFFF}, {"last_level": 15}, {"height": 1 << 20}):  # fmt: skip
        assert not replace(texture, **change).is_valid(), change


def test_failed_reads_leave_guest_memory_alone(rig: PlaneRig, worker: PlayedWorker) -> None:
    case = Case(Texture(TEXTURE_2D, 1, 8, 8, 8, 1, 1, 0, 0, 0), Box(8, 8), 0, 0, 0, 0, 256)
    segments = set_resource(rig, case)
    scatter(rig, segments, b"\x77" * 256)
    for status, response in {
        1: Resp.ERR_UNSPEC,
        2: Resp.ERR_INVALID_PARAMETER,
        3: Resp.ERR_INVALID_RESOURCE_ID,
        4: Resp.ERR_OUT_OF_MEMORY,
        5: Resp.ERR_UNSPEC,
        0xFFFF_FFFF: Resp.ERR_UNSPEC,
    }.items():
        pending = rig.gpu.submit(commands.transfer_from_host_3d(CTX, RESOURCE, case.box))
        record = worker.wait()
        worker.staging[:256] = bytes(256)
        worker.complete(record.seq, status)
        assert rig.gpu.wait(pending).type == response
        assert gather(rig, segments) == b"\x77" * 256


def test_staging_memory_is_used_round_and_round(rig: PlaneRig, worker: PlayedWorker) -> None:
    """Many more bytes than there are, several at a time; and one that fills it behind one that does not."""
    side = 256  # 256 KiB
    case = Case(Texture(TEXTURE_2D, 1, 8, side, side, 1, 1, 0, 0, 0), Box(side, side), 0, 0, 0, 0, 4 * side * side)
    set_resource(rig, case)
    command = commands.transfer_to_host_3d(CTX, RESOURCE, case.box)
    with rig.gpu.batch():
        pending = [rig.gpu.submit(command) for _ in range(20)]
    for _ in pending:
        worker.complete(worker.wait().seq)
    assert all(response.ok for response in rig.gpu.wait_all(pending))

    side = 512  # all of it
    whole = Case(Texture(TEXTURE_2D, 1, 8, side, side, 1, 1, 0, 0, 0), Box(side, side), 0, 0, 0, 0, MEBIBYTE)
    set_resource(rig, whole)
    with rig.gpu.batch():
        pending = [
            rig.gpu.submit(commands.transfer_to_host_3d(CTX, RESOURCE, box))
            for box in (Box(5, 5), whole.box, Box(9, 9), whole.box)
        ]
    for _ in pending:
        worker.complete(worker.wait().seq)
    assert all(response.ok for response in rig.gpu.wait_all(pending))


def test_larger_than_staging_memory(rig: PlaneRig) -> None:
    texture = Texture(TEXTURE_2D, 1, 8, 513, 512, 1, 1, 0, 0, 0)
    set_resource(rig, Case(texture, Box(1), 0, 0, 0, 0, 4 * 513 * 512))
    response = rig.gpu.call(commands.transfer_to_host_3d(CTX, RESOURCE, Box(513, 512)))
    assert response.type == Resp.ERR_OUT_OF_MEMORY
