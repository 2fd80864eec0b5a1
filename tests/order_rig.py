"""A plane between a driver and contexts whose records are told in words, so that their order can be read.

Nothing here happens by itself: submit() and transfer() return when the plane has routed the command, and a worker
finishes what it is told to finish.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from native.texture import Rect, Texture
from tests.device_lab import until
from tests.fake_vmm import Box, commands
from tests.fake_vmm.command_queue import Pending
from tests.fake_vmm.commands import GpuCommand
from tests.plane_rig import PlaneRig, PlayedWorker, Record

TEXTURE = Texture(2, 1, 2, 16, 16, 1, 1, 0, 0, 0)
PAGE = 4096
SUBMIT, WRITE, READ, FENCE, OUT, IN, CONTROL = 1, 2, 3, 4, 5, 6, 16


def words(record: Record) -> str:
    """What a record is: "7" for a submit of the number 7, "7!" for a fenced one, "point", "out 5", "in 5", "write 5",
    "read 5" (resource 5), or the text of a message."""
    if record.type == SUBMIT:
        (number,) = struct.unpack("<I", record.payload)
        return f"{number}!" if record.flags else str(number)
    if record.type == FENCE:
        return "point"
    if record.type == CONTROL:
        return record.payload.decode()
    if record.type in (OUT, IN):
        return f"{'out' if record.type == OUT else 'in'} {PlayedWorker.copied(record)}"
    return f"{'write' if record.type == WRITE else 'read'} {PlayedWorker.transfer(record).resource_id}"


class OrderRig(PlaneRig):
    """contexts: those of open_context(), by their ids."""

    def __init__(self) -> None:
        super().__init__(control_size=512)
        self.contexts: dict[int, PlayedWorker] = {}
        self._owed: dict[PlayedWorker, list[Record]] = {}
        self._sent = 0

    def open_context(self, ctx_id: int, worker: PlayedWorker | None = None) -> PlayedWorker:
        """A context with a worker of its own, or with that of another."""
        if worker is None:
            worker = self.worker(ctx_id)
        else:
            self.plane.bind_lane(worker.lane, ctx_id)
        self.contexts[ctx_id] = worker
        self._owed.setdefault(worker, [])
        return worker

    def share(self, resource_id: int, *ctx_ids: int) -> None:
        """A resource that these contexts have."""
        self.plane.set_resource(resource_id, TEXTURE)
        for ctx_id in ctx_ids:
            self.plane.attach_resource(resource_id, ctx_id)

    # ---- the guest

    def command(self, command: GpuCommand, *, fenced: bool = False, ring_idx: int | None = None) -> Pending:
        """Submitted, and routed by the plane."""
        pending = self.gpu.submit(command, fenced=fenced, ring_idx=ring_idx)
        self._sent += 1
        until(lambda: self.plane.statistics().commands == self._sent, "the command's way")
        return pending

    def submit(self, ctx_id: int, number: int, *, fenced: bool = False, ring_idx: int | None = None) -> Pending:
        """A command stream of this number."""
        stream = struct.pack("<I", number)
        return self.command(commands.submit_3d(ctx_id, stream), fenced=fenced, ring_idx=ring_idx)

    def transfer(self, ctx_id: int, resource_id: int, *, to_host: bool = True) -> Pending:
        """Of all of a resource, whose backing this makes."""
        self.plane.set_backing(resource_id, self.entries([(self.memory.allocate(PAGE), PAGE)]))
        make = commands.transfer_to_host_3d if to_host else commands.transfer_from_host_3d
        return self.command(make(ctx_id, resource_id, Box(16, 16)))

    def readback(self, ctx_id: int, resource_id: int, token: int) -> None:
        """Of all of a resource."""
        self.plane.readback(self.contexts[ctx_id].lane, ctx_id, token, resource_id, TEXTURE, Rect(0, 0, 16, 16))

    # ---- the workers

    def take(self, ctx_id: int, most: int = 1 << 30) -> list[str]:
        """What its worker was sent and has not taken yet, in words."""
        worker, taken = self.contexts[ctx_id], list[str]()
        while len(taken) < most and (record := worker.take()) is not None:
            if record.flags:
                self._owed[worker].append(record)
            taken.append(words(record))
        return taken

    def owes(self, ctx_id: int) -> int:
        """Completions that its worker owes of what it has taken."""
        return len(self._owed[self.contexts[ctx_id]])

    def finish(self, ctx_id: int, most: int = 1 << 30) -> None:
        """Its worker completes what it took, in order; returns when the plane knows."""
        worker = self.contexts[ctx_id]
        owed = self._owed[worker]
        for record in owed[:most]:
            worker.complete(record.seq)
        del owed[:most]
        until(lambda: self.plane.progress(worker.lane).completed == worker.completed, "completions taken in")

    def work(self, ctx_id: int) -> list[str]:
        """It takes and finishes all there is, until there is no more."""
        done = list[str]()
        while taken := self.take(ctx_id):
            done += taken
            self.finish(ctx_id)
        return done

    def blocked(self, ctx_id: int) -> bool:
        """Whether it waits for others."""
        return self.plane.progress(self.contexts[ctx_id].lane).blocked

    def lose(self, ctx_id: int) -> None:
        """Its worker dies."""
        worker = self.contexts[ctx_id]
        self._owed[worker].clear()
        self.plane.lose_lane(worker.lane)


@contextmanager
def order_rig() -> Iterator[OrderRig]:
    """An OrderRig that is closed."""
    rig = OrderRig()
    try:
        yield rig
    finally:
        rig.close()
