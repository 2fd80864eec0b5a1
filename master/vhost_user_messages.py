"""The vhost-user messages that a virtio-gpu back end takes part in: ids, feature bits, payload layouts and sizes.

Source: QEMU's docs/interop/vhost-user.rst. Numbers are in the machine's byte order.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from master.errors import ProtocolError
from native.owned_fd import OwnedFd

VERSION: Final = 1
VERSION_MASK: Final = 0x3
FLAG_REPLY: Final = 1 << 2
FLAG_NEED_REPLY: Final = 1 << 3
REPLY_FLAGS: Final = VERSION | FLAG_REPLY

F_PROTOCOL_FEATURES: Final = 1 << 30  # VHOST_USER_F_PROTOCOL_FEATURES, a bit of the virtio features
MAX_MEMORY_REGIONS: Final = 8  # VHOST_MEMORY_BASELINE_NREGIONS
MAX_CONFIG_BYTES: Final = 256  # VHOST_USER_MAX_CONFIG_SIZE
MAX_QUEUE_SIZE: Final = 1024  # descriptors; QEMU's VIRTQUEUE_MAX_SIZE
VRING_FD_INDEX_MASK: Final = 0xFF
VRING_FD_NONE: Final = 1 << 8
MAX_SHMEM_REGIONS: Final = 256  # VIRTIO_MAX_SHMEM_REGIONS
SHMEM_WRITABLE: Final = 1 << 0  # VHOST_USER_FLAG_MAP_RW


class Request(IntEnum):
    """Front end to back end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
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
    GET_SHMEM_CONFIG = 44


class BackendRequest(IntEnum):
    """Back end to front end, on the socket of SET_BACKEND_REQ_FD."""

    CONFIG_CHANGE = 2
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


class ProtocolFeature(IntFlag):
    """VHOST_USER_PROTOCOL_F_*, as masks."""

    MQ = 1 << 0
    REPLY_ACK = 1 << 3
    BACKEND_REQ = 1 << 5
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    RESET_DEVICE = 1 << 13
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    SHMEM = 1 << 22


U64: Final = struct.Struct("=Q")
VRING_STATE: Final = struct.Struct("=II")  # index, num
VRING_ADDR: Final = struct.Struct("=II4Q")  # index, flags, descriptor, used, available, log
MEM_TABLE: Final = struct.Struct("=I4x")  # number of regions
MEM_REGION: Final = struct.Struct("=4Q")  # guest address, size, user address, mmap offset
CONFIG: Final = struct.Struct("=III")  # offset, size, flags
SHMEM_CONFIG: Final = struct.Struct(f"=I4x{MAX_SHMEM_REGIONS}Q")  # number of regions, bytes of each by its id
SHMEM_RANGE: Final = struct.Struct("=B7x4Q")  # region id, offset in the descriptor, offset in the region, length, flags

_FIXED_SIZES: Final[dict[int, int]] = {
    Request.GET_FEATURES: 0,
    Request.SET_FEATURES: U64.size,
    Request.SET_OWNER: 0,
    Request.RESET_OWNER: 0,
    Request.SET_VRING_NUM: VRING_STATE.size,
    Request.SET_VRING_ADDR: VRING_ADDR.size,
    Request.SET_VRING_BASE: VRING_STATE.size,
    Request.GET_VRING_BASE: VRING_STATE.size,
    Request.SET_VRING_KICK: U64.size,
    Request.SET_VRING_CALL: U64.size,
    Request.SET_VRING_ERR: U64.size,
    Request.GET_PROTOCOL_FEATURES: 0,
    Request.SET_PROTOCOL_FEATURES: U64.size,
    Request.GET_QUEUE_NUM: 0,
    Request.SET_VRING_ENABLE: VRING_STATE.size,
    Request.GPU_SET_SOCKET: 0,
    Request.RESET_DEVICE: 0,
    Request.GET_SHMEM_CONFIG: 0,
}
_SIZE_RANGES: Final[dict[int, tuple[int, int]]] = {
    **{request: (size, size) for request, size in _FIXED_SIZES.items()},
    Request.SET_MEM_TABLE: (MEM_TABLE.size, MEM_TABLE.size + MAX_MEMORY_REGIONS * MEM_REGION.size),
    Request.GET_CONFIG: (CONFIG.size, CONFIG.size + MAX_CONFIG_BYTES),
    Request.SET_CONFIG: (CONFIG.size, CONFIG.size + MAX_CONFIG_BYTES),
    # Some front ends send the u64 that other descriptor messages have; the spec has no payload here.
    Request.SET_BACKEND_REQ_FD: (0, U64.size),
}
_UNKNOWN_SIZES: Final = (0, 4096)


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """A piece of guest RAM.

    gpa: guest physical address; size in bytes; uva: the front end's own address of it, in which ring addresses are
    given; mmap_offset: where it begins in fd. Who gets the region owns fd.
    """

    gpa: int
    size: int
    uva: int
    mmap_offset: int
    fd: OwnedFd


@dataclass(frozen=True, slots=True)
class VringAddress:
    """Where a split ring's three parts lie, in the front end's user addresses (see MemoryRegion.uva)."""

    index: int
    flags: int
    descriptor: int
    used: int
    available: int
    log: int


@dataclass(frozen=True, slots=True)
class ConfigAccess:
    """GET_CONFIG or SET_CONFIG. data: the bytes to write; for GET_CONFIG what the front end happened to send."""

    offset: int
    size: int
    flags: int
    data: bytes


def request_name(request: int) -> str:
    """For the log."""
    return Request(request).name if request in Request.__members__.values() else f"request {request}"


def check_size(request: int, size: int) -> None:
    """Raises ProtocolError if no such request has a payload of `size` bytes. Unknown requests may have 4096."""
    least, most = _SIZE_RANGES.get(request, _UNKNOWN_SIZES)
    if not least <= size <= most:
        raise ProtocolError(f"{request_name(request)} with a payload of {size} bytes, expected {least} to {most}")


def decode_mem_table(payload: bytes, fds: list[OwnedFd]) -> list[MemoryRegion]:
    """The regions, each with its descriptor. Raises ProtocolError if the counts of regions, bytes and descriptors
    differ.
    """
    (count,) = MEM_TABLE.unpack_from(payload)
    if count > MAX_MEMORY_REGIONS or len(payload) < MEM_TABLE.size + count * MEM_REGION.size:
        raise ProtocolError(f"memory table of {count} regions in {len(payload)} bytes")
    if len(fds) != count:
        raise ProtocolError(f"memory table of {count} regions with {len(fds)} descriptors")
    rows = MEM_REGION.iter_unpack(payload[MEM_TABLE.size :][: count * MEM_REGION.size])
    return [_region(row, fd) for row, fd in zip(rows, fds, strict=True)]


def _region(row: tuple[int, int, int, int], fd: OwnedFd) -> MemoryRegion:
    gpa, size, uva, mmap_offset = row
    if size == 0 or max(gpa, uva, mmap_offset) + size > 1 << 64:
        raise ProtocolError(f"memory region of {size:#x} bytes at {gpa:#x} is empty or wraps around")
    return MemoryRegion(gpa, size, uva, mmap_offset, fd)


def decode_vring_address(payload: bytes) -> VringAddress:
    return VringAddress(*VRING_ADDR.unpack(payload))


def decode_vring_fd(payload: bytes, fds: list[OwnedFd]) -> tuple[int, OwnedFd | None]:
    """(queue index, descriptor) of SET_VRING_KICK, _CALL and _ERR; None if the front end says that it sends none."""
    (value,) = U64.unpack(payload)
    expected = 0 if value & VRING_FD_NONE else 1
    if len(fds) != expected:
        raise ProtocolError(f"vring message {value:#x} with {len(fds)} descriptors, expected {expected}")
    return value & VRING_FD_INDEX_MASK, fds[0] if fds else None


def decode_config(payload: bytes) -> ConfigAccess:
    """Raises ProtocolError if the payload does not hold what it counts."""
    offset, size, flags = CONFIG.unpack_from(payload)
    if size > MAX_CONFIG_BYTES or len(payload) != CONFIG.size + size:
        raise ProtocolError(f"configuration access of {size} bytes in a payload of {len(payload)}")
    return ConfigAccess(offset, size, flags, payload[CONFIG.size :])


def encode_config(access: ConfigAccess, data: bytes) -> bytes:
    """GET_CONFIG's answer: it must be as long as the question was."""
    return CONFIG.pack(access.offset, access.size, access.flags) + data


def encode_shmem_config(sizes: Mapping[int, int]) -> bytes:
    """GET_SHMEM_CONFIG's answer. sizes: bytes of the shared memory regions by id, 0 to 255."""
    return SHMEM_CONFIG.pack(len(sizes), *(sizes.get(region_id, 0) for region_id in range(MAX_SHMEM_REGIONS)))


def encode_shmem_map(region_id: int, offset: int, nbytes: int) -> bytes:
    """SHMEM_MAP of a descriptor's first `nbytes` at `offset` of the region, readable and writable."""
    return SHMEM_RANGE.pack(region_id, 0, offset, nbytes, SHMEM_WRITABLE)


def encode_shmem_unmap(region_id: int, offset: int, nbytes: int) -> bytes:
    """SHMEM_UNMAP of what was mapped there: exactly one mapping."""
    return SHMEM_RANGE.pack(region_id, 0, offset, nbytes, 0)
