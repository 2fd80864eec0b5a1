"""What a lane's worker was sent lately (native/src/lane_history.h), for blame."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Self

from native._dataplane import lib


class WorkKind(IntEnum):
    """What a worker is asked for (enum iso_work_kind)."""

    SUBMIT = lib.ISO_WORK_SUBMIT
    TRANSFER_WRITE = lib.ISO_WORK_TRANSFER_WRITE
    TRANSFER_READ = lib.ISO_WORK_TRANSFER_READ
    CONTROL = lib.ISO_WORK_CONTROL
    READBACK = lib.ISO_WORK_READBACK
    POINT = lib.ISO_WORK_POINT
    COPY_OUT = lib.ISO_WORK_COPY_OUT
    COPY_IN = lib.ISO_WORK_COPY_IN
    UNKNOWN = lib.ISO_PLACED_UNKNOWN


@dataclass(frozen=True, slots=True)
class Placed:
    """A record that a worker was sent.

    nbytes: of the command stream, the box or the message. resource_id: of a transfer or copy, or a message's first
    field. message: the id of a control message. Of an UNKNOWN one, sent too long ago, there is only its number.
    """

    seq: int
    kind: WorkKind
    ctx_id: int
    nbytes: int
    resource_id: int
    message: int

    @classmethod
    def of(cls, placed: Any) -> Self:
        """From a struct iso_placed."""
        kind = WorkKind(placed.kind)
        return cls(placed.seq, kind, placed.ctx_id, placed.bytes, placed.resource_id, placed.message)


@dataclass(frozen=True, slots=True)
class LaneHistory:
    """The latest records, oldest first; the one that was begun and not consumed, by the worker's own word; how many
    completions were still awaited when the lane was lost."""

    latest: tuple[Placed, ...]
    under_way: Placed | None
    retired: int

    @classmethod
    def of(cls, history: Any) -> Self:
        """From a struct iso_lane_history."""
        latest = tuple(Placed.of(history.latest[i]) for i in range(history.count))
        return cls(latest, Placed.of(history.under_way) if history.under_way.seq else None, history.retired)
