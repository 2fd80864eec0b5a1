"""Typed face of native._engines: the consumer of a worker's command ring and the engines it drives.

Shapes: sizes and offsets are in bytes, `seq` is the sequence number of a ring record, `status` an iso_status of
native/src/ring.h. Importing this module loads libvirglrenderer and libEGL (without touching a driver), so only workers
and their launcher may.
"""

import errno
import os
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from native._engines import ffi, lib
from native.owned_fd import OwnedFd
from native.storage import Layout

RING_TOTAL_BYTES: int = lib.ISO_RING_TOTAL_BYTES
MAX_SHADER_BYTES: int = lib.ISO_VIRGL_MAX_SHADER_BYTES
SPARE_TOKENS: int = lib.ISO_VIRGL_SPARE_TOKENS


def text_of(array: Any) -> str:
    """The NUL-terminated text in an array of char."""
    return bytes(ffi.buffer(array)).partition(b"\0")[0].decode("ascii", "replace")


class Status(IntEnum):
    """How a ring record ended (enum iso_status)."""

    OK = lib.ISO_STATUS_OK
    FAILED = lib.ISO_STATUS_FAILED
    INVALID_PARAMETER = lib.ISO_STATUS_INVALID_PARAMETER
    INVALID_RESOURCE = lib.ISO_STATUS_INVALID_RESOURCE
    OUT_OF_MEMORY = lib.ISO_STATUS_OUT_OF_MEMORY


def status_of(error: int) -> Status:
    """The status that answers a record whose execution ended with the positive errno `error` (0: none)."""
    known = {
        0: Status.OK,
        errno.EINVAL: Status.INVALID_PARAMETER,
        errno.ENOENT: Status.INVALID_RESOURCE,
        errno.ENOMEM: Status.OUT_OF_MEMORY,
    }
    return known.get(error, Status.FAILED)


@dataclass(frozen=True)
class Control:
    """A control record is open: its payload is one message of ipc.messages, for the context `ctx_id`.

    Answer it with Consumer.finish().
    """

    seq: int
    ctx_id: int
    payload: bytes


@dataclass(frozen=True)
class HungUp:
    """The other end of the channel is closed: the master is gone."""


@dataclass(frozen=True)
class Broken:
    """The ring holds what it never may."""

    text: str


@dataclass(frozen=True)
class EngineFault:
    """The engine reported `count` errors since the last such wake; `text` is the latest."""

    text: str
    count: int


Wake = Control | HungUp | Broken | EngineFault


@dataclass(frozen=True)
class ConsumerStatistics:
    """Counts since the start: records (of which submits, transfers and copies to and from mirrors), fences,
    completions, sleeps, doorbells rung."""

    records: int
    submits: int
    transfers: int
    copies: int
    fences: int
    completions: int
    sleeps: int
    doorbells: int


@dataclass(frozen=True)
class ResourceArguments:
    """VIRTIO_GPU_CMD_RESOURCE_CREATE_3D (virtio 1.3, 5.7.6.8), as virglrenderer takes it."""

    resource_id: int
    target: int
    format: int
    bind: int
    width: int
    height: int
    depth: int
    array_size: int
    last_level: int
    nr_samples: int
    flags: int


V1_FIELDS = tuple(name for name in ResourceArguments.__dataclass_fields__ if name != "resource_id")


def v1_of(arguments: ResourceArguments) -> dict[str, int]:
    """The fields of struct iso_texture: all but the resource's id."""
    return {name: getattr(arguments, name) for name in V1_FIELDS}


def _texture(arguments: ResourceArguments) -> Any:
    return ffi.new("struct iso_texture *", v1_of(arguments))


class NativeEngine:
    """A struct iso_engine that a Consumer can drive."""

    def __init__(self, pointer: Any) -> None:
        self.pointer = pointer


class NullEngine(NativeEngine):
    """Draws nothing and completes everything; see native/src/null_engine.h for what a SUBMIT may ask of it, and
    null_objects.h for its objects. What returns a number returns 0 or a positive errno, as told there."""

    def __init__(self) -> None:
        """Raises OSError when the fence thread cannot be started."""
        pointer = lib.iso_null_engine_new()
        if pointer == ffi.NULL:
            raise OSError(ffi.errno, os.strerror(ffi.errno))
        super().__init__(pointer)
        self._objects = lib.iso_null_engine_objects(pointer)

    def object_make(self, arguments: ResourceArguments) -> int:
        """An object of this id, if there is none yet."""
        return int(lib.iso_null_object_make(self._objects, arguments.resource_id, _texture(arguments)))

    def object_import(self, arguments: ResourceArguments, layout: Layout, fd: int, *, dmabuf: bool) -> int:
        """An object of this id that lies behind `fd`, if there is none yet. Width 0: as a buffer of all its bytes."""
        storage = ffi.new("struct iso_null_storage *", (layout.nbytes, layout.offset, layout.stride))
        texture = _texture(arguments)
        return int(lib.iso_null_object_import(self._objects, arguments.resource_id, texture, storage, fd, dmabuf))

    def object_mirror(self, resource_id: int, nbytes: int, fd: int) -> int:
        """Give an object a mirror."""
        return int(lib.iso_null_object_mirror(self._objects, resource_id, nbytes, fd))

    def object_export(self, resource_id: int) -> tuple[OwnedFd, Layout]:
        """A sealed memfd that an object's contents lie in from now on. Raises OSError."""
        storage: Any = ffi.new("struct iso_null_storage *")
        fd = ffi.new("int *")
        error = lib.iso_null_object_export(self._objects, resource_id, storage, fd)
        if error:
            raise OSError(error, os.strerror(error))
        return OwnedFd(fd[0]), Layout(storage.nbytes, storage.offset, storage.stride)

    def object_drop(self, resource_id: int) -> None:
        """Drop an object, if there is one."""
        lib.iso_null_object_drop(self._objects, resource_id)

    def take_blob(self, ctx_id: int, blob_id: int) -> int:
        """The size of a blob of the context's that a stream made and that is not an object yet; 0: there is none."""
        return int(lib.iso_null_engine_take_blob(self.pointer, ctx_id, blob_id))

    def forget_context(self, ctx_id: int) -> None:
        """Drop a context's blobs."""
        lib.iso_null_engine_forget_context(self.pointer, ctx_id)

    def close(self) -> None:
        """Complete what is pending and end the fence thread."""
        if self.pointer != ffi.NULL:
            lib.iso_null_engine_free(self.pointer)
            self.pointer = ffi.NULL


def virgl_version() -> tuple[int, int, int]:
    """Version of libvirglrenderer that this was compiled against."""
    number = int(lib.iso_virgl_version())
    return number // 10000, number // 100 % 100, number % 100


def set_virgl_log_prefix(prefix: str) -> None:
    """Begin each of virglrenderer's lines on stderr with `prefix`."""
    lib.iso_virgl_log_set_prefix(prefix.encode("ascii", "replace"))


class Consumer:
    """Takes records out of one command ring and has one engine execute them (native/src/consumer.h)."""

    def __init__(
        self,
        *,
        ring_fd: int,
        staging_fd: int,
        worker_doorbell_fd: int,
        master_doorbell_fd: int,
        channel_fd: int,
        engine: NativeEngine,
    ) -> None:
        """The descriptors stay the caller's and must outlive the consumer.

        Raises OSError: EPROTO if the memory is not a sealed ring of this version, or what mmap says.
        """
        self._engine = engine  # kept alive: C has its address
        self._event: Any = ffi.new("struct iso_wake_event *")
        self._consumer = lib.iso_consumer_new(
            ring_fd, staging_fd, worker_doorbell_fd, master_doorbell_fd, channel_fd, engine.pointer
        )
        if self._consumer == ffi.NULL:
            raise OSError(ffi.errno, os.strerror(ffi.errno))

    def run(self) -> Wake:
        """Consume until Python has something to decide. Runs without the interpreter lock."""
        event = self._event
        reason = lib.iso_consumer_run(self._consumer, event)
        if reason == lib.ISO_WAKE_CONTROL:
            payload = bytes(ffi.buffer(event.payload, event.payload_len))
            return Control(seq=event.seq, ctx_id=event.ctx_id, payload=payload)
        if reason == lib.ISO_WAKE_HANGUP:
            return HungUp()
        text = text_of(event.text)
        if reason == lib.ISO_WAKE_FAULT:
            return EngineFault(text=text, count=event.faults)
        return Broken(text=text)

    def finish(self, status: Status) -> None:
        """Answer the open control record as its flags ask, and step past it. Raises RuntimeError if none is open."""
        if lib.iso_consumer_finish(self._consumer, int(status)):
            raise RuntimeError("no control record is open")

    def drain(self, timeout_ms: int) -> bool:
        """Wait until every fence created so far is completed; False after `timeout_ms` or when the master is gone."""
        return bool(lib.iso_consumer_drain(self._consumer, timeout_ms) == 0)

    def staging(self, offset: int, length: int) -> int | None:
        """Address of a range of the staging memory, None if it is not within."""
        address = lib.iso_consumer_staging(self._consumer, offset, length)
        return None if address == ffi.NULL else int(ffi.cast("uintptr_t", address))

    def statistics(self) -> ConsumerStatistics:
        """Counts since the start."""
        raw = ffi.new("struct iso_consumer_statistics *")
        lib.iso_consumer_statistics(self._consumer, raw)
        return ConsumerStatistics(**{name: getattr(raw, name) for name in ConsumerStatistics.__dataclass_fields__})

    def close(self) -> None:
        """Unmap the memory. The engine must not complete a fence any more."""
        if self._consumer != ffi.NULL:
            lib.iso_consumer_free(self._consumer)
            self._consumer = ffi.NULL
