"""Memory that changes under the device's hands: it copies first and looks then, so a command is one thing, not two."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.fake_vmm import PAGE_SIZE, Box, GpuCommand, GuestBuffer, Rect, Segment, commands, wire
from tests.fake_vmm.virtqueue import F_INDIRECT, F_NEXT, F_WRITE, Descriptor, write_table
from tests.hostile.conftest import Guest


@contextmanager
def scribbling(guest: Guest, gpa: int, length: int) -> Iterator[None]:
    """Another of the guest's processors writes random bytes there all the time."""
    view = guest.vmm.memory.view(gpa, length)
    random_bytes = random.Random(1)
    stop = threading.Event()

    def scribble() -> None:
        while not stop.is_set():
            for _ in range(50):
                at = random_bytes.randrange(length)
                view[at] = random_bytes.choice((0, 1, 2, 0xFF, random_bytes.randrange(256)))

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_pixels_change_during_transfers(throwaway: Guest) -> None:
    segments = throwaway.texture.pixels.segments()
    with scribbling(throwaway, *segments[0]):
        for _ in range(200):
            throwaway.gpu.transfer_to_host_3d(
                throwaway.context.ctx_id, throwaway.texture.resource_id, Box(64, 32)
            ).check()
            throwaway.gpu.transfer_from_host_3d(
                throwaway.context.ctx_id, throwaway.texture.resource_id, Box(64, 32)
            ).check()


@pytest.mark.parametrize(
    "make",
    [
        lambda g: commands.transfer_to_host_3d(g.context.ctx_id, g.texture.resource_id, Box(64, 32)),
        lambda g: commands.submit_3d(g.context.ctx_id, bytes(64)),
        lambda g: commands.transfer_to_host_2d(g.picture.resource_id, Rect(64, 64)),
        lambda g: commands.set_scanout(0, g.picture.resource_id, Rect(64, 64)),
        lambda g: commands.resource_flush(g.picture.resource_id, Rect(64, 64)),
        lambda g: commands.resource_attach_backing(g.bare.resource_id, [(8192, 4096)]),
    ],
    ids=["transfer 3D", "submit", "transfer 2D", "scanout", "flush", "attach"],
)
def test_commands_change_while_they_are_looked_at(throwaway: Guest, make: Callable[[Guest], GpuCommand]) -> None:
    """Whatever is made of them (any command may come of it, in any context), it is one thing and not two."""
    queue = throwaway.gpu.control.queue
    command = make(throwaway)
    payload = command.payload or b""
    assert not isinstance(payload, GuestBuffer)
    request = wire.HEADER.pack(command.type, 0, 0, command.ctx_id, 0) + command.body + bytes(payload)
    gpa = queue.memory.allocate(PAGE_SIZE)
    response = queue.memory.allocate(PAGE_SIZE)
    # The type stays, so that no context of the neighbour's is destroyed by chance.
    with scribbling(throwaway, gpa + 4, len(request) - 4):
        for _ in range(300):
            queue.memory.write(gpa, request)
            head = queue.add([Segment(gpa, len(request)), Segment(response, PAGE_SIZE, writable=True)])
            queue.kick(force=True)
            throwaway.gpu.control.wait_used(head)
            code = int.from_bytes(queue.memory.read(response, 4), "little")
            assert 0x1100 <= code <= 0x1205


def test_descriptors_change_while_they_are_walked(throwaway: Guest) -> None:
    """An indirect table whose entries flip between chains, loops and addresses outside RAM."""
    queue = throwaway.gpu.control.queue
    memory = queue.memory
    gpa, table, response = (memory.allocate(PAGE_SIZE) for _ in range(3))
    memory.write(gpa, (0x0100).to_bytes(4, "little") + bytes(PAGE_SIZE - 4))
    entries = [Descriptor(gpa, 24, F_NEXT, i + 1) for i in range(31)] + [Descriptor(response, 1024, F_WRITE)]
    with scribbling(throwaway, table, 16 * len(entries)):
        for _ in range(300):
            write_table(memory, table, entries)
            (number,) = queue.take_descriptors(1)
            queue.write_descriptor(number, Descriptor(table, 16 * len(entries), F_INDIRECT))
            queue.push(number, (number,))
            queue.kick(force=True)
            throwaway.gpu.control.wait_used(number)
