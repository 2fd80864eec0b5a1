"""The accident: a worker is killed in the middle of a submit, and what is seen of that."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial

from bench.demo.errors import DemoFailed
from bench.demo.program import MAX_FPS, Program
from bench.demo.service import DemoService, is_running, main_thread_seconds
from tests.fake_vmm import Gpu, Pending

# The long submit is to take about so long; at least so much CPU time of the worker is in it when the worker is killed.
_LONG_SUBMIT_S = 0.5
_BEGUN_S = 0.003
_MIN_LONG_FRAMES = 16
# The service takes command streams up to half of a worker's command ring.
_MAX_STREAM_BYTES = 1_000_000
_ENCODED_AT_ONCE = 4
_ATTEMPTS = 6
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Killed:
    """What was killed, when (seconds since the start), in the middle of what, and what came of it.

    fence_response: how the interrupted submit was answered, retired fence_retired_ms after the kill.
    next_response: how the context's next submit was answered. service_log: the service's own words.
    """

    name: str
    ctx_id: int
    pid: int
    signal: str
    at_s: float
    submit_frames: int
    submit_bytes: int
    fence_response: str
    fence_retired_ms: float
    next_response: str
    service_log: str


class Accident:
    """Plays itself step by step beside the programs, who go on meanwhile: see `steps`."""

    def __init__(self, service: DemoService, gpu: Gpu, victim: Program, say: Callable[[str], None]) -> None:
        self._service = service
        self._gpu = gpu
        self.victim = victim
        self._say = say
        self.killed: Killed | None = None
        self.killed_at_ns = 0

    def steps(self, clock: Callable[[], float]) -> Iterator[None]:
        """Yields while it waits; ends when all is known. clock: seconds since the start. Raises DemoFailed."""
        victim = self.victim
        victim.pause()
        yield from _until(lambda: victim.idle, f"the last frames of {victim.name}")
        victim.read_back()
        yield from _until(lambda: victim.idle, f"the picture of {victim.name}")
        pending, frames, size = yield from self._long_submit(clock)
        at = clock()
        os.kill(victim.pid, signal.SIGKILL)
        self.killed_at_ns = time.perf_counter_ns()
        victim.state = "killed"
        self._say(
            f"{victim.name}: worker {victim.pid} got SIGKILL in the middle of a submit "
            f"({frames} frames in one stream of {size // 1024} KiB, its fence not yet retired)"
        )
        yield from _until(lambda: pending.done, f"the fence of {victim.name}'s interrupted submit")
        retired_ms = (pending.completed_at - self.killed_at_ns) / 1e6
        yield from _until(lambda: not is_running(victim.pid), f"the end of worker {victim.pid}")
        after = victim.submit_stream(victim.frame_stream(at))
        yield from _until(lambda: after.done, f"an answer to {victim.name}'s next submit")
        yield from _until(lambda: bool(self._service.lost_contexts()), "the service's word on the lost context")
        lost = self._service.lost_contexts()[0]
        victim.state = f"lost: {lost.cause}"
        self._say(f"{victim.name}: its fence retired with {pending.response.name} {retired_ms:.1f} ms later")
        self._say(f"service: {lost.line}")
        self.killed = Killed(
            name=victim.name,
            ctx_id=victim.ctx_id,
            pid=victim.pid,
            signal=signal.SIGKILL.name,
            at_s=round(at, 3),
            submit_frames=frames,
            submit_bytes=size,
            fence_response=pending.response.name,
            fence_retired_ms=round(retired_ms, 3),
            next_response=after.response.name,
            service_log=lost.line,
        )

    def _long_submit(self, clock: Callable[[], float]) -> Generator[None, None, tuple[Pending, int, int]]:
        """A submit that the worker has begun and not finished: (it, frames in it, its bytes)."""
        victim = self.victim
        p50_us, _ = victim.fence_us() or (0.0, 0.0)
        frames = max(_MIN_LONG_FRAMES, int(_LONG_SUBMIT_S * 1e6 / p50_us) if p50_us else 0)
        victim.state = "in a long submit"
        for _ in range(_ATTEMPTS):
            streams = yield from self._encode(frames, clock())
            before = main_thread_seconds(victim.pid)
            pending = victim.submit_stream(b"".join(streams))
            yield from _until(partial(self._has_begun, pending, before), f"the begin of {victim.name}'s long submit")
            self._gpu.reap()
            if not pending.done:
                return pending, len(streams), sum(map(len, streams))
            pending.response.check(f"the long submit of {victim.name}")
            frames *= 2
        raise DemoFailed(f"{victim.name}'s worker finished every long submit too soon to be killed in the middle of it")

    def _encode(self, frames: int, now: float) -> Generator[None, None, list[bytes]]:
        """The streams of up to `frames` frames, made a few at a time so that the other programs are not held up."""
        streams: list[bytes] = []
        room = _MAX_STREAM_BYTES
        for index in range(frames):
            stream = self.victim.frame_stream(now + index / MAX_FPS)
            if len(stream) > room:
                break
            streams.append(stream)
            room -= len(stream)
            if index % _ENCODED_AT_ONCE == _ENCODED_AT_ONCE - 1:
                yield
        return streams

    def _has_begun(self, pending: Pending, before: float) -> bool:
        """Whether the worker is at work on a submit that came when it had used `before` seconds of CPU time."""
        return pending.done or main_thread_seconds(self.victim.pid) - before >= _BEGUN_S


def _until(condition: Callable[[], bool], awaited: str) -> Iterator[None]:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise DemoFailed(f"waited {_PATIENCE_S:g} s in vain for {awaited}")
        yield
