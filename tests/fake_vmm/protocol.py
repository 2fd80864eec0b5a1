"""vhost-user on the wire: message ids, feature bits and payload layouts, as the front end needs them.

Source: QEMU docs/interop/vhost-user.rst and vhost-user-gpu.rst. All numbers little endian.
"""

from __future__ import annotations

import array
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

HEADER = struct.Struct("<III")  # request, flags, payload size
U64 = struct.Struct("<Q")
VRING_STATE = struct.Struct("<II")  # queue index, number
VRING_ADDR = struct.Struct("<IIQQQQ")  # queue index, flags, descriptor, used, available (user addresses), log
MEM_TABLE_HEADER = struct.Struct("<II")  # number of regions, padding
MEM_REGION = struct.Struct("<QQQQ")  # guest address, size, user address, mmap offset
SINGLE_REGION = struct.Struct("<QQQQQ")  # padding, then as MEM_REGION
CONFIG = struct.Struct("<III")  # offset, size, flags; the bytes follow
SHMEM_MAP = struct.Struct("<B7xQQQQ")  # shmid, fd offset, shm offset, length, flags
SHMEM_CONFIG = struct.Struct("<I4x256Q")  # number of regions, bytes of each by its id
SHMEM_HOST_VISIBLE = 1  # virtio-gpu's only shared memory region
MAX_TABLE_REGIONS = 8  # what fits one SET_MEM_TABLE

VERSION = 1
FLAG_REPLY = 4
FLAG_NEED_REPLY = 8
VRING_NO_FD = 0x100  # in the u64 of SET_VRING_KICK/CALL/ERR: no eventfd comes along
MAX_FDS = 32
MAX_PAYLOAD = 1 << 20

F_RING_INDIRECT_DESC = 1 << 28
F_RING_EVENT_IDX = 1 << 29
F_PROTOCOL_FEATURES = 1 << 30
F_VERSION_1 = 1 << 32
F_RING_RESET = 1 << 40


class Request(IntEnum):
    """Front end to back end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHMEM_CONFIG = 44


class BackEndRequest(IntEnum):
    """Back end to front end, over the socket of SET_BACKEND_REQ_FD."""

    CONFIG_CHANGE = 2
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


class ProtocolFeature(IntEnum):
    """Bit numbers of GET/SET_PROTOCOL_FEATURES."""

    MQ = 0
    REPLY_ACK = 3
    BACKEND_REQ = 5
    CONFIG = 9
    BACKEND_SEND_FD = 10
    RESET_DEVICE = 13
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16
    SHMEM = 22


@dataclass(frozen=True)
class Message:
    """One message with what came along; the receiver owns `fds`."""

    request: int
    flags: int
    payload: bytes
    fds: tuple[int, ...] = ()

    @property
    def is_reply(self) -> bool:
        return bool(self.flags & FLAG_REPLY)

    @property
    def needs_reply(self) -> bool:
        return bool(self.flags & FLAG_NEED_REPLY)


def request_name(request: int) -> str:
    """Name for error texts; unknown ids are shown as numbers."""
    return Request(request).name if request in Request._value2member_map_ else f"request {request}"


def bits(features: Sequence[int]) -> int:
    """The mask of bit numbers."""
    return sum(1 << feature for feature in features)


def receive_exactly(sock: socket.socket, size: int, fds: list[int] | None = None) -> bytes:
    """`size` bytes of a stream socket, collecting passed fds; EOFError when the peer closes first."""
    data = bytearray()
    while len(data) < size:
        chunk, ancillary, _, _ = sock.recvmsg(size - len(data), socket.CMSG_SPACE(4 * MAX_FDS))
        for level, kind, body in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and fds is not None:
                fds.extend(array.array("i", body[: len(body) - len(body) % 4]))
        if not chunk:
            raise EOFError(f"peer closed after {len(data)} of {size} bytes")
        data += chunk
    return bytes(data)


def send_all(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """All of `data`, the fds with its first byte."""
    if fds:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())
        sent = sock.sendmsg([data], [rights])
        data = data[sent:]
    if data:
        sock.sendall(data)


def encode_config(offset: int, size: int, flags: int = 0, data: bytes = b"") -> bytes:
    """Payload of GET/SET_CONFIG; `data` is padded to `size`."""
    return CONFIG.pack(offset, size, flags) + data.ljust(size, b"\0")
