"""The real thing: a worker in its sandbox behind the supervisor and the data plane, and a guest that has it draw."""

import asyncio
import re
import struct
from pathlib import Path
from typing import Final, TypeVar

from ipc.messages import CreateContext, EngineName
from master.doctor.findings import Finding
from master.doctor.guest import TrialGuest
from master.doctor.virgl_caps import faults_of, glsl_level
from master.lane_worker import LaneWorker, LaneWorkers
from master.launch import LaunchSettings, Sandbox
from master.supervisor import NoWorkers, Supervisor
from master.virtio_gpu import CapsetId, ResponseType
from native.dataplane import COMPLETE, LaneBroken, Plane, Status, WorkDone

T = TypeVar("T")

START_TIMEOUT_S: Final = 60.0
WORK_TIMEOUT_S: Final = 30.0
SOFTWARE: Final = re.compile(r"llvmpipe|softpipe|swrast|software", re.IGNORECASE)
_CTX_ID: Final = 1
_TOKEN: Final = 1
_CREATE_SUB_CTX: Final = 29  # VIRGL_CCMD_*, virgl_protocol.h
_SET_SUB_CTX: Final = 28
STREAM: Final = struct.pack("<4I", _CREATE_SUB_CTX | 1 << 16, 1, _SET_SUB_CTX | 1 << 16, 1)
"""What every guest's driver starts with: a GL context of its own, and its choice."""


class TrialFailed(Exception):
    """The worker did not do its part; the text is for the user."""


async def run_trial(render_node: Path | None) -> list[Finding]:
    """What a worker of the default settings says of itself and does, as far as it gets."""
    trial = Trial(asyncio.get_running_loop(), LaunchSettings(render_node=render_node, log_level="ERROR"))
    findings: list[Finding] = []
    try:
        worker = await trial.start()
        findings += [_worker(worker), _gpu(worker, render_node), _capset(worker)]
        await trial.work()
        findings.append(Finding("context, submit and fence", True, True, "executed and signalled"))
    except (TrialFailed, NoWorkers, OSError) as reason:
        name = "context, submit and fence" if findings else "sandboxed worker"
        hint = "see the lines above, or what a service logs with --log-level=debug"
        findings.append(Finding(name, False, True, str(reason), hint))
    finally:
        trial.close()
    return findings


def _worker(worker: LaneWorker) -> Finding:
    ready = worker.ready
    return Finding("sandboxed worker", True, True, f"{worker.renderer()}; {ready.version if ready else ''}")


def _gpu(worker: LaneWorker, wanted: Path | None) -> Finding:
    """Rendering in software where a GPU was asked for is a failure."""
    if not SOFTWARE.search(worker.renderer()):
        return Finding("GPU", True, False, "a GPU renders")
    hint = "give a GPU by --render-node, and see that its driver is installed" if wanted is None else "see its driver"
    return Finding("GPU", False, wanted is not None, "a software renderer: programs will be slow", hint)


def _capset(worker: LaneWorker) -> Finding:
    name = "capability sets"
    found = ", ".join(f"{capset.capset_id}.{capset.version}" for capset in worker.capsets) or "none"
    data = next((capset.data for capset in worker.capsets if capset.capset_id == CapsetId.VIRGL2), None)
    hint = "guests would have no 3D, or wrong pictures: try another version of virglrenderer or Mesa"
    if data is None:
        return Finding(name, False, True, f"no virgl 2 (found: {found})", hint)
    faults = faults_of(data)
    if faults:
        return Finding(name, False, True, f"virgl 2 cannot be right: {', '.join(faults)}", hint)
    return Finding(name, True, True, f"{found}; virgl 2 has {len(data)} bytes, GLSL {glsl_level(data)}")


def _complaint(worker: LaneWorker) -> str:
    return f"; the worker complains: {worker.faults[-1]}" if worker.faults else ""


class Trial:
    """A plane, a supervisor and one worker, until close()."""

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: LaunchSettings) -> None:
        assert settings.sandbox is Sandbox.ENFORCE
        self._loop = loop
        self._plane = Plane()
        self._failed: asyncio.Future[None] = loop.create_future()
        self._created: asyncio.Future[Status] = loop.create_future()
        workers = LaneWorkers(self._plane, EngineName.VIRGL, loop)
        self._supervisor = Supervisor(loop, workers, 0, settings, self._fail)
        self._plane.start()
        loop.add_reader(self._plane, self._pump)

    async def start(self) -> LaneWorker:
        """A worker that serves. Raises TrialFailed, NoWorkers, OSError."""
        starting = self._loop.create_task(self._supervisor.start())
        await asyncio.wait((starting, self._failed), timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            self._check()
            raise TrialFailed(f"not ready after {START_TIMEOUT_S:g} s")
        return starting.result()

    async def work(self) -> None:
        """A context, and in it a submit with a fence. Raises TrialFailed, OSError."""
        worker = self._supervisor.take()
        self._plane.bind_lane(worker.lane, _CTX_ID)
        create = CreateContext(_CTX_ID, int(CapsetId.VIRGL2), "isorend doctor")
        self._plane.send(worker.lane, _CTX_ID, create.encode(), COMPLETE, _TOKEN)
        status = await self._limited(self._created, "the context")
        if status is not Status.OK:
            raise TrialFailed(f"the context could not be made ({status.name}){_complaint(worker)}")
        with TrialGuest(self._loop, self._plane) as guest:
            response = await self._limited(asyncio.ensure_future(guest.submit(_CTX_ID, STREAM)), "the fence")
        if response is not ResponseType.OK_NODATA:
            raise TrialFailed(f"the submit was answered {response.name}{_complaint(worker)}")
        if worker.faults:
            raise TrialFailed(f"the submit was executed{_complaint(worker)}")

    def close(self) -> None:
        self._failed.cancel()
        self._supervisor.close()
        self._loop.remove_reader(self._plane)
        self._plane.close()

    async def _limited(self, future: "asyncio.Future[T]", what: str) -> T:
        await asyncio.wait((future, self._failed), timeout=WORK_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            future.cancel()
            self._check()
            raise TrialFailed(f"{what} did not come within {WORK_TIMEOUT_S:g} s")
        return future.result()

    def _pump(self) -> None:
        while (event := self._plane.take()) is not None:
            if isinstance(event, WorkDone) and event.token == _TOKEN and not self._created.done():
                self._created.set_result(event.status)
            elif isinstance(event, LaneBroken):
                self._fail("the worker broke the rules of its ring")

    def _fail(self, why: str) -> None:
        if not self._failed.done():
            self._failed.set_exception(TrialFailed(why))

    def _check(self) -> None:
        """Raises what has failed."""
        if self._failed.done():
            self._failed.result()
