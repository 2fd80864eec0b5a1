"""A dispatcher and all that it stands on: a real plane and table, a driver and workers that are played by the test."""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ipc import messages
from ipc.channel import Channel, channel_pair
from ipc.errors import ChannelError
from ipc.messages import CONTROL, CreateContext, Handle, Message
from master.blame import Cause, CauseKind
from master.capsets import Capset
from master.contexts import Contexts
from master.dispatch import Dispatcher
from master.display import DisplayInfoCallback, EdidCallback, Headless
from master.host_window import HostWindow
from master.hostile_socket import refuse_descriptors
from master.lane_worker import LaneWorker
from master.picture_source import PictureSource
from master.scanout import Scanouts
from master.virtio_gpu import Feature
from master.wire import DisplayMode
from master.wire import Rect as MasterRect
from native.dataplane import Command, WorkDone
from native.owned_fd import OwnedFd
from resource_table import Abilities, ResourceTable
from tests.contexts_lab import plain_contexts
from tests.fake_vmm import GpuCommand, Resp, Response, commands
from tests.fake_vmm.command_queue import Pending
from tests.plane_rig import LIMIT, PlaneRig, PlayedWorker, Record, plane_rig

SIZE = 64
PIXEL_BYTES = 4 * SIZE * SIZE
WINDOW_BYTES = 1 << 20
CAPSETS = [Capset(1, 1, b"one" * 10), Capset(2, 3, b"two!" * 20)]
ALL_FEATURES = Feature.VIRGL | Feature.EDID | Feature.RESOURCE_UUID | Feature.CONTEXT_INIT | Feature.RESOURCE_BLOB


class AbsentMindedDisplay(Headless):
    """Answers questions when the test says so; notes the cursor."""

    def __init__(self) -> None:
        super().__init__(1280, 800)
        self.late = False
        self.answers: list[Callable[[], None]] = []
        self.cursor: list[tuple[str, int, int]] = []
        self.shown: list[tuple[int, int]] = []

    def _say(self, answer: Callable[[], None]) -> None:
        if self.late:
            self.answers.append(answer)
        else:
            answer()

    def get_display_info(self, callback: DisplayInfoCallback) -> None:
        self._say(lambda: callback([DisplayMode(MasterRect(0, 0, 1280, 800), enabled=True)]))

    def get_edid(self, scanout_id: int, callback: EdidCallback) -> None:
        self._say(lambda: callback(b"edid" * 32 if scanout_id == 0 else None))

    def set_scanout(self, scanout_id: int, width: int, height: int) -> None:
        self.shown.append((width, height))

    def disable_scanout(self, scanout_id: int) -> None:
        self.shown.append((0, 0))

    def define_cursor(self, scanout_id: int, x: int, y: int, cursor: object) -> None:
        self.cursor.append(("defined", x, y))

    def move_cursor(self, scanout_id: int, x: int, y: int) -> None:
        self.cursor.append(("moved", x, y))

    def hide_cursor(self, scanout_id: int, x: int, y: int) -> None:
        self.cursor.append(("hidden", x, y))


class PlayedSupervisor:
    """Gives out workers that the test plays, as long as there is room."""

    def __init__(self, rig: PlaneRig) -> None:
        self._rig = rig
        self.owner: Contexts | None = None
        self.played: list[PlayedWorker] = []
        self.taken: list[LaneWorker] = []
        self.ends: list[Channel] = []
        """The played workers' own ends of their channels."""
        self.exhausted = False
        self._loop = asyncio.new_event_loop()

    def take(self) -> LaneWorker:
        if self.exhausted:
            raise OSError("no room")
        played = PlayedWorker(len(self.played) + 1)
        self._rig.plane.add_lane(played.lane)
        ours, theirs = channel_pair()
        refuse_descriptors(ours)  # as the supervisor's
        channel = Channel(ours, messages.FROM_LANE_WORKER)
        channel.take_fds(False)
        worker = LaneWorker(
            played.lane.number, channel, plane=self._rig.plane, lane=played.lane, loop=self._loop
        )
        self.ends.append(Channel(theirs, messages.TO_LANE_WORKER))
        self.played.append(played)
        self.taken.append(worker)
        return worker

    def workers(self) -> list[LaneWorker]:
        return list(self.taken)

    def listen(self, worker: LaneWorker) -> None:
        """As the supervisor's."""
        try:
            while (received := worker.channel.recv_nowait()) is not None:
                worker.hear(*received)
        except ChannelError as error:
            worker.kill(Cause(kind=CauseKind.PROTOCOL, text=f"broke the channel: {error}"))

    def close(self) -> None:
        for worker, played in zip(self.taken, self.played, strict=True):
            worker.close()
            played.close()
        for end in self.ends:
            end.close()
        self._loop.close()


class Machine:
    """A driver, a plane, and all that the dispatcher stands on."""

    def __init__(self, rig: PlaneRig, abilities: Abilities | None = None) -> None:
        self.rig = rig
        self.display = AbsentMindedDisplay()
        self.supervisor = PlayedSupervisor(rig)
        self.table = ResourceTable()
        self.contexts = plain_contexts(rig.plane, self.supervisor, self.table)
        self.contexts.abilities = abilities or Abilities()
        self.pictures = PictureSource(rig.plane, self.contexts, lambda: self.guest.memory)
        self.scanouts = Scanouts(self.display, 1, self.pictures, rig.plane)
        self.window = HostWindow(WINDOW_BYTES)
        self.dispatcher = Dispatcher(
            rig.plane, self.table, self.contexts, self.scanouts, CAPSETS, self.window, guest_handles=True
        )
        self.guest = self.dispatcher.guest
        self.guest.features = ALL_FEATURES
        self.guest.memory = rig.native_memory

    def pump(self) -> None:
        """What the device does with the plane's events."""
        for event in self.rig.pump():
            if isinstance(event, Command):
                self.dispatcher.run(event)
            elif isinstance(event, WorkDone):
                assert self.contexts.work_done(event.token, event.status) or self.pictures.work_done(event)
        self.rig.plane.flush()
        self.scanouts.settle()

    def until(self, condition: Callable[[], object], awaited: str) -> None:
        """Serves the plane until the condition holds."""
        deadline = time.monotonic() + LIMIT
        self.pump()
        self.rig.gpu.reap()
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(awaited)
            select.select([self.rig.plane], [], [], 0.01)  # what the plane answers itself does not show here
            self.pump()
            self.rig.gpu.reap()

    def submit(self, command: GpuCommand, *, fenced: bool = False) -> Pending:
        """The command has been placed, and answered if that takes nobody else."""
        before = self.placed()
        pending = self.rig.gpu.submit(command, fenced=fenced)
        self.until(lambda: pending.done or self.placed() > before, f"{command.name} at the dispatcher or answered")
        self.rig.gpu.reap()
        return pending

    def placed(self) -> int:
        """Commands that came here so far."""
        return sum(isinstance(event, Command) for event in self.rig.events)

    def answer(self, command: GpuCommand) -> Response:
        """The answer to a command that is answered at once."""
        pending = self.submit(command)
        assert pending.done, f"{command.name} is not answered"
        return pending.response

    def code(self, command: GpuCommand) -> Resp:
        return Resp(self.answer(command).type)

    def ok(self, *wanted: GpuCommand) -> None:
        for command in wanted:
            assert self.code(command) is Resp.OK_NODATA, command

    def context(self, ctx_id: int) -> PlayedWorker:
        """A context, made; its worker."""
        self.ok(commands.ctx_create(ctx_id, "program"))
        worker = self.supervisor.played[-1]
        record, message = control(worker)
        assert message == CreateContext(ctx_id, 0, "program")
        worker.complete(record.seq)
        return worker

    def backed(self, resource_id: int, nbytes: int = PIXEL_BYTES) -> int:
        """Attaches guest memory to a resource; where it lies."""
        gpa = self.rig.memory.allocate(nbytes)
        self.ok(commands.resource_attach_backing(resource_id, [(gpa, nbytes)]))
        return gpa

    def lose(self, ctx_id: int) -> None:
        """As the supervisor does when a worker's process has ended."""
        worker = self.contexts.get(ctx_id).worker
        worker.dead = True
        self.rig.plane.lose_lane(worker.lane)
        self.contexts.worker_gone(worker)

    def say(self, worker: PlayedWorker, message: Message, fd: OwnedFd | int | None = None) -> None:
        """A worker says something on its channel, which is heard when somebody listens."""
        self.supervisor.ends[self._number(worker)].send(message, [fd] if fd is not None else [])

    def handle(self, worker: PlayedWorker) -> tuple[int, OwnedFd]:
        """The next descriptor that a worker is sent: its ticket and itself."""
        received = self.supervisor.ends[self._number(worker)].recv_nowait()
        assert received is not None, "no descriptor has come"
        message, (fd,) = received
        assert isinstance(message, Handle)
        return message.ticket, fd

    def no_handle(self, worker: PlayedWorker) -> bool:
        """Whether nothing has come for a worker."""
        return self.supervisor.ends[self._number(worker)].recv_nowait() is None

    def _number(self, worker: PlayedWorker) -> int:
        return self.supervisor.played.index(worker)

    def lane_worker(self, worker: PlayedWorker) -> LaneWorker:
        """A played worker, as the master sees it."""
        return self.supervisor.taken[self._number(worker)]


def control(worker: PlayedWorker) -> tuple[Record, Message]:
    """The next record, which is a control message."""
    record = worker.wait()
    return record, messages.decode(record.payload, CONTROL)


@contextmanager
def dispatch_machine(abilities: Abilities | None = None) -> Iterator[Machine]:
    """A Machine that is closed. abilities: what its workers can do."""
    with plane_rig() as rig:
        machine = Machine(rig, abilities)
        try:
            yield machine
        finally:
            machine.supervisor.close()
