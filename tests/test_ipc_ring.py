"""ipc.ring: the shared memory, and that its constants are those of native/src/ring.h."""

import fcntl
import mmap
import os
import struct

import pytest

from ipc import ring
from native import engines
from native._engines import lib


def test_constants_are_those_of_the_header() -> None:
    names = [name for name in vars(ring) if name.startswith("RING_") and hasattr(lib, f"ISO_{name}")]
    assert len(names) >= 8
    for name in names:
        assert getattr(ring, name) == getattr(lib, f"ISO_{name}"), name


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [(ring.RecordType, "ISO_RECORD_"), (ring.RecordFlag, "ISO_FLAG_"), (ring.RecordStatus, "ISO_STATUS_")],
)
def test_enumerations_are_those_of_the_header(kind: type, prefix: str) -> None:
    members = {prefix + name: int(value) for name, value in kind.__members__.items()}  # type: ignore[attr-defined]
    assert members == {name: getattr(lib, name) for name in dir(lib) if name.startswith(prefix)}
    if kind is ring.RecordStatus:
        ours = {status.name: status.value for status in ring.RecordStatus}
        assert {s.name: s.value for s in engines.Status}.items() <= ours.items()


def test_a_new_ring_is_empty_and_sealed() -> None:
    with ring.create_ring() as fd:
        assert os.fstat(fd.fd).st_size == ring.RING_TOTAL_BYTES
        with mmap.mmap(fd.fd, 0) as memory:
            assert struct.unpack_from("<4I", memory) == (
                ring.RING_MAGIC,
                ring.RING_VERSION,
                ring.RING_CMD_BYTES,
                ring.RING_CPL_ENTRIES,
            )
            assert not any(memory[16:])
        for size in (0, ring.RING_TOTAL_BYTES * 2):
            with pytest.raises(PermissionError):
                os.ftruncate(fd.fd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_staging_memory_is_sparse_and_sealed() -> None:
    with ring.create_staging() as fd:
        status = os.fstat(fd.fd)
        assert (status.st_size, status.st_blocks) == (ring.STAGING_BYTES, 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd.fd, 0)


def test_worker_memory_closes_everything() -> None:
    before = len(os.listdir("/proc/self/fd"))
    memory = ring.WorkerMemory.create(staging_bytes=4096)
    assert len(os.listdir("/proc/self/fd")) == before + 5
    memory.close()
    assert len(os.listdir("/proc/self/fd")) == before
