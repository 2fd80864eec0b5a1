"""master.process_memory."""

import mmap
import os
import subprocess

from master.process_memory import ProcessMemory

MIB = 1 << 20


def test_what_this_process_uses() -> None:
    before = ProcessMemory.of(os.getpid())
    with mmap.mmap(-1, 64 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        untouched = ProcessMemory.of(os.getpid())
        pages.write(b"\1" * (32 * MIB))
        touched = ProcessMemory.of(os.getpid())
    assert before and untouched and touched
    assert 60 * MIB < untouched.data - before.data < 70 * MIB
    assert touched.resident - untouched.resident > 24 * MIB


def test_addresses_cost_the_kernel_memory() -> None:
    """A page of zeroes for every two megabytes: nothing that is resident, and a table for each."""
    before = ProcessMemory.of(os.getpid())
    with mmap.mmap(-1, 8 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ) as pages:
        pages.madvise(mmap.MADV_NOHUGEPAGE)
        assert not any(pages[start] for start in range(0, len(pages), 2 * MIB))
        after = ProcessMemory.of(os.getpid())
    assert before and after
    assert after.tables - before.tables > 12 * MIB
    assert after.used() - before.used() > 12 * MIB
    assert ProcessMemory(1, 2, 3, 4).used() == 8


def test_processes_that_are_over() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        zombie = ProcessMemory.of(process.pid)
        assert zombie is None or zombie == ProcessMemory()
    assert ProcessMemory.of(process.pid) is None
