"""What a worker that has been taken over may say of the storage of its objects, instead of what is so.

The order `lie-about-storage NAME` (deeds) has the worker say NAME of LIES from then on, whenever it is to send an
Exported or a BlobObject. Descriptors for that are made in the launcher, where nothing is locked yet.
"""

import fcntl
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self, TypeAlias

from ipc.messages import BlobObject, Exported, Message
from native.storage import StorageKind

SIZE: Final = 1 << 20
_PAGE: Final = 4096
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_NO_SUCH: Final = 0xFFFF_FFF0

Send: TypeAlias = Callable[[Message, Sequence[int]], None]


@dataclass(frozen=True)
class Props:
    """Descriptors that are not what they are said to be. sealed: good memory of SIZE bytes."""

    sealed: int
    small: int
    empty: int
    unsealed: int
    growable: int
    socket: int
    pipe: int
    directory: int
    zero: int
    eventfd: int

    @classmethod
    def make(cls) -> Self:
        ours, theirs = socket.socketpair()
        reading, writing = os.pipe()
        theirs.close()
        os.close(writing)
        return cls(
            sealed=_memory(SIZE, _SEALS),
            small=_memory(_PAGE, _SEALS),
            empty=_memory(0, _SEALS),
            unsealed=_memory(SIZE, 0),
            growable=_memory(SIZE, fcntl.F_SEAL_SHRINK),
            socket=ours.detach(),
            pipe=reading,
            directory=os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC),
            zero=os.open("/dev/zero", os.O_RDWR | os.O_CLOEXEC),
            eventfd=os.eventfd(0),
        )

    def all(self) -> set[int]:
        return set(vars(self).values())


def _memory(nbytes: int, seals: int) -> int:
    fd = os.memfd_create("rogue", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, nbytes)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


Lie: TypeAlias = Callable[[Send, Message, Sequence[int], Props], None]

def _says(**changes: object) -> Lie:
    """The truth but for these fields."""
    return lambda send, message, fds, _props: send(replace(message, **changes), fds)  # type: ignore[type-var]


def _gives(name: str, **changes: object) -> Lie:
    """This descriptor instead of the object's; what is said is true but for `changes`."""

    def tell(send: Send, message: Message, _fds: Sequence[int], props: Props) -> None:
        send(replace(message, **changes), [getattr(props, name)])  # type: ignore[type-var]

    return tell


EXPORT_LIES: Final[dict[str, Lie]] = {
    "wrong-ticket": lambda send, message, fds, _: send(_other_ticket(message, 1), fds),
    "ticket-before": lambda send, message, fds, _: send(_other_ticket(message, -1), fds),
    "ticket-zero": _says(ticket=0),
    "ticket-highest": _says(ticket=2**64 - 1),
    "socket": _gives("socket"),
    "pipe": _gives("pipe"),
    "directory": _gives("directory"),
    "device": _gives("zero"),
    "eventfd": _gives("eventfd"),
    "unsealed": _gives("unsealed", nbytes=SIZE),
    "growable": _gives("growable", nbytes=SIZE),
    "empty": _gives("empty"),
    "empty-and-says-so": _gives("empty", nbytes=0, stride=0),
    "small": _gives("small", nbytes=SIZE),
    "no-dmabuf": _gives("sealed", nbytes=SIZE, kind=StorageKind.DMABUF),
    "mirror": _gives("sealed", nbytes=SIZE, kind=StorageKind.MIRROR),
    "nothing-in-it": _says(nbytes=0),
    "more-than-there-is": _says(nbytes=SIZE),
    "endless": _says(nbytes=2**64 - 1),
    "offset-behind": _says(offset=SIZE),
    "offset-highest": _says(offset=2**64 - 1),
    "offset-of-the-last-row": _says(offset=4000),
    "stride-one": _says(stride=1),
    "stride-highest": _says(stride=2**32 - 1),
    "map-info": _says(map_info=99),
}
"""Of an export, one for each thing that can be wrong with it."""

BLOB_LIES: Final[dict[str, Lie]] = {
    "other-resource": _says(resource_id=_NO_SUCH),
    "no-such-target": _says(target=77),
    "no-such-format": _says(format=100_000),
    "too-wide": _says(width=2**32 - 1),
    "no-width": _says(width=0),
    "buffer-with-levels": _says(last_level=3),
    "texture-too-large": _says(target=2, format=1, width=1000, height=1000, stride=4000),
    "texture-of-levels": _says(target=2, format=1, width=16384, height=16384, last_level=14, array_size=2048, stride=4),
    "blob-offset-behind": _says(offset=SIZE),
    "blob-offset-highest": _says(offset=2**64 - 1),
}
"""Of what a blob is."""


def _other_ticket(message: Message, by: int) -> Message:
    assert isinstance(message, Exported)
    return replace(message, ticket=message.ticket + by)


def _twice(send: Send, message: Message, fds: Sequence[int], _props: Props) -> None:
    send(message, fds)
    send(message, fds)


def _never(_send: Send, _message: Message, _fds: Sequence[int], _props: Props) -> None:
    """The record completes as if it had been said."""


EXPORT_LIES["twice"] = BLOB_LIES["said-twice"] = _twice
EXPORT_LIES["never"] = BLOB_LIES["never-said"] = _never
LIES: Final = {**EXPORT_LIES, **BLOB_LIES}


def concerns(name: str, message: Message) -> bool:
    """Whether that lie is one about such a message."""
    kind = BlobObject if name in BLOB_LIES else Exported
    return isinstance(message, kind)
