"""Guest pages as one dma-buf: which parts of which files are asked for, and when not. The kernel is played."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from native import linux
from native.guest_memory import Backing, GuestMemory
from native.owned_fd import OwnedFd
from native.storage import Layout, StorageKind
from resource_table import Blob, Policy, ResourceTable, Udmabuf
from tests.fake_vmm.wire import MEM_ENTRY

PAGE = 4096
UVA = 0x7000_0000_0000
GAP = 1 << 32
SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
GUEST = 1  # VIRTIO_GPU_BLOB_MEM_GUEST


@dataclass(frozen=True)
class Region:
    gpa: int
    size: int
    offset: int
    fd: OwnedFd


class PlayedKernel:
    """What /dev/udmabuf is asked; it gives any descriptor, or an error."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[int, int, int]]] = []
        self.error = 0

    def create_list(self, device: int, parts: Sequence[tuple[int, int, int]]) -> int:
        os.fstat(device)
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        self.asked.append(list(parts))
        return os.memfd_create("udmabuf")


class Lab:
    """RAM of 16 pages at 0, 16 right behind them in another file, from its third page on, and 16 far away."""

    def __init__(self, path: Path, seals: int = SEALED) -> None:
        self.memory = GuestMemory()
        self.regions: list[Region] = []
        for number, (gpa, offset) in enumerate(((0, 0), (16 * PAGE, 2 * PAGE), (GAP, 0))):
            fd = OwnedFd(linux.memfd_create("guest"))
            os.ftruncate(fd.fd, offset + 16 * PAGE)
            linux.add_seals(fd.fd, seals)
            self.memory.add(fd.fd, gpa, 16 * PAGE, UVA + number * GAP, offset)
            self.regions.append(Region(gpa, 16 * PAGE, offset, fd))
        self.kernel = PlayedKernel()
        self.device = path / "udmabuf"
        self.device.touch()
        self.parameters = path / "parameters"
        self.parameters.mkdir()
        self.udmabuf = Udmabuf(self.device, self.parameters, self.kernel.create_list)
        self.table = ResourceTable(udmabuf=self.udmabuf)

    def backing(self, *pieces: tuple[int, int]) -> Backing:
        return Backing(self.memory, b"".join(MEM_ENTRY.pack(gpa, length, 0) for gpa, length in pieces), len(pieces))

    def shares(self, *pieces: tuple[int, int]) -> bool:
        backing = self.backing(*pieces)
        fd = self.udmabuf.create(backing, self.regions)
        backing.close()
        if fd is not None:
            fd.close()
        return fd is not None

    def close(self) -> None:
        self.table.clear()
        self.udmabuf.close()
        for region in self.regions:
            region.fd.close()


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().split("(", 1)[1].split("):")[0] for record in caplog.records]


def test_segments_of_a_backing(lab: Lab) -> None:
    pieces = [(3 * PAGE, PAGE), (4 * PAGE, PAGE), (GAP, 5), (GAP + 5, 1), (0, PAGE)]
    assert lab.backing(*pieces).segments() == [(3 * PAGE, 2 * PAGE), (GAP, 6), (0, PAGE)]


def test_parts_are_named_by_file_and_offset(lab: Lab) -> None:
    first, second, third = (region.fd.fd for region in lab.regions)
    assert lab.shares((GAP + PAGE, PAGE), (15 * PAGE, PAGE), (16 * PAGE, PAGE), (PAGE, 2 * PAGE))
    # The guest's neighbours lie in two files, and the second begins at its third page.
    assert lab.kernel.asked == [
        [(third, PAGE, PAGE), (first, 15 * PAGE, PAGE), (second, 2 * PAGE, PAGE), (first, PAGE, 2 * PAGE)]
    ]


def test_a_guest_blob_gets_its_pages_as_storage(lab: Lab) -> None:
    resource = lab.table.create_blob(1, Blob(GUEST, 0, 0, PAGE + 5), lab.backing((0, 2 * PAGE)))
    assert lab.table.share_guest_pages(resource, lab.regions)
    storage = resource.storage
    assert storage is not None
    assert (storage.kind, storage.layout) == (StorageKind.DMABUF, Layout(2 * PAGE))
    assert resource.policy is Policy.GUEST_ONLY
    lab.table.detach_backing(resource)  # what the guest does with its pages now is nobody's business
    assert storage.fd.closed
    assert resource.storage is None
    assert not lab.table.share_guest_pages(resource, lab.regions)
    lab.table.attach_backing(resource, lab.backing((4 * PAGE, 2 * PAGE)))
    assert lab.table.share_guest_pages(resource, lab.regions)


def test_a_blob_without_room_for_a_descriptor(lab: Lab) -> None:
    table = ResourceTable(descriptors=0, udmabuf=lab.udmabuf)
    resource = table.create_blob(1, Blob(GUEST, 0, 0, PAGE), lab.backing((0, PAGE)))
    assert not table.share_guest_pages(resource, lab.regions)
    assert resource.storage is None
    table.clear()


@pytest.mark.parametrize(
    "pieces", [[(1, PAGE)], [(0, PAGE - 1)], [(0, PAGE), (2 * PAGE, 100)], [(16 * PAGE - 100, 200)]]
)
def test_parts_of_pages(lab: Lab, caplog: pytest.LogCaptureFixture, pieces: list[tuple[int, int]]) -> None:
    with caplog.at_level(logging.INFO):
        assert not lab.shares(*pieces)
    assert reasons(caplog) == ["the guest gave parts of pages"]
    assert not lab.kernel.asked


def test_pages_that_are_no_ram_any_more(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    backing = lab.backing((GAP, PAGE))
    with caplog.at_level(logging.INFO):
        assert lab.udmabuf.create(backing, lab.regions[:2]) is None
        assert lab.udmabuf.create(backing, []) is None
    assert reasons(caplog) == ["the guest's pages are not in its RAM"]


@pytest.mark.parametrize(
    ("seals", "reason"),
    [
        (0, "guest RAM is not sealed against shrinking"),
        (fcntl.F_SEAL_GROW, "guest RAM is not sealed against shrinking"),
    ],
)
def test_ram_that_is_not_sealed(tmp_path: Path, caplog: pytest.LogCaptureFixture, seals: int, reason: str) -> None:
    lab = Lab(tmp_path, seals)
    with caplog.at_level(logging.INFO):
        assert not lab.shares((0, PAGE))
    assert reasons(caplog) == [reason]
    lab.close()


def test_ram_that_nobody_may_write(lab: Lab, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource_table.udmabuf.get_seals", lambda _fd: SEALED | fcntl.F_SEAL_WRITE)
    with caplog.at_level(logging.INFO):
        assert not lab.shares((0, PAGE))
    assert reasons(caplog) == ["guest RAM is sealed against writing"]


def test_ram_that_is_a_file(lab: Lab, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_seals(_fd: int) -> int:
        raise OSError(errno.EINVAL, "not a memfd")

    monkeypatch.setattr("resource_table.udmabuf.get_seals", no_seals)
    with caplog.at_level(logging.INFO):
        assert not lab.shares((0, PAGE))
    assert reasons(caplog) == ["guest RAM is not a memfd"]


def test_limits_of_the_module(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    scattered = [(page * PAGE, PAGE) for page in (0, 2, 4)]
    (lab.parameters / "list_limit").write_text("3\n")
    (lab.parameters / "size_limit_mb").write_text("0\n")
    with caplog.at_level(logging.INFO):
        assert not lab.shares((0, PAGE))
        (lab.parameters / "size_limit_mb").write_text("1\n")
        assert lab.shares(*scattered)
        assert not lab.shares(*scattered, (6 * PAGE, PAGE))
    assert reasons(caplog) == [
        "a guest blob is too large (size_limit_mb)",
        "the guest's pages are too scattered (list_limit)",
    ]


def test_no_device(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.device.unlink()
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert not lab.shares((0, PAGE))
        lab.device.touch()
        assert lab.shares((0, PAGE))  # the module has come since
    assert reasons(caplog) == ["No such file or directory"]


def test_what_the_kernel_refuses(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.kernel.error = errno.EINVAL
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert not lab.shares((0, PAGE))
        lab.kernel.error = errno.ENOMEM
        assert not lab.shares((0, PAGE))
    assert reasons(caplog) == ["Invalid argument", "Cannot allocate memory"]


def test_the_request_is_as_the_kernel_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """linux/udmabuf.h, on any machine with its numbers of ioctls (_IOW is the same on all that run Linux but few)."""
    seen: list[tuple[int, int, bytes]] = []

    def ioctl(device: int, request: int, argument: bytearray, mutate: bool) -> int:
        seen.append((device, request, bytes(argument)))
        return 77

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    parts = [(number, number * PAGE, PAGE) for number in range(100)]  # more than 1024 bytes
    assert linux.udmabuf_create_list(5, parts) == 77
    ((device, request, argument),) = seen
    assert (device, request) == (5, 1 << 30 | 8 << 16 | ord("u") << 8 | 0x43)
    assert argument[:8] == b"\1\0\0\0\x64\0\0\0"
    assert argument[8 + 24 :][:24] == b"\1\0\0\0\0\0\0\0" + PAGE.to_bytes(8, "little") + PAGE.to_bytes(8, "little")
    assert len(argument) == 8 + 100 * 24
