"""The socket of SET_BACKEND_REQ_FD: requests of the back end, answered as QEMU 11's devices answer them.

Its GPU device has no host-visible region and does not handle configuration changes, so SHMEM_MAP, SHMEM_UNMAP and
CONFIG_CHANGE are all refused (u64 1) when an answer is asked for. The generic device does all three. Everything is
recorded.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from tests.fake_vmm.errors import ProtocolViolation
from tests.fake_vmm.protocol import (
    FLAG_REPLY,
    HEADER,
    MAX_PAYLOAD,
    SHMEM_MAP,
    U64,
    VERSION,
    BackEndRequest,
    Message,
    receive_exactly,
    send_all,
)

_SIZES = {
    BackEndRequest.CONFIG_CHANGE: 0,
    BackEndRequest.SHMEM_MAP: SHMEM_MAP.size,
    BackEndRequest.SHMEM_UNMAP: SHMEM_MAP.size,
}


def refuse(_message: Message) -> int:
    """The status for everything that a device cannot do."""
    return 1


class BackEndChannel:
    """Serves the channel in a thread. `requests`: what came (fds already closed); `peer`: the end for the back end.

    serve: does a request, says the status to answer. done: called after the answer to what has been done. lock: what
    the VMM's main loop holds; it does nothing for the channel meanwhile.
    """

    def __init__(
        self,
        serve: Callable[[Message], int] = refuse,
        done: Callable[[Message], None] = lambda _message: None,
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        self.requests: list[Message] = []
        self.error: Exception | None = None
        self._serve_message = serve
        self._done = done
        self._lock = lock or contextlib.nullcontext()
        self._answering = threading.Event()
        self._answering.set()
        self._ended = False
        self._ours, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=self._serve, name="fake-vmm-back-end-channel", daemon=True)
        self._thread.start()

    def hold(self) -> None:
        """From the next request on: read it and no more, and do nothing before `release`."""
        self._answering.clear()

    def release(self) -> None:
        """Do and answer what has been held."""
        self._answering.set()

    def close(self) -> None:
        """End the thread; raises what went wrong in it, if something did."""
        self._ended = True
        self.release()
        self.peer.close()
        with contextlib.suppress(OSError):  # the back end was faster
            self._ours.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=10)
        self._ours.close()
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def _serve(self) -> None:
        try:
            while self._serve_one():
                continue
        except (EOFError, ConnectionError):
            return
        except Exception as error:  # raised by close(), in the test's thread
            if not self._ended:
                self.error = error
                with contextlib.suppress(OSError):
                    self._ours.shutdown(socket.SHUT_RDWR)  # a VMM that has died answers nothing any more

    def _serve_one(self) -> bool:
        fds: list[int] = []
        try:
            request, flags, size = HEADER.unpack(receive_exactly(self._ours, HEADER.size, fds))
            if size > MAX_PAYLOAD or request not in _SIZES or size != _SIZES[BackEndRequest(request)]:
                raise ProtocolViolation(f"back-end channel: request {request} with {size} bytes of payload")
            payload = receive_exactly(self._ours, size, fds)
            self.requests.append(Message(request, flags, payload))
            self._answering.wait()
            if self._ended:
                return False
            with self._lock:
                self._answer(Message(request, flags, payload, tuple(fds)))
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _answer(self, message: Message) -> None:
        status = self._serve_message(message)
        if message.needs_reply:
            send_all(self._ours, HEADER.pack(message.request, VERSION | FLAG_REPLY, U64.size) + U64.pack(status))
        if status == 0:
            self._done(message)
