"""resid -> {fd, iov, v1}: every state of the triple, identities, limits, homes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from native.guest_memory import Backing, GuestMemory
from native.owned_fd import OwnedFd
from native.storage import Layout, StorageKind
from native.texture import Rect, Texture
from resource_table import (
    Blob,
    DuplicateResource,
    InvalidResource,
    OutOfMemory,
    Policy,
    Resource,
    ResourceTable,
    Storage,
    TableError,
    UnknownResource,
)
from tests.fake_vmm.wire import MEM_ENTRY

PAGE = 4096
TEXTURE = Texture(2, 1, 2, 64, 32, 1, 1, 0, 0, 0)
GUEST, HOST3D = 1, 2  # VIRTIO_GPU_BLOB_MEM_*


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """A mebibyte at address 0."""
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 1 << 20)
    ram = GuestMemory()
    ram.add(fd, 0, 1 << 20, 0x7000_0000_0000, 0)
    os.close(fd)
    yield ram


def backing(memory: GuestMemory, *pieces: tuple[int, int]) -> Backing:
    entries = b"".join(MEM_ENTRY.pack(gpa, length, 0) for gpa, length in pieces)
    return Backing(memory, entries, len(pieces))


def triple(resource: Resource) -> tuple[bool, bool, bool]:
    """Which of fd, iov and v1 are there."""
    return resource.fd is not None, resource.iov is not None, resource.v1 is not None


def test_states_of_a_2d_resource(memory: GuestMemory) -> None:
    table = ResourceTable()
    resource = table.create_2d(1, 2, 16, 8)
    assert resource.policy is Policy.GUEST_ONLY
    assert triple(resource) == (False, False, False)
    assert resource.window_open
    resource.iov = backing(memory, (0, PAGE))
    assert triple(resource) == (False, True, False)
    assert resource.image is not None
    assert (resource.image.stride, resource.image.nbytes) == (64, 512)


def test_states_of_a_3d_resource(memory: GuestMemory) -> None:
    table = ResourceTable()
    resource = table.create_3d(1, TEXTURE)
    assert resource.policy is Policy.WORKER_LOCAL
    assert triple(resource) == (False, False, True)
    assert resource.shadow is None
    resource.iov = backing(memory, (0, PAGE))
    assert triple(resource) == (False, True, True)
    fd = OwnedFd(os.memfd_create("storage"))
    table.give_storage(resource, Storage(fd, StorageKind.MEMFD, Layout(PAGE)))
    assert triple(resource) == (True, True, True)
    assert not resource.window_open
    table.remove(1)
    assert triple(resource) == (False, False, True)
    assert fd.closed


def test_a_resource_that_no_scanout_can_show_has_no_image() -> None:
    table = ResourceTable()
    assert table.create_3d(1, replace(TEXTURE, format=64)).image is None  # R8
    assert table.create_3d(2, Texture(0, 1, 16, 1 << 20, 1, 1, 1, 0, 0, 0)).image is None  # a long buffer


def test_ids() -> None:
    table = ResourceTable()
    table.create_2d(7, 1, 1, 1)
    table.create_3d(0xFFFF_FFFF, TEXTURE)
    for taken in (0, 7, 0xFFFF_FFFF):
        with pytest.raises(DuplicateResource):
            table.create_2d(taken, 1, 1, 1)
        with pytest.raises(DuplicateResource):
            table.create_3d(taken, TEXTURE)
    assert 7 in table
    assert 8 not in table
    assert sorted(resource.resource_id for resource in table) == [7, 0xFFFF_FFFF]
    table.remove(7)
    for call in (table.get, table.remove):
        with pytest.raises(UnknownResource):
            call(7)
    table.create_3d(7, TEXTURE)
    assert len(table) == 2


@pytest.mark.parametrize("size", [(0, 1), (1, 0), (16385, 1), (1, 16385), (1 << 32, 1 << 32)])
def test_impossible_pictures(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidResource):
        ResourceTable().create_2d(1, 1, *size)


@pytest.mark.parametrize("format", [0, 5, 66, 69, 120, 122, 133, 135, 0xFFFF_FFFF])
def test_formats_that_are_no_scanouts(format: int) -> None:
    with pytest.raises(InvalidResource):
        ResourceTable().create_2d(1, format, 1, 1)


def test_limits() -> None:
    table = ResourceTable(max_resources=2, shadow_bytes=4096)
    table.create_2d(1, 1, 32, 16)
    with pytest.raises(OutOfMemory):
        table.create_2d(2, 1, 32, 17)
    table.create_2d(2, 1, 32, 16)
    with pytest.raises(OutOfMemory):
        table.create_3d(3, TEXTURE)
    table.remove(1)
    table.create_3d(3, TEXTURE)
    table.remove(3)
    table.create_2d(1, 1, 32, 16)  # the memory came back too
    table.clear()
    assert len(table) == 0
    table.create_2d(1, 1, 32, 32)


def test_refused_resources_cost_nothing() -> None:
    table = ResourceTable(shadow_bytes=1024)
    for _ in range(10):
        with pytest.raises(OutOfMemory):
            table.create_2d(1, 1, 512, 512)
    assert len(table) == 0
    table.create_2d(1, 1, 16, 16)


def test_uuid() -> None:
    table = ResourceTable()
    one, other = table.create_2d(1, 1, 1, 1), table.create_2d(2, 1, 1, 1)
    assert one.assign_uuid() == one.assign_uuid() != other.assign_uuid()


# --- contexts -------------------------------------------------------------------------------------------------------


def test_home_is_the_oldest_that_lives() -> None:
    resource = ResourceTable().create_3d(1, TEXTURE)
    assert [resource.attach_to(ctx_id) for ctx_id in (5, 3, 9, 3)] == [True, True, True, False]
    assert resource.home == 5
    assert resource.detach_from(3)
    assert not resource.detach_from(3)
    assert resource.home == 5
    resource.detach_from(5)
    assert resource.home == 9
    resource.detach_from(9)
    assert resource.home is None
    assert not resource.lost


def test_contents_die_with_the_home_alone() -> None:
    resource = ResourceTable().create_3d(1, TEXTURE)
    resource.attach_to(1)
    resource.attach_to(2)
    resource.context_died(2)
    assert not resource.lost
    resource.context_died(1)
    assert resource.lost
    assert resource.home is None
    resource.attach_to(3)
    assert not resource.lost


def test_contents_that_are_in_storage_do_not_die() -> None:
    table = ResourceTable()
    only_guest, mirrored, blob = table.create_2d(1, 1, 8, 8), table.create_3d(2, TEXTURE), host_blob(table, 3)
    table.make_mirror(mirrored)
    for resource in (only_guest, mirrored, blob):
        resource.attach_to(1)
        resource.context_died(1)
    assert [resource.lost for resource in (only_guest, mirrored, blob)] == [False, False, True]
    table.clear()


# --- blobs ----------------------------------------------------------------------------------------------------------


def host_blob(table: ResourceTable, resource_id: int, nbytes: int = PAGE) -> Resource:
    return table.create_blob(resource_id, Blob(HOST3D, 1, 7, nbytes), None)


def test_states_of_a_host_blob(memory: GuestMemory) -> None:
    table = ResourceTable()
    resource = host_blob(table, 1, PAGE + 1)
    assert resource.policy is Policy.HOST_BLOB
    assert triple(resource) == (False, False, False)
    assert resource.texture.width == 0  # nobody knows what it is
    assert resource.image is None
    storage = table.allocate_blob_memory(resource)
    assert triple(resource) == (True, False, False)
    assert (storage.kind, storage.layout, storage.map_info) == (StorageKind.MEMFD, Layout(2 * PAGE), 1)
    resource.v1 = TEXTURE
    assert resource.texture is TEXTURE
    table.remove(1)
    assert storage.fd.closed


def test_states_of_a_guest_blob(memory: GuestMemory) -> None:
    table = ResourceTable()
    resource = table.create_blob(1, Blob(GUEST, 2, 0, PAGE), backing(memory, (0, PAGE)))
    assert resource.policy is Policy.GUEST_ONLY
    assert triple(resource) == (False, True, False)
    assert resource.shadow is None
    assert not table.share_guest_pages(table.create_2d(2, 1, 8, 8), ())  # it has no pages
    table.detach_backing(resource)
    assert triple(resource) == (False, False, False)
    table.clear()


def test_blobs_that_cannot_be(memory: GuestMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Backing] = []
    close = Backing.close

    def note_close(backing: Backing) -> None:
        closed.append(backing)
        close(backing)

    monkeypatch.setattr(Backing, "close", note_close)
    table = ResourceTable(max_resources=2)
    host_blob(table, 1)

    def refused(error: type[TableError], resource_id: int, nbytes: int) -> None:
        pages = backing(memory, (0, PAGE))
        with pytest.raises(error):
            table.create_blob(resource_id, Blob(GUEST, 0, 0, nbytes), pages)
        assert closed.pop() is pages
        assert not closed

    refused(InvalidResource, 2, 0)
    refused(InvalidResource, 2, PAGE + 1)
    refused(DuplicateResource, 0, PAGE)
    refused(DuplicateResource, 1, PAGE)
    host_blob(table, 2)
    refused(OutOfMemory, 3, PAGE)
    assert len(table) == 2


# --- shadows --------------------------------------------------------------------------------------------------------


def test_shadow_is_filled_from_scattered_pages(memory: GuestMemory) -> None:
    resource = ResourceTable().create_2d(1, 2, 64, 32)  # 8192 bytes, two pages
    data = os.urandom(2 * PAGE)
    memory.write(5 * PAGE, data[PAGE:])
    memory.write(9 * PAGE, data[:PAGE])
    pages = backing(memory, (9 * PAGE, PAGE), (5 * PAGE, PAGE))
    assert resource.shadow is not None
    assert bytes(resource.shadow.to_xrgb(2, Rect(0, 0, 64, 32))) == bytes(2 * PAGE)
    assert resource.shadow.fill(memory, pages, Rect(0, 0, 64, 32), 0)
    assert bytes(resource.shadow.to_xrgb(2, Rect(0, 0, 64, 32))) == data
    assert bytes(resource.shadow.to_xrgb(2, Rect(3, 15, 1, 2))) == data[15 * 256 + 12 :][:4] + data[16 * 256 + 12 :][:4]


@pytest.mark.parametrize(
    ("rect", "offset"), [((0, 0, 64, 32), 1), ((0, 31, 64, 1), 8192), ((0, 0, 1, 1), (1 << 64) - 4)]
)
def test_shadow_is_not_filled_from_beyond(memory: GuestMemory, rect: tuple[int, int, int, int], offset: int) -> None:
    resource = ResourceTable().create_2d(1, 2, 64, 32)
    assert resource.shadow is not None
    assert not resource.shadow.fill(memory, backing(memory, (0, 2 * PAGE)), Rect(*rect), offset)


@pytest.mark.parametrize("size", [(8, 8), (256, 128)], ids=["small", "large"])
def test_a_shadow_moves_into_its_mirror(memory: GuestMemory, size: tuple[int, int]) -> None:
    width, height = size
    table = ResourceTable(shadow_bytes=4 * width * height)
    resource = table.create_2d(1, 2, width, height)
    shadow, whole = resource.shadow, Rect(0, 0, width, height)
    assert shadow is not None
    with pytest.raises(ValueError):
        shadow.header()
    data = os.urandom(4 * width * height)
    memory.write(0, data)
    assert shadow.fill(memory, backing(memory, (0, len(data))), whole, 0)
    storage = table.mirror_shadow(resource)
    assert resource.policy is Policy.MIRRORED
    assert (storage.kind, resource.fd) == (StorageKind.MIRROR, storage.fd)
    assert bytes(shadow.to_xrgb(2, whole)) == data
    level = resource.texture.mirror_level(0)
    assert level is not None
    assert os.pread(storage.fd.fd, len(data), level.offset) == data
    assert level.stride == shadow.stride

    memory.write(0, bytes(4))  # and what is transferred from now on goes there
    assert shadow.fill(memory, backing(memory, (0, len(data))), Rect(0, 0, 1, 1), 0)
    os.pwrite(storage.fd.fd, b"abcd", level.offset + 4)  # as what others draw does
    assert bytes(shadow.to_xrgb(2, Rect(0, 0, 2, 1))) == b"\0\0\0\0abcd"
    with shadow.header() as header:
        header[0] = 9
    assert os.pread(storage.fd.fd, 1, 0) == b"\x09"

    table.create_2d(2, 2, width, height)  # a mirror is no memory of shadows
    table.clear()
    assert storage.fd.closed
    table.create_2d(1, 2, width, height)
