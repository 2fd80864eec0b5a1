"""How resources are shared: what is decided when, what memory is made for it, how much, and that it comes back."""

from __future__ import annotations

import errno
import fcntl
import os
import resource as process
import socket
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest

from native import linux
from native.owned_fd import OwnedFd
from native.shared_formats import SHARED_FORMATS
from native.storage import Layout, StorageKind
from native.texture import Texture
from resource_table import (
    Abilities,
    Blob,
    InvalidResource,
    OutOfMemory,
    Policy,
    ResourceTable,
    Storage,
    at_creation,
    when_shared,
)
from resource_table.memory import SEALS, layout_in_memory, sealed_memory

PAGE = 4096
SCANOUT, SHARED, RENDER_TARGET = 1 << 18, 1 << 20, 1 << 1
PICTURE = Texture(2, 1, RENDER_TARGET | SHARED, 100, 30, 1, 1, 0, 0, 0)
BUFFER = Texture(0, 64, SHARED, 5000, 1, 1, 1, 0, 0, 0)
MEMORY = Abilities(memfd_images=True, pinned_buffers=True)
GPU = Abilities(export=True, import_dmabuf=True)
NOT_IMAGES = {
    "mipmapped": replace(PICTURE, last_level=1),
    "an array": replace(PICTURE, target=7, array_size=2),
    "3D": replace(PICTURE, target=3, depth=2),
    "1D": replace(PICTURE, target=1, height=1),
    "a rectangle texture": replace(PICTURE, target=5),
    "multisampled": replace(PICTURE, nr_samples=4),
    "upside down": replace(PICTURE, flags=1),
    "depth": replace(PICTURE, format=16),
}


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before


# --- what is decided ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bind", [SCANOUT, SHARED, SCANOUT | SHARED])
def test_what_will_be_shared_is_allocated_here(bind: int) -> None:
    assert at_creation(replace(PICTURE, bind=bind), MEMORY) is Policy.MASTER_ALLOCATED
    assert at_creation(replace(BUFFER, bind=bind), MEMORY) is Policy.MASTER_ALLOCATED


def test_what_nobody_announced_is_local() -> None:
    assert at_creation(replace(PICTURE, bind=RENDER_TARGET), MEMORY) is Policy.WORKER_LOCAL


@pytest.mark.parametrize("abilities", [Abilities(), GPU, Abilities(pinned_buffers=True)])
def test_what_drivers_cannot_do_is_local(abilities: Abilities) -> None:
    assert at_creation(PICTURE, abilities) is Policy.WORKER_LOCAL
    assert at_creation(BUFFER, Abilities(memfd_images=True)) is Policy.WORKER_LOCAL


@pytest.mark.parametrize("texture", NOT_IMAGES.values(), ids=NOT_IMAGES.keys())
def test_what_is_no_plain_image_is_local_and_mirrored(texture: Texture) -> None:
    assert texture.is_valid()
    assert at_creation(texture, MEMORY) is Policy.WORKER_LOCAL
    resource = ResourceTable().create_3d(1, texture)
    expected = Policy.MIRRORED if texture.nr_samples < 2 else Policy.WORKER_LOCAL
    assert when_shared(resource, GPU) is expected
    assert when_shared(resource, Abilities()) is expected


@pytest.mark.parametrize("format", sorted(SHARED_FORMATS))
def test_formats_that_can_lie_in_memory(format: int) -> None:
    assert at_creation(replace(PICTURE, format=format), MEMORY) is Policy.MASTER_ALLOCATED


def test_what_becomes_of_a_local_resource() -> None:
    resource = ResourceTable().create_3d(1, PICTURE)
    assert when_shared(resource, GPU) is Policy.EXPORTED
    for abilities in (Abilities(), MEMORY, Abilities(export=True), Abilities(import_dmabuf=True)):
        assert when_shared(resource, abilities) is Policy.MIRRORED
    buffer = ResourceTable().create_3d(1, BUFFER)
    assert when_shared(buffer, GPU) is Policy.MIRRORED


def test_what_stays_as_it_is() -> None:
    table = ResourceTable()
    resource = table.create_3d(1, PICTURE)
    for policy in (Policy.EXPORTED, Policy.MASTER_ALLOCATED, Policy.MIRRORED, Policy.HOST_BLOB):
        resource.policy = policy
        assert when_shared(resource, GPU) is policy
    assert when_shared(table.create_2d(2, 1, 8, 8), GPU) is Policy.MIRRORED
    assert when_shared(table.create_blob(3, Blob(1, 0, 0, PAGE), None), GPU) is Policy.GUEST_ONLY


# --- the memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height", "format"), list(product((1, 5, 17, 1920), (1, 3, 1080), (1, 64, 94))))
def test_rows_have_room_for_whole_tiles(width: int, height: int, format: int) -> None:
    layout = layout_in_memory(replace(PICTURE, format=format, width=width, height=height))
    assert layout is not None
    shared = SHARED_FORMATS[format]
    wide, high = -(-width // 4) * 4, -(-height // 4) * 4
    assert layout.stride % 64 == 0
    assert layout.stride >= wide * shared.pixel_bytes
    assert layout.nbytes >= layout.stride * high
    assert layout.nbytes % PAGE == 0
    assert (layout.offset, layout.fourcc, layout.modifier) == (0, shared.fourcc, 0)


def test_a_buffer_is_whole_pages() -> None:
    assert layout_in_memory(BUFFER) == Layout(2 * PAGE)


def test_memory_is_zero_and_sealed() -> None:
    with sealed_memory("test", PAGE + 1) as memory:
        assert os.fstat(memory.fd).st_size == 2 * PAGE
        assert linux.get_seals(memory.fd) & SEALS == SEALS
        assert linux.fstatfs_type(memory.fd) == linux.TMPFS_MAGIC
        assert os.pread(memory.fd, 3 * PAGE, 0) == bytes(2 * PAGE)
        assert fcntl.fcntl(memory.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        for nbytes in (PAGE, 3 * PAGE):
            with pytest.raises(PermissionError):
                os.ftruncate(memory.fd, nbytes)
        with pytest.raises(PermissionError):
            linux.add_seals(memory.fd, fcntl.F_SEAL_WRITE)


def test_memory_that_cannot_be_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    def add_seals(fd: int, seals: int) -> None:
        raise OSError(errno.EPERM, "sealed")

    monkeypatch.setattr("resource_table.memory.add_seals", add_seals)
    with pytest.raises(PermissionError):
        sealed_memory("test", PAGE)


def test_an_old_kernel_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    create = os.memfd_create

    def create_as_before_6_3(name: str, flags: int) -> int:
        asked.append(flags)
        if flags & ~(os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING):
            raise OSError(errno.EINVAL, "unknown flag")
        return create(name, flags)

    monkeypatch.setattr(os, "memfd_create", create_as_before_6_3)
    OwnedFd(linux.memfd_create("test")).close()
    assert len(asked) == 2


def test_looking_at_storage() -> None:
    storage = Storage(sealed_memory("test", 3 * PAGE), StorageKind.MEMFD, Layout(3 * PAGE))
    data = os.urandom(3 * PAGE)
    os.pwrite(storage.fd.fd, data, 0)
    for offset, nbytes in ((0, 1), (PAGE - 1, 2), (2 * PAGE, PAGE), (5, 3 * PAGE - 5)):
        with storage.bytes_at(offset, nbytes) as part:
            assert bytes(part) == data[offset:][:nbytes]
            assert part.readonly
    with pytest.raises(ValueError), storage.bytes_at(2 * PAGE, PAGE + 1):
        pass
    storage.close()
    with pytest.raises(ValueError), storage.bytes_at(0, 1):
        pass


def test_a_dmabuf_is_looked_at_between_two_words(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[int, int]] = []
    monkeypatch.setattr("resource_table.storage.dma_buf_ioctl_sync", lambda fd, flags: said.append((fd, flags)))
    storage = Storage(sealed_memory("test", PAGE), StorageKind.DMABUF, Layout(PAGE))
    with storage.bytes_at(0, 4) as part:
        assert bytes(part) == bytes(4)
        assert said == [(storage.fd.fd, 1)]
    assert said == [(storage.fd.fd, 1), (storage.fd.fd, 5)]
    storage.close()


def test_a_dmabuf_that_somebody_draws_to_is_not_waited_for() -> None:
    """A socket with nothing in it stands for a dma-buf with a fence that has not signalled: neither can be read yet."""
    ours, theirs = socket.socketpair()
    storage = Storage(OwnedFd(ours.detach()), StorageKind.DMABUF, Layout(PAGE))
    with pytest.raises(OSError):
        storage._begin_looking()
    storage.close()
    theirs.close()


# --- how much of it -------------------------------------------------------------------------------------------------


def test_a_picture_that_will_be_shared() -> None:
    table = ResourceTable()
    resource = table.create_3d(1, PICTURE, MEMORY)
    storage = resource.storage
    assert resource.policy is Policy.MASTER_ALLOCATED
    assert storage is not None
    assert storage.layout == layout_in_memory(PICTURE)
    assert os.fstat(storage.fd.fd).st_size == storage.layout.nbytes
    assert not resource.window_open
    table.remove(1)
    assert storage.fd.closed


def test_bytes_are_counted_and_come_back() -> None:
    size = 4 * PAGE
    table = ResourceTable(storage_bytes=3 * size)
    picture = replace(PICTURE, width=64, height=64)  # 64 rows of 256 bytes
    table.create_3d(1, picture, MEMORY)
    table.allocate_blob_memory(table.create_blob(2, Blob(2, 0, 1, size), None))
    mirrored = table.create_3d(3, replace(picture, bind=0))
    with pytest.raises(OutOfMemory):
        table.make_mirror(mirrored)  # a page more than there is
    assert mirrored.policy is Policy.WORKER_LOCAL
    assert mirrored.storage is None
    with pytest.raises(OutOfMemory):
        table.create_3d(4, replace(picture, height=65), MEMORY)
    assert 4 not in table
    table.remove(1)
    table.make_mirror(mirrored)
    table.remove(2)
    table.remove(3)
    table.create_3d(4, replace(picture, height=192), MEMORY)
    table.clear()


def test_descriptors_are_counted_and_come_back() -> None:
    table = ResourceTable(descriptors=2)
    first = table.create_3d(1, PICTURE, MEMORY)
    second, third = table.create_3d(2, PICTURE), table.create_3d(3, PICTURE)
    table.give_storage(second, Storage(sealed_memory("sent", PAGE), StorageKind.MEMFD, Layout(PAGE)))
    sent = Storage(sealed_memory("sent", PAGE), StorageKind.MEMFD, Layout(PAGE))
    with pytest.raises(OutOfMemory):
        table.give_storage(third, sent)
    assert sent.fd.closed
    assert third.storage is None
    table.drop_storage(first)
    table.drop_storage(first)
    assert first.fd is None
    table.make_mirror(third)
    table.clear()


def test_descriptors_of_the_process_are_left_for_others() -> None:
    table = ResourceTable()
    soft, hard = process.getrlimit(process.RLIMIT_NOFILE)
    process.setrlimit(process.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        with pytest.raises(OutOfMemory):
            for resource_id in range(1, 1000):
                table.create_3d(resource_id, BUFFER, MEMORY)
        assert len(table) == min(256, hard) // 4
    finally:
        process.setrlimit(process.RLIMIT_NOFILE, (soft, hard))
        table.clear()


def test_without_descriptors_there_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("resource_table.memory.memfd_create", create)
    table = ResourceTable(storage_bytes=PAGE)
    for _ in range(3):
        with pytest.raises(OutOfMemory, match="Too many open files"):
            table.allocate_blob_memory(table.create_blob(1, Blob(2, 0, 1, PAGE), None))
        table.remove(1)


def test_another_storage_takes_the_place_of_one() -> None:
    """A worker could not import what it was promised: the resource is mirrored instead."""
    table = ResourceTable(descriptors=2)
    resource = table.create_3d(1, PICTURE, MEMORY)
    before = resource.storage
    assert before is not None
    mirror = table.make_mirror(resource)
    assert before.fd.closed
    assert resource.storage is mirror
    assert (mirror.kind, resource.policy) == (StorageKind.MIRROR, Policy.MIRRORED)
    assert mirror.layout.nbytes >= PICTURE.mirror_bytes
    table.create_3d(2, PICTURE, MEMORY)
    table.clear()


def test_what_has_no_mirror() -> None:
    table = ResourceTable()
    with pytest.raises(InvalidResource):
        table.make_mirror(table.create_3d(1, NOT_IMAGES["multisampled"]))
    with pytest.raises(InvalidResource):
        table.make_mirror(table.create_blob(2, Blob(2, 0, 1, PAGE), None))
