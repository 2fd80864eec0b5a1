"""master.worker: what a worker may say of itself, and when."""

import pytest

from ipc import messages
from ipc.channel import Channel, channel_pair
from ipc.errors import ProtocolError
from ipc.messages import Capability, Capset, CapsetsDone, EngineName, Fault, Message, Ready
from master.worker import FAULTS_KEPT, MAX_CAPSETS, Worker

READY = Ready(1, EngineName.NULL, Capability(0), "renderer", "version")
CAPSET = Capset(2, 2, b"caps")


@pytest.fixture
def worker() -> Worker:
    ours, theirs = channel_pair()
    theirs.close()
    return Worker(1, Channel(ours, messages.FROM_WORKER))


def test_an_introduction(worker: Worker) -> None:
    for message in (READY, CAPSET, CAPSET, CapsetsDone()):
        assert not worker.serving
        worker.hear(message)
    assert worker.serving and worker.ready == READY and len(worker.capsets) == 2


@pytest.mark.parametrize(
    "said",
    [
        (CAPSET,),
        (CapsetsDone(),),
        (READY, READY),
        (READY, CapsetsDone(), CapsetsDone()),
        (READY, CapsetsDone(), CAPSET),
        (READY, CapsetsDone(), READY),
        (READY, *[CAPSET] * (MAX_CAPSETS + 1)),
    ],
    ids=str,
)
def test_what_comes_at_the_wrong_time_breaks_the_channel(worker: Worker, said: tuple[Message, ...]) -> None:
    for message in said[:-1]:
        worker.hear(message)
    with pytest.raises(ProtocolError):
        worker.hear(said[-1])


def test_complaints_may_come_at_any_time_and_the_latest_are_kept(worker: Worker) -> None:
    for number in range(FAULTS_KEPT + 3):
        worker.hear(Fault(1, str(number)))
    assert worker.faults == [str(number) for number in range(3, FAULTS_KEPT + 3)]
