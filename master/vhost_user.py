"""The back end's side of vhost-user: one front end's connection, and the channel back to it.

Source: QEMU's docs/interop/vhost-user.rst, and how QEMU 11 behaves.

How errors go, by the message:
- What breaks the protocol (a wrong header, size, descriptor count, queue index) raises ProtocolError and closes the
  connection.
- What the handler cannot do (HandlerError) is told to the front end where the protocol has a way: a non-zero
  acknowledgement if it asked for one, an empty GET_CONFIG answer. Where it has none the two sides would no longer
  agree on the device's state, so it closes the connection.
- A request that was not offered is refused the same way if an acknowledgement was asked for, and otherwise ignored.

An acknowledgement is sent to whoever asks (need_reply), whether or not REPLY_ACK has been negotiated: a front end that
asks waits for it.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeAlias

from master import vhost_user_messages as messages
from master.errors import HandlerError, ProtocolError
from master.framed_socket import Frame, FramedSocket, unix_stream_socket
from master.vhost_user_messages import (
    BackendRequest,
    MemoryRegion,
    ProtocolFeature,
    Request,
    VringAddress,
    request_name,
)
from native.owned_fd import OwnedFd

log = logging.getLogger(__name__)

SEND_LIMIT: Final = 64 << 10  # bytes of answers that a front end may leave unread
BACKLOG_LIMIT: Final = 16  # requests read ahead while GET_VRING_BASE waits for the ring to drain


class VhostUserHandler(Protocol):
    """The device behind the connection.

    Every method may raise HandlerError; it must then have kept no descriptor that it was given. Otherwise it owns them.
    index is a queue's; the connection has checked that it is less than get_queue_num().
    """

    def get_features(self) -> int:
        """Virtio feature bits to offer, messages.F_PROTOCOL_FEATURES among them."""

    def set_features(self, features: int) -> None:
        """What the guest accepted. QEMU's GPU device sets INDIRECT_DESC, EVENT_IDX and RING_RESET even if not
        offered.
        """

    def get_protocol_features(self) -> ProtocolFeature: ...

    def set_protocol_features(self, features: ProtocolFeature) -> None: ...

    def set_owner(self) -> None: ...

    def reset_device(self) -> None:
        """Back to the initial state, without rings. Guest memory stays: QEMU need not send it again."""

    def set_mem_table(self, regions: list[MemoryRegion]) -> None:
        """All of guest memory from now on."""

    def get_queue_num(self) -> int: ...

    def set_vring_num(self, index: int, num: int) -> None:
        """num: descriptors, a power of two."""

    def set_vring_addr(self, address: VringAddress) -> None: ...

    def set_vring_base(self, index: int, base: int) -> None:
        """base: the next available entry to take."""

    def get_vring_base(self, index: int) -> int | None:
        """Stop the ring. The next available entry, or None: VhostUserBackend.reply_vring_base will be called when
        drained.
        """

    def set_vring_kick(self, index: int, fd: OwnedFd | None) -> None:
        """The eventfd that starts the ring when readable; it may be already."""

    def set_vring_call(self, index: int, fd: OwnedFd | None) -> None: ...

    def set_vring_err(self, index: int, fd: OwnedFd | None) -> None: ...

    def set_vring_enable(self, index: int, enabled: bool) -> None: ...

    def get_config(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes of the configuration space."""

    def set_config(self, offset: int, data: bytes, flags: int) -> None: ...

    def get_shmem_config(self) -> Mapping[int, int]:
        """Bytes of the device's shared memory regions by id (virtio 1.3, 2.10). QEMU wants their sum to be a power of
        two, and ends if it is not.
        """

    def set_backend_channel(self, channel: "BackendChannel") -> None:
        """The way to send requests to the front end. It belongs to the connection and closes with it."""

    def gpu_set_socket(self, sock: socket.socket) -> None:
        """The display socket (see display.DisplayLink). Nothing may be asked on it before this and later messages are
        answered.
        """


class VhostUserBackend:
    """One front end's connection on `sock`, which it owns from now on.

    on_closed is called exactly once unless close() was: None if the front end left between two messages, a
    ProtocolError if it broke the protocol, an OSError if the socket failed.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        handler: VhostUserHandler,
        on_closed: Callable[[Exception | None], None],
    ) -> None:
        self._loop = loop
        self._handler = handler
        self._on_closed = on_closed
        self._channel: BackendChannel | None = None
        self._backlog: deque[Frame] = deque()
        self._draining: int | None = None  # the queue that GET_VRING_BASE waits for
        self._socket = FramedSocket(loop, sock, self, send_limit=SEND_LIMIT)

    @property
    def closed(self) -> bool:
        return self._socket.closed

    def close(self) -> None:
        """Close the connection, its back-end channel and what has been read ahead. on_closed is not called."""
        self._socket.close()
        self._drop()

    def reply_vring_base(self, index: int, base: int) -> None:
        """Answer the GET_VRING_BASE for which get_vring_base returned None, then go on with the requests that came
        meanwhile.

        Ignored if the connection has closed since. ValueError if no such answer is due.
        """
        if self.closed:
            return
        if self._draining != index:
            raise ValueError(f"GET_VRING_BASE of queue {index} is not being waited for")
        self._draining = None
        self._reply(Request.GET_VRING_BASE, messages.VRING_STATE.pack(index, base))
        self._loop.call_soon(self._work_off_backlog)

    # FrameReceiver

    def check_header(self, request: int, flags: int, size: int) -> None:
        if flags & messages.VERSION_MASK != messages.VERSION:
            raise ProtocolError(f"vhost-user version {flags & messages.VERSION_MASK}, expected {messages.VERSION}")
        if flags & messages.FLAG_REPLY:
            raise ProtocolError(f"{request_name(request)} is marked as a reply")
        messages.check_size(request, size)

    def take_frame(self, frame: Frame) -> None:
        if self._draining is None and not self._backlog:
            self._serve(frame)
            return
        self._backlog.append(frame)
        if len(self._backlog) >= BACKLOG_LIMIT:
            self._socket.pause_reading()

    def socket_closed(self, reason: Exception | None) -> None:
        self._drop()
        self._on_closed(reason)

    # Requests

    def _drop(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        for frame in self._backlog:
            frame.close_fds()
        self._backlog.clear()
        self._draining = None

    def _work_off_backlog(self) -> None:
        try:
            while self._backlog and self._draining is None and not self.closed:
                self._serve(self._backlog.popleft())
        except ProtocolError as reason:
            self._socket.close()
            self.socket_closed(reason)
            return
        if not self._backlog:
            self._socket.resume_reading()

    def _serve(self, frame: Frame) -> None:
        name = request_name(frame.request)
        log.debug("%s flags=%#x size=%d fds=%d", name, frame.flags, len(frame.payload), len(frame.fds))
        need_reply = bool(frame.flags & messages.FLAG_NEED_REPLY)
        try:
            answered = self._dispatch(frame)
        except HandlerError as refusal:
            frame.close_fds()
            if not need_reply or frame.request in _ANSWERED:
                raise ProtocolError(f"{name} cannot be done: {refusal}") from refusal
            log.error("%s refused: %s", name, refusal)
            self._acknowledge(frame, 1)
            return
        except BaseException:
            frame.close_fds()
            raise
        if need_reply and not answered:
            self._acknowledge(frame, 0)

    def _dispatch(self, frame: Frame) -> bool:
        """Whether the request has, or will have, an answer of its own."""
        answer = _ANSWERED.get(frame.request)
        if answer is not None:
            _expect_fds(frame, 0)
            answer(self, frame)
            return True
        act = _UNANSWERED.get(frame.request)
        if act is not None:
            act(self, frame)
            return False
        frame.close_fds()
        if frame.flags & messages.FLAG_NEED_REPLY:
            raise HandlerError("not a request of this device")
        log.warning("ignored %s: not a request of this device", request_name(frame.request))
        return False

    def _reply(self, request: int, payload: bytes) -> None:
        self._socket.send(request, messages.REPLY_FLAGS, [payload])

    def _acknowledge(self, frame: Frame, status: int) -> None:
        self._reply(frame.request, messages.U64.pack(status))

    def _queue(self, index: int) -> int:
        if index >= self._handler.get_queue_num():
            raise ProtocolError(f"queue {index}, the device has {self._handler.get_queue_num()}")
        return index

    def _vring_state(self, frame: Frame) -> tuple[int, int]:
        _expect_fds(frame, 0)
        index, num = messages.VRING_STATE.unpack(frame.payload)
        return self._queue(index), num

    def _vring_fd(self, frame: Frame) -> tuple[int, OwnedFd | None]:
        index, fd = messages.decode_vring_fd(frame.payload, frame.fds)
        return self._queue(index), fd

    # Requests with an answer of their own

    def _get_features(self, frame: Frame) -> None:
        self._reply(frame.request, messages.U64.pack(self._handler.get_features()))

    def _get_protocol_features(self, frame: Frame) -> None:
        self._reply(frame.request, messages.U64.pack(self._handler.get_protocol_features()))

    def _get_queue_num(self, frame: Frame) -> None:
        self._reply(frame.request, messages.U64.pack(self._handler.get_queue_num()))

    def _get_vring_base(self, frame: Frame) -> None:
        index, _num = self._vring_state(frame)
        self._draining = index  # before the call: the handler may drain at once and answer from inside
        base = self._handler.get_vring_base(index)
        if base is not None:
            self.reply_vring_base(index, base)

    def _get_config(self, frame: Frame) -> None:
        access = messages.decode_config(frame.payload)
        try:
            data = self._handler.get_config(access.offset, access.size)
        except HandlerError as refusal:
            log.error("GET_CONFIG refused: %s", refusal)
            self._reply(frame.request, b"")
            return
        if len(data) != access.size:
            raise ValueError(f"the handler gave {len(data)} bytes of configuration, {access.size} were asked for")
        self._reply(frame.request, messages.encode_config(access, data))

    def _get_shmem_config(self, frame: Frame) -> None:
        self._reply(frame.request, messages.encode_shmem_config(self._handler.get_shmem_config()))

    # Requests without

    def _set_features(self, frame: Frame) -> None:
        _expect_fds(frame, 0)
        self._handler.set_features(messages.U64.unpack(frame.payload)[0])

    def _set_protocol_features(self, frame: Frame) -> None:
        _expect_fds(frame, 0)
        self._handler.set_protocol_features(ProtocolFeature(messages.U64.unpack(frame.payload)[0]))

    def _set_owner(self, frame: Frame) -> None:
        _expect_fds(frame, 0)
        self._handler.set_owner()

    def _reset_owner(self, frame: Frame) -> None:
        """Deprecated; the spec recommends to ignore it."""
        _expect_fds(frame, 0)

    def _reset_device(self, frame: Frame) -> None:
        _expect_fds(frame, 0)
        self._handler.reset_device()

    def _set_mem_table(self, frame: Frame) -> None:
        self._handler.set_mem_table(messages.decode_mem_table(frame.payload, frame.fds))

    def _set_vring_num(self, frame: Frame) -> None:
        index, num = self._vring_state(frame)
        if not 0 < num <= messages.MAX_QUEUE_SIZE or num & (num - 1):
            raise ProtocolError(f"queue {index} of {num} descriptors: no power of two up to {messages.MAX_QUEUE_SIZE}")
        self._handler.set_vring_num(index, num)

    def _set_vring_addr(self, frame: Frame) -> None:
        _expect_fds(frame, 0)
        address = messages.decode_vring_address(frame.payload)
        self._queue(address.index)
        self._handler.set_vring_addr(address)

    def _set_vring_base(self, frame: Frame) -> None:
        index, base = self._vring_state(frame)
        if base > 0xFFFF:
            raise ProtocolError(f"base {base} of queue {index} is no 16-bit index")
        self._handler.set_vring_base(index, base)

    def _set_vring_kick(self, frame: Frame) -> None:
        self._handler.set_vring_kick(*self._vring_fd(frame))

    def _set_vring_call(self, frame: Frame) -> None:
        self._handler.set_vring_call(*self._vring_fd(frame))

    def _set_vring_err(self, frame: Frame) -> None:
        self._handler.set_vring_err(*self._vring_fd(frame))

    def _set_vring_enable(self, frame: Frame) -> None:
        index, enable = self._vring_state(frame)
        if enable > 1:
            raise ProtocolError(f"SET_VRING_ENABLE of queue {index} to {enable}")
        self._handler.set_vring_enable(index, bool(enable))

    def _set_config(self, frame: Frame) -> None:
        _expect_fds(frame, 0)
        access = messages.decode_config(frame.payload)
        self._handler.set_config(access.offset, access.data, access.flags)

    def _set_backend_req_fd(self, frame: Frame) -> None:
        _expect_fds(frame, 1)
        channel = BackendChannel(self._loop, _received_socket(frame))
        if self._channel is not None:
            self._channel.close()
        self._channel = channel
        self._handler.set_backend_channel(channel)

    def _gpu_set_socket(self, frame: Frame) -> None:
        _expect_fds(frame, 1)
        sock = _received_socket(frame)
        try:
            self._handler.gpu_set_socket(sock)
        except BaseException:
            sock.close()
            raise


def _expect_fds(frame: Frame, count: int) -> None:
    if len(frame.fds) != count:
        raise ProtocolError(f"{request_name(frame.request)} with {len(frame.fds)} descriptors, expected {count}")


def _received_socket(frame: Frame) -> socket.socket:
    try:
        return unix_stream_socket(frame.fds[0])
    except OSError as reason:
        raise HandlerError(f"{request_name(frame.request)}: {reason}") from reason


_Serve: TypeAlias = Callable[[VhostUserBackend, Frame], None]

_ANSWERED: Final[dict[int, _Serve]] = {
    Request.GET_FEATURES: VhostUserBackend._get_features,
    Request.GET_PROTOCOL_FEATURES: VhostUserBackend._get_protocol_features,
    Request.GET_QUEUE_NUM: VhostUserBackend._get_queue_num,
    Request.GET_VRING_BASE: VhostUserBackend._get_vring_base,
    Request.GET_CONFIG: VhostUserBackend._get_config,
    Request.GET_SHMEM_CONFIG: VhostUserBackend._get_shmem_config,
}
_UNANSWERED: Final[dict[int, _Serve]] = {
    Request.SET_FEATURES: VhostUserBackend._set_features,
    Request.SET_PROTOCOL_FEATURES: VhostUserBackend._set_protocol_features,
    Request.SET_OWNER: VhostUserBackend._set_owner,
    Request.RESET_OWNER: VhostUserBackend._reset_owner,
    Request.RESET_DEVICE: VhostUserBackend._reset_device,
    Request.SET_MEM_TABLE: VhostUserBackend._set_mem_table,
    Request.SET_VRING_NUM: VhostUserBackend._set_vring_num,
    Request.SET_VRING_ADDR: VhostUserBackend._set_vring_addr,
    Request.SET_VRING_BASE: VhostUserBackend._set_vring_base,
    Request.SET_VRING_KICK: VhostUserBackend._set_vring_kick,
    Request.SET_VRING_CALL: VhostUserBackend._set_vring_call,
    Request.SET_VRING_ERR: VhostUserBackend._set_vring_err,
    Request.SET_VRING_ENABLE: VhostUserBackend._set_vring_enable,
    Request.SET_CONFIG: VhostUserBackend._set_config,
    Request.SET_BACKEND_REQ_FD: VhostUserBackend._set_backend_req_fd,
    Request.GPU_SET_SOCKET: VhostUserBackend._gpu_set_socket,
}


class BackendChannel:
    """Requests of the back end to the front end, on the socket of SET_BACKEND_REQ_FD, which it owns from now on.

    Answers come in the order of the requests that asked for one. A channel that closes answers what is open with False.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self._socket = FramedSocket(loop, sock, self, send_limit=SEND_LIMIT)
        self._waiting: deque[tuple[int, Callable[[bool], None]]] = deque()

    @property
    def closed(self) -> bool:
        return self._socket.closed

    def config_change(self, on_reply: Callable[[bool], None] | None = None) -> None:
        """Tell the front end that the configuration space has changed. QEMU's GPU device refuses it, its generic one
        does not.
        """
        self.request(BackendRequest.CONFIG_CHANGE, on_reply=on_reply)

    def request(
        self,
        request: int,
        payload: bytes = b"",
        *,
        fd: OwnedFd | None = None,
        on_reply: Callable[[bool], None] | None = None,
    ) -> None:
        """Send a request; takes fd over. With on_reply it asks for an answer: True for success."""
        if self.closed:
            if fd is not None:
                fd.close()
            if on_reply is not None:
                on_reply(False)
            return
        flags = messages.VERSION
        if on_reply is not None:
            flags |= messages.FLAG_NEED_REPLY
            self._waiting.append((request, on_reply))
        self._socket.send(request, flags, [payload], fds=[fd] if fd is not None else [])

    def read_answers(self) -> None:
        """Give out the answers that are there by now: what the front end did before it sent the message in hand."""
        self._socket.read_now()

    def close(self) -> None:
        self._socket.close()
        self._fail_waiting()

    # FrameReceiver

    def check_header(self, request: int, flags: int, size: int) -> None:
        if flags & (messages.VERSION_MASK | messages.FLAG_REPLY) != messages.REPLY_FLAGS:
            raise ProtocolError(f"flags {flags:#x} on the back-end channel are not those of a reply")
        if not self._waiting or self._waiting[0][0] != request:
            raise ProtocolError(f"a reply to request {request} on the back-end channel that nobody waits for")
        if size != messages.U64.size:
            raise ProtocolError(f"a reply of {size} bytes on the back-end channel, expected {messages.U64.size}")

    def take_frame(self, frame: Frame) -> None:
        if frame.fds:
            raise ProtocolError("a reply with descriptors on the back-end channel")
        _request, on_reply = self._waiting.popleft()
        on_reply(messages.U64.unpack(frame.payload)[0] == 0)

    def socket_closed(self, reason: Exception | None) -> None:
        if reason is not None:
            log.error("the back-end channel has closed: %s", reason)
        self._fail_waiting()

    def _fail_waiting(self) -> None:
        while self._waiting:
            _request, on_reply = self._waiting.popleft()
            on_reply(False)
