"""Guest RAM as the front end's tables tell of it, and what in them is no RAM."""

import os
from collections.abc import Iterator

import pytest

from master.errors import HandlerError
from master.memory_table import MemoryTable
from master.vhost_user_messages import MemoryRegion
from native.owned_fd import OwnedFd
from tests.vhost_user_connection import no_descriptor_leaks  # noqa: F401 (fixture)

MIB = 1 << 20
UVA = 0x7F00_0000_0000


class Files:
    """Memory of a front end; some of it is what we had it map."""

    def __init__(self) -> None:
        self.ram, self.more, self.blob = (os.memfd_create(name) for name in ("ram", "more", "blob"))
        for fd in (self.ram, self.more, self.blob):
            os.ftruncate(fd, 4 * MIB)
        self.table = MemoryTable(lambda fd: os.path.sameopenfile(fd.fd, self.blob))

    def close(self) -> None:
        self.table.close()
        for fd in (self.ram, self.more, self.blob):
            os.close(fd)


@pytest.fixture
def files() -> Iterator[Files]:
    files = Files()
    yield files
    files.close()


def region(fd: int, gpa: int = 0, size: int = MIB, uva: int = UVA, offset: int = 0) -> MemoryRegion:
    """As it comes off the socket, with a descriptor of its own."""
    return MemoryRegion(gpa, size, uva, offset, OwnedFd.duplicate(fd))


def test_ram_is_mapped_and_its_descriptors_are_kept(files: Files) -> None:
    given = [region(files.more, 1 << 32, offset=MIB), region(files.ram)]
    assert files.table.regions() == [] and files.table.memory is None
    assert files.table.replace(given)
    assert all(each.fd.closed for each in given)
    memory = files.table.memory
    assert memory is not None
    memory.write(1 << 32, b"high")
    assert os.pread(files.more, 4, MIB) == b"high"
    low, high = files.table.regions()
    assert (low.gpa, low.size, low.offset) == (0, MIB, 0)
    assert (high.gpa, high.size, high.offset) == (1 << 32, MIB, MIB)
    assert os.path.sameopenfile(high.fd.fd, files.more) and os.path.sameopenfile(low.fd.fd, files.ram)


def test_the_same_ram_stays_mapped(files: Files) -> None:
    files.table.replace([region(files.ram), region(files.more, 1 << 32)])
    before, kept = files.table.memory, files.table.regions()
    given = [region(files.more, 1 << 32), region(files.ram)]  # in whatever order
    assert not files.table.replace(given)
    assert all(each.fd.closed for each in given)
    assert files.table.memory is before and files.table.regions() == kept
    assert not any(each.fd.closed for each in kept)


@pytest.mark.parametrize(
    "change",
    [
        lambda files: [region(files.ram, gpa=MIB)],
        lambda files: [region(files.ram, size=2 * MIB)],
        lambda files: [region(files.ram, uva=UVA + MIB)],
        lambda files: [region(files.ram, offset=MIB)],
        lambda files: [region(files.more)],
        lambda files: [region(files.ram), region(files.more, MIB)],
        lambda files: [],
    ],
)
def test_other_ram_is_mapped_anew(files: Files, change: object) -> None:
    assert callable(change)
    files.table.replace([region(files.ram)])
    before, (kept,) = files.table.memory, files.table.regions()
    assert files.table.replace(change(files))
    assert files.table.memory is not before
    assert kept.fd.closed


def test_what_we_had_mapped_is_no_ram(files: Files) -> None:
    files.table.replace([region(files.ram)])
    before = files.table.memory
    given = [region(files.ram), region(files.blob, 0xFC_0000_0000)]
    assert not files.table.replace(given)
    assert files.table.memory is before and all(each.fd.closed for each in given)
    assert files.table.replace([region(files.more), region(files.blob, 0xFC_0000_0000)])
    memory = files.table.memory
    assert memory is not None and not memory.contains(0xFC_0000_0000, 1)
    assert [each.gpa for each in files.table.regions()] == [0]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda files: [region(files.ram, size=8 * MIB)],  # longer than the file
        lambda files: [region(files.ram), region(files.more, MIB // 2)],  # one over the other
    ],
)
def test_a_table_that_cannot_be_mapped_changes_nothing(files: Files, wrong: object) -> None:
    assert callable(wrong)
    files.table.replace([region(files.ram)])
    before, kept = files.table.memory, files.table.regions()
    given = wrong(files)
    with pytest.raises(HandlerError):
        files.table.replace(given)
    assert all(each.fd.closed for each in given)
    assert files.table.memory is before and files.table.regions() == kept and not kept[0].fd.closed


def test_without_room_for_descriptors_nothing_changes(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.table.replace([region(files.ram)])
    before, kept = files.table.memory, files.table.regions()
    given = [region(files.ram), region(files.more, 1 << 32)]
    left = [1]

    def dup(fd: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(24, "Too many open files")
        return os.dup2(fd, 900)

    with monkeypatch.context() as patched:
        patched.setattr(os, "dup", dup)
        with pytest.raises(HandlerError, match="Too many"):
            files.table.replace(given)
    assert files.table.memory is before and files.table.regions() == kept


def test_closing_gives_everything_back(files: Files) -> None:
    files.table.replace([region(files.ram)])
    (kept,) = files.table.regions()
    files.table.close()
    files.table.close()
    assert kept.fd.closed and files.table.memory is None and files.table.regions() == []
    assert files.table.replace([region(files.ram)])
