"""What happens in a soak: sessions of a VM with programs that suffer, and of vtest clients."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import psutil

from master.supervisor import LAUNCHER_GRACE
from tests.fake_vmm import FakeVmm, connect_socket
from tests.fake_vtest.client import ConnectionLost, VtestClient
from tests.fake_vtest.protocol import Box, Command, Texture
from tests.rogue.ends import End
from tests.rogue.hub import RogueWorker
from tests.rogue.programs import PROGRAMS, MakeNeighbour, Neighbour
from tests.rogue.round import Round
from tests.service_lab import gone, until
from tests.soak.services import Subject

NEIGHBOURS = 2
_CLIENT = re.compile(r"isorend: vtest \d+ ")
_SIDE = 32
_TEXTURE_BYTES = 4 * _SIDE * _SIDE
_TEXTURE = Texture(target=2, format=1, bind=2, width=_SIDE, height=_SIDE)


@dataclass
class Tally:
    """What has happened so far."""

    sessions: int = 0
    contexts: int = 0
    reconnects: int = 0
    launchers: int = 0
    clients: int = 0
    clients_lost: int = 0


class VmSessions:
    """One VM after the other on a service. Each session is a round (tests.rogue.round), or the end of the launcher; now
    and then the VM reboots or leaves, in order or not.

    descriptors, fences: what the driver had outstanding when a session was over, summed up.
    """

    def __init__(self, subject: Subject, make_neighbour: MakeNeighbour, ends: Sequence[End], tally: Tally) -> None:
        self._subject = subject
        self._make_neighbour = make_neighbour
        self._ends = ends
        self._tally = tally
        self._vmm: FakeVmm | None = None
        self._neighbours: list[Neighbour] = []
        self.descriptors = 0
        self.fences = 0

    def play(self, seed: str) -> None:
        """One session. Raises AssertionError and what the fake VMM finds wrong."""
        chance = random.Random(seed)
        vmm = self._vmm or self._connect()
        if self._launcher_is_of_age() and chance.random() < 0.05:
            self._kill_launcher(vmm)
        else:
            kinds = chance.sample(list(PROGRAMS), chance.randrange(1, 6))
            Round(self._subject.lab, vmm, self._neighbours, chance.choice(self._ends), kinds, seed).play()
            self._tally.contexts += len(kinds)
        control = vmm.gpu.control
        self.descriptors += control.queue.size - control.queue.free_descriptors
        self.fences += sum(pending.fence_id is not None for pending in control.outstanding)
        if chance.random() < 0.25:
            self._change(vmm, chance)

    def leave(self) -> None:
        """The VM is switched off."""
        if self._vmm is not None:
            self._vmm.disconnect()
            self._vmm = None

    def _connect(self) -> FakeVmm:
        self._vmm = FakeVmm.connect(self._subject.service.socket_path, wait=120.0)
        self._tally.reconnects += 1
        self._meet_neighbours(self._vmm)
        return self._vmm

    def _meet_neighbours(self, vmm: FakeVmm) -> None:
        self._neighbours = [self._make_neighbour(vmm.gpu, f"neighbour {i}") for i in range(NEIGHBOURS)]
        self._tally.contexts += NEIGHBOURS

    def _change(self, vmm: FakeVmm, chance: random.Random) -> None:
        match chance.randrange(3):
            case 0:
                vmm.reboot()
                self._meet_neighbours(vmm)
            case 1:
                self.leave()
            case 2:
                for neighbour in self._neighbours:
                    neighbour.step()
                vmm.disconnect(graceful=False)
                self._vmm = None

    def _launcher_is_of_age(self) -> bool:
        """One that dies young ends the service, and should."""
        born = psutil.Process(self._subject.lab.launcher()).create_time()
        return time.time() - born > LAUNCHER_GRACE + 1

    def _kill_launcher(self, vmm: FakeVmm) -> None:
        launcher = self._subject.lab.launcher()
        pending = [neighbour.step() for neighbour in self._neighbours]
        os.kill(launcher, signal.SIGKILL)
        vmm.gpu.wait_all(pending)
        until(lambda: gone(launcher), "the launcher's end")
        self._tally.launchers += 1
        vmm.reboot()
        self._meet_neighbours(vmm)


class VtestSessions:
    """Clients that come together, put pixels into a texture and get them back; some lose their worker meanwhile."""

    def __init__(self, subject: Subject, ends: Sequence[End], tally: Tally) -> None:
        self._subject = subject
        self._ends = ends
        self._tally = tally

    def play(self, seed: str) -> None:
        """One session. Raises AssertionError."""
        chance = random.Random(seed)
        with ExitStack() as stack:
            path = self._subject.service.socket_path
            clients = [
                stack.enter_context(VtestClient(connect_socket(path, 120.0))) for _ in range(chance.randrange(1, 4))
            ]
            for client in clients:
                client.begin()
            unlucky = chance.choice(self._ends) if chance.random() < 0.6 else None
            workers = self._workers(len(clients)) if unlucky else []
            if unlucky:
                unlucky.befall(chance.choice(workers))
            lost = sum(not self._is_served(client, chance) for client in clients)
            assert lost <= (1 if unlucky else 0), f"{lost} clients lost by {unlucky}"
            self._tally.clients += len(clients)
            self._tally.clients_lost += lost

    def _workers(self, count: int) -> list[RogueWorker]:
        def serving() -> list[RogueWorker]:
            return [worker for worker in self._subject.hub.workers if _CLIENT.match(worker.title)]

        self._subject.hub.until(lambda: len(serving()) >= count, f"{count} workers that serve clients")
        return serving()

    def _is_served(self, client: VtestClient, chance: random.Random) -> bool:
        """Whether the pixels come back as they went; False if the connection was closed."""
        pixels = chance.randbytes(_TEXTURE_BYTES)
        try:
            _, memory = client.mapped_resource(1, _TEXTURE, _TEXTURE_BYTES)
            with memory:
                box = Box(0, 0, 0, _SIDE, _SIDE, 1)
                memory[:] = pixels
                client.transfer2(Command.TRANSFER_PUT2, 1, box)
                client.busy_wait(1, wait=True)
                memory[:] = bytes(_TEXTURE_BYTES)
                client.transfer2(Command.TRANSFER_GET2, 1, box)
                client.busy_wait(1, wait=True)
                assert memory[:] == pixels, "a client's pixels are not what they were"
        except ConnectionLost:
            return False
        return True
