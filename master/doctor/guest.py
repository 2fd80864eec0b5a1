"""A guest of a few pages: memory, a control queue, and one command in it. The data plane takes it for a VM's."""

import asyncio
import mmap
import os
import struct
from types import TracebackType
from typing import Final, Self

from master.virtio_gpu import CONTROL_QUEUE, CommandType, HeaderFlag, ResponseType
from master.wire import HEADER
from native.dataplane import Plane
from native.guest_memory import GuestMemory

# Where things lie in its memory; its addresses and ours are the same.
_BASE: Final = 1 << 20
_DESCRIPTORS, _AVAILABLE, _USED, _REQUEST, _RESPONSE = (page * mmap.PAGESIZE for page in range(5))
_BYTES: Final = 5 * mmap.PAGESIZE
_QUEUE_SIZE: Final = 2
_NEXT, _WRITE = 1, 2  # VIRTQ_DESC_F_*, virtio 1.3 section 2.7.5
_DESCRIPTOR: Final = struct.Struct("<QIHH")
_SUBMIT: Final = struct.Struct("<I4x")
_FENCE_ID: Final = 1


class TrialGuest:
    """One control queue on a running plane, for one command. close() takes it away again."""

    def __init__(self, loop: asyncio.AbstractEventLoop, plane: Plane) -> None:
        """Raises OSError."""
        self._loop = loop
        self._plane = plane
        self._file = os.memfd_create("isorend-doctor", os.MFD_CLOEXEC)
        os.ftruncate(self._file, _BYTES)
        self._memory = mmap.mmap(self._file, _BYTES)
        self._kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        native = GuestMemory()
        native.add(self._file, _BASE, _BYTES, _BASE, 0)
        plane.set_memory(native)
        descriptors, available, used = (_BASE + offset for offset in (_DESCRIPTORS, _AVAILABLE, _USED))
        plane.queue_setup(CONTROL_QUEUE, _QUEUE_SIZE, descriptors, available, used, 0, False)
        plane.queue_call(CONTROL_QUEUE, self._call)
        plane.queue_start(CONTROL_QUEUE, self._kick)
        plane.queue_enable(CONTROL_QUEUE, True)

    async def submit(self, ctx_id: int, stream: bytes) -> ResponseType:
        """SUBMIT_3D with a fence. Returns the answer, which comes when the stream has been executed. Call it once.

        Raises ValueError for an answer that is none.
        """
        header = HEADER.pack(CommandType.SUBMIT_3D, HeaderFlag.FENCE, _FENCE_ID, ctx_id, 0)
        request = header + _SUBMIT.pack(len(stream)) + stream
        self._memory[_REQUEST : _REQUEST + len(request)] = request
        answered: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._call, self._interrupted, answered)
        parts = (
            _DESCRIPTOR.pack(_BASE + _REQUEST, len(request), _NEXT, 1),
            _DESCRIPTOR.pack(_BASE + _RESPONSE, HEADER.size, _WRITE, 0),
        )
        self._memory[_DESCRIPTORS : _DESCRIPTORS + 2 * _DESCRIPTOR.size] = b"".join(parts)
        struct.pack_into("<HHH", self._memory, _AVAILABLE, 0, 1, 0)  # flags, idx, ring[0]
        os.eventfd_write(self._kick, 1)
        try:
            await answered
        finally:
            self._loop.remove_reader(self._call)
        response, flags, fence, *_ = HEADER.unpack_from(self._memory, _RESPONSE)
        if not flags & HeaderFlag.FENCE or fence != _FENCE_ID:
            raise ValueError("the answer has no fence")
        return ResponseType(response)

    def _interrupted(self, answered: "asyncio.Future[None]") -> None:
        os.eventfd_read(self._call)
        _flags, used = struct.unpack_from("<HH", self._memory, _USED)
        if used and not answered.done():
            answered.set_result(None)

    def close(self) -> None:
        self._plane.queue_stop(CONTROL_QUEUE)
        self._plane.queue_enable(CONTROL_QUEUE, False)
        self._plane.queue_abandon(CONTROL_QUEUE)
        self._plane.queue_call(CONTROL_QUEUE, -1)
        self._plane.set_memory(None)
        self._memory.close()
        for fd in (self._file, self._kick, self._call):
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
