"""The host-visible memory region: which resources are mapped into it (virtio 1.3, 5.7.6.10).

The front end maps descriptors into the guest's address space at our word (vhost-user SHMEM_MAP and SHMEM_UNMAP), and
answers later. It is asked for one thing at a time, in the order in which the guest asked, so that a range that is being
given back can be taken anew at once.

What a stop of the queues means: QEMU stops them when the device is reset, and when the VM is paused. At a reset it
drops all mappings, silently, and an SHMEM_UNMAP of one of those is the end of QEMU. It reads no request of ours before
the queues have stopped. So between suspend() and resume() nothing is sent, and what waits is answered; forget() says
that the stop was a reset.
"""

import bisect
import logging
import mmap
import os
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

from master import vhost_user_messages as messages
from master.errors import GuestError
from master.vhost_user import BackendChannel
from master.vhost_user_messages import BackendRequest
from master.virtio_gpu import SHM_ID_HOST_VISIBLE, ResponseType
from native.owned_fd import OwnedFd

log = logging.getLogger(__name__)

MAX_MAPPINGS: Final = 4096
GONE_FILES: Final = 64  # mappings that are remembered after their end: the memory table may be older than that

_File: TypeAlias = tuple[int, int]  # device and inode


@dataclass(eq=False, slots=True)
class _Place:
    """A piece of the region that is a resource's, or was.

    mapped: the front end has said that it did it. noted: its file counts as one that the front end has.
    """

    resource_id: int
    offset: int
    nbytes: int
    file: _File
    mapped: bool = False
    noted: bool = True

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


@dataclass(eq=False, slots=True)
class _Request:
    """What the front end is to do with a place. fd: what to map there; None: to unmap it. done: None if nobody waits,
    or does any longer.
    """

    place: _Place
    fd: OwnedFd | None
    done: Callable[[bool], None] | None

    def tell(self, ok: bool) -> None:
        """Tells whoever waits, once."""
        done, self.done = self.done, None
        if done is not None:
            done(ok)


class HostWindow:
    """What lies where in the region."""

    def __init__(self, nbytes: int) -> None:
        """nbytes: of the region; 0: there is none."""
        self.nbytes = nbytes
        self.channel: BackendChannel | None = None
        """How the front end is asked; whoever has the connection sets it."""
        self.negotiated = True
        """Whether the front end knows what it is asked for (ProtocolFeature.SHMEM)."""
        self._places: dict[int, _Place] = {}  # by resource
        self._in_order: list[_Place] = []  # the same by offset
        self._queue: deque[_Request] = deque()  # not asked yet
        self._asked: _Request | None = None
        self._strays: list[_Place] = []  # mapped, but nobody's any more: to be unmapped before anything new is mapped
        self._running = True
        self._sending = False
        self._files: Counter[_File] = Counter()
        self._gone: deque[_File] = deque(maxlen=GONE_FILES)

    def __len__(self) -> int:
        """Resources that are mapped, or about to be."""
        return len(self._places)

    def map(self, resource_id: int, fd: OwnedFd, nbytes: int, offset: int, done: Callable[[bool], None]) -> None:
        """Maps `nbytes` from the start of `fd` (which stays the caller's; a duplicate is sent) at `offset`.

        done(whether the front end did it) is called once, later. Raises GuestError: ERR_UNSPEC without a region or a
        front end that would do it, for a resource that is mapped already, or one whose storage is too short;
        ERR_INVALID_PARAMETER for a range that is not whole pages, overlaps another or is not inside;
        ERR_OUT_OF_MEMORY for one mapping too many.
        """
        usable = self.nbytes and self.negotiated and self._running
        if not usable or self.channel is None or self.channel.closed:
            raise GuestError(ResponseType.ERR_UNSPEC, "there is no host-visible memory")
        if resource_id in self._places:
            raise GuestError(ResponseType.ERR_UNSPEC, f"resource {resource_id} is mapped already")
        self._check_range(offset, nbytes)
        if len(self._places) + len(self._queue) >= MAX_MAPPINGS:
            raise GuestError(ResponseType.ERR_OUT_OF_MEMORY, f"{MAX_MAPPINGS} mappings")
        place = _Place(resource_id, offset, nbytes, _checked_file(fd, nbytes))
        try:
            copy = OwnedFd.duplicate(fd)
        except OSError as error:
            raise GuestError(ResponseType.ERR_OUT_OF_MEMORY, str(error)) from error
        self._places[resource_id] = place
        bisect.insort(self._in_order, place, key=_offset)
        self._files[place.file] += 1
        self._queue.append(_Request(place, copy, done))
        self._send()

    def unmap(self, resource_id: int, done: Callable[[bool], None]) -> None:
        """The way back. The resource counts as unmapped from now on, whatever becomes of it; the range can be mapped
        anew at once.

        done(whether the front end did it) is called once, possibly before this returns. Raises GuestError (ERR_UNSPEC)
        if the resource is not mapped.
        """
        place = self._places.get(resource_id)
        if place is None:
            raise GuestError(ResponseType.ERR_UNSPEC, f"resource {resource_id} is not mapped")
        self._take_out(place)
        if self._running:
            self._queue.append(_Request(place, None, done))
            self._send()
        else:
            self._strays.append(place)
            done(True)

    def is_mapped(self, resource_id: int) -> bool:
        """Whether it is mapped, or about to be."""
        return resource_id in self._places

    def has_sent(self, fd: OwnedFd) -> bool:
        """Whether what is behind `fd` is mapped, or was lately: the front end sends it back as a piece of memory.

        Raises OSError.
        """
        file = _file_of(os.fstat(fd.fd))
        return file in self._files or file in self._gone

    def suspend(self) -> None:
        """The queues are being stopped, and the front end waits for that. Nothing is asked of it before resume().

        What it has not answered is answered here: maps with False, unmaps with True. What is mapped stays mapped.
        """
        self._running = False
        if self.channel is not None:
            self.channel.read_answers()  # what it has done, it has done before the stop
        asked = self._asked
        waiting = [asked, *self._queue] if asked is not None else list(self._queue)
        self._queue.clear()
        for request in waiting:
            if request.fd is not None:
                request.fd.close()
                self._take_out(request.place)
        for request in waiting:
            if asked is None or request.place is not asked.place:
                self._leave(request.place)
            request.tell(request.fd is None)

    def resume(self) -> None:
        """The queues run again."""
        self._running = True

    def forget(self) -> None:
        """The device was reset: the front end has dropped all mappings, or will have before it reads anything of ours.

        What waits is answered as by suspend().
        """
        running = self._running
        self.suspend()
        self._running = running
        for place in [*self._in_order, *self._strays]:
            self._forget_file(place)
        self._places.clear()
        self._in_order.clear()
        self._strays.clear()

    # ---- places

    def _check_range(self, offset: int, nbytes: int) -> None:
        if nbytes <= 0 or offset % mmap.PAGESIZE or nbytes % mmap.PAGESIZE:
            raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"{nbytes:#x} bytes at {offset:#x}: not whole pages")
        if offset + nbytes > self.nbytes:
            raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"{nbytes:#x} bytes at {offset:#x}: outside")
        after = bisect.bisect_left(self._in_order, offset, key=_offset)
        neighbours = self._in_order[max(0, after - 1) : after + 1]
        if any(place.offset < offset + nbytes and offset < place.end for place in neighbours):
            raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"{nbytes:#x} bytes at {offset:#x}: in use")

    def _take_out(self, place: _Place) -> None:
        """The place is the resource's no more. Nothing happens if it was not."""
        if self._places.get(place.resource_id) is place:
            del self._places[place.resource_id]
            self._in_order.remove(place)

    def _leave(self, place: _Place) -> None:
        """A place that nobody wants and that the front end is not being asked about."""
        if place.mapped:
            self._strays.append(place)
        else:
            self._forget_file(place)

    def _forget_file(self, place: _Place) -> None:
        if place.noted:
            place.noted = False
            self._files[place.file] -= 1
            if not self._files[place.file]:
                del self._files[place.file]
            self._gone.append(place.file)

    # ---- the front end

    def _send(self) -> None:
        """Asks for what comes next, unless an answer is awaited. A closed channel answers at once, from inside."""
        if self._sending:
            return
        self._sending = True
        while self._running and self._queue and self._asked is None:
            if self._strays and self._queue[0].fd is not None:
                self._ask(_Request(self._strays.pop(), None, None))
            else:
                self._ask(self._queue.popleft())
        self._sending = False

    def _ask(self, request: _Request) -> None:
        self._asked = request
        assert self.channel is not None  # nothing is queued without one
        place, answered = request.place, partial(self._answered, request)
        where = (SHM_ID_HOST_VISIBLE, place.offset, place.nbytes)
        if request.fd is not None:
            payload = messages.encode_shmem_map(*where)
            self.channel.request(BackendRequest.SHMEM_MAP, payload, fd=request.fd, on_reply=answered)
        elif place.mapped:
            self.channel.request(BackendRequest.SHMEM_UNMAP, messages.encode_shmem_unmap(*where), on_reply=answered)
        else:
            answered(False)  # mapping it has failed

    def _answered(self, request: _Request, ok: bool) -> None:
        self._asked = None
        place = request.place
        place.mapped = ok and request.fd is not None
        if request.fd is not None and request.done is None:
            self._leave(place)  # read after a stop, at a reset even after mappings were dropped: it may be there
        elif not place.mapped:
            self._take_out(place)
            self._forget_file(place)
        request.tell(ok)
        self._send()


def _offset(place: _Place) -> int:
    return place.offset


def _file_of(status: os.stat_result) -> _File:
    return status.st_dev, status.st_ino


def _checked_file(fd: OwnedFd, nbytes: int) -> _File:
    """Raises GuestError if the file is shorter: whoever touched a page past its end would end the VM."""
    status = os.fstat(fd.fd)
    if status.st_size < nbytes:
        raise GuestError(ResponseType.ERR_UNSPEC, f"{status.st_size} bytes of storage for a mapping of {nbytes}")
    return _file_of(status)
