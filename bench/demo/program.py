"""One guest program of the demo: it draws frame after frame, a few of them in flight."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from time import perf_counter_ns

import numpy as np
import numpy.typing as npt

from tests.fake_vmm import Box, Gpu, Pending, commands
from tests.fake_vmm.scene_player import ScenePlayer
from tests.fake_vmm.virgl.direct import pixels_of
from tests.fake_vmm.virgl.scene import Scene

MAX_IN_FLIGHT = 2
MAX_FPS = 60.0
_RATE_WINDOW_NS = 1_000_000_000

Picture = npt.NDArray[np.uint8]
"""Shape (height, width, 3): red, green, blue."""


class Program:
    """Draws `scene` in a context of its own. Making one waits for its first frame: shaders are compiled by then.

    submitted, frames: frames handed to the device since then, and those it rendered. errors: the names of all responses
    that were none of success. picture: what was read back last. pid: its worker's process. Times are in seconds since
    the start of the performance, `step`'s argument.
    """

    def __init__(self, gpu: Gpu, scene: Scene) -> None:
        self._gpu = gpu
        self._player = ScenePlayer(gpu, scene)
        gpu.wait(self._player.frame(0.0, 0)).check(f"first frame of {scene.name}")
        self.pid = 0
        self.state = "ready"
        self.submitted = 0
        self.frames = 0
        self.errors: list[str] = []
        self.latencies_us: list[float] = []
        self.completions_ns: list[int] = []
        self.picture: Picture | None = None
        self.playing = False
        self._due = 0.0
        self._in_flight: deque[Pending] = deque()
        self._readback: Pending | None = None

    @property
    def name(self) -> str:
        return self._player.name

    @property
    def ctx_id(self) -> int:
        return self._player.context.ctx_id

    @property
    def player(self) -> ScenePlayer:
        return self._player

    @property
    def idle(self) -> bool:
        """Nothing of it is outstanding."""
        return not self._in_flight and self._readback is None

    def play(self) -> None:
        """From the next step on, draw."""
        self.playing = True
        self.state = "rendering"

    def pause(self) -> None:
        """Draw no more; what is in flight goes on."""
        self.playing = False

    def step(self, now: float) -> None:
        """Take in what is done and submit the frames that are due."""
        self._collect()
        if not self.playing:
            return
        while len(self._in_flight) < MAX_IN_FLIGHT and self._due <= now:
            self.submitted += 1
            self._in_flight.append(self._player.frame(now, self.submitted))
            # A program that fell behind does not catch up: its frames are late, not more.
            self._due = max(self._due + 1 / MAX_FPS, now - 1 / MAX_FPS)

    def wakes_at(self, now: float) -> float | None:
        """When it wants to submit next; None if it waits for a completion before that."""
        return max(self._due, now) if self.playing and len(self._in_flight) < MAX_IN_FLIGHT else None

    def read_back(self) -> None:
        """Ask for its picture as it is after the frames submitted so far; `idle` tells when it is there."""
        target = self._player.scene.target
        box = Box(target.width, target.height)
        command = commands.transfer_from_host_3d(self.ctx_id, target.resid, box, stride=target.stride)
        self._readback = self._gpu.submit(command, fenced=True)

    def frame_stream(self, now: float) -> bytes:
        """The commands of the frame of a moment, for a submit of the caller's making."""
        return self._player.scene.frame(now, 0)

    def submit_stream(self, stream: bytes) -> Pending:
        """Submit commands outside the count of frames; done when they are drawn."""
        return self._player.context.submit(stream)

    def fps(self) -> float:
        """Frames rendered within the last second."""
        since = perf_counter_ns() - _RATE_WINDOW_NS
        count = 0
        while count < len(self.completions_ns) and self.completions_ns[-1 - count] > since:
            count += 1
        return count * 1e9 / _RATE_WINDOW_NS

    def fence_us(self) -> tuple[float, float] | None:
        """50th and 99th percentile of the time from a frame's submission to its fence, in microseconds."""
        if not self.latencies_us:
            return None
        p50, p99 = np.percentile(self.latencies_us, [50, 99])
        return float(p50), float(p99)

    def longest_pause_ms(self, from_ns: int, to_ns: int) -> float:
        """The longest time without a finished frame that overlaps the span (perf_counter_ns), in milliseconds."""
        ends = self.completions_ns
        pauses = [(b - a) / 1e6 for a, b in pairwise(ends) if b >= from_ns and a <= to_ns]
        return max(pauses, default=0.0)

    def _collect(self) -> None:
        while self._in_flight and self._in_flight[0].done:
            pending = self._in_flight.popleft()
            if pending.response.ok:
                self.frames += 1
                self.latencies_us.append((pending.completed_at - pending.submitted_at) / 1000)
                self.completions_ns.append(pending.completed_at)
            else:
                self.errors.append(pending.response.name)
        if self._readback is not None and self._readback.done:
            if self._readback.response.ok:
                target = self._player.scene.target
                self.picture = pixels_of(target, self._player.backings[target.resid].read())
            else:
                self.errors.append(self._readback.response.name)
            self._readback = None
