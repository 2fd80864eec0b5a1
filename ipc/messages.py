"""What master, launcher and workers say to each other.

A message is a frozen dataclass. On the wire it is a 4-byte id, then its fields in order, each of fixed size
(`ipc.fields`), so a message has one length. A message that travels over a channel declares how many file descriptors
come with it (`FDS`). The same bytes are the payload of a control record in the command ring, where no descriptor can
travel.

Decoding is strict: an unknown id, a wrong length or a value out of range is a ProtocolError.
"""

from dataclasses import dataclass
from enum import IntFlag, StrEnum
from typing import Annotated, Any, ClassVar, Self, get_type_hints

from ipc.errors import ProtocolError
from ipc.fields import I32, IDENT, U32, U64, Blob, Boolean, Choice, Field, Flags, Text
from native.storage import StorageKind

MAX_CAPSET_BYTES = 8192
"""The largest capability set that fits a message (virgl 2 is about 1.4 KB)."""

_NAME = Text(72)  # virtio-gpu's debug_name has 64 bytes and need not end with a NUL
_LINE = Text(256)
_SYSTEM_CALL = Text(32)  # the longest has 22 bytes


class EngineName(StrEnum):
    """The engines a worker can run."""

    VIRGL = "virgl"
    NULL = "null"


class Capability(IntFlag):
    """What a worker's driver can do with memory that is shared with others."""

    DMABUF_EXPORT = 1  # a texture of the renderer can become a dma-buf
    DMABUF_IMPORT = 2  # a dma-buf can become a texture
    MEMFD_IMPORT = 4  # so can a plain memfd; shown by drawing into one
    RENDER_NODE = 8  # a GPU's render node is behind this worker, not a software renderer
    PINNED_BUFFERS = 16  # a buffer can lie in memory that it is given (GL_AMD_pinned_memory); shown by using one
    OBJECT_EXPORT = 32  # an object can become a descriptor, whatever its kind: ObjectToResource may be asked for


class Message:
    """Base of all messages; subclasses are listed by id in `MESSAGES`."""

    ID: ClassVar[int]
    FDS: ClassVar[int] = 0
    _fields: ClassVar[dict[str, Field]]

    @classmethod
    def fields(cls) -> dict[str, Field]:
        """The wire fields by name, in their order."""
        if "_fields" not in cls.__dict__:
            hints = get_type_hints(cls, include_extras=True)
            names = getattr(cls, "__dataclass_fields__", {})
            cls._fields = {name: hints[name].__metadata__[0] for name in names}
        return cls._fields

    @classmethod
    def size(cls) -> int:
        """Bytes of this message on the wire, its id included."""
        return 4 + sum(field.size for field in cls.fields().values())

    def encode(self) -> bytes:
        """The bytes of this message. Raises ValueError when a value does not fit its field."""
        return U32.pack(self.ID) + b"".join(f.pack(getattr(self, name)) for name, f in self.fields().items())

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """The message whose fields `body` holds, id left out. Raises ProtocolError."""
        if len(body) != cls.size() - 4:
            raise ProtocolError(f"{cls.__name__} of {len(body) + 4} bytes, not {cls.size()}")
        values: dict[str, Any] = {}
        for name, field in cls.fields().items():
            values[name] = field.unpack(body[: field.size])
            body = body[field.size :]
        return cls(**values)


@dataclass(frozen=True)
class OfResource(Message):
    """Base of messages about a resource with its v1 arguments: RESOURCE_CREATE_3D's fields (virtio 1.3, 5.7.6.9)."""

    resource_id: Annotated[int, IDENT]
    target: Annotated[int, U32]
    format: Annotated[int, U32]
    bind: Annotated[int, U32]
    width: Annotated[int, U32]
    height: Annotated[int, U32]
    depth: Annotated[int, U32]
    array_size: Annotated[int, U32]
    last_level: Annotated[int, U32]
    nr_samples: Annotated[int, U32]
    flags: Annotated[int, U32]


# Master to launcher.


@dataclass(frozen=True)
class SpawnWorker(Message):
    """Start a worker.

    Descriptors, in this order: the worker's end of its channel (SOCK_SEQPACKET), its standard output and error (a
    pipe's writing end), the ring, the staging memory (both sealed memfds), the doorbell towards the worker (a pipe's
    reading end), the one towards the master (an eventfd).
    """

    ID = 1
    FDS = 6
    worker_id: Annotated[int, IDENT]
    engine: Annotated[EngineName, Choice(EngineName)]


@dataclass(frozen=True)
class SpawnVtestWorker(Message):
    """Start a worker for one vtest connection, which ServeVtest will hand to it.

    Descriptors, in this order: the worker's end of its channel (SOCK_SEQPACKET), its standard output and error (a
    pipe's writing end). Such a worker has no ring and no staging memory.
    """

    ID = 5
    FDS = 2
    worker_id: Annotated[int, IDENT]
    engine: Annotated[EngineName, Choice(EngineName)]


# Launcher to master.


@dataclass(frozen=True)
class Spawned(Message):
    """A worker's process exists. Descriptor: its pidfd, which also says what its pid is where the reader lives."""

    ID = 2
    FDS = 1
    worker_id: Annotated[int, IDENT]


@dataclass(frozen=True)
class SpawnFailed(Message):
    """There is no process; `errno` says why."""

    ID = 3
    worker_id: Annotated[int, IDENT]
    errno: Annotated[int, U32]


@dataclass(frozen=True)
class Exited(Message):
    """A worker has ended and was reaped. `wait_status` is as waitpid gives it (os.WIFEXITED and so on).

    `out_of_memory`: the kernel ended it because it used more than its cgroup may.
    """

    ID = 4
    worker_id: Annotated[int, IDENT]
    wait_status: Annotated[int, I32]
    out_of_memory: Annotated[bool, Boolean()] = False


@dataclass(frozen=True)
class NoSandbox(Message):
    """The sandbox cannot be made here, and workers without are not wanted: the launcher ends. `missing` says what."""

    ID = 7
    missing: Annotated[str, _LINE]


@dataclass(frozen=True)
class Sealed(Message):
    """A worker's system call filter is in place, so far as the mode of the sandbox wants one: the launcher has seen it.

    With `sealed` False it has let go of the way to say so without: it is being killed.
    """

    ID = 8
    worker_id: Annotated[int, IDENT]
    sealed: Annotated[bool, Boolean()]


@dataclass(frozen=True)
class Denied(Message):
    """A worker made a system call, by this name, that its filter does not allow.

    With `audit` it was let through, and is not told again of this worker. Without, the worker is being killed: Exited
    follows.
    """

    ID = 6
    worker_id: Annotated[int, IDENT]
    name: Annotated[str, _SYSTEM_CALL]
    audit: Annotated[bool, Boolean()]


# Worker to master, on the worker's channel: Ready, a Capset each, CapsetsDone; after that Fault, and the answers to
# ObjectToResource and CreateBlob.


@dataclass(frozen=True)
class Ready(Message):
    """The driver is loaded and has drawn. `renderer` and `version` are GL_RENDERER and GL_VERSION."""

    ID = 16
    engine: Annotated[EngineName, Choice(EngineName)]
    capabilities: Annotated[Capability, Flags(Capability)]
    renderer: Annotated[str, _LINE]
    version: Annotated[str, _LINE]


@dataclass(frozen=True)
class Capset(Message):
    """One capability set, for VIRTIO_GPU_CMD_GET_CAPSET_INFO and GET_CAPSET (virtio 1.3, 5.7.6.8)."""

    ID = 17
    capset_id: Annotated[int, IDENT]
    version: Annotated[int, U32]
    data: Annotated[bytes, Blob(MAX_CAPSET_BYTES)]


@dataclass(frozen=True)
class CapsetsDone(Message):
    """All capability sets were sent: the worker now serves its ring. It counts as serving when it is Sealed, too."""

    ID = 18


@dataclass(frozen=True)
class Fault(Message):
    """The engine reported errors, or the worker cannot go on; `count` of them, `text` is the latest."""

    ID = 19
    count: Annotated[int, U64]
    text: Annotated[str, _LINE]


@dataclass(frozen=True)
class Exported(Message):
    """The answer to ObjectToResource with this ticket, sent before the record completes. Descriptor: the storage.

    nbytes to modifier: its native.storage.Layout. map_info: VIRTIO_GPU_MAP_CACHE_*, 0 where it cannot be mapped.
    """

    ID = 20
    FDS = 1
    ticket: Annotated[int, U64]
    kind: Annotated[StorageKind, Choice(StorageKind)]
    nbytes: Annotated[int, U64]
    offset: Annotated[int, U64]
    stride: Annotated[int, U32]
    fourcc: Annotated[int, U32]
    modifier: Annotated[int, U64]
    map_info: Annotated[int, U32]


@dataclass(frozen=True)
class BlobObject(OfResource):
    """What CreateBlob made, sent before the record completes: the v1 arguments that the guest program gave the object,
    and how it lies in the storage that came with CreateBlob (offset to modifier)."""

    ID = 21
    offset: Annotated[int, U64]
    stride: Annotated[int, U32]
    fourcc: Annotated[int, U32]
    modifier: Annotated[int, U64]


# Master to worker, on its channel: what the control records of the same ticket speak of.


@dataclass(frozen=True)
class Handle(Message):
    """A descriptor for the control record that names this ticket. They come in the order of the records."""

    ID = 49
    FDS = 1
    ticket: Annotated[int, U64]


# Master to worker, as payload of control records.


@dataclass(frozen=True)
class CreateContext(Message):
    """The guest context of this worker. `capset_id` 0: none was asked for; `name`: the guest's debug_name."""

    ID = 32
    ctx_id: Annotated[int, IDENT]
    capset_id: Annotated[int, U32]
    name: Annotated[str, _NAME]


@dataclass(frozen=True)
class AttachResource(OfResource):
    """Make the worker's object of a v1 resource and attach it to the context (RESOURCE_CREATE_3D's fields)."""

    ID = 33


@dataclass(frozen=True)
class DetachResource(Message):
    """Detach the worker's object from the context and drop it."""

    ID = 34
    resource_id: Annotated[int, IDENT]


@dataclass(frozen=True)
class ResourceToObject(OfResource):
    """Make an object of the worker's out of a resource's storage (a Handle with this ticket) and attach it to the
    context.

    target to flags: its v1 arguments; width 0: nobody knows them yet, the context's stream will say what it is
    (PIPE_RESOURCE_SET_TYPE). kind and nbytes to modifier: its native.storage.Layout. With a MIRROR the context keeps
    the object that it has, or gets one of its own.
    """

    ID = 36
    kind: Annotated[StorageKind, Choice(StorageKind)]
    ticket: Annotated[int, U64]
    nbytes: Annotated[int, U64]
    offset: Annotated[int, U64]
    stride: Annotated[int, U32]
    fourcc: Annotated[int, U32]
    modifier: Annotated[int, U64]


@dataclass(frozen=True)
class ObjectToResource(Message):
    """Send the storage of the context's object as a descriptor: Exported with this ticket, then completion. A worker
    that cannot completes it with an error and sends none."""

    ID = 37
    resource_id: Annotated[int, IDENT]
    ticket: Annotated[int, U64]


@dataclass(frozen=True)
class CreateBlob(Message):
    """Make the context's object `blob_id` that of the resource, and attach it (RESOURCE_CREATE_BLOB, HOST3D and
    HOST3D_GUEST). BlobObject is the answer.

    With a ticket other than 0 the object is to lie in the Handle's memory, a MEMFD of nbytes; with 0 where the driver
    puts it.
    """

    ID = 38
    resource_id: Annotated[int, IDENT]
    blob_mem: Annotated[int, U32]
    blob_flags: Annotated[int, U32]
    blob_id: Annotated[int, U64]
    nbytes: Annotated[int, U64]
    ticket: Annotated[int, U64]


@dataclass(frozen=True)
class DestroyContext(Message):
    """Finish what precedes and end the process, with exit code 0."""

    ID = 35


# Master to a vtest worker, on the worker's channel.


@dataclass(frozen=True)
class ServeVtest(Message):
    """Serve the client behind the descriptor, a connected stream socket, and end when it leaves. Sent once.

    `client_id` is the master's number for the client, `name` the client's program as the master knows it.
    """

    ID = 48
    FDS = 1
    client_id: Annotated[int, U32]
    name: Annotated[str, _NAME]


TO_LAUNCHER: tuple[type[Message], ...] = (SpawnWorker, SpawnVtestWorker)
FROM_LAUNCHER: tuple[type[Message], ...] = (Spawned, SpawnFailed, Sealed, Exited, Denied, NoSandbox)
FROM_WORKER: tuple[type[Message], ...] = (Ready, Capset, CapsetsDone, Fault)
FROM_LANE_WORKER: tuple[type[Message], ...] = (*FROM_WORKER, Exported, BlobObject)
CONTROL: tuple[type[Message], ...] = (
    CreateContext,
    AttachResource,
    DetachResource,
    ResourceToObject,
    ObjectToResource,
    CreateBlob,
    DestroyContext,
)
TO_LANE_WORKER: tuple[type[Message], ...] = (Handle,)
TO_VTEST_WORKER: tuple[type[Message], ...] = (ServeVtest,)
MESSAGES: dict[int, type[Message]] = {
    kind.ID: kind
    for kind in (*TO_LAUNCHER, *FROM_LAUNCHER, *FROM_LANE_WORKER, *CONTROL, *TO_LANE_WORKER, *TO_VTEST_WORKER)
}


def decode(data: bytes, accepted: tuple[type[Message], ...]) -> Message:
    """The message in `data`, one of `accepted`. Raises ProtocolError."""
    if len(data) < 4:
        raise ProtocolError(f"a message of {len(data)} bytes")
    number = int.from_bytes(data[:4], "little")
    kind = MESSAGES.get(number)
    if kind is None or kind not in accepted:
        raise ProtocolError(f"unexpected message {number} ({kind.__name__ if kind else 'unknown'})")
    return kind.decode_body(data[4:])


def fault(text: str, count: int = 1) -> Fault:
    """A Fault with as much of `text` as fits."""
    return Fault(count=count, text=_LINE.clip(text))


def denied(worker_id: int, name: str, audit: bool) -> Denied:
    """A Denied with as much of `name` as fits."""
    return Denied(worker_id, _SYSTEM_CALL.clip(name), audit)


def no_sandbox(missing: str) -> NoSandbox:
    """A NoSandbox with as much of `missing` as fits."""
    return NoSandbox(_LINE.clip(missing))


def ready(engine: EngineName, capabilities: Capability, renderer: str, version: str) -> Ready:
    """A Ready with as much of the driver's strings as fits."""
    return Ready(engine, capabilities, _LINE.clip(renderer), _LINE.clip(version))
