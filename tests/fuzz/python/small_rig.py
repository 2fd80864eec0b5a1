"""A device without its data plane's thread, for targets that call what the device calls."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import cast

from master.hostile_socket import closer
from native import guest_memory
from native.dataplane import Plane
from tests.dispatch_lab import Machine
from tests.plane_rig import PlaneRig

RAM = 64 << 10


class NotingPlane(Plane):
    """Counts the answers to requests that only the target knows."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: Counter[int] = Counter()

    def complete(self, request: int, response: int, payload: bytes = b"") -> bool:
        self.answers[request] += 1
        assert len(payload) < 1 << 16
        return True


class SmallRig:
    """As much of a PlaneRig as a Machine uses without a driver: the plane stands still, memory is one region."""

    def __init__(self) -> None:
        self.plane = NotingPlane()
        self.native_memory = guest_memory.GuestMemory()
        fd = os.memfd_create("guest")
        try:
            os.ftruncate(fd, RAM)
            self.native_memory.add(fd, 0, RAM, 1 << 40, 0)
        finally:
            os.close(fd)
        self.plane.set_memory(self.native_memory)


def small_machine() -> tuple[Machine, NotingPlane]:
    """Contexts, table, scanouts and dispatcher on a plane that stands still."""
    rig = SmallRig()
    return Machine(cast(PlaneRig, rig)), rig.plane


def close(machine: Machine, plane: NotingPlane) -> None:
    """All of it, with every descriptor."""
    machine.supervisor.close()
    for played in machine.supervisor.played:
        played.ring.close()
        played.staging.close()
    while closer.waiting:  # where the kernel cannot have sockets refuse descriptors
        time.sleep(0.001)
    plane.set_memory(None)
    plane.close()
