"""Programs on the null engine that share resources: their contents are bytes, all of one value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.device_lab import OPTIONS, DeviceLab
from tests.fake_vmm import Bind, FakeVmm, Feature, ResourceDescription, Target, commands
from tests.fake_vmm.command_queue import Pending
from tests.fake_vmm.gpu import Gpu
from tests.fake_vmm.null_engine import NullStream
from tests.service_process import ServiceProcess

ABILITIES_VARIABLE = "ISOREND_NULL_ABILITIES"
WAYS = {
    "mirrored": "",
    "memfd": "memfd",
    "exported": "export",
    "broken-export": "broken-export",
}
"""What the null engine can do (context_worker/null.py), by what comes of it when resources are shared."""

SIDE = 16
NBYTES = 4 * SIDE * SIDE
BIND = Bind.RENDER_TARGET | Bind.SAMPLER_VIEW
TEXTURE = ResourceDescription(SIDE, SIDE, bind=BIND)
FORETOLD = ResourceDescription(SIDE, SIDE, bind=BIND | Bind.SHARED)
BUFFER = ResourceDescription(NBYTES, format=64, bind=Bind.VERTEX_BUFFER, target=Target.BUFFER)
BUFFER_FORETOLD = ResourceDescription(NBYTES, format=64, bind=Bind.VERTEX_BUFFER | Bind.SHARED, target=Target.BUFFER)
TIMELINES = Feature.VIRGL | Feature.EDID | Feature.RESOURCE_UUID | Feature.CONTEXT_INIT
"""What a driver takes whose contexts have fences of their own (ring_idx)."""


@contextmanager
def null_service(start: Callable[..., ServiceProcess], way: str, *options: str) -> Iterator[DeviceLab]:
    """A service with the null engine that shares in one of WAYS."""
    service = start([*OPTIONS, "--engine=null", *options], env={ABILITIES_VARIABLE: WAYS[way]})
    yield DeviceLab(service)
    assert service.stop() == 0


@dataclass(eq=False)
class NullProgram:
    """A context. Nothing is waited for but what says so."""

    gpu: Gpu
    name: str

    def __post_init__(self) -> None:
        self.context = self.gpu.create_context(self.name)
        self.ctx_id = self.context.ctx_id

    def attach(self, resource: int) -> Pending:
        return self.gpu.submit(commands.ctx_attach_resource(self.ctx_id, resource))

    def detach(self, resource: int) -> Pending:
        return self.gpu.submit(commands.ctx_detach_resource(self.ctx_id, resource))

    def submit(self, stream: NullStream, *, fenced: bool = False, ring_idx: int | None = None) -> Pending:
        """Not waited for."""
        command = commands.submit_3d(self.ctx_id, bytes(stream))
        return self.gpu.submit(command, fenced=fenced or ring_idx is not None, ring_idx=ring_idx)

    def fill(self, resource: int, byte: int, nbytes: int = NBYTES) -> Pending:
        """All of it, with one byte."""
        return self.submit(NullStream().fill(resource, byte, nbytes))

    def check(self, resource: int, byte: int, nbytes: int = NBYTES, ring_idx: int | None = None) -> Pending:
        """The answer is an error if there is another byte in it."""
        return self.submit(NullStream().check(resource, byte, nbytes), fenced=True, ring_idx=ring_idx)

    def sees(self, resource: int, byte: int, nbytes: int = NBYTES) -> bool:
        """Whether all of it is that byte. Waited for."""
        return self.gpu.wait(self.check(resource, byte, nbytes)).ok

    def hang(self) -> Pending:
        """Does nothing more from then on. Answered at once, for there is no fence."""
        return self.submit(NullStream().hang())

    def finish(self) -> None:
        """Until all that it has sent is done."""
        self.gpu.wait(self.submit(NullStream(), fenced=True)).check("a fence")

    def destroy(self) -> None:
        self.context.destroy()


def create(gpu: Gpu, what: ResourceDescription = TEXTURE) -> int:
    """A resource, in no context."""
    return gpu.create_resource_3d(what).resource_id


def share(gpu: Gpu, what: ResourceDescription = TEXTURE, count: int = 2) -> tuple[int, list[NullProgram]]:
    """A resource and so many programs that have it."""
    resource = create(gpu, what)
    programs = [NullProgram(gpu, f"program {number}") for number in range(count)]
    for program in programs:
        program.attach(resource)
    return resource, programs


@contextmanager
def null_guest(lab: DeviceLab, **arguments: object) -> Iterator[FakeVmm]:
    """A VM without a display; once it has left, the service holds what it held before."""
    before = lab.wait_until_idle()
    with lab.vmm(display=False, **arguments) as vmm:
        yield vmm
    lab.check_running()
    lab.wait_for_footprint(before)
