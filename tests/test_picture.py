"""Pixels of every kind of resource that are within the master's reach, as packed x8r8g8b8."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from master.errors import GuestError
from master.picture import Picture, cursor_picture, lives_in_worker, picture_in_blob, picture_of, read
from master.virtio_gpu import Format
from master.wire import Rect
from native.guest_memory import Backing, GuestMemory
from native.owned_fd import OwnedFd
from native.storage import MODIFIER_INVALID, Layout, StorageKind
from native.texture import Texture
from resource_table import Abilities, Blob, Resource, ResourceTable, Storage
from resource_table.memory import sealed_memory
from tests.fake_vmm.wire import MEM_ENTRY

PAGE = 4096
WIDTH, HEIGHT = 50, 37
GUEST, HOST3D = 1, 2
RED, GREEN = 1 << 16, 1 << 8
TEXTURE = Texture(2, Format.R8G8B8X8_UNORM, 1 << 20, WIDTH, HEIGHT, 1, 1, 0, 0, 0)
MEMORY = Abilities(memfd_images=True)
RECTS = [Rect(0, 0, WIDTH, HEIGHT), Rect(3, 5, 7, 11), Rect(WIDTH - 1, HEIGHT - 1, 1, 1), Rect(0, 36, WIDTH, 1)]

Words = npt.NDArray[np.uint32]


@dataclass
class Lab:
    memory: GuestMemory
    table: ResourceTable

    def pages(self, *pages: int) -> Backing:
        """Guest pages by number, one behind the other."""
        entries = b"".join(MEM_ENTRY.pack(page * PAGE, PAGE, 0) for page in pages)
        return Backing(self.memory, entries, len(pages))


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.fixture
def lab() -> Iterator[Lab]:
    memory = GuestMemory()
    with OwnedFd(os.memfd_create("guest")) as fd:
        os.ftruncate(fd.fd, 64 * PAGE)
        memory.add(fd.fd, 0, 64 * PAGE, 0x7000_0000_0000, 0)
    lab = Lab(memory, ResourceTable())
    yield lab
    lab.table.clear()


def image() -> Words:
    """Blue is the column, green the row, red a constant: XRGB words."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.uint32)
    words: Words = (x + y * GREEN + 77 * RED).astype(np.uint32)
    return words


def rows(stride: int, format: Format) -> bytes:
    """The image as a driver lays it out, with something else between its rows."""
    words = image()
    if format is Format.R8G8B8X8_UNORM:
        words = ((words & 0xFF) << 16 | words & 0xFF00 | words >> 16).astype(np.uint32)
    filled = np.full((HEIGHT, stride), 0xEE, np.uint8)
    filled[:, : 4 * WIDTH] = words.astype("<u4").view(np.uint8)
    return filled.tobytes()


def part(rect: Rect) -> Words:
    return image()[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width]


def assert_reads(lab: Lab, resource: Resource, picture: Picture, rect: Rect) -> None:
    pixels = read(resource, picture, rect, lab.memory)
    assert pixels is not None
    words = np.frombuffer(pixels, "<u4").reshape(rect.height, rect.width) & 0xFFFFFF
    assert np.array_equal(words, part(rect))


@pytest.mark.parametrize("rect", RECTS, ids=str)
def test_memory_that_we_made(lab: Lab, rect: Rect) -> None:
    resource = lab.table.create_3d(1, TEXTURE, MEMORY)
    assert resource.storage is not None
    os.pwrite(resource.storage.fd.fd, rows(resource.storage.layout.stride, Format.R8G8B8X8_UNORM), 0)
    assert not lives_in_worker(resource, picture_of(resource))
    assert_reads(lab, resource, picture_of(resource), rect)


@pytest.mark.parametrize("rect", RECTS, ids=str)
@pytest.mark.parametrize("last_level", [0, 3])
def test_a_mirror(lab: Lab, rect: Rect, last_level: int) -> None:
    texture = Texture(2, Format.B8G8R8A8_UNORM, 0, WIDTH, HEIGHT, 1, 1, last_level, 0, 0)
    resource = lab.table.create_3d(1, texture)
    level = resource.texture.mirror_level(0)
    assert level is not None
    storage = lab.table.make_mirror(resource)
    os.pwrite(storage.fd.fd, rows(level.stride, Format.B8G8R8A8_UNORM), level.offset)
    assert not lives_in_worker(resource, picture_of(resource))
    assert_reads(lab, resource, picture_of(resource), rect)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_shadow(lab: Lab, mirrored: bool) -> None:
    resource = lab.table.create_2d(1, Format.R8G8B8X8_UNORM, WIDTH, HEIGHT)
    if mirrored:
        lab.table.mirror_shadow(resource)
    assert resource.shadow is not None
    with resource.shadow.view() as pixels:
        pixels[:] = rows(4 * WIDTH, Format.R8G8B8X8_UNORM)
    for rect in RECTS:
        assert_reads(lab, resource, picture_of(resource), rect)


@pytest.mark.parametrize("rect", RECTS, ids=str)
def test_what_a_driver_gave(lab: Lab, rect: Rect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sealed memory stands for the dma-buf, and is one to all but the kernel."""
    monkeypatch.setattr("resource_table.storage.dma_buf_ioctl_sync", lambda _fd, _flags: None)
    resource = lab.table.create_3d(1, TEXTURE)
    stride, offset = 256, 5 * PAGE + 64
    for kind in (StorageKind.DMABUF, StorageKind.MEMFD):
        fd = sealed_memory("export", offset + stride * HEIGHT)
        os.pwrite(fd.fd, rows(stride, Format.R8G8B8X8_UNORM), offset)
        lab.table.give_storage(resource, Storage(fd, kind, Layout(1 << 20, offset, stride, 1)))
        assert lives_in_worker(resource, picture_of(resource)) == (kind is StorageKind.DMABUF)
        assert_reads(lab, resource, picture_of(resource), rect)


@pytest.mark.parametrize("modifier", [MODIFIER_INVALID, 0x0200_0000_0000_0001])
def test_what_is_not_in_rows(lab: Lab, modifier: int) -> None:
    resource = lab.table.create_3d(1, TEXTURE)
    layout = Layout(16 * PAGE, stride=256, fourcc=1, modifier=modifier)
    lab.table.give_storage(resource, Storage(sealed_memory("export", 16 * PAGE), StorageKind.DMABUF, layout))
    assert read(resource, picture_of(resource), RECTS[0], lab.memory) is None


@pytest.mark.parametrize("rect", RECTS, ids=str)
@pytest.mark.parametrize("format", [Format.B8G8R8X8_UNORM, Format.R8G8B8X8_UNORM])
def test_a_guest_blob_is_read_where_it_is(lab: Lab, rect: Rect, format: Format) -> None:
    """From scattered pages, with the guest's stride and offset; and what was drawn last, without a transfer."""
    stride, offset = 204, 1000
    numbers = [9, 3, 30, 4]
    resource = lab.table.create_blob(1, Blob(GUEST, 0, 0, len(numbers) * PAGE), lab.pages(*numbers))
    picture = picture_in_blob(resource, Picture(format, WIDTH, HEIGHT, stride, offset))
    assert not lives_in_worker(resource, picture)
    lined_up = bytes(offset) + rows(stride, format)
    for index, page in enumerate(numbers):
        lab.memory.write(page * PAGE, lined_up[index * PAGE :][:PAGE])
    assert_reads(lab, resource, picture, rect)


def test_a_guest_blob_that_has_no_pages_any_more(lab: Lab) -> None:
    resource = lab.table.create_blob(1, Blob(GUEST, 0, 0, PAGE), lab.pages(1))
    picture = Picture(Format.B8G8R8X8_UNORM, 8, 8, 32)
    assert read(resource, picture, Rect(0, 0, 8, 8), lab.memory) is not None
    assert read(resource, picture, Rect(0, 0, 8, 8), None) is None
    lab.table.detach_backing(resource)
    assert read(resource, picture, Rect(0, 0, 8, 8), lab.memory) is None
    lab.table.attach_backing(resource, lab.pages(1))
    smaller = Picture(Format.B8G8R8X8_UNORM, 8, 9, 512)  # in the blob, but not in what it has now
    assert read(resource, smaller, Rect(0, 0, 8, 9), lab.memory) is None


@pytest.mark.parametrize("rect", RECTS, ids=str)
def test_a_host_blob_is_read_as_the_guest_says(lab: Lab, rect: Rect) -> None:
    resource = lab.table.create_blob(1, Blob(HOST3D, 0, 7, 3 * PAGE), None)
    storage = lab.table.allocate_blob_memory(resource)
    stride, offset = 208, 44
    os.pwrite(storage.fd.fd, rows(stride, Format.B8G8R8X8_UNORM), offset)
    picture = picture_in_blob(resource, Picture(Format.B8G8R8X8_UNORM, WIDTH, HEIGHT, stride, offset))
    assert not lives_in_worker(resource, picture)
    assert_reads(lab, resource, picture, rect)


def test_a_host_blob_of_a_driver_is_asked_for_if_it_is_such_a_picture(lab: Lab) -> None:
    resource = lab.table.create_blob(1, Blob(HOST3D, 0, 7, 16 * PAGE), None)
    picture = Picture(Format.B8G8R8X8_UNORM, WIDTH, HEIGHT, 208)
    assert not lives_in_worker(resource, picture)  # nobody knows what it is
    resource.v1 = TEXTURE
    assert lives_in_worker(resource, picture)
    assert not lives_in_worker(resource, Picture(Format.B8G8R8X8_UNORM, WIDTH + 1, HEIGHT, 208))
    resource.v1 = Texture(0, 64, 0, 16 * PAGE, 1, 1, 1, 0, 0, 0)
    assert not lives_in_worker(resource, picture)


def test_what_is_gone(lab: Lab) -> None:
    resource = lab.table.create_3d(1, TEXTURE, MEMORY)
    picture = picture_of(resource)
    lab.table.remove(1)
    assert read(resource, picture, RECTS[0], lab.memory) is None


def test_cursors(lab: Lab) -> None:
    assert cursor_picture(lab.table.create_2d(1, 1, 64, 64)) == Picture(1, 64, 64)
    assert cursor_picture(lab.table.create_blob(2, Blob(GUEST, 0, 0, 16384), None)) == Picture(1, 64, 64, 256)
    for resource in (
        lab.table.create_2d(3, 1, 64, 63),
        lab.table.create_blob(4, Blob(GUEST, 0, 0, 16383), None),
        lab.table.create_3d(5, Texture(2, 64, 0, 64, 64, 1, 1, 0, 0, 0)),
    ):
        with pytest.raises(GuestError):
            cursor_picture(resource)
