"""Two contexts share a full picture every frame: one draws it, the other composes it into its own.

isorend is measured in each way to share, against one process for all contexts (`--share-worker`) on the same Mesa, in
which the picture is one object. Bytes that are copied for it are counted by the workers in the mirrors' headers
(native/src/mirror.h), which are read here through /proc.

Besides there is the cost of a flush: of a guest blob, which is shown as it is, against a 2D resource.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from bench.contenders import Contender, start_isorend
from bench.workload import Better, Measure, Settings, Step, WorkloadUnavailable
from tests import newer_mesa
from tests.fake_vmm import BlobFlag, BlobMem, Feature, Rect, commands
from tests.fake_vmm.virgl.encoder import CommandStream
from tests.fake_vmm.virgl.protocol import Bind, ClearBuffer
from tests.sharing_lab import DRAW, PICTURE, Program, canvas

_ONE_PROCESS = "one process for all contexts (--share-worker)"
_TRANSFERRED = "TRANSFER_TO_HOST_2D and RESOURCE_FLUSH of a 2D resource"
_SIZE = (1920, 1080)
_BYTES = 4 * _SIZE[0] * _SIZE[1]
_FRAMES_IN_FLIGHT = 2
_PACE = 30
_BLOB_FEATURES = Feature.VIRGL | Feature.EDID | Feature.RESOURCE_BLOB
_RAM = 512 << 20
_COPIED = struct.Struct("=Q")
_COPIED_AT = 8  # struct iso_mirror_header
_MIRROR = "/memfd:isorend-mirror"


@dataclass(frozen=True)
class Way:
    """A way to share. foretold: the guest says at creation that others will have the picture, so that it can be made in
    memory of all. newer_mesa: on one that imports such memory (tests/newer_mesa.py)."""

    name: str
    options: Sequence[str] = ()
    foretold: bool = False
    newer_mesa: bool = False


_WAYS = (
    Way("mirrored", ["--sharing=mirrored"]),
    Way("mirrored, newer Mesa", ["--sharing=mirrored"], newer_mesa=True),
    Way("zero copy, newer Mesa", foretold=True, newer_mesa=True),
)


class _Pair:
    """A painter and a composer on a service of their own."""

    def __init__(
        self, stack: ExitStack, options: Sequence[str], foretold: bool = False, env: Mapping[str, str] | None = None
    ) -> None:
        self.contender = start_isorend(stack, "--spares=1", *options, ram=_RAM, env=env)
        gpu = self.contender.vmm.gpu
        picture = canvas(gpu, *_SIZE, PICTURE | Bind.SHARED if foretold else PICTURE)
        screen = canvas(gpu, *_SIZE, PICTURE)
        painter, composer = Program(gpu, "painter", picture), Program(gpu, "composer", picture, screen)
        painter.paint(picture, (0, 0, 0, 0))
        composer.prepare_to_draw(screen, picture)
        gpu.wait_all(gpu.control.outstanding)
        self._frames = []
        for number in range(_FRAMES_IN_FLIGHT):
            paint = CommandStream().clear(ClearBuffer.COLOR0, (number / _FRAMES_IN_FLIGHT, 0.5, 1.0, 1.0))
            self._frames.append(commands.submit_3d(painter.ctx_id, bytes(paint)))
            self._frames.append(commands.submit_3d(composer.ctx_id, DRAW))

    def frames(self, seconds: float) -> tuple[float, float]:
        """Frames a second, and bytes copied for each."""
        with closing(self.contender.driver(self._frames, fenced=True)) as driver:
            driver.window(len(self._frames), seconds / 5)
            before = copied(self.contender.back_end.pid)
            run = driver.window(len(self._frames), seconds)
            done = copied(self.contender.back_end.pid) - before
        return run.rate / 2, done / (run.commands / 2)


def copied(pid: int) -> int:
    """Bytes that workers say they have copied to and from the mirrors that a service has now."""
    total, seen = 0, set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{name}"
        if not os.readlink(path).startswith(_MIRROR):
            continue
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            inode = os.fstat(fd).st_ino
            if inode not in seen:
                seen.add(inode)
                total += _COPIED.unpack(os.pread(fd, _COPIED.size, _COPIED_AT))[0]
        finally:
            os.close(fd)
    return total


class Sharing:
    """Frames a second of a picture that two contexts share, bytes copied for each, flushes of guest blobs."""

    name = "sharing"
    summary = "a 1080p picture that one context draws and another composes, every frame; flushes of guest blobs"
    unit = "frames/s"
    better: Better = "higher"

    def open(self, settings: Settings, stack: ExitStack) -> Sequence[Step]:
        self._seconds = settings.sample_seconds
        newer = newer_mesa.find()
        if newer is None:
            raise WorkloadUnavailable("there is no newer Mesa to share without copies: `make test` sets it up")
        environments = {False: {}, True: newer}
        peers = {mesa: _Pair(stack, ["--share-worker"], env=env) for mesa, env in environments.items()}
        steps = []
        for way in _WAYS:
            pair = _Pair(stack, way.options, way.foretold, environments[way.newer_mesa])
            steps += self._steps(way.name, pair, peers[way.newer_mesa])
        steps.append(self._flush_step(stack))
        return steps

    def _steps(self, name: str, pair: _Pair, one_process: _Pair) -> list[Step]:
        """The second tells what the first has counted."""
        counted = {}

        def frames(of: _Pair) -> Measure:
            def measure() -> Mapping[str, float]:
                of.contender.settle()
                rate, counted[of] = of.frames(self._seconds)
                return {name: rate}

            return measure

        def bytes_a_frame(of: _Pair) -> Measure:
            return lambda: {f"{name}, copied for a frame": counted[of] / 1e6}

        return [
            Step(name, frames(pair), frames(one_process), _ONE_PROCESS),
            Step(f"{name}, copied", bytes_a_frame(pair), unit="MB", better="lower"),
        ]

    def _flush_step(self, stack: ExitStack) -> Step:
        """Nobody would see what a higher rate costs: flushes that the display has no time for are shown together."""
        case = f"1080p on the display, {_PACE} flushes a second: CPU time for one"

        def cost(flush: Callable[[], None], side: Contender) -> Measure:
            def measure() -> Mapping[str, float]:
                side.settle()
                return {case: _cpu_ms(side, flush, max(1, round(_PACE * self._seconds)))}

            return measure

        sides = [start_isorend(stack, "--engine=null", ram=_RAM, features=_BLOB_FEATURES) for _ in range(2)]
        for side in sides:
            side.sink_display(stack)
        ours, peer = cost(_flush_of_blob(sides[0]), sides[0]), cost(_flush_of_2d(sides[1]), sides[1])
        return Step(case, ours, peer, _TRANSFERRED, unit="ms", better="lower")


def _cpu_ms(side: Contender, flush: Callable[[], None], count: int) -> float:
    """Of the service, for each of so many flushes at a steady pace."""
    before, due = _cpu_ns(side.back_end.pid), time.perf_counter()
    for _ in range(count):
        flush()
        due += 1 / _PACE
        time.sleep(max(0.0, due - time.perf_counter()))
    return (_cpu_ns(side.back_end.pid) - before) / count / 1e6


def _cpu_ns(pid: int) -> int:
    """All threads' time on a processor so far (Documentation/scheduler/sched-stats.rst)."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir())


def _flush_of_blob(side: Contender) -> Callable[[], None]:
    """Of a guest blob that is shown."""
    gpu = side.vmm.gpu
    blob = gpu.create_blob(_BYTES, mem=BlobMem.GUEST, flags=BlobFlag(0), scattered=True)
    blob.show_as(*_SIZE)
    return lambda: gpu.flush(blob.resource_id, Rect(*_SIZE)).check("RESOURCE_FLUSH")


def _flush_of_2d(side: Contender) -> Callable[[], None]:
    """Of a 2D resource that is shown, with the transfer that it needs."""
    resource = side.vmm.gpu.create_resource_2d(*_SIZE, scattered=True)
    resource.show()

    def flush() -> None:
        resource.upload_2d()
        side.vmm.gpu.flush(resource.resource_id, resource.rect).check("RESOURCE_FLUSH")

    return flush


WORKLOAD = Sharing()
