"""The vhost-user front end: one method per message, need_reply set where QEMU 11 sets it.

Every method sends exactly one message (and reads its reply where it has one); the order of messages is the business of
vmm.py. `send_message` and `send_raw` let a test say anything at all.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Sequence

from tests.fake_vmm.errors import Disconnected, ProtocolViolation, Refused
from tests.fake_vmm.memory import PAGE_SIZE, Slot
from tests.fake_vmm.protocol import (
    CONFIG,
    FLAG_NEED_REPLY,
    HEADER,
    MAX_PAYLOAD,
    MEM_REGION,
    MEM_TABLE_HEADER,
    SHMEM_CONFIG,
    SINGLE_REGION,
    U64,
    VERSION,
    VRING_ADDR,
    VRING_NO_FD,
    VRING_STATE,
    Message,
    ProtocolFeature,
    Request,
    encode_config,
    receive_exactly,
    request_name,
    send_all,
)


class FrontEnd:
    """Speaks vhost-user over a connected stream socket, which it owns.

    timeout: seconds to wait for a reply; then TimeoutError names the request.
    All methods raise Disconnected when the back end closes the socket and Refused when it acknowledges with an error.
    They may be called by several threads: a request and its reply are one under `lock`. QEMU has one thread for all
    this; what it would not do between two messages takes the lock for longer.
    """

    def __init__(self, sock: socket.socket, *, timeout: float = 30.0) -> None:
        self.sock = sock
        self.lock = threading.RLock()
        self.protocol_features = 0
        self.log: list[int] = []  # request ids in the order sent
        self.set_timeout(timeout)

    def set_timeout(self, timeout: float) -> None:
        self.timeout = timeout
        self.sock.settimeout(timeout)

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        """Close the socket; whoever waits for a reply in another thread gets Disconnected."""
        with contextlib.suppress(OSError):  # closed already, or by the back end
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def has(self, feature: ProtocolFeature) -> bool:
        """Whether a protocol feature was negotiated."""
        return bool(self.protocol_features >> feature & 1)

    # --- messages -----------------------------------------------------------------------------------------------

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Bytes as they are, for messages that are wrong on purpose."""
        try:
            send_all(self.sock, data, fds)
        except TimeoutError:
            raise TimeoutError(f"the back end did not read {len(data)} bytes within {self.timeout} s") from None
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Disconnected("the back end closed the vhost-user socket before a message could be sent") from error

    def send_message(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = VERSION) -> None:
        self.log.append(request)
        self.send_raw(HEADER.pack(request, flags, len(payload)) + payload, fds)

    def receive_message(self, awaited: str) -> Message:
        """The next message from the back end; `awaited` goes into the error texts."""
        fds: list[int] = []
        try:
            request, flags, size = HEADER.unpack(receive_exactly(self.sock, HEADER.size, fds))
            if size > MAX_PAYLOAD:
                raise ProtocolViolation(f"{awaited}: a payload of {size} bytes")
            return Message(request, flags, receive_exactly(self.sock, size, fds), tuple(fds))
        except TimeoutError:
            raise TimeoutError(f"the back end did not send {awaited} within {self.timeout} s") from None
        except (EOFError, ConnectionResetError) as error:
            raise Disconnected(f"the back end closed the vhost-user socket, awaited was {awaited}") from error

    def query(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """Send a request that has a reply of its own and return that reply's payload."""
        with self.lock:
            self.send_message(request, payload, fds)
            return self.receive_reply(request)

    def receive_reply(self, request: int) -> bytes:
        """Payload of the reply to `request`; ProtocolViolation when something else comes."""
        name = request_name(request)
        reply = self.receive_message(f"the reply to {name}")
        for fd in reply.fds:
            os.close(fd)
        if reply.request != request or not reply.is_reply or reply.flags & 3 != VERSION:
            raise ProtocolViolation(f"{name} was answered by request {reply.request} with flags {reply.flags:#x}")
        return reply.payload

    def tell(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, acknowledged: bool = False) -> None:
        """Send a request without reply, or, if `acknowledged` and REPLY_ACK is on, wait for its acknowledgement."""
        with self.lock:
            if not (acknowledged and self.has(ProtocolFeature.REPLY_ACK)):
                self.send_message(request, payload, fds)
                return
            self.send_message(request, payload, fds, VERSION | FLAG_NEED_REPLY)
            code = _u64(request, self.receive_reply(request))
        if code:
            raise Refused(request_name(request), code)

    # --- features -----------------------------------------------------------------------------------------------

    def get_features(self) -> int:
        return _u64(Request.GET_FEATURES, self.query(Request.GET_FEATURES))

    def set_features(self, features: int) -> None:
        self.tell(Request.SET_FEATURES, U64.pack(features))

    def get_protocol_features(self) -> int:
        return _u64(Request.GET_PROTOCOL_FEATURES, self.query(Request.GET_PROTOCOL_FEATURES))

    def set_protocol_features(self, features: int) -> None:
        """Mask of ProtocolFeature bits; from here on acknowledgements follow REPLY_ACK's bit in it."""
        self.tell(Request.SET_PROTOCOL_FEATURES, U64.pack(features))
        self.protocol_features = features

    def get_queue_num(self) -> int:
        return _u64(Request.GET_QUEUE_NUM, self.query(Request.GET_QUEUE_NUM))

    def set_owner(self) -> None:
        self.tell(Request.SET_OWNER)

    def reset_device(self) -> None:
        self.tell(Request.RESET_DEVICE)

    def get_status(self) -> int:
        return _u64(Request.GET_STATUS, self.query(Request.GET_STATUS))

    def set_status(self, status: int) -> None:
        self.tell(Request.SET_STATUS, U64.pack(status), acknowledged=True)

    # --- memory -------------------------------------------------------------------------------------------------

    def set_mem_table(self, regions: Sequence[Slot]) -> None:
        payload = MEM_TABLE_HEADER.pack(len(regions), 0)
        payload += b"".join(MEM_REGION.pack(r.gpa, r.size, r.uva, r.offset) for r in regions)
        self.tell(Request.SET_MEM_TABLE, payload, [r.fd for r in regions], acknowledged=True)

    def get_max_mem_slots(self) -> int:
        return _u64(Request.GET_MAX_MEM_SLOTS, self.query(Request.GET_MAX_MEM_SLOTS))

    def add_mem_reg(self, region: Slot) -> None:
        payload = SINGLE_REGION.pack(0, region.gpa, region.size, region.uva, region.offset)
        self.tell(Request.ADD_MEM_REG, payload, [region.fd], acknowledged=True)

    def rem_mem_reg(self, region: Slot) -> None:
        payload = SINGLE_REGION.pack(0, region.gpa, region.size, region.uva, region.offset)
        self.tell(Request.REM_MEM_REG, payload, acknowledged=True)

    # --- virtqueues ---------------------------------------------------------------------------------------------

    def set_vring_num(self, queue: int, size: int) -> None:
        self.tell(Request.SET_VRING_NUM, VRING_STATE.pack(queue, size))

    def set_vring_base(self, queue: int, base: int) -> None:
        self.tell(Request.SET_VRING_BASE, VRING_STATE.pack(queue, base))

    def set_vring_addr(self, queue: int, descriptors: int, used: int, available: int) -> None:
        """The three parts' *user* addresses."""
        self.tell(Request.SET_VRING_ADDR, VRING_ADDR.pack(queue, 0, descriptors, used, available, 0))

    def get_vring_base(self, queue: int) -> int:
        """Stops the ring; the index of the next available entry that the back end would take."""
        reply = self.query(Request.GET_VRING_BASE, VRING_STATE.pack(queue, 0))
        if len(reply) != VRING_STATE.size:
            raise ProtocolViolation(f"GET_VRING_BASE reply of {len(reply)} bytes")
        index, base = VRING_STATE.unpack(reply)
        if index != queue:
            raise ProtocolViolation(f"GET_VRING_BASE of queue {queue} answered for queue {index}")
        return int(base)

    def set_vring_kick(self, queue: int, eventfd: int | None) -> None:
        self._set_eventfd(Request.SET_VRING_KICK, queue, eventfd)

    def set_vring_call(self, queue: int, eventfd: int | None) -> None:
        self._set_eventfd(Request.SET_VRING_CALL, queue, eventfd)

    def set_vring_err(self, queue: int, eventfd: int | None) -> None:
        self._set_eventfd(Request.SET_VRING_ERR, queue, eventfd)

    def _set_eventfd(self, request: Request, queue: int, eventfd: int | None) -> None:
        if eventfd is None:
            self.tell(request, U64.pack(queue | VRING_NO_FD), acknowledged=True)
        else:
            self.tell(request, U64.pack(queue), [eventfd], acknowledged=True)

    def set_vring_enable(self, queue: int, enabled: bool) -> None:
        """Without REPLY_ACK a GET_FEATURES follows as barrier, as in QEMU."""
        self.tell(Request.SET_VRING_ENABLE, VRING_STATE.pack(queue, enabled), acknowledged=True)
        if not self.has(ProtocolFeature.REPLY_ACK):
            self.get_features()

    # --- configuration space and further sockets ----------------------------------------------------------------

    def get_config(self, offset: int, size: int) -> bytes | None:
        """`size` bytes of configuration space; None when the back end refuses (an empty reply)."""
        reply = self.query(Request.GET_CONFIG, encode_config(offset, size))
        if not reply:
            return None
        if len(reply) != CONFIG.size + size or CONFIG.unpack_from(reply)[1] != size:
            raise ProtocolViolation(f"GET_CONFIG of {size} bytes was answered by {len(reply)} bytes of payload")
        return reply[CONFIG.size :]

    def set_config(self, offset: int, data: bytes, flags: int = 0) -> None:
        self.tell(Request.SET_CONFIG, encode_config(offset, len(data), flags, data), acknowledged=True)

    def get_shmem_config(self) -> dict[int, int]:
        """Bytes of the shared memory regions by id. ProtocolViolation where QEMU would end: for another length than
        that of the whole structure, a wrong count, or sizes whose sum is no power of two.
        """
        reply = self.query(Request.GET_SHMEM_CONFIG)
        if len(reply) != SHMEM_CONFIG.size:
            raise ProtocolViolation(f"GET_SHMEM_CONFIG was answered by {len(reply)} bytes of payload")
        count, *sizes = SHMEM_CONFIG.unpack(reply)
        found = {shmid: size for shmid, size in enumerate(sizes) if size}
        total = sum(found.values())
        if count != len(found) or total & (total - 1) or any(size % PAGE_SIZE for size in found.values()):
            raise ProtocolViolation(f"{count} shared memory regions of {found}")
        return found

    def set_backend_req_fd(self, fd: int) -> None:
        self.tell(Request.SET_BACKEND_REQ_FD, b"", [fd], acknowledged=True)

    def gpu_set_socket(self, fd: int) -> None:
        """Hand over the back end's end of the display socket (SOCK_STREAM)."""
        self.tell(Request.GPU_SET_SOCKET, b"", [fd])


def _u64(request: int, payload: bytes) -> int:
    if len(payload) != U64.size:
        raise ProtocolViolation(f"{request_name(request)} was answered by {len(payload)} bytes instead of 8")
    return int(U64.unpack(payload)[0])
