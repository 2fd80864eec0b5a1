"""Resources that are copied between the objects of two workers: every target, level, layer and kind of format, and only
what was written."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from ipc.messages import AttachResource
from ipc.ring import RecordStatus
from native.owned_fd import OwnedFd
from native.storage import Layout, StorageKind
from native.texture import Texture
from tests.fake_vmm.virgl.encoder import CommandStream
from tests.fake_vmm.virgl.protocol import Bind, Command, ObjectType, Target
from tests.ring_producer import Launcher
from tests.virgl_lab import (
    B8G8R8A8,
    MESAS,
    OK,
    PAGE,
    Peer,
    buffer,
    clear,
    launcher_with,
    memory,
    resource,
    texture_of,
)

CUBE_ARRAY = 8
Z16, Z32F, Z24S8, Z24X8, Z32F_S8 = 16, 18, 20, 21, 126
RGB32F, RGBA32F, R11G11B10F, R8_UINT, DXT1, DXT5, RGTC1 = 30, 31, 124, 177, 105, 108, 113
DEPTH = Bind.DEPTH_STENCIL | Bind.SAMPLER_VIEW
SAMPLED = Bind.SAMPLER_VIEW

TEXTURES = {
    "2D": resource(5, 37, 21),
    "2D, wide": resource(5, 1024, 3),
    "2D with levels": resource(5, 37, 21, last_level=5),
    "1D": resource(5, 37, target=Target.TEXTURE_1D),
    "1D with levels": resource(5, 37, target=Target.TEXTURE_1D, last_level=3),
    "1D array": resource(5, 37, target=Target.TEXTURE_1D_ARRAY, array_size=4),
    "2D array": resource(5, 19, 9, target=Target.TEXTURE_2D_ARRAY, array_size=5),
    "2D array with levels": resource(5, 19, 9, target=Target.TEXTURE_2D_ARRAY, array_size=5, last_level=4),
    "3D": resource(5, 11, 7, target=Target.TEXTURE_3D, depth=5),
    "3D with levels": resource(5, 11, 7, target=Target.TEXTURE_3D, depth=5, last_level=3),
    "cube": resource(5, 16, 16, target=Target.TEXTURE_CUBE, array_size=6),
    "cube with levels": resource(5, 16, 16, target=Target.TEXTURE_CUBE, array_size=6, last_level=4),
    "cube array": resource(5, 8, 8, target=CUBE_ARRAY, array_size=12, last_level=3),
    "rectangle": resource(5, 37, 21, target=Target.TEXTURE_RECT),
    "upside down": resource(5, 37, 21, flags=1),
    "twelve bytes a pixel": resource(5, 37, 21, format=RGB32F, bind=SAMPLED, last_level=2),
    "sixteen bytes a pixel": resource(5, 13, 7, format=RGBA32F),
    "one byte a pixel": resource(5, 37, 21, format=64, last_level=5),
    "integers": resource(5, 37, 21, format=R8_UINT),
    "packed floats": resource(5, 37, 21, format=R11G11B10F),
    "DXT1": resource(5, 37, 21, format=DXT1, bind=SAMPLED),
    "DXT5 with levels": resource(5, 36, 20, format=DXT5, bind=SAMPLED, last_level=5),
    "DXT5 array": resource(5, 36, 20, target=Target.TEXTURE_2D_ARRAY, format=DXT5, bind=SAMPLED, array_size=3),
    "RGTC1": resource(5, 32, 32, format=RGTC1, bind=SAMPLED),
    "depth of 16 bits": resource(5, 37, 21, format=Z16, bind=DEPTH),
    "depth in floats": resource(5, 37, 21, format=Z32F, bind=DEPTH, last_level=2),
    "depth and stencil": resource(5, 37, 21, format=Z24S8, bind=DEPTH),
    "depth in floats and stencil": resource(5, 37, 21, format=Z32F_S8, bind=DEPTH),
    "depth cube": resource(5, 16, 16, target=Target.TEXTURE_CUBE, format=Z16, bind=DEPTH, array_size=6),
    "buffer": buffer(5, 70_001),
}
FLOATS = {Z32F, RGB32F, RGBA32F}


@pytest.fixture(scope="module", params=MESAS)
def launcher(request: pytest.FixtureRequest) -> Iterator[Launcher]:
    with launcher_with(request.param) as running:
        yield running


@pytest.fixture
def one(launcher: Launcher) -> Peer:
    return Peer(launcher)


@pytest.fixture
def other(launcher: Launcher) -> Peer:
    return Peer(launcher)


def mirror_of(made: AttachResource) -> OwnedFd:
    """Memory for it, as the master makes it."""
    return memory(-(-texture_of(made).mirror_bytes // PAGE) * PAGE)


def version(fd: OwnedFd) -> int:
    """How often contents were copied out."""
    with mmap.mmap(fd.fd, PAGE) as mapped:
        return int.from_bytes(mapped[:8], "little")


def pixels(texture: Texture, level: int, z: int) -> bytes:
    """Something different for each layer of each level that the format keeps as it is."""
    at = texture.mirror_level(level)
    assert at
    count = at.layer_stride
    if texture.format in FLOATS:
        values = [(level * 100 + z * 10 + i % 97) / 1024 for i in range(count // 4)]
        return struct.pack(f"<{len(values)}f", *values)
    if texture.format == Z32F_S8:
        return b"".join(struct.pack("<fI", i % 97 / 128, (i + z) % 256) for i in range(count // 8))
    return bytes((i * 7 + level * 31 + z * 53 + 1) & 0x7F for i in range(count))


def layers(made: AttachResource) -> list[tuple[int, int]]:
    """All of its (level, layer)."""
    found = []
    for level in range(made.last_level + 1):
        at = texture_of(made).mirror_level(level)
        assert at
        found += [(level, z) for z in range(at.depth)]
    return found


@pytest.mark.parametrize("name", TEXTURES)
def test_contents_go_from_one_to_the_other_and_back(one: Peer, other: Peer, name: str) -> None:
    made = TEXTURES[name]
    texture, fd = texture_of(made), mirror_of(made)
    assert one.do(made) == OK
    for level, z in layers(made):
        one.write(made, pixels(texture, level, z), level, z)
    before = {at: one.read(made, *at) for at in layers(made)}
    if made.format not in (Z24S8,):
        assert before == {at: pixels(texture, *at) for at in layers(made)}
    assert len(set(before.values())) > 1 or len(before) == 1

    assert one.mirror(made, fd) == OK
    assert one.copy_out(5) == OK
    assert version(fd) == 1
    assert other.mirror(made, fd) == OK
    assert other.copy_in(5) == OK
    assert {at: other.read(made, *at) for at in layers(made)} == before

    for level, z in layers(made):
        other.write(made, pixels(texture, level, z + 1), level, z)
    after = {at: other.read(made, *at) for at in layers(made)}
    assert other.copy_out(5) == OK
    assert version(fd) == 2
    assert one.copy_in(5) == OK
    assert {at: one.read(made, *at) for at in layers(made)} == after != before


def test_a_depth_of_24_bits_is_nearly_what_it_was(one: Peer, other: Peer) -> None:
    """virglrenderer transfers 16 of them, and rounds down."""
    made = resource(5, 37, 21, format=Z24X8, bind=DEPTH)
    fd = mirror_of(made)
    values = [i * 251 % 0xFFFF << 8 for i in range(37 * 21)]
    assert one.do(made) == OK
    one.write(made, struct.pack(f"<{len(values)}I", *values))
    assert one.mirror(made, fd) == one.copy_out(5) == other.mirror(made, fd) == other.copy_in(5) == OK
    found = struct.unpack(f"<{len(values)}I", other.read(made))
    assert max(abs(there - here) for there, here in zip(found, values, strict=True)) <= 4 << 8


def test_what_is_drawn_goes_over(one: Peer, other: Peer) -> None:
    made = resource(5, 64, 64)
    fd = mirror_of(made)
    assert one.do(made) == OK
    assert one.mirror(made, fd) == other.mirror(made, fd) == OK
    for frame in range(50):
        assert one.submit(clear(10, 5, B8G8R8A8, (frame / 255, 0, 0, 1))) == OK
        assert one.copy_out(5) == other.copy_in(5) == OK
        assert other.read(made)[:4] == bytes([0, 0, frame, 255])
    assert version(fd) == 50


# ---- only what was written


def test_nothing_is_copied_without_need(one: Peer, other: Peer) -> None:
    made = resource(5, 64, 64)
    fd = mirror_of(made)
    assert one.do(made) == OK
    assert one.mirror(made, fd) == other.mirror(made, fd) == OK
    assert other.copy_out(5) == other.copy_in(5) == OK
    assert version(fd) == 0, "a new object has nothing to tell"
    assert one.copy_out(5) == OK
    assert version(fd) == 1, "one that was there has"
    assert one.copy_out(5) == one.copy_in(5) == other.copy_in(5) == other.copy_out(5) == OK
    assert version(fd) == 1
    assert other.do(resource(6, 64, 64)) == OK
    assert other.submit(clear(11, 6, B8G8R8A8, (1, 1, 1, 1))) == OK
    assert other.copy_out(5) == OK
    assert version(fd) == 1, "another resource was drawn to"
    assert other.submit(clear(10, 5, B8G8R8A8, (1, 1, 1, 1))) == OK
    assert other.copy_out(5) == OK
    assert version(fd) == 2


def test_a_framebuffer_of_before_is_known(one: Peer) -> None:
    """It was bound when the resource had no mirror yet; the drawing comes later, alone."""
    made = resource(5, 64, 64)
    fd = mirror_of(made)
    assert one.do(made) == OK
    assert one.submit(clear(10, 5, B8G8R8A8, (1, 1, 1, 1))) == OK
    assert one.mirror(made, fd) == one.copy_out(5) == OK
    assert one.submit(CommandStream().emit(Command.CLEAR, [4, 0, 0, 0, 0, 0, 0, 0])) == OK
    assert one.copy_out(5) == OK
    assert version(fd) == 2
    assert one.do(resource(6, 64, 64)) == OK
    assert one.submit(clear(11, 6, B8G8R8A8, (1, 1, 1, 1))) == OK
    assert one.copy_out(5) == OK
    assert version(fd) == 2, "another is bound now"


def test_a_context_that_is_broken_still_tells_its_contents(one: Peer, other: Peer) -> None:
    made = resource(5, 64, 64)
    fd = mirror_of(made)
    assert one.do(made) == OK
    assert one.submit(clear(10, 5, B8G8R8A8, (1, 0, 1, 1))) == OK
    assert one.submit(CommandStream().emit(Command.CREATE_OBJECT, [1, 999, 1, 0, 0], ObjectType.SURFACE)) != OK
    assert one.mirror(made, fd) == one.copy_out(5) == OK
    assert other.mirror(made, fd) == other.copy_in(5) == OK
    assert other.read(made)[:4] == b"\xff\x00\xff\xff"


# ---- what is refused, what is let go


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(resource(5, 64, 64, samples=4), id="several samples"),
        pytest.param(buffer(5, 64, Bind.STAGING), id="a buffer in the guest's memory"),
        pytest.param(buffer(5, 64, Bind.CUSTOM), id="a buffer for query results"),
    ],
)
def test_some_resources_have_no_mirror(one: Peer, made: AttachResource) -> None:
    assert one.do(made) == OK
    layout = Layout(1 << 20)
    assert one.take_in(made, StorageKind.MIRROR, memory(layout.nbytes), layout) == RecordStatus.FAILED
    assert one.copy_out(5) == one.copy_in(5) == RecordStatus.INVALID_RESOURCE
    assert one.detach(5) == OK


def test_wrong_memory_is_refused(one: Peer) -> None:
    made = resource(5, 64, 64)
    nbytes = texture_of(made).mirror_bytes
    right = Layout(nbytes)
    assert one.take_in(made, StorageKind.MIRROR, memory(nbytes - 1), right) != OK
    assert one.take_in(made, StorageKind.MIRROR, memory(nbytes), Layout(nbytes - 1)) == RecordStatus.INVALID_PARAMETER
    assert one.take_in(made, StorageKind.MIRROR, memory(nbytes, seals=0), right) != OK
    assert one.take_in(made, StorageKind.MIRROR, memory(nbytes, seals=fcntl.F_SEAL_GROW), right) != OK
    assert one.detach(5) == RecordStatus.INVALID_RESOURCE, "no object was left"
    assert one.take_in(made, StorageKind.MIRROR, memory(nbytes), right) == OK
    assert one.copy_out(99) == RecordStatus.INVALID_RESOURCE
    unknown = AttachResource(7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    assert one.take_in(unknown, StorageKind.MIRROR, memory(nbytes), right) != OK


def test_a_mirror_goes_with_the_resource(one: Peer) -> None:
    made = resource(5, 64, 64)
    for _ in range(3):
        assert one.mirror(made, mirror_of(made)) == OK
        assert "memfd:storage" in _maps(one)
        assert one.detach(5) == OK
        assert "memfd:storage" not in _maps(one)
    assert one.copy_out(5) == RecordStatus.INVALID_RESOURCE


def test_another_mirror_takes_its_place(one: Peer, other: Peer) -> None:
    made = resource(5, 64, 64)
    first, second = mirror_of(made), mirror_of(made)
    assert one.do(made) == OK
    assert one.submit(clear(10, 5, B8G8R8A8, (0, 1, 0, 1))) == OK
    assert one.mirror(made, first) == one.copy_out(5) == OK
    assert one.mirror(made, second) == one.copy_out(5) == OK
    assert (version(first), version(second)) == (1, 1)
    assert other.mirror(made, second) == other.copy_in(5) == OK
    assert other.read(made)[:4] == b"\x00\xff\x00\xff"


def _maps(peer: Peer) -> str:
    with open(f"/proc/{peer.worker.pid}/maps") as maps:
        return maps.read()


def test_no_descriptor_of_a_mirror_is_kept(one: Peer) -> None:
    made = resource(5, 64, 64)
    before = sorted(os.listdir(f"/proc/{one.worker.pid}/fd"))
    assert one.mirror(made, mirror_of(made)) == OK
    assert sorted(os.listdir(f"/proc/{one.worker.pid}/fd")) == before
