"""How a guest's command ends."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from master.virtio_gpu import ResponseType
from native.dataplane import Status
from resource_table import DuplicateResource, InvalidResource, OutOfMemory, TableError, UnknownResource


@dataclass(frozen=True, slots=True)
class Done:
    """The answer: its type and what follows the header."""

    response: ResponseType
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Pending:
    """Somebody will complete the request later."""


Outcome: TypeAlias = Done | Pending
Complete: TypeAlias = Callable[[int, Done], None]
"""complete(request, answer)."""

OK: Final = Done(ResponseType.OK_NODATA)

_TABLE_RESPONSES: dict[type[TableError], ResponseType] = {
    UnknownResource: ResponseType.ERR_INVALID_RESOURCE_ID,
    DuplicateResource: ResponseType.ERR_INVALID_RESOURCE_ID,
    InvalidResource: ResponseType.ERR_INVALID_PARAMETER,
    OutOfMemory: ResponseType.ERR_OUT_OF_MEMORY,
}

_WORKER_RESPONSES: dict[Status, ResponseType] = {
    Status.OK: ResponseType.OK_NODATA,
    Status.INVALID_PARAMETER: ResponseType.ERR_INVALID_PARAMETER,
    Status.INVALID_RESOURCE: ResponseType.ERR_INVALID_RESOURCE_ID,
    Status.OUT_OF_MEMORY: ResponseType.ERR_OUT_OF_MEMORY,
}


def of_table(error: TableError) -> Done:
    """The answer where the table could not do it."""
    return Done(_TABLE_RESPONSES[type(error)])


def of_worker(status: Status) -> Done:
    """The answer as a worker says."""
    return Done(_WORKER_RESPONSES.get(status, ResponseType.ERR_UNSPEC))
