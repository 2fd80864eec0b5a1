"""Guest programs for a VM in which workers end: victims that do one thing all the time, and their neighbours."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Final

import numpy as np

from tests.fake_vmm import Box, GuestContext, ResourceDescription, commands
from tests.fake_vmm.command_queue import Pending
from tests.fake_vmm.gpu import Gpu
from tests.fake_vmm.guest_objects import GuestResource
from tests.fake_vmm.scene_player import ScenePlayer
from tests.fake_vmm.virgl.many_draws import ManyDrawsScene
from tests.fake_vmm.wire import Rect, Response
from tests.rogue.hub import Hub, RogueWorker

SIDE: Final = 64
_PICTURE_BYTES: Final = 4 * SIDE * SIDE
_BOX: Final = Box(SIDE, SIDE)
_NULL_BUSY: Final = 1  # native/src/null_engine.h
_FRAMES: Final = 4


class Victim:
    """A program in a context of its own that does one kind of thing. Nothing is waited for once it is set up.

    pending: all it has submitted so far.
    """

    def __init__(self, gpu: Gpu, hub: Hub, name: str, chance: random.Random) -> None:
        self.gpu = gpu
        self.name = name
        self.pending: list[Pending] = []
        self.destroyed = False
        self._hub = hub
        self._chance = chance
        self._resources: list[int] = []
        self.set_up()

    def set_up(self) -> None:
        """Makes the context and what it draws to, and waits for that."""
        self._player = ScenePlayer(self.gpu, ManyDrawsScene(self._chance.choice([1, 40]), self.name))
        self.ctx_id = self._player.context.ctx_id
        self._resources = [resource.resid for resource in self._player.resources]
        self._worker = self._hub.worker_of(self.ctx_id)
        self._hub.until(lambda: self._worker.ready or self._worker.gone, f"a thread in {self._worker}")

    def worker(self) -> RogueWorker | None:
        """Who is to suffer for it now."""
        return self._worker

    def step(self) -> None:
        """Does its thing once or a few times."""
        raise NotImplementedError

    def question(self) -> Pending:
        """Something that only a worker can answer well."""
        return self.submit(commands.submit_3d(self.ctx_id, b""))

    def submit(self, command: commands.GpuCommand) -> Pending:
        """Fenced, as Linux does with nearly everything."""
        self.pending.append(self.gpu.submit(command, fenced=True))
        return self.pending[-1]

    @property
    def target(self) -> int:
        """The resource that it draws to."""
        return self._player.scene.target.resid

    def frame(self) -> None:
        """Draws; and keeps a null engine's worker busy for a moment."""
        busy = struct.pack("<II", _NULL_BUSY, self._chance.randrange(2))
        frame = self._player.scene.frame(0.0, self._chance.randrange(9))
        for stream in (busy, frame) if self._is_null() else (frame,):
            self.submit(commands.submit_3d(self.ctx_id, stream))

    def _is_null(self) -> bool:
        return "(null)" in self._worker.title

    def clean_up(self) -> list[Response]:
        """Destroys what is there, which has to work whatever has happened. The device's answers."""
        answers = []
        self.gpu.contexts.pop(self.ctx_id, None)
        if not self.destroyed:
            answers.append(self.gpu.ctx_destroy(self.ctx_id))
        answers += [self.gpu.resource_unref(resource) for resource in self._resources]
        if hasattr(self, "_player"):
            for backing in self._player.backings.values():
                backing.free()
        return answers


class Submitter(Victim):
    def step(self) -> None:
        for _ in range(self._chance.randrange(1, _FRAMES)):
            self.frame()


class BigSubmitter(Victim):
    """Fills its ring. The streams are of a kind that renderers skip: one command of no effect, and again."""

    def step(self) -> None:
        nothing = struct.pack("<I", 0)  # CCMD_NOP of length 0, and ISO_NULL_NOP
        for _ in range(self._chance.randrange(1, 6)):
            self.submit(commands.submit_3d(self.ctx_id, nothing * self._chance.randrange(1000, 100_000)))


class Fencer(Victim):
    def step(self) -> None:
        for _ in range(self._chance.randrange(1, 9)):
            self.submit(commands.submit_3d(self.ctx_id, b""))


class Attacher(Victim):
    """Attaches and detaches what it has none to draw with."""

    def set_up(self) -> None:
        super().set_up()
        for _ in range(3):
            spare = self.gpu.new_resource_id()
            self.gpu.resource_create_3d(spare, ResourceDescription(SIDE, SIDE)).check()
            self._resources.append(spare)

    def step(self) -> None:
        for resource in self._resources[-3:]:
            self.submit(commands.ctx_attach_resource(self.ctx_id, resource))
        self.frame()
        for resource in self._resources[-3:]:
            self.submit(commands.ctx_detach_resource(self.ctx_id, resource))


class Creator(Victim):
    """Makes resources, attaches and drops them."""

    def step(self) -> None:
        resource = self.gpu.new_resource_id()
        self.submit(commands.resource_create_3d(resource, ResourceDescription(SIDE, SIDE)))
        self.submit(commands.ctx_attach_resource(self.ctx_id, resource))
        self.frame()
        self.submit(commands.resource_unref(resource))


class Uploader(Victim):
    def step(self) -> None:
        for _ in range(self._chance.randrange(1, _FRAMES)):
            self.submit(commands.transfer_to_host_3d(self.ctx_id, self.target, _BOX))
            self.frame()


class Downloader(Victim):
    def step(self) -> None:
        for _ in range(self._chance.randrange(1, _FRAMES)):
            self.frame()
            self.submit(commands.transfer_from_host_3d(self.ctx_id, self.target, _BOX))


class Presenter(Victim):
    """Has the scanout, whose content is read back at each flush."""

    def set_up(self) -> None:
        super().set_up()
        self._player.show()

    def step(self) -> None:
        self.frame()
        self.submit(commands.resource_flush(self.target, Rect(SIDE, SIDE)))


class Leaver(Victim):
    """Destroys its context; most of its ends come when it has been asked for everything."""

    def step(self) -> None:
        self.frame()
        if not self.destroyed:
            self.submit(commands.ctx_destroy(self.ctx_id))
            self.destroyed = True


class Newcomer(Victim):
    """Makes its context, which gets a warm spare; that one is who suffers."""

    def set_up(self) -> None:
        self.ctx_id = self.gpu.new_context_id()
        self._begun = False
        self._meet_others()
        self._hub.until(self._hub.spares, "a spare")
        self._worker = self._hub.spares()[0]

    def _meet_others(self) -> None:
        """Until the hub has heard of all that serve others: what it takes for a spare is none of them then."""
        for ctx_id in self.gpu.contexts:
            self._hub.worker_of(ctx_id)

    def step(self) -> None:
        if not self._begun:
            self.submit(commands.ctx_create(self.ctx_id, self.name))
            self._begun = True
        for _ in range(self._chance.randrange(1, 6)):
            self.submit(commands.submit_3d(self.ctx_id, b""))


class Newborn(Newcomer):
    """Makes its context when the spare is taken already, so that its worker is being started when it ends."""

    def set_up(self) -> None:
        self.ctx_id = self.gpu.new_context_id()
        self._begun = False
        self._meet_others()
        self._before = list(self._hub.workers)

    def worker(self) -> RogueWorker | None:
        """The latest that was born since, if it is not another program's."""
        self._hub.pump()
        born = [worker for worker in self._hub.workers if worker not in self._before]
        return born[-1] if born and born[-1].serves in (None, self.ctx_id) else None


PROGRAMS: Final[dict[str, type[Victim]]] = {
    "submit": Submitter,
    "big-submit": BigSubmitter,
    "fence": Fencer,
    "attach": Attacher,
    "create-resource": Creator,
    "to-host": Uploader,
    "from-host": Downloader,
    "flush": Presenter,
    "destroy": Leaver,
    "create": Newcomer,
    "starting": Newborn,
}
"""By what they do, in virtio-gpu's terms."""

UNCERTAIN: Final = {"destroy", "create", "starting"}
"""Of these the worker may be another one's, or nobody's any more, when its end comes."""


# ---- neighbours


class NullNeighbour:
    """A program on the null engine. Pixels that go to its worker and come back have to be the same ones."""

    def __init__(self, gpu: Gpu, name: str) -> None:
        self._gpu = gpu
        self._context: GuestContext = gpu.create_context(name)
        what = ResourceDescription(SIDE, SIDE)
        self._resource: GuestResource = gpu.create_resource_3d(what, backing_size=_PICTURE_BYTES, scattered=True)
        self._context.attach(self._resource)
        self._rounds = 0

    def step(self) -> Pending:
        """Work that is not waited for."""
        return self._context.submit(struct.pack("<I", 0))

    def check(self) -> None:
        """What lies in staging memory is what comes back, as the null engine leaves it alone."""
        self._rounds += 1
        pattern = random.Random(self._rounds).randbytes(_PICTURE_BYTES)
        place = (self._context.ctx_id, self._resource.resource_id, _BOX)
        self._resource.pixels.write(pattern)
        self._gpu.transfer_to_host_3d(*place).check()
        self._resource.pixels.write(bytes(_PICTURE_BYTES))
        self._gpu.transfer_from_host_3d(*place).check()
        assert self._resource.pixels.read(0, _PICTURE_BYTES) == pattern


class VirglNeighbour:
    """A program on virgl. Its pictures have to be those of an undisturbed run, which is had when it is made."""

    def __init__(self, gpu: Gpu, name: str) -> None:
        self._gpu = gpu
        self._player = ScenePlayer(gpu, ManyDrawsScene(64, name))
        self._undisturbed = [self._picture(index) for index in range(_FRAMES)]
        assert not (self._undisturbed[0] == self._undisturbed[1]).all()
        self._rounds = 0

    def _picture(self, index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        self._gpu.wait(self._player.frame(0.0, index)).check()
        return self._player.picture()

    def step(self) -> Pending:
        """Work that is not waited for."""
        return self._player.frame(0.0, self._rounds % _FRAMES)

    def check(self) -> None:
        """One more picture."""
        self._rounds += 1
        index = self._rounds % _FRAMES
        assert (self._picture(index) == self._undisturbed[index]).all()


Neighbour = NullNeighbour | VirglNeighbour
MakeNeighbour = Callable[[Gpu, str], Neighbour]
