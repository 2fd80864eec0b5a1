"""Typed face of the data plane: lanes to workers, and the plane that joins them to guest memory and its queues.

Every object here owns its C counterpart and frees it once: close() or the garbage collector, whichever comes first.
Sizes, offsets and strides are in bytes. The C headers (native/src/plane.h first) tell how the parts work together.
"""

import errno
import os
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from native._dataplane import ffi, lib
from native.guest_memory import Backing, GuestMemory
from native.lane_history import LaneHistory
from native.result import check
from native.texture import MIRROR_HEADER_BYTES, Rect, Texture

RING_TOTAL_BYTES: int = lib.ISO_RING_TOTAL_BYTES
MAX_QUEUE_SIZE: int = lib.ISO_VQ_MAX_NUM
COMPLETE: int = lib.ISO_FLAG_COMPLETE
FENCE: int = lib.ISO_FLAG_FENCE

COMMAND_BUFFER = 64 * 1024


class Status(IntEnum):
    """How work on a lane ended (enum iso_status); a worker may send other numbers, they count as FAILED."""

    OK = lib.ISO_STATUS_OK
    FAILED = lib.ISO_STATUS_FAILED
    INVALID_PARAMETER = lib.ISO_STATUS_INVALID_PARAMETER
    INVALID_RESOURCE = lib.ISO_STATUS_INVALID_RESOURCE
    OUT_OF_MEMORY = lib.ISO_STATUS_OUT_OF_MEMORY
    LOST = lib.ISO_STATUS_LOST

    @classmethod
    def of(cls, number: int) -> "Status":
        """The status for a number from a worker."""
        try:
            return cls(number)
        except ValueError:
            return cls.FAILED


class Lane:
    """The master's end of one worker's rings and its staging memory (native/src/lane.h). Used through a Plane."""

    def __init__(
        self, number: int, ring_fd: int, staging_fd: int, staging_bytes: int, to_worker: int, from_worker: int
    ):
        """Maps both memories and duplicates the doorbells. Raises OSError."""
        handle = lib.iso_lane_new(number, ring_fd, staging_fd, staging_bytes, to_worker, from_worker)
        if handle == ffi.NULL:
            raise OSError(ffi.errno, f"lane: {os.strerror(ffi.errno)}")
        self.handle = handle
        self.number = number

    @property
    def open(self) -> bool:
        """Whether it has not been freed."""
        return bool(self.handle != ffi.NULL)

    def staging(self, offset: int, length: int) -> memoryview:
        """Staging memory; the worker can write it at any time. Raises ValueError outside of it."""
        if offset < 0 or length < 0 or offset + length > self.handle.staging_bytes:
            raise ValueError("outside of staging memory")
        return memoryview(ffi.buffer(self.handle.staging + offset, length)).toreadonly()


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the guest that Python has to answer: its request is a handle for Plane.complete()."""

    request: int
    queue: int
    data: bytes


@dataclass(frozen=True, slots=True)
class WorkDone:
    """What Plane.send(), fill(), readback() or sync() started has ended; for a readback, where its pixels lie in
    staging memory. lane: 0 for sync()."""

    lane: int
    token: int
    status: Status
    staging_offset: int
    length: int


@dataclass(frozen=True, slots=True)
class LaneBroken:
    """A worker broke the rules of its ring; its lane is lost already."""

    lane: int


@dataclass(frozen=True, slots=True)
class QueueBroken:
    """The driver's available index is impossible; the queue stands still until it is set up again."""

    queue: int


@dataclass(frozen=True, slots=True)
class Flipped:
    """The plane did page flips itself: by now the scanout shows this part of the resource."""

    scanout: int
    resource_id: int
    part: Rect


class CommandLimit(IntEnum):
    """What one command may not be larger than (enum iso_limit)."""

    SUBMIT = lib.ISO_LIMIT_SUBMIT
    TRANSFER = lib.ISO_LIMIT_TRANSFER


@dataclass(frozen=True, slots=True)
class TooLarge:
    """A context sent a command larger than any may be, and was answered ERR_OUT_OF_MEMORY. Told once for each lane."""

    lane: int
    ctx_id: int
    limit: CommandLimit


Event = Command | WorkDone | LaneBroken | QueueBroken | Flipped | TooLarge


@dataclass(frozen=True, slots=True)
class PlaneStatistics:
    """Counts since the start: commands taken, handed to Python, answered, answered with an error; malformed chains;
    interrupts and kicks."""

    commands: int
    handed: int
    responses: int
    errors: int
    malformed: int
    calls: int
    kicks: int


@dataclass(frozen=True, slots=True)
class LaneProgress:
    """A lane now: completions awaited, the oldest of them (a sequence number, 0 if there is none), the record being
    executed, bytes of records consumed, completions seen, work that has yet to be placed; counts since the start; and
    whether what has yet to be placed waits for other contexts or a slot, so that this worker is not to blame."""

    waiting: int
    oldest: int
    begun: int
    consumed: int
    completed: int
    backlog: int
    submits: int
    submit_bytes: int
    transfers: int
    transfer_bytes: int
    blocked: bool

    @property
    def at_work(self) -> bool:
        """Whether somebody waits for this very worker."""
        return self.waiting > 0 or (self.backlog > 0 and not self.blocked)


class Plane:
    """The data plane (native/src/plane.h)."""

    def __init__(self) -> None:
        self._handle = lib.iso_plane_new()
        if self._handle == ffi.NULL:
            raise MemoryError
        self._event: Any = ffi.new("struct iso_event *")
        self._rect: Any = ffi.new("struct iso_rect *")
        self._buffer = ffi.new("uint8_t[]", COMMAND_BUFFER)
        self._capacity = COMMAND_BUFFER

    def start(self) -> None:
        """Starts the thread. Raises OSError."""
        check(lib.iso_plane_start(self._handle), "data plane")

    def close(self) -> None:
        """Stops the thread. All lanes must have been freed."""
        if self._handle != ffi.NULL:
            lib.iso_plane_free(self._handle)
        self._handle = ffi.NULL

    def fileno(self) -> int:
        """Readable when take() has something."""
        return int(lib.iso_plane_event_fd(self._handle))

    # ---- memory and queues

    def set_memory(self, memory: GuestMemory | None) -> int:
        """Replaces guest memory. Returns how many running queues lie outside of it (they stand still)."""
        return int(lib.iso_plane_set_memory(self._handle, memory.handle if memory else ffi.NULL))

    def queue_setup(self, queue: int, size: int, desc: int, avail: int, used: int, base: int, event_idx: bool) -> None:
        """Sets a stopped queue up; addresses are the front end's. Raises OSError (EINVAL)."""
        check(
            lib.iso_plane_queue_setup(self._handle, queue, size, desc, avail, used, base, event_idx), f"queue {queue}"
        )

    def queue_call(self, queue: int, fd: int) -> None:
        """The eventfd that interrupts the guest (duplicated), -1 for none."""
        check(lib.iso_plane_queue_call(self._handle, queue, fd), f"queue {queue} call")

    def queue_err(self, queue: int, fd: int) -> None:
        """The eventfd that tells the front end of a broken queue (duplicated), -1 for none."""
        check(lib.iso_plane_queue_err(self._handle, queue, fd), f"queue {queue} err")

    def queue_start(self, queue: int, kick_fd: int) -> None:
        """Starts a queue with its kick eventfd (duplicated). Raises OSError (EINVAL not set up, EFAULT not in
        memory)."""
        check(lib.iso_plane_queue_start(self._handle, queue, kick_fd), f"queue {queue}")

    def queue_enable(self, queue: int, enable: bool) -> None:
        """vhost-user VRING_ENABLE."""
        check(lib.iso_plane_queue_enable(self._handle, queue, enable), f"queue {queue}")

    def queue_stop(self, queue: int) -> int:
        """Takes no more from it. Returns the next available index; queue_open() tells what is still under way."""
        return int(lib.iso_plane_queue_stop(self._handle, queue))

    def queue_open(self, queue: int) -> int:
        """Requests taken and not yet on the used ring."""
        return int(lib.iso_plane_queue_open(self._handle, queue))

    def queue_abandon(self, queue: int) -> None:
        """Answers what Python still has open of a queue with ERR_UNSPEC."""
        lib.iso_plane_queue_abandon(self._handle, queue)

    def set_ring_idx(self, enabled: bool) -> None:
        """Whether VIRTIO_GPU_F_CONTEXT_INIT was negotiated: fences may then have timelines of their own."""
        lib.iso_plane_set_ring_idx(self._handle, enabled)

    # ---- commands

    def take(self) -> Event | None:
        """The next event. None also means that everything taken before has been placed, and notifies the guest."""
        event = self._event
        while (got := lib.iso_plane_take(self._handle, event, self._buffer, self._capacity)) != 0:
            if got == -errno.ENOBUFS:
                self._make_room(event)
                continue
            kind = event.kind
            if kind == lib.ISO_EVENT_COMMAND:
                return Command(event.request, event.queue, bytes(ffi.buffer(self._buffer, event.len)))
            if kind == lib.ISO_EVENT_WORK_DONE:
                status = Status.of(event.status)
                return WorkDone(event.lane, event.token, status, event.staging_offset, event.len)
            if kind == lib.ISO_EVENT_LANE_BROKEN:
                return LaneBroken(event.lane)
            if kind == lib.ISO_EVENT_QUEUE_BROKEN:
                return QueueBroken(event.queue)
            if kind == lib.ISO_EVENT_FLIPPED:
                part = event.part
                return Flipped(event.scanout, event.resource, Rect(part.x, part.y, part.width, part.height))
            if kind == lib.ISO_EVENT_LIMIT:
                return TooLarge(event.lane, event.token, CommandLimit(event.status))
        if self._capacity > COMMAND_BUFFER:
            self._buffer = ffi.new("uint8_t[]", COMMAND_BUFFER)
            self._capacity = COMMAND_BUFFER
        return None

    def _make_room(self, event: Any) -> None:
        """For a command longer than the buffer. The plane refuses those over MAX_COMMAND itself."""
        self._capacity = event.len
        self._buffer = ffi.new("uint8_t[]", self._capacity)

    def complete(self, request: int, response: int, payload: bytes = b"") -> bool:
        """Answers a command. False if it is no longer open (its queue was abandoned)."""
        return bool(lib.iso_plane_complete(self._handle, request, response, payload, len(payload)) == 0)

    def flush(self) -> None:
        """Notifies the guest of answers given outside of a take() loop."""
        lib.iso_plane_flush(self._handle)

    # ---- lanes

    def add_lane(self, lane: Lane) -> None:
        """Listens to the lane's doorbell from now on. Raises OSError."""
        check(lib.iso_plane_lane_add(self._handle, lane.handle), "lane")

    def bind_lane(self, lane: Lane, ctx_id: int) -> None:
        """Commands of the context go to this lane. Raises OSError (EEXIST)."""
        check(lib.iso_plane_lane_bind(self._handle, lane.handle, ctx_id), f"context {ctx_id}")

    def forget_context(self, ctx_id: int) -> None:
        """The context is destroyed and its id free again; what was placed before still runs."""
        lib.iso_plane_context_forget(self._handle, ctx_id)

    def lose_lane(self, lane: Lane) -> None:
        """The worker is gone: everything under way there is answered with an error."""
        lib.iso_plane_lane_lost(self._handle, lane.handle)

    def free_lane(self, lane: Lane) -> None:
        """Loses and unmaps it. Its contexts, if not forgotten, are answered ERR_UNSPEC from then on."""
        handle, lane.handle = lane.handle, ffi.NULL
        if handle != ffi.NULL:
            lib.iso_plane_lane_free(self._handle, handle)

    def send(self, lane: Lane, ctx_id: int, data: bytes, flags: int = 0, token: int = 0) -> bool:
        """Places a control message behind everything of the context. False if the lane is full, so that it waits.

        Raises BrokenPipeError if the worker is gone.
        """
        code = lib.iso_plane_lane_send(self._handle, lane.handle, ctx_id, flags, token, data, len(data))
        return check(code, "lane") == 0

    def reserve(self, lane: Lane, ctx_id: int, slot: int) -> None:
        """Keeps a place for a message that is not known yet: what comes later for the context waits behind it.

        `slot` names it; a token that is used for nothing else. Raises BrokenPipeError if the worker is gone.
        """
        if not lane.open:
            raise BrokenPipeError("the lane was freed")
        check(lib.iso_plane_lane_reserve(self._handle, lane.handle, ctx_id, slot), "lane")

    def fill(self, lane: Lane, slot: int, data: bytes = b"", flags: int = 0, token: int = 0) -> None:
        """Puts a control message where reserve() kept the place, as send() does at the end; b"": gives the place up.

        Raises BrokenPipeError if the worker is gone, and the place with it; FileNotFoundError if there is no such
        place.
        """
        if not lane.open:
            raise BrokenPipeError("the lane was freed")
        check(lib.iso_plane_lane_fill(self._handle, lane.handle, slot, flags, token, data, len(data)), "slot")

    def readback(
        self, lane: Lane, ctx_id: int, token: int, resource_id: int, texture: Texture, rect: Rect
    ) -> None:
        """Reads a rectangle of level 0, as the context has it, into staging memory, rows packed.

        WorkDone tells where; then release_readback().

        Raises OSError: EINVAL rectangle outside the resource, ENOSPC larger than staging memory, EPIPE worker gone.
        """
        box = ffi.new("struct iso_box *", (rect.x, rect.y, 0, rect.width, rect.height, 1))
        code = lib.iso_plane_lane_readback(self._handle, lane.handle, ctx_id, token, resource_id, texture.struct(), box)
        check(code, "readback")

    def release_readback(self, lane: Lane, token: int) -> None:
        """Gives the staging memory of a finished readback back."""
        lib.iso_plane_lane_release(self._handle, lane.handle, token)

    def progress(self, lane: Lane) -> LaneProgress:
        """How far the worker is."""
        out = ffi.new("struct iso_lane_progress *")
        lib.iso_plane_lane_progress(self._handle, lane.handle, out)
        return LaneProgress(*(getattr(out, name) for name in LaneProgress.__slots__))

    def history(self, lane: Lane) -> LaneHistory:
        """What the worker was sent lately; also of a lane that is lost, but not of one that is freed."""
        out = ffi.new("struct iso_lane_history *")
        lib.iso_plane_lane_history(self._handle, lane.handle, out)
        return LaneHistory.of(out)

    def trim(self, lane: Lane) -> bool:
        """Gives up to 8 MiB of an idle lane's staging memory back to the system. True if there is more of it."""
        return bool(lib.iso_plane_lane_trim(self._handle, lane.handle))

    # ---- resources, as the fast path needs them

    def set_resource(self, resource_id: int, texture: Texture) -> None:
        """Raises OSError (EEXIST, ENOMEM)."""
        check(lib.iso_plane_resource_set(self._handle, resource_id, texture.struct()), f"resource {resource_id}")

    def set_picture(self, resource_id: int, width: int, height: int, pixels: memoryview | None) -> None:
        """The resource is a picture; `pixels` is its shadow, rows of four-byte pixels packed, which has to stay until
        remove_resource(), or None if the picture is in a worker. Raises OSError (ENOENT), ValueError (too few bytes).
        """
        address = ffi.NULL
        if pixels is not None:
            if len(pixels) < 4 * width * height:
                raise ValueError("fewer pixels than the picture has")
            with ffi.from_buffer("uint8_t[]", pixels, require_writable=True) as buffer:
                address = ffi.cast("uint8_t *", buffer)
        code = lib.iso_plane_resource_picture(self._handle, resource_id, width, height, address)
        check(code, f"resource {resource_id}")

    def show(self, scanout: int, resource_id: int, part: Rect) -> None:
        """The scanout shows this part of the resource from now on; resource 0: nothing. Else its damage stays."""
        rect = self._rect
        rect.x, rect.y, rect.width, rect.height = part.x, part.y, part.width, part.height
        lib.iso_plane_scanout_show(self._handle, scanout, resource_id, rect)

    def take_damage(self, scanout: int) -> Rect | None:
        """The smallest rectangle around what was flushed since the last call, in pixels from the part's corner."""
        if not lib.iso_plane_scanout_damage(self._handle, scanout, self._rect):
            return None
        return Rect(self._rect.x, self._rect.y, self._rect.width, self._rect.height)

    def set_backing(self, resource_id: int, backing: Backing | None) -> None:
        """Raises OSError (ENOENT)."""
        handle = backing.handle if backing else ffi.NULL
        check(lib.iso_plane_resource_backing(self._handle, resource_id, handle), f"resource {resource_id}")

    def attach_resource(self, resource_id: int, ctx_id: int) -> None:
        """The context has the resource: it may transfer to and from it, and from now on its work and that of others who
        have it keep the order of the queue. Raises OSError (ENOENT: no such resource or context, ENOMEM)."""
        check(lib.iso_plane_resource_attach(self._handle, resource_id, ctx_id), f"resource {resource_id}")

    def detach_resource(self, resource_id: int, ctx_id: int) -> None:
        """The opposite of attach_resource()."""
        lib.iso_plane_resource_detach(self._handle, resource_id, ctx_id)

    def set_mirrored(self, resource_id: int, owner: int, header: memoryview | None = None) -> None:
        """The resource is mirrored (native/src/mirror.h) from now on, until it is removed.

        owner: the context whose object has the latest contents, 0 if the mirror has. header: the start of the mirror,
        which has to stay until remove_resource(), where this side writes it. Once more: another owner and header.
        Raises OSError (ENOENT: no such resource, or it is not the owner's; ENOMEM), ValueError (too few bytes).
        """
        address = ffi.NULL
        if header is not None:
            if len(header) < MIRROR_HEADER_BYTES:
                raise ValueError("shorter than a mirror's header")
            with ffi.from_buffer("uint8_t[]", header, require_writable=True) as buffer:
                address = ffi.cast("struct iso_mirror_header *", buffer)
        code = lib.iso_plane_resource_mirror(self._handle, resource_id, owner, address)
        check(code, f"resource {resource_id}")

    def set_unmirrored(self, resource_id: int) -> None:
        """It is not mirrored any more: it has storage that all contexts share. Copies that were placed so far are
        nothing to an object without a mirror."""
        lib.iso_plane_resource_unmirror(self._handle, resource_id)

    def written(self, resource_id: int) -> None:
        """This side has written a mirrored resource's mirror: it is newer than any context's object."""
        lib.iso_plane_resource_written(self._handle, resource_id)

    def set_shared_with_guest(self, resource_id: int) -> None:
        """The storage is guest memory that workers see, too: transfers of it are answered OK and nothing is done.
        Raises OSError (ENOENT)."""
        check(lib.iso_plane_resource_guest_memory(self._handle, resource_id), f"resource {resource_id}")

    def sync(self, resource_id: int, token: int) -> None:
        """WorkDone (lane 0, OK) comes when all contexts have finished what they were sent so far of those that have the
        resource, or are gone; its mirror is up to date then. Raises OSError (ENOENT, ENOMEM)."""
        check(lib.iso_plane_resource_sync(self._handle, resource_id, token), f"resource {resource_id}")

    def remove_resource(self, resource_id: int) -> None:
        """Forgets it; work under way keeps what it needs."""
        lib.iso_plane_resource_remove(self._handle, resource_id)

    def statistics(self) -> PlaneStatistics:
        """Counts since the start."""
        out = ffi.new("struct iso_plane_stats *")
        lib.iso_plane_get_stats(self._handle, out)
        return PlaneStatistics(*(getattr(out, name) for name in PlaneStatistics.__slots__))
