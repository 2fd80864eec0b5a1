"""The front end's memory table: guest RAM, mapped here, and what else comes with it.

QEMU sends the whole table again at every start of the device, and whenever something has been mapped into the
host-visible region: that is a piece of the guest's address space like RAM, so it comes back as one more region. RAM
that is the same as before stays mapped as it is.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from master.errors import HandlerError
from master.vhost_user_messages import MemoryRegion
from native.guest_memory import GuestMemory
from native.owned_fd import OwnedFd

_Key: TypeAlias = tuple[int, int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class RamRegion:
    """A piece of guest RAM: guest physical address, bytes, and where it begins in `fd`, which the table owns."""

    gpa: int
    size: int
    offset: int
    fd: OwnedFd


class MemoryTable:
    """What is RAM now."""

    def __init__(self, is_mapped_here: Callable[[OwnedFd], bool]) -> None:
        """is_mapped_here: whether a descriptor is of something that we had the front end map (HostWindow.has_sent)."""
        self.memory: GuestMemory | None = None
        """Mapped; None before the first table."""
        self._is_mapped_here = is_mapped_here
        self._ram: dict[_Key, RamRegion] = {}

    def regions(self) -> list[RamRegion]:
        """RAM by address. The descriptors are lent until the next replace() or close()."""
        return sorted(self._ram.values(), key=lambda region: region.gpa)

    def replace(self, regions: list[MemoryRegion]) -> bool:
        """A table has come. Whether RAM has changed, and `memory` with it.

        The regions' descriptors are closed, whatever happens. Raises HandlerError if a region cannot be mapped; then
        all is as before.
        """
        try:
            ram = {_key(region): region for region in regions if not self._is_mapped_here(region.fd)}
            if self.memory is not None and ram.keys() == self._ram.keys():
                return False
            self._remap(ram)
        except OSError as error:
            raise HandlerError(f"memory table: {error}") from error
        finally:
            for region in regions:
                region.fd.close()
        return True

    def close(self) -> None:
        """No memory any more."""
        for region in self._ram.values():
            region.fd.close()
        self._ram = {}
        self.memory = None

    def _remap(self, ram: dict[_Key, MemoryRegion]) -> None:
        memory = GuestMemory()
        for region in ram.values():
            memory.add(region.fd.fd, region.gpa, region.size, region.uva, region.mmap_offset)
        kept: dict[_Key, RamRegion] = {}
        try:
            for key, region in ram.items():
                copy = OwnedFd.duplicate(region.fd)
                kept[key] = RamRegion(region.gpa, region.size, region.mmap_offset, copy)
        except OSError:
            for old in kept.values():
                old.fd.close()
            raise
        self.close()
        self.memory, self._ram = memory, kept


def _key(region: MemoryRegion) -> _Key:
    """What makes a region the same as another. Raises OSError."""
    status = os.fstat(region.fd.fd)
    return region.gpa, region.size, region.uva, region.mmap_offset, status.st_dev, status.st_ino
