"""SUBMIT_3D: commands and bytes a second, and how long a fence takes.

There is no peer: QEMU's C back end does virgl with a GPU only. "null" is isorend's engine that draws nothing, so that
the data plane alone is measured: guest memory, the master, the worker's ring, the worker. "virgl" is the real one and
is given a stream of one virgl NOP, which costs virglrenderer least. All submits are fenced, as Linux's are.

A fence's way is four changes of process (driver, master, worker and back), the yardstick's two. What a change costs is
up to where the processes happen to run: to wake a CPU that sleeps may take ten times as long as a switch, most of all
in a virtual machine. So the latency is measured with everybody on one CPU, which shows what the software costs, and
again as the scheduler places them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing

from bench.contenders import Contender, start_isorend
from bench.limits import BARE_QUEUE, MEMCPY, ROUND_TRIP, BareQueue, CopyRate, percentiles, round_trip_us
from bench.processes import placed
from bench.workload import Better, Measure, Settings, Step
from tests.fake_vmm import GpuCommand, commands

_SIZES = (64, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10)
_SMALL, _LARGE = 64, 64 << 10
_CONTEXTS = (1, 2, 4, 8)
_QUEUE_SIZE = 256
_MAX_OUTSTANDING, _OUTSTANDING_BYTES = 64, 8 << 20
_RING_BYTES = 2 << 20  # a worker's command ring, which payloads are copied into
_RAM = 128 << 20
_WARM_UP_S = 0.02
_PERCENTILES = (50, 99)


def size_name(size: int) -> str:
    """64 B, 4 KiB, 32 MiB."""
    for power, unit in ((20, "MiB"), (10, "KiB")):
        if size >= 1 << power:
            return f"{size >> power} {unit}"
    return f"{size} B"


def contexts_named(count: int) -> str:
    """1 context, 2 contexts."""
    return f"{count} context{'s' * (count > 1)}"


def nop_stream(size: int) -> bytes:
    """One virgl NOP that fills `size` bytes: its header's upper half tells the words that follow."""
    return struct.pack("<I", (size // 4 - 1) << 16).ljust(size, b"\0")


def outstanding(size: int) -> int:
    """Commands in flight for payloads of `size` bytes."""
    return max(1, min(_MAX_OUTSTANDING, _OUTSTANDING_BYTES // size))


class Submit:
    """Streams of NOPs into 1 to 8 contexts."""

    name = "submit"
    summary = "SUBMIT_3D of 64 B to 256 KiB: rate, bytes a second, fence latency"
    unit = "MB/s"
    better: Better = "higher"

    def open(self, settings: Settings, stack: ExitStack) -> Sequence[Step]:
        self._seconds = settings.sample_seconds
        self._bare = BareQueue(stack, _QUEUE_SIZE)
        null = start_isorend(stack, "--engine=null", "--spares=8", ram=_RAM)
        virgl = start_isorend(stack, ram=_RAM)
        contexts = [null.vmm.gpu.create_context(f"bench-{number}").ctx_id for number in range(max(_CONTEXTS))]
        one = contexts[:1]
        drawing = [virgl.vmm.gpu.create_context("bench").ctx_id]
        for side in (null, virgl):
            side.settle()
        return [
            *(
                self._latency(engine, side, ctx_id, on_one_cpu)
                for on_one_cpu in (True, False)
                for engine, side, ctx_id in (("null", null, one[0]), ("virgl", virgl, drawing[0]))
            ),
            *(self._bytes(f"null, 1 context, {size_name(size)}", null, one, size) for size in _SIZES),
            self._bytes(f"virgl, 1 context, {size_name(_LARGE)}", virgl, drawing, _LARGE),
            *(
                self._bytes(f"null, {count} contexts, {size_name(_LARGE)}", null, contexts[:count], _LARGE)
                for count in _CONTEXTS[1:]
            ),
            *(
                self._rate(f"null, {contexts_named(count)}, {size_name(_SMALL)}, rate", null, contexts[:count])
                for count in _CONTEXTS
            ),
            self._rate(f"virgl, 1 context, {size_name(_SMALL)}, rate", virgl, drawing),
            self._cpu(f"null, 1 context, {size_name(_SMALL)}: CPU time of the service", null, one),
        ]

    # --- bytes and commands a second ----------------------------------------------------------------------------

    @staticmethod
    def _commands(contexts: Sequence[int], size: int) -> list[GpuCommand]:
        """One for each place in flight, contexts in turn."""
        return [commands.submit_3d(contexts[i % len(contexts)], nop_stream(size)) for i in range(outstanding(size))]

    def _commands_a_second(self, side: Contender, contexts: Sequence[int], size: int) -> float:
        with closing(side.driver(self._commands(contexts, size), fenced=True)) as driver:
            driver.window(outstanding(size), min(_WARM_UP_S, self._seconds))
            return driver.window(outstanding(size), self._seconds).rate

    def _bytes(self, case: str, side: Contender, contexts: Sequence[int], size: int) -> Step:
        def ours() -> Mapping[str, float]:
            return {case: self._commands_a_second(side, contexts, size) * size / 1e6}

        def limit() -> Mapping[str, float]:
            with closing(CopyRate(max(size * outstanding(size), size), _RING_BYTES)) as copies:
                return {case: copies.measure(size, self._seconds / 2) / 1e6}

        return Step(case, ours, limit=limit, limit_name=MEMCPY)

    def _rate(self, case: str, side: Contender, contexts: Sequence[int]) -> Step:
        def ours() -> Mapping[str, float]:
            return {case: self._commands_a_second(side, contexts, _SMALL)}

        def limit() -> Mapping[str, float]:
            with closing(self._bare.driver(self._commands(contexts, _SMALL), fenced=True)) as driver:
                return {case: driver.window(outstanding(_SMALL), self._seconds / 2).rate}

        return Step(case, ours, limit=limit, limit_name=BARE_QUEUE, unit="commands/s")

    def _cpu(self, case: str, side: Contender, contexts: Sequence[int]) -> Step:
        def ours() -> Mapping[str, float]:
            with closing(side.driver(self._commands(contexts, _SMALL), fenced=True)) as driver:
                before = side.cpu_seconds()
                run = driver.window(outstanding(_SMALL), self._seconds)
                return {case: (side.cpu_seconds() - before) / run.commands * 1e6}

        return Step(case, ours, unit="µs/command", better="lower")

    # --- latency ------------------------------------------------------------------------------------------------

    def _latency(self, engine: str, side: Contender, ctx_id: int, on_one_cpu: bool) -> Step:
        where = "on one CPU" if on_one_cpu else "wherever it runs"
        cases = [f"{engine}, fence of {size_name(_SMALL)}, one at a time, {where}, p{p}" for p in _PERCENTILES]

        def ours() -> Mapping[str, float]:
            one = self._commands([ctx_id], _SMALL)[:1]
            with placed(side.processes(), on_one_cpu), closing(side.driver(one, fenced=True)) as driver:
                driver.batches(1, min(_WARM_UP_S, self._seconds))
                times = driver.batches(1, self._seconds, latencies=True).latencies_us
            return dict(zip(cases, percentiles(times, _PERCENTILES), strict=True))

        limit = self._round_trip(cases, on_one_cpu)
        return Step(cases[0], ours, limit=limit, limit_name=ROUND_TRIP, unit="µs", better="lower")

    def _round_trip(self, cases: Sequence[str], on_one_cpu: bool) -> Measure:
        def measure() -> Mapping[str, float]:
            with placed((), on_one_cpu):
                return dict(zip(cases, round_trip_us(self._seconds, _PERCENTILES), strict=True))

        return measure


WORKLOAD = Submit()
