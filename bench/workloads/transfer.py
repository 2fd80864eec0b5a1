"""Transfers between guest memory and resources, both ways, 4 KiB to 32 MiB.

"null" takes the pixels and does nothing with them: what is measured is their way through guest memory and the worker's
staging memory. "virgl" puts them into a texture. The 2D cases have a peer, which the 3D ones lack as SUBMIT_3D does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing

from bench.contenders import QEMU_NAME, Contender, start_isorend, start_qemu
from bench.limits import MEMCPY, CopyRate
from bench.workload import Better, Measure, Settings, Step
from bench.workloads.submit import size_name
from tests.fake_vmm import Box, GpuCommand, GuestContext, GuestResource, Rect, ResourceDescription, commands

# Width and height of textures of 4 bytes a pixel.
_SHAPES = ((32, 32), (128, 128), (512, 512), (1024, 1024), (4096, 2048))
_BYTES_A_PIXEL = 4
_OUTSTANDING = 8
_RAM = 1 << 30  # sparse: enough that scattered pages leave long runs free
_WARM_UP_S = 0.02


class _Texture:
    """A texture of one context, scattered over guest memory as Linux's allocations are after some time."""

    def __init__(self, context: GuestContext, width: int, height: int) -> None:
        self.size = _BYTES_A_PIXEL * width * height
        self._context = context
        self._stride = _BYTES_A_PIXEL * width
        self._box = Box(width, height)
        self.resource: GuestResource = context.gpu.create_resource_3d(
            ResourceDescription(width, height), backing_size=self.size, scattered=True
        )
        context.attach(self.resource)

    def command(self, *, to_host: bool) -> GpuCommand:
        make = commands.transfer_to_host_3d if to_host else commands.transfer_from_host_3d
        return make(self._context.ctx_id, self.resource.resource_id, self._box, stride=self._stride)


class Transfer:
    """TRANSFER_TO_HOST_3D, TRANSFER_FROM_HOST_3D, TRANSFER_TO_HOST_2D."""

    name = "transfer"
    summary = "transfers of 4 KiB to 32 MiB to and from textures, and in 2D"
    unit = "MB/s"
    better: Better = "higher"

    def open(self, settings: Settings, stack: ExitStack) -> Sequence[Step]:
        self._seconds = settings.sample_seconds
        engines = {
            "null": start_isorend(stack, "--engine=null", ram=_RAM),
            "virgl": start_isorend(stack, ram=_RAM),
        }
        steps = [step for engine, side in engines.items() for step in self._steps(engine, side)]
        peer = start_qemu(stack, ram=_RAM)
        steps += [self._step_2d(engines["null"], peer, shape) for shape in _SHAPES]
        for side in (*engines.values(), peer):
            side.settle()
        return steps

    def _steps(self, engine: str, side: Contender) -> list[Step]:
        context = side.vmm.gpu.create_context("bench")
        textures = [_Texture(context, *shape) for shape in _SHAPES]
        return [
            self._step(
                f"{engine}, {'to' if to_host else 'from'} host, {size_name(texture.size)}",
                side, texture.command(to_host=to_host), texture.size,
            )
            for to_host in (True, False)
            for texture in textures
        ]  # fmt: skip

    def _step(self, case: str, side: Contender, command: GpuCommand, size: int) -> Step:
        return Step(case, self._bytes(case, side, command, size), limit=self._copies(case, size), limit_name=MEMCPY)

    def _step_2d(self, side: Contender, peer: Contender, shape: tuple[int, int]) -> Step:
        size = _BYTES_A_PIXEL * shape[0] * shape[1]
        case = f"2D, to host, {size_name(size)}"
        ours, theirs = (self._bytes(case, each, _transfer_2d(each, shape), size) for each in (side, peer))
        return Step(case, ours, theirs, QEMU_NAME, self._copies(case, size), MEMCPY)

    def _bytes(self, case: str, side: Contender, command: GpuCommand, size: int) -> Measure:
        def measure() -> Mapping[str, float]:
            with closing(side.driver([command] * _OUTSTANDING, fenced=True)) as driver:
                driver.window(_OUTSTANDING, min(_WARM_UP_S, self._seconds))
                return {case: driver.window(_OUTSTANDING, self._seconds).rate * size / 1e6}

        return measure

    def _copies(self, case: str, size: int) -> Measure:
        def measure() -> Mapping[str, float]:
            with closing(CopyRate(size, size)) as copies:
                return {case: copies.measure(size, self._seconds / 2) / 1e6}

        return measure


def _transfer_2d(side: Contender, shape: tuple[int, int]) -> GpuCommand:
    resource = side.vmm.gpu.create_resource_2d(*shape, scattered=True)
    return commands.transfer_to_host_2d(resource.resource_id, Rect(*shape))


WORKLOAD = Transfer()
