"""Messages between master, launcher and workers, at both ends: datagrams of any bytes with any descriptors.

What is decoded is encoded again to the same bytes; a worker's description of itself is taken in as the master does, and
a worker decides about control records, whose descriptors may be others than they say.
"""

import os
import socket
from contextlib import suppress
from typing import cast

from context_worker.engine import Engine, Export
from context_worker.worker import Decisions
from ipc import messages
from ipc.channel import Channel, channel_pair
from ipc.errors import ChannelClosed, ProtocolError
from ipc.messages import BlobObject, CreateBlob, Handle, Message, ObjectToResource, ResourceToObject
from master.worker import FAULTS_KEPT, MAX_CAPSETS, Worker
from native.engines import Consumer, Control, Status
from native.owned_fd import OwnedFd
from native.storage import Layout, StorageKind
from tests.fuzz.python.choices import Choices, open_fds

MOST_FDS = 8
LISTENERS = (
    messages.FROM_WORKER,
    messages.FROM_LAUNCHER,
    messages.TO_LAUNCHER,
    messages.TO_VTEST_WORKER,
    messages.CONTROL,
    messages.FROM_LANE_WORKER,
    messages.TO_LANE_WORKER,
)


class PlayedEngine:
    """Does everything, successfully."""

    name = messages.EngineName.NULL

    def create_context(self, message: Message) -> Status:
        return Status.OK

    def destroy_context(self, ctx_id: int) -> Status:
        return Status.OK

    def attach_resource(self, ctx_id: int, message: Message) -> Status:
        return Status.OK

    def detach_resource(self, ctx_id: int, resource_id: int) -> Status:
        return Status.INVALID_RESOURCE

    def resource_to_object(self, ctx_id: int, message: Message, storage: OwnedFd) -> Status:
        storage.close()
        return Status.OK

    def object_to_resource(self, ctx_id: int, message: ObjectToResource) -> tuple[Status, Export | None]:
        if message.resource_id & 1:
            return Status.INVALID_RESOURCE, None
        fd = OwnedFd(os.open(os.devnull, os.O_RDONLY))
        return Status.OK, Export(fd, StorageKind.MEMFD, Layout(4096), 1)

    def create_blob(
        self, ctx_id: int, message: CreateBlob, storage: OwnedFd | None
    ) -> tuple[Status, BlobObject | None]:
        if storage is not None:
            storage.close()
        if message.resource_id & 1:
            return Status.INVALID_PARAMETER, None
        return Status.OK, BlobObject(message.resource_id, *[0] * 14)


class PlayedConsumer:
    """Counts what is finished."""

    def __init__(self) -> None:
        self.finished = 0

    def finish(self, status: Status) -> None:
        self.finished += 1

    def drain(self, timeout_ms: int) -> bool:
        return True


def run(data: bytes) -> None:
    before = open_fds()
    choices = Choices(data)
    accepts = choices.of(LISTENERS)
    ours, theirs = channel_pair()
    channel = Channel(theirs, accepts)
    worker = Worker(1, channel)
    consumer = PlayedConsumer()
    master, its_end = channel_pair()
    own_channel = Channel(its_end, messages.TO_LANE_WORKER)
    engine = cast(Engine, PlayedEngine())
    decisions = Decisions(engine, cast(Consumer, consumer), own_channel, bool(choices.byte() & 1))
    try:
        while choices.more():
            _send(ours, choices, accepts)
            message = _receive(channel)
            if message is None:
                break  # nobody listens any longer
            if accepts is messages.FROM_WORKER:
                _hear(worker, message)
            elif accepts is messages.CONTROL:
                _hand_over(master, message, choices)
                if not _decide(decisions, consumer, message):
                    break  # the worker ends
                _take_answer(master, message)
    finally:
        ours.close()
        master.close()
        own_channel.close()
        channel.close()  # at once; the master's may take its time
        worker.close()
    assert open_fds() == before


def _send(sock: socket.socket, choices: Choices, accepts: tuple[type[Message], ...]) -> None:
    """A datagram, of the right number, length and count of descriptors mostly."""
    how = choices.byte()
    kind = choices.of(accepts) if how < 230 else choices.of(list(messages.MESSAGES.values()))
    filled = choices.byte() + (choices.byte() if how & 1 else 0)  # bytes of the body that are not zero
    body = choices.take(min(filled, kind.size() - 4))
    data = (kind.ID.to_bytes(4, "little") + body).ljust(kind.size(), b"\0")
    if how & 15 == 15:
        data = data[: choices.number()] + choices.take(choices.byte())
    count = choices.byte() % MOST_FDS if how & 31 == 30 else kind.FDS
    with open(os.devnull, "rb") as file:
        socket.send_fds(sock, [data], [file.fileno()] * count)


def _receive(channel: Channel) -> Message | None:
    """None if it was none."""
    try:
        received = channel.recv_nowait()
    except (ProtocolError, ChannelClosed):
        return None
    assert received is not None  # something was sent
    message, fds = received
    assert len(fds) == message.FDS
    for fd in fds:
        fd.close()
    again = messages.decode(message.encode(), (type(message),))
    assert again == message
    return message


def _hear(worker: Worker, message: Message) -> None:
    with suppress(ProtocolError):
        worker.hear(message, [])
    assert len(worker.capsets) <= MAX_CAPSETS and len(worker.faults) <= FAULTS_KEPT
    assert all(text.isprintable() for text in (*worker.faults, worker.renderer()))


def _hand_over(master: socket.socket, message: Message, choices: Choices) -> None:
    """The descriptor of a record, if it has one; now and then another, or what is none."""
    if not isinstance(message, ResourceToObject | CreateBlob) or not message.ticket:
        return
    how = choices.byte()
    data = Handle(message.ticket ^ (how == 200)).encode()
    with open(os.devnull, "rb") as file:
        socket.send_fds(master, [data[: how & 7] if how > 240 else data], [file.fileno()] * (1 + (how == 201)))


def _decide(decisions: Decisions, consumer: PlayedConsumer, message: Message) -> bool:
    """False if the worker finds that the master breaks the rules."""
    before = consumer.finished
    try:
        decisions.decide(Control(seq=1, ctx_id=1, payload=message.encode()))
    except ProtocolError:
        assert isinstance(message, ResourceToObject | CreateBlob) and consumer.finished == before
        return False
    assert consumer.finished == before + 1
    return True


def _take_answer(master: socket.socket, message: Message) -> None:
    """What there is to be told of a success, and nothing else."""
    channel = Channel(socket.socket(fileno=os.dup(master.fileno())), messages.FROM_LANE_WORKER)
    with channel:
        received = channel.recv_nowait()
        assert (received is not None) == (
            isinstance(message, ObjectToResource | CreateBlob) and not message.resource_id & 1
        )
        for fd in received[1] if received is not None else ():
            fd.close()
