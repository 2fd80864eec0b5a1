"""The shared memory between the master and one worker: making it, and its constants.

The layout is native/src/ring.h, where it is explained. The numbers here mirror that header, because nothing that the
master imports may load the engines' module; a test holds the two together.
"""

import fcntl
import os
import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Self

from native.owned_fd import OwnedFd

RING_MAGIC = 0x69736F72
RING_VERSION = 2
RING_CMD_BYTES = 2 << 20
RING_CPL_ENTRIES = 4096
RING_RECORD_ALIGN = 32
RING_CMD_OFFSET = 4096
RING_CPL_OFFSET = RING_CMD_OFFSET + RING_CMD_BYTES
RING_COMPLETION_BYTES = 16
RING_TOTAL_BYTES = RING_CPL_OFFSET + RING_CPL_ENTRIES * RING_COMPLETION_BYTES
RING_RECORD_BYTES = 32
RING_MAX_PAYLOAD = RING_CMD_BYTES // 2 - RING_RECORD_BYTES

STAGING_BYTES = 64 << 20
"""Default size of a worker's staging memory. It is sparse: pages exist once they have been touched."""


class RecordType(IntEnum):
    """enum iso_record_type."""

    PAD = 0
    SUBMIT = 1
    TRANSFER_WRITE = 2
    TRANSFER_READ = 3
    FENCE = 4
    COPY_OUT = 5
    COPY_IN = 6
    CONTROL = 16


class RecordFlag(IntFlag):
    """enum iso_record_flags."""

    COMPLETE = 1
    FENCE = 2


class RecordStatus(IntEnum):
    """enum iso_status."""

    OK = 0
    FAILED = 1
    INVALID_PARAMETER = 2
    INVALID_RESOURCE = 3
    OUT_OF_MEMORY = 4
    LOST = 5


def _memfd(name: str, size: int) -> OwnedFd:
    """A memfd of `size` bytes that can neither grow nor shrink, so that a mapping of it never faults."""
    fd = OwnedFd(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        os.ftruncate(fd.fd, size)
    except OSError:
        fd.close()
        raise
    return fd


def _seal(fd: OwnedFd) -> None:
    fcntl.fcntl(fd.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)


def create_ring() -> OwnedFd:
    """A sealed memfd of RING_TOTAL_BYTES with an initialised, empty ring. Raises OSError."""
    fd = _memfd("isorend-ring", RING_TOTAL_BYTES)
    os.pwrite(fd.fd, struct.pack("<4I", RING_MAGIC, RING_VERSION, RING_CMD_BYTES, RING_CPL_ENTRIES), 0)
    _seal(fd)
    return fd


def create_staging(size: int = STAGING_BYTES) -> OwnedFd:
    """A sealed, sparse memfd of `size` bytes. Raises OSError."""
    fd = _memfd("isorend-staging", size)
    _seal(fd)
    return fd


def create_doorbell() -> OwnedFd:
    """An eventfd, for the worker to ring. The master shares the open file with it and never reads or writes it: a
    worker could make it blocking."""
    return OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))


def create_worker_doorbell() -> tuple[OwnedFd, OwnedFd]:
    """A pipe: the worker's end to read, the master's to write. Each has its own open file, so that the master's stays
    non-blocking whatever the worker does to its own. A doorbell that is full has been rung."""
    worker_end, our_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    return OwnedFd(worker_end), OwnedFd(our_end)


@dataclass
class WorkerMemory:
    """What the master and one worker share: both memories and both doorbells. `ring_worker` is the master's alone."""

    ring: OwnedFd
    staging: OwnedFd
    worker_doorbell: OwnedFd
    master_doorbell: OwnedFd
    ring_worker: OwnedFd

    @classmethod
    def create(cls, staging_bytes: int = STAGING_BYTES) -> Self:
        """All new. Raises OSError."""
        worker_doorbell, ring_worker = create_worker_doorbell()
        return cls(create_ring(), create_staging(staging_bytes), worker_doorbell, create_doorbell(), ring_worker)

    def fds(self) -> list[OwnedFd]:
        """Lent, in the order in which SpawnWorker sends them (behind the channel)."""
        return [self.ring, self.staging, self.worker_doorbell, self.master_doorbell]

    def close(self) -> None:
        """Close all; mappings stay."""
        for fd in (*self.fds(), self.ring_worker):
            fd.close()
