"""What all storages together may take: bytes, and descriptors.

Memory is counted by its size, whether written or not. What a worker gave us takes a descriptor here; its memory is
counted where the worker's is.
"""

import resource as process

from resource_table.errors import OutOfMemory
from resource_table.storage import Storage

STORAGE_BYTES = 4 << 30
DESCRIPTORS = 4096
"""A quarter of those that the process may have, where that is less: a mapping has one of its own, and the rest is for
everything else."""


class Budget:
    """Storages that exist, and what they take."""

    def __init__(self, nbytes: int = STORAGE_BYTES, descriptors: int = DESCRIPTORS) -> None:
        self._nbytes = nbytes
        self._descriptors = descriptors
        self._used = 0
        self._storages: dict[Storage, int] = {}

    def __len__(self) -> int:
        """Descriptors in use."""
        return len(self._storages)

    @property
    def used(self) -> int:
        """Bytes."""
        return self._used

    def check(self, nbytes: int) -> None:
        """Whether there is room for one more. Raises OutOfMemory."""
        if self._used + nbytes > self._nbytes:
            raise OutOfMemory(f"{nbytes} bytes of storage on top of {self._used}")
        if len(self._storages) >= min(self._descriptors, process.getrlimit(process.RLIMIT_NOFILE)[0] // 4):
            raise OutOfMemory(f"{len(self._storages)} descriptors of storage")

    def add(self, storage: Storage, nbytes: int) -> None:
        """There is one more, of so many bytes of ours."""
        self._storages[storage] = nbytes
        self._used += nbytes

    def remove(self, storage: Storage) -> None:
        """It is no more."""
        self._used -= self._storages.pop(storage, 0)
