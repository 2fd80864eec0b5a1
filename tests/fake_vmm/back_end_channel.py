"""The socket of SET_BACKEND_REQ_FD: requests of the back end, answered as QEMU's vhost-user-gpu-pci answers them.

That device has no shared memory window and does not handle configuration changes, so SHMEM_MAP, SHMEM_UNMAP and
CONFIG_CHANGE are all refused (u64 1) when an answer is asked for. Everything is recorded.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading

from tests.fake_vmm.errors import ProtocolViolation
from tests.fake_vmm.protocol import (
    FLAG_REPLY,
    HEADER,
    MAX_PAYLOAD,
    U64,
    VERSION,
    BackEndRequest,
    Message,
    receive_exactly,
    send_all,
)


class BackEndChannel:
    """Serves the channel in a thread. `requests`: what came (fds already closed); `peer`: the end for the back end."""

    def __init__(self) -> None:
        self.requests: list[Message] = []
        self.error: Exception | None = None
        self._ours, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=self._serve, name="fake-vmm-back-end-channel", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; raises what went wrong in it, if something did."""
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
            self.error = error

    def _serve_one(self) -> bool:
        fds: list[int] = []
        try:
            request, flags, size = HEADER.unpack(receive_exactly(self._ours, HEADER.size, fds))
            if size > MAX_PAYLOAD or request not in BackEndRequest._value2member_map_:
                raise ProtocolViolation(f"back-end channel: request {request} with {size} bytes of payload")
            message = Message(request, flags, receive_exactly(self._ours, size, fds))
        finally:
            for fd in fds:
                os.close(fd)
        self.requests.append(message)
        if message.needs_reply:
            send_all(self._ours, HEADER.pack(request, VERSION | FLAG_REPLY, U64.size) + U64.pack(1))
        return True
