"""Numbers and shapes of the vtest protocol (virglrenderer, vtest/vtest_protocol.h)."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple


class Command(IntEnum):
    """Command numbers."""

    GET_CAPS = 1
    RESOURCE_CREATE = 2
    RESOURCE_UNREF = 3
    TRANSFER_GET = 4
    TRANSFER_PUT = 5
    SUBMIT_CMD = 6
    RESOURCE_BUSY_WAIT = 7
    CREATE_RENDERER = 8
    GET_CAPS2 = 9
    PING_PROTOCOL_VERSION = 10
    PROTOCOL_VERSION = 11
    RESOURCE_CREATE2 = 12
    TRANSFER_GET2 = 13
    TRANSFER_PUT2 = 14
    GET_PARAM = 15
    GET_CAPSET = 16
    CONTEXT_INIT = 17
    RESOURCE_CREATE_BLOB = 18
    SYNC_CREATE = 19
    SYNC_UNREF = 20
    SYNC_READ = 21
    SYNC_WRITE = 22
    SYNC_WAIT = 23
    SUBMIT_CMD2 = 24


class BlobMemory(IntEnum):
    """Where a blob's memory is."""

    GUEST = 1
    HOST3D = 2
    HOST3D_GUEST = 3


@dataclass(frozen=True)
class Texture:
    """RESOURCE_CREATE's arguments without the id; gallium's numbers."""

    target: int
    format: int
    bind: int
    width: int
    height: int = 1
    depth: int = 1
    array_size: int = 1
    last_level: int = 0
    nr_samples: int = 0

    def words(self) -> tuple[int, ...]:
        """As they follow the id on the wire."""
        return (
            *(self.target, self.format, self.bind, self.width, self.height, self.depth),
            *(self.array_size, self.last_level, self.nr_samples),
        )


class Box(NamedTuple):
    """A box of a resource, in texels."""

    x: int
    y: int
    z: int
    w: int
    h: int
    d: int


class SyncPoint(NamedTuple):
    """A sync and a value it is to reach."""

    sync: int
    value: int


@dataclass(frozen=True)
class Batch:
    """One batch of SUBMIT_CMD2. With a timeline its points are reached when its work is done, else at once."""

    stream: bytes = b""
    points: Sequence[SyncPoint] = ()
    timeline: int | None = None


def pack_words(*words: int) -> bytes:
    """32-bit little-endian words."""
    return struct.pack(f"<{len(words)}I", *words)


def pack_points(points: Sequence[SyncPoint]) -> bytes:
    """{id, value low, value high} each."""
    return b"".join(struct.pack("<IQ", *point) for point in points)


def pack_batches(batches: Sequence[Batch]) -> bytes:
    """SUBMIT_CMD2's arguments: count, a header of eight words each, streams and points."""
    heads, body = pack_words(len(batches)), b""
    start = 1 + 8 * len(batches)
    for batch in batches:
        points = pack_points(batch.points)
        stream_at = start + len(body) // 4
        body += batch.stream + points
        heads += pack_words(
            int(batch.timeline is not None),
            *(stream_at, len(batch.stream) // 4),
            *(stream_at + len(batch.stream) // 4, len(batch.points)),
            *(batch.timeline or 0, 0, 0),
        )
    return heads + body
