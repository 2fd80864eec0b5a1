"""The control queue in 2D against QEMU's C back end: one fake VMM, one driver in C, one size of queue, for both.

"No-op" is RESOURCE_FLUSH of a resource that no scanout shows. The "2D mix" is a guest that flips pages, in 256
commands: two buffers of 64x64 pixels are made (RESOURCE_CREATE_2D, RESOURCE_ATTACH_BACKING with one entry), take turns
for 82 frames (1.4 s at 60 Hz) of TRANSFER_TO_HOST_2D, SET_SCANOUT and RESOURCE_FLUSH (which sends the pixels to the
VMM's display, a process that throws them away; the last one twice), and go (SET_SCANOUT off, RESOURCE_DETACH_BACKING,
RESOURCE_UNREF). That mix is what "2D command rate" means here. Making and unmaking buffers, which real guests do less
often still, has a row of its own. A batch goes with one kick, and the next waits for its last answer. The driver asks
for a call when that is there, or, in the cases "woken as Linux", at the first answer that it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

from bench.contenders import QEMU_NAME, QUEUE_SIZE, Contender, start_isorend, start_qemu
from bench.limits import BARE_QUEUE, BareQueue
from bench.ring_driver import Run
from bench.workload import Better, Measure, Settings, Step
from tests.fake_vmm import Format, GpuCommand, Rect, commands

_BATCHES = (1, 4, 16, 64, 256)
_WARM_UP_S = 0.02
_RECT = Rect(64, 64)
_BYTES = 4 * 64 * 64
_FRAMES = 82

MakeCommands = Callable[[Contender], list[GpuCommand]]


def _mix(contender: Contender) -> list[GpuCommand]:
    return list(_buffer_lives(contender, _FRAMES))


def _create_and_unref(contender: Contender) -> list[GpuCommand]:
    result = []
    for _ in range(QUEUE_SIZE // 2):
        resource = contender.vmm.gpu.new_resource_id()
        result.append(commands.resource_create_2d(resource, Format.B8G8R8X8, 64, 64))
        result.append(commands.resource_unref(resource))
    return result


def _buffer_lives(contender: Contender, frames: int) -> Iterator[GpuCommand]:
    """As many whole lives as the queue has room for."""
    gpu = contender.vmm.gpu
    pages = gpu.memory.allocate(_BYTES)  # shown again and again: its content does not matter
    for _ in range(QUEUE_SIZE // (10 + 3 * frames)):
        buffers = [gpu.new_resource_id() for _ in range(2)]
        for resource in buffers:
            yield commands.resource_create_2d(resource, Format.B8G8R8X8, _RECT.width, _RECT.height)
            yield commands.resource_attach_backing(resource, [(pages, _BYTES)])
        for frame in range(frames):
            yield commands.transfer_to_host_2d(buffers[frame % 2], _RECT)
            yield commands.set_scanout(0, buffers[frame % 2], _RECT)
            yield commands.resource_flush(buffers[frame % 2], _RECT)
        yield commands.resource_flush(buffers[1], _RECT)
        yield commands.set_scanout(0, 0, _RECT)
        for resource in buffers:
            yield commands.resource_detach_backing(resource)
            yield commands.resource_unref(resource)


def _no_op(contender: Contender) -> list[GpuCommand]:
    resource = contender.vmm.gpu.create_resource_2d(_RECT.width, _RECT.height)
    return [commands.resource_flush(resource.resource_id, _RECT)] * QUEUE_SIZE


def _transfer(contender: Contender) -> list[GpuCommand]:
    resource = contender.vmm.gpu.create_resource_2d(_RECT.width, _RECT.height)
    return [commands.transfer_to_host_2d(resource.resource_id, _RECT)] * QUEUE_SIZE


@dataclass(frozen=True, slots=True)
class _How:
    """How commands are sent."""

    batch: int
    fenced: bool = True
    eager: bool = False

    def __str__(self) -> str:
        return f"{'fenced' if self.fenced else 'unfenced'}, batch {self.batch}{', woken as Linux' * self.eager}"


_HEADLINE = _How(64)
_AS_LINUX = _How(64, eager=True)
_WAYS = [*(_How(batch, fenced) for fenced in (True, False) for batch in _BATCHES), _AS_LINUX]


class _Commands:
    """One kind of commands on one contender, made when first wanted."""

    def __init__(self, contender: Contender, make: MakeCommands) -> None:
        self._contender = contender
        self._commands = make(contender)

    def run(self, how: _How, seconds: float) -> Run:
        with closing(self._contender.driver(self._commands, fenced=how.fenced, eager=how.eager)) as driver:
            driver.batches(how.batch, min(_WARM_UP_S, seconds))
            return driver.batches(how.batch, seconds)

    def cpu_us(self, how: _How, seconds: float) -> float:
        """CPU time of all of the contender's processes, for each command."""
        with closing(self._contender.driver(self._commands, fenced=how.fenced, eager=how.eager)) as driver:
            driver.batches(how.batch, min(_WARM_UP_S, seconds))
            before = self._contender.cpu_seconds()
            run = driver.batches(how.batch, seconds)
            return (self._contender.cpu_seconds() - before) / run.commands * 1e6


class ControlQueue:
    """2D commands a second."""

    name = "control-queue"
    summary = f"2D commands, 1 to 256 with one kick, against {QEMU_NAME}"
    unit = "commands/s"
    better: Better = "higher"

    def open(self, settings: Settings, stack: ExitStack) -> Sequence[Step]:
        sides = [start_isorend(stack, "--engine=null"), start_qemu(stack)]
        for side in sides:
            side.sink_display(stack)
        self._bare = BareQueue(stack, QUEUE_SIZE)
        self._seconds = settings.sample_seconds
        mix, no_op = ([_Commands(side, make) for side in sides] for make in (_mix, _no_op))
        single = {
            "RESOURCE_CREATE_2D and _UNREF": [_Commands(side, _create_and_unref) for side in sides],
            "TRANSFER_TO_HOST_2D of 64x64": [_Commands(side, _transfer) for side in sides],
        }
        return [
            *(self._step("2D mix", mix, how) for how in _WAYS),
            *(self._step("no-op", no_op, how) for how in _WAYS),
            *(self._step(name, both, _HEADLINE) for name, both in single.items()),
            *(self._cpu_step(name, both) for name, both in (("2D mix", mix), ("no-op", no_op))),
        ]

    def _step(self, name: str, sides: Sequence[_Commands], how: _How) -> Step:
        case = f"{name}, {how}"
        ours, peer = (self._rate(case, side, how) for side in sides)
        return Step(case, ours, peer, QEMU_NAME, self._bare_rate(case, how), BARE_QUEUE)

    def _rate(self, case: str, side: _Commands, how: _How) -> Measure:
        return lambda: {case: side.run(how, self._seconds).rate}

    def _bare_rate(self, case: str, how: _How) -> Measure:
        sent = [commands.resource_flush(1, _RECT)] * QUEUE_SIZE

        def measure() -> Mapping[str, float]:
            with closing(self._bare.driver(sent, fenced=how.fenced, eager=how.eager)) as driver:
                return {case: driver.batches(how.batch, self._seconds / 2).rate}

        return measure

    def _cpu_step(self, name: str, sides: Sequence[_Commands]) -> Step:
        case = f"{name}, {_HEADLINE}: CPU time of the service"

        def cost(side: _Commands) -> Measure:
            return lambda: {case: side.cpu_us(_HEADLINE, self._seconds)}

        ours, peer = map(cost, sides)
        return Step(case, ours, peer, QEMU_NAME, unit="µs/command", better="lower")


WORKLOAD = ControlQueue()
