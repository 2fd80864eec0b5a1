"""A worker shares the doorbells' files, not their modes: whatever it does to them, the master never sleeps on one."""

import fcntl
import mmap
import os
import threading
from collections.abc import Iterator

import pytest

from ipc.ring import STAGING_BYTES, WorkerMemory
from native.dataplane import Lane, Plane
from tests.ring_producer import LIMIT, WORKER_SLEEPING

PIPE_FULL = 20_000  # rings; a pipe holds 64 KiB, a ring is 8 bytes


def make_blocking(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)


@pytest.fixture
def memory() -> Iterator[WorkerMemory]:
    memory = WorkerMemory.create()
    yield memory
    memory.close()


@pytest.fixture
def plane() -> Iterator[Plane]:
    plane = Plane()
    plane.start()
    yield plane
    plane.close()


@pytest.fixture
def lane(memory: WorkerMemory, plane: Plane) -> Iterator[Lane]:
    lane = Lane(1, memory.ring.fd, memory.staging.fd, STAGING_BYTES, memory.ring_worker.fd, memory.master_doorbell.fd)
    plane.add_lane(lane)
    yield lane
    plane.free_lane(lane)


def test_a_doorbell_that_nobody_answers_never_blocks(memory: WorkerMemory, plane: Plane, lane: Lane) -> None:
    make_blocking(memory.worker_doorbell.fd)
    done = threading.Event()

    def ring() -> None:
        with mmap.mmap(memory.ring.fd, mmap.PAGESIZE) as header:
            for _ in range(PIPE_FULL):
                header[WORKER_SLEEPING] = 1
                plane.send(lane, 1, b"message")
        done.set()

    threading.Thread(target=ring, daemon=True).start()
    assert done.wait(LIMIT)


def test_a_doorbell_whose_count_is_stolen_never_blocks(memory: WorkerMemory, plane: Plane, lane: Lane) -> None:
    make_blocking(memory.master_doorbell.fd)
    for _ in range(PIPE_FULL):
        os.eventfd_write(memory.master_doorbell.fd, 1)
        os.eventfd_read(memory.master_doorbell.fd)
        plane.statistics()  # waits for the lock, which nobody may keep
