"""What a worker was at: its last commands in words."""

from dataclasses import dataclass
from typing import Self

from ipc import messages
from native.lane_history import LaneHistory, Placed, WorkKind

_WORDS = {
    WorkKind.TRANSFER_WRITE: "TRANSFER_TO_HOST_3D",
    WorkKind.TRANSFER_READ: "TRANSFER_FROM_HOST_3D",
    WorkKind.READBACK: "readback for the display",
}
_COPIES = {WorkKind.COPY_OUT: "to", WorkKind.COPY_IN: "from"}
_OF_A_RESOURCE = (
    *(messages.AttachResource, messages.DetachResource),
    *(messages.ResourceToObject, messages.ObjectToResource, messages.CreateBlob),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """last_commands: the latest that it was sent, oldest first. under_way: what it had begun and not finished, by its
    own word, "" if nothing. fences: completions that somebody waited for when it was lost."""

    last_commands: tuple[str, ...] = ()
    under_way: str = ""
    fences: int = 0

    @classmethod
    def of(cls, history: LaneHistory) -> Self:
        """The words for what a lane knows."""
        return cls(
            last_commands=tuple(map(describe, history.latest)),
            under_way=describe(history.under_way) if history.under_way is not None else "",
            fences=history.retired,
        )


def describe(placed: Placed) -> str:
    """One record in words."""
    match placed.kind:
        case WorkKind.SUBMIT:
            words = f"SUBMIT_3D of {placed.nbytes} bytes" if placed.nbytes else "a fence"
        case WorkKind.CONTROL:
            words = _message(placed)
        case WorkKind.POINT:
            words = "a fence for other contexts"
        case WorkKind.COPY_OUT | WorkKind.COPY_IN:
            words = f"copy of resource {placed.resource_id} {_COPIES[placed.kind]} its mirror"
        case WorkKind.UNKNOWN:
            return f"record {placed.seq}, sent long before the latest"
        case _:
            words = f"{_WORDS[placed.kind]} of resource {placed.resource_id}, {placed.nbytes} bytes"
    return f"{words} (record {placed.seq})"


def _message(placed: Placed) -> str:
    kind = messages.MESSAGES.get(placed.message)
    if kind is None:
        return f"message {placed.message}"
    return f"{kind.__name__} {placed.resource_id}" if issubclass(kind, _OF_A_RESOURCE) else kind.__name__
