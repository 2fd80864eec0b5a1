"""One connection, command by command. What a server may do at any time is lose us: ConnectionLost."""

import array
import mmap
import socket
import struct
from collections.abc import Sequence
from typing import Self

from native.owned_fd import OwnedFd
from tests.fake_vtest.protocol import (
    Batch,
    BlobMemory,
    Box,
    Command,
    SyncPoint,
    Texture,
    pack_batches,
    pack_points,
    pack_words,
)

LIMIT = 60.0
"""Seconds after which an answer is taken for never coming."""


class ConnectionLost(Exception):
    """The server has closed the connection."""


def client_pair() -> tuple["VtestClient", socket.socket]:
    """A client, and the server's end of its connection."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return VtestClient(ours), theirs


class VtestClient:
    """Speaks to the server behind a connected socket, which it takes over."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(LIMIT)
        self.socket = sock
        self.version = 0

    # Bytes.

    def send(self, data: bytes) -> None:
        """Raw bytes. Raises ConnectionLost."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ConnectionLost from error

    def receive(self, count: int) -> bytes:
        """Exactly so many bytes. Raises ConnectionLost, TimeoutError."""
        data = bytearray()
        while len(data) < count:
            try:
                piece = self.socket.recv(count - len(data))
            except ConnectionResetError as error:
                raise ConnectionLost from error
            if not piece:
                raise ConnectionLost
            data += piece
        return bytes(data)

    def receive_fd(self) -> OwnedFd:
        """The descriptor that comes with one byte of its own. Raises ConnectionLost."""
        room = socket.CMSG_SPACE(4 * array.array("i").itemsize)
        try:
            data, ancillary, _, _ = self.socket.recvmsg(1, room, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError as error:
            raise ConnectionLost from error
        if not data:
            raise ConnectionLost
        numbers = array.array("i")
        for level, kind, body in ancillary:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            numbers.frombytes(body)
        assert len(numbers) == 1
        return OwnedFd(numbers[0])

    def command(self, number: int, body: bytes = b"", length: int | None = None) -> None:
        """A command; `length` in words, if it is not that of the body."""
        self.send(pack_words(len(body) // 4 if length is None else length, number) + body)

    def reply(self, number: int) -> tuple[int, ...]:
        """The words of a reply to command `number`."""
        length, told = struct.unpack("<II", self.receive(8))
        assert told == number, (told, number)
        return struct.unpack(f"<{length}I", self.receive(4 * length))

    def ask(self, number: int, *words: int) -> tuple[int, ...]:
        """A command and its reply."""
        self.command(number, pack_words(*words))
        return self.reply(number)

    # The beginning.

    def create_renderer(self, name: bytes = b"fake-vtest\0") -> None:
        """The first command: who we are."""
        self.command(Command.CREATE_RENDERER, name, len(name))

    def ping(self) -> bool:
        """Whether the server knows PING_PROTOCOL_VERSION, found out as Mesa does: with a wait behind it."""
        self.command(Command.PING_PROTOCOL_VERSION)
        self.command(Command.RESOURCE_BUSY_WAIT, pack_words(0, 0))
        length, number = struct.unpack("<II", self.receive(8))
        known: bool = number == Command.PING_PROTOCOL_VERSION
        if known:
            assert length == 0
            assert self.reply(Command.RESOURCE_BUSY_WAIT) == (0,)
        else:
            self.receive(4)
        return known

    def negotiate(self, version: int) -> int:
        """Ask for a protocol version; the one that is spoken."""
        (self.version,) = self.ask(Command.PROTOCOL_VERSION, version)
        return self.version

    def begin(self, version: int = 2, name: bytes = b"fake-vtest\0") -> Self:
        """All of that."""
        self.create_renderer(name)
        assert self.ping()
        assert self.negotiate(version) == version
        return self

    def caps(self, command: Command) -> tuple[int, bytes]:
        """GET_CAPS or GET_CAPS2: the number of the set and its bytes."""
        self.command(command)
        size, number = struct.unpack("<II", self.receive(8))
        return number, self.receive(size - 1)

    def capset(self, capset_id: int, version: int) -> bytes | None:
        """A capability set, None if the server has no such one."""
        known, *words = self.ask(Command.GET_CAPSET, capset_id, version)
        return pack_words(*words) if known else None

    def context_init(self, capset_id: int) -> None:
        """Choose the context's capability set."""
        self.command(Command.CONTEXT_INIT, pack_words(capset_id))

    # Resources.

    def resource_create(self, resource_id: int, texture: Texture) -> int:
        """A resource without shared memory; its id."""
        self.command(Command.RESOURCE_CREATE, pack_words(resource_id, *texture.words()))
        return self.reply(Command.RESOURCE_CREATE)[0] if self.version >= 3 else resource_id

    def resource_create2(self, resource_id: int, texture: Texture, size: int) -> tuple[int, OwnedFd | None]:
        """A resource with `size` bytes of shared memory; its id and the memory's descriptor (None for size 0)."""
        self.command(Command.RESOURCE_CREATE2, pack_words(resource_id, *texture.words(), size))
        if self.version >= 3:
            (resource_id,) = self.reply(Command.RESOURCE_CREATE2)
        return resource_id, self.receive_fd() if size else None

    def mapped_resource(self, resource_id: int, texture: Texture, size: int) -> tuple[int, mmap.mmap]:
        """As resource_create2(), with the memory mapped."""
        resource_id, fd = self.resource_create2(resource_id, texture, size)
        assert fd
        with fd:
            return resource_id, mmap.mmap(fd.fd, size)

    def create_blob(self, memory: BlobMemory, size: int, blob_id: int = 0, flags: int = 1) -> tuple[int, OwnedFd]:
        """A blob; its resource id and its descriptor."""
        body = struct.pack("<IIQQ", memory, flags, size, blob_id)
        self.command(Command.RESOURCE_CREATE_BLOB, body)
        (resource_id,) = self.reply(Command.RESOURCE_CREATE_BLOB)
        return resource_id, self.receive_fd()

    def unref(self, resource_id: int) -> None:
        """Drop a resource."""
        self.command(Command.RESOURCE_UNREF, pack_words(resource_id))

    def _transfer(self, resource_id: int, box: Box, stride: int, level: int, size: int) -> bytes:
        return pack_words(resource_id, level, stride, 0, *box, size)

    def transfer_get(self, resource_id: int, box: Box, size: int, stride: int = 0, level: int = 0) -> bytes:
        """A resource's texels, through the socket."""
        self.command(Command.TRANSFER_GET, self._transfer(resource_id, box, stride, level, size))
        return self.receive(size)

    def transfer_put(self, resource_id: int, box: Box, data: bytes, stride: int = 0, level: int = 0) -> None:
        """Texels for a resource, through the socket."""
        head = self._transfer(resource_id, box, stride, level, len(data))
        self.command(Command.TRANSFER_PUT, head + data, 11 + (len(data) + 3) // 4)

    def transfer2(self, command: Command, resource_id: int, box: Box, offset: int = 0, level: int = 0) -> None:
        """TRANSFER_GET2 or _PUT2: through shared memory, at `offset` of it."""
        self.command(command, pack_words(resource_id, level, *box, 0, offset))

    # Work.

    def submit(self, stream: bytes) -> None:
        """A command stream."""
        self.command(Command.SUBMIT_CMD, stream)

    def submit2(self, *batches: Batch) -> None:
        """Command streams with syncs."""
        self.command(Command.SUBMIT_CMD2, pack_batches(batches))

    def busy_wait(self, resource_id: int, *, wait: bool) -> bool:
        """Whether the server is busy; with `wait`, after it no longer is."""
        return bool(self.ask(Command.RESOURCE_BUSY_WAIT, resource_id, int(wait))[0])

    def sync_create(self, value: int = 0) -> int:
        """A sync's id."""
        return self.ask(Command.SYNC_CREATE, value & 0xFFFFFFFF, value >> 32)[0]

    def sync_read(self, sync: int) -> int:
        """A sync's value."""
        low, high = self.ask(Command.SYNC_READ, sync)
        return low | high << 32

    def sync_write(self, sync: int, value: int) -> None:
        """Have a sync reach a value."""
        self.command(Command.SYNC_WRITE, pack_points([SyncPoint(sync, value)]))

    def sync_unref(self, sync: int) -> None:
        """Forget a sync."""
        self.command(Command.SYNC_UNREF, pack_words(sync))

    def sync_wait(self, points: Sequence[SyncPoint], *, any_of: bool = False, timeout_ms: int = 0xFFFFFFFF) -> OwnedFd:
        """A descriptor that turns readable when the points are reached."""
        self.command(Command.SYNC_WAIT, pack_words(int(any_of), timeout_ms) + pack_points(points))
        assert self.reply(Command.SYNC_WAIT) == ()
        return self.receive_fd()

    # The end.

    def is_lost(self) -> bool:
        """Whether the server ends the connection, which is waited for; what it said before is dropped."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    def hang_up(self) -> None:
        """Close the socket."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.hang_up()
