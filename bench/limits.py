"""What this machine can do at all: the yardsticks that results are held against."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from bench.native import load
from bench.ring_driver import RingDriver
from tests.fake_vmm import DriverQueue, GpuCommand, GuestMemory
from tests.fake_vmm.command_queue import CommandQueue

MEMCPY = "memcpy of the same bytes between memfds"
ROUND_TRIP = "eventfd round trip between two processes"
BARE_QUEUE = "the same driver, a device that only answers"

_TIMEOUT_S = 30.0
_MAX_LATENCIES = 1 << 20


class CopyRate:
    """Copies from one shared memfd to another, as large as the areas that the service would copy from and to."""

    def __init__(self, from_bytes: int, to_bytes: int) -> None:
        self._memory = GuestMemory([(0, _pages(from_bytes)), (_pages(from_bytes), _pages(to_bytes))], one_memfd=False)
        self._sizes = from_bytes, to_bytes
        for region in self._memory.regions:
            region.view[:] = bytes(region.size)

    def measure(self, length: int, seconds: float) -> float:
        """Bytes a second, `length` bytes at a time."""
        module = load()
        places = [module.ffi.from_buffer("uint8_t[]", region.mapping) for region in self._memory.regions]
        elapsed = module.ffi.new("uint64_t *")
        from_bytes, to_bytes = self._sizes
        copies = module.lib.bench_copy(places[1], to_bytes, places[0], from_bytes, length, int(seconds * 1e9), elapsed)
        for place in places:
            module.ffi.release(place)
        return float(copies * length / (elapsed[0] / 1e9))

    def close(self) -> None:
        """Unmap."""
        self._memory.close()


def round_trip_us(seconds: float, wanted: Sequence[float]) -> list[float]:
    """Percentiles of the time to another process and back, each side blocking on an eventfd; raises OSError."""
    module = load()
    times = module.ffi.new("uint64_t[]", _MAX_LATENCIES)
    count = module.lib.bench_round_trips(int(seconds * 1e9), times, _MAX_LATENCIES)
    if count < 0:
        raise OSError(module.ffi.errno, os.strerror(module.ffi.errno))
    return [value / 1000 for value in percentiles(module.ffi.unpack(times, count), wanted)]


def percentiles(values: Sequence[float], wanted: Sequence[float]) -> list[float]:
    """The wanted percentiles (0 to 100) of the values."""
    return [float(value) for value in np.percentile(values, wanted)]


class BareQueue:
    """A virtqueue of the fake VMM with a process at its other end that answers everything with OK_NODATA at once."""

    def __init__(self, stack: ExitStack, size: int) -> None:
        memory = stack.enter_context(GuestMemory([(0, 256 << 20)]))
        queue = DriverQueue(memory, 0, size, event_idx=True)
        ours, theirs = socket.socketpair()
        stack.enter_context(ours)
        stack.enter_context(theirs)
        self._control = CommandQueue(queue, indirect=True, timeout=_TIMEOUT_S, connection=ours.fileno())
        stack.callback(self._control.close)
        os.set_blocking(queue.kick_fd, True)  # the device waits by reading it
        stack.callback(os.set_blocking, queue.kick_fd, False)
        (region,) = memory.regions
        module = load()
        base = module.ffi.from_buffer("uint8_t[]", region.mapping)
        rings = (queue.desc_gpa, queue.avail_gpa, queue.used_gpa)
        echo = module.ffi.new("struct bench_echo *", (base, *rings, size, queue.kick_fd, queue.call_fd))
        stack.callback(end_child, module.lib.bench_echo_start(echo))
        module.ffi.release(base)

    def driver(self, commands: Sequence[GpuCommand], *, fenced: bool, eager: bool = False) -> RingDriver:
        """Of commands whose last part is a response."""
        return RingDriver(self._control, commands, fenced=fenced, eager=eager)


def end_child(pid: int) -> None:
    """Kill a child process that C has forked, and wait for its end. Raises OSError if there is none."""
    if pid < 0:
        raise OSError("a helper process could not be forked")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _pages(size: int) -> int:
    return -(-size // 4096) * 4096
