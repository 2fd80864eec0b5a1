"""Null engines in this process, with the resources and storage that they are asked for."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from context_worker.null import ABILITIES_VARIABLE, NullEngine
from ipc.messages import AttachResource, CreateContext, ObjectToResource, ResourceToObject
from ipc.ring import RecordStatus
from native.engines import Status
from native.owned_fd import OwnedFd
from native.storage import Layout, StorageKind
from tests.consumer_bench import CHECK, FILL, ConsumerBench

BUFFER, PICTURE, VOLUME = 0, 2, 3
R8, BGRA, DXT1 = 64, 1, 105  # DXT1: 8 bytes for 4 x 4 pixels
HEADER = 4096  # of a mirror
PAGE = 4096


def resource(
    resource_id: int,
    width: int,
    height: int = 1,
    *,
    target: int = PICTURE,
    format_: int = BGRA,
    depth: int = 1,
    array_size: int = 1,
    last_level: int = 0,
    samples: int = 0,
) -> AttachResource:
    """A v1 resource."""
    sizes = (width, height, depth, array_size, last_level, samples)
    return AttachResource(resource_id, target, format_, 0, *sizes, 0)


def buffer(resource_id: int, size: int) -> AttachResource:
    """A buffer of `size` bytes."""
    return resource(resource_id, size, target=BUFFER, format_=R8)


def imported(
    made: AttachResource, nbytes: int, kind: StorageKind = StorageKind.MEMFD, offset: int = 0, stride: int = 0
) -> ResourceToObject:
    """The resource, as one that has storage."""
    layout = {"nbytes": nbytes, "offset": offset, "stride": stride, "fourcc": 0, "modifier": 0}
    return ResourceToObject(**vars(made), kind=kind, ticket=1, **layout)


def memory(nbytes: int, seals: int = fcntl.F_SEAL_SHRINK) -> OwnedFd:
    """A memfd."""
    fd = OwnedFd(os.memfd_create("storage", os.MFD_ALLOW_SEALING))
    os.ftruncate(fd.fd, nbytes)
    fcntl.fcntl(fd.fd, fcntl.F_ADD_SEALS, seals)
    return fd


def file_of(engine: NullEngine, ctx_id: int, resource_id: int) -> tuple[OwnedFd, Layout]:
    """What an object becomes that is exported."""
    status, export = engine.object_to_resource(ctx_id, ObjectToResource(resource_id, 1))
    assert status is Status.OK and export is not None
    assert export.kind is StorageKind.MEMFD and export.map_info == 1
    return export.fd, export.layout


class NullWorker:
    """A null engine with its abilities, and what drives it; contexts 1 and 2 exist."""

    def __init__(self, abilities: str = "memfd,export") -> None:
        self.engine = NullEngine({ABILITIES_VARIABLE: abilities})
        self.bench = ConsumerBench(self.engine.native)
        for ctx_id in (1, 2):
            assert self.engine.create_context(CreateContext(ctx_id, 0, "")) is Status.OK

    def attach(self, made: AttachResource, ctx_id: int = 1) -> None:
        """Of its own."""
        assert self.engine.attach_resource(ctx_id, made) is Status.OK

    def take_in(self, message: ResourceToObject, fd: OwnedFd, ctx_id: int = 1) -> Status:
        """ResourceToObject; `fd` is lent, and closed there."""
        storage = OwnedFd.duplicate(fd)
        status = self.engine.resource_to_object(ctx_id, message, storage)
        assert storage.closed
        return status

    def fill(self, resource_id: int, offset: int, length: int, byte: int) -> None:
        assert self.bench.submit(FILL, resource_id, offset, length, byte) is RecordStatus.OK

    def holds(self, resource_id: int, offset: int, length: int, byte: int) -> bool:
        """Whether these bytes are all of this value."""
        status = self.bench.submit(CHECK, resource_id, offset, length, byte)
        assert status in (RecordStatus.OK, RecordStatus.FAILED)
        return status is RecordStatus.OK


@contextmanager
def null_workers() -> Iterator[Callable[..., NullWorker]]:
    """Makes NullWorkers, which are closed."""
    with ExitStack() as stack:

        def make(abilities: str = "memfd,export") -> NullWorker:
            worker = NullWorker(abilities)
            stack.callback(worker.bench.close)
            return worker

        yield make
