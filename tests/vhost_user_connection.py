"""A vhost-user back end under test: a handler that notes what it is asked, and the raw other end of its socket.

Its fixtures are for whoever imports them: driver, connection, memory, and a check that no descriptor leaks.
"""

import array
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from master import vhost_user_messages as messages
from master.errors import HandlerError
from master.vhost_user import BackendChannel, VhostUserBackend
from master.vhost_user_messages import MemoryRegion, ProtocolFeature, VringAddress
from native.owned_fd import OwnedFd
from tests.event_loop import LoopDriver, loop_driver

FEATURES = 1 << 32 | messages.F_PROTOCOL_FEATURES
PROTOCOL_FEATURES = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIG
CONFIGURATION = bytes(range(256))
PLAIN, NEED_REPLY, REPLY = 0x1, 0x9, 0x5
Reply = tuple[int, int, bytes]


class RecordingHandler:
    """Notes what it is asked; `refuse` names methods that raise HandlerError."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.refuse: set[str] = set()
        self.base: int | None = 42
        self.regions: list[MemoryRegion] = []
        self.fds: list[OwnedFd] = []
        self.channel: BackendChannel | None = None
        self.display: socket.socket | None = None

    def _note(self, name: str, *arguments: object) -> None:
        self.calls.append((name, *arguments))
        if name in self.refuse:
            raise HandlerError(f"{name} is not possible")

    def get_features(self) -> int:
        self._note("get_features")
        return FEATURES

    def set_features(self, features: int) -> None:
        self._note("set_features", features)

    def get_protocol_features(self) -> ProtocolFeature:
        return PROTOCOL_FEATURES

    def set_protocol_features(self, features: ProtocolFeature) -> None:
        self._note("set_protocol_features", features)

    def set_owner(self) -> None:
        self._note("set_owner")

    def reset_device(self) -> None:
        self._note("reset_device")

    def set_mem_table(self, regions: list[MemoryRegion]) -> None:
        self._note("set_mem_table", len(regions))
        self.regions = regions

    def get_queue_num(self) -> int:
        return 2

    def set_vring_num(self, index: int, num: int) -> None:
        self._note("set_vring_num", index, num)

    def set_vring_addr(self, address: VringAddress) -> None:
        self._note("set_vring_addr", address)

    def set_vring_base(self, index: int, base: int) -> None:
        self._note("set_vring_base", index, base)

    def get_vring_base(self, index: int) -> int | None:
        self._note("get_vring_base", index)
        return self.base

    def _vring_fd(self, name: str, index: int, fd: OwnedFd | None) -> None:
        self._note(name, index, fd is not None)
        if fd is not None:
            self.fds.append(fd)

    def set_vring_kick(self, index: int, fd: OwnedFd | None) -> None:
        self._vring_fd("set_vring_kick", index, fd)

    def set_vring_call(self, index: int, fd: OwnedFd | None) -> None:
        self._vring_fd("set_vring_call", index, fd)

    def set_vring_err(self, index: int, fd: OwnedFd | None) -> None:
        self._vring_fd("set_vring_err", index, fd)

    def set_vring_enable(self, index: int, enabled: bool) -> None:
        self._note("set_vring_enable", index, enabled)

    def get_config(self, offset: int, size: int) -> bytes:
        self._note("get_config", offset, size)
        return CONFIGURATION[offset : offset + size]

    def set_config(self, offset: int, data: bytes, flags: int) -> None:
        self._note("set_config", offset, data, flags)

    def get_shmem_config(self) -> dict[int, int]:
        self._note("get_shmem_config")
        return {1: 256 << 20}

    def set_backend_channel(self, channel: BackendChannel) -> None:
        self._note("set_backend_channel")
        self.channel = channel

    def gpu_set_socket(self, sock: socket.socket) -> None:
        self._note("gpu_set_socket")
        self.display = sock

    def close(self) -> None:
        for fd in [*self.fds, *(region.fd for region in self.regions)]:
            fd.close()
        if self.display is not None:
            self.display.close()


class Connection:
    """A back end under test, and the front end's end of its socket."""

    def __init__(self, driver: LoopDriver) -> None:
        self.driver = driver
        self.handler = RecordingHandler()
        self.closings: list[Exception | None] = []
        self.peer, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.peer.setblocking(False)
        self.backend = VhostUserBackend(driver.loop, ours, self.handler, self.closings.append)

    def send(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = (), flags: int = PLAIN) -> None:
        self.send_raw(struct.pack("=III", request, flags, len(payload)) + payload, fds)

    def send_raw(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        assert self.peer.sendmsg([data], rights) == len(data)

    def replies(self) -> list[Reply]:
        """All that has come by now."""
        self.driver.turn(5)
        data = b""
        try:
            while chunk := self.peer.recv(65536):
                data += chunk
        except (BlockingIOError, ConnectionResetError):
            pass
        replies = []
        while data:
            request, flags, size = struct.unpack_from("=III", data)
            replies.append((request, flags, data[12 : 12 + size]))
            data = data[12 + size :]
        return replies

    def ask(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = (), flags: int = PLAIN) -> list[Reply]:
        self.send(request, payload, fds, flags)
        return self.replies()

    def why_closed(self) -> str:
        """The connection must close by itself; the words of the reason."""
        self.driver.until(lambda: self.closings, "the connection closes")
        self.driver.turn(3)
        assert len(self.closings) == 1
        assert self.backend.closed
        return str(self.closings[0])

    def close(self) -> None:
        self.backend.close()
        self.handler.close()
        self.peer.close()


def u64(value: int) -> bytes:
    return struct.pack("=Q", value)


def open_descriptions(fd: int) -> int:
    """How many descriptors of this process are of the same file as fd."""
    wanted = os.fstat(fd)
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found = os.stat(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        count += (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)
    return count


@pytest.fixture(name="memory")
def memory_fixture() -> Iterator[int]:
    fd = os.memfd_create("guest-ram")
    os.ftruncate(fd, 1 << 20)
    yield fd
    os.close(fd)


@pytest.fixture(name="driver")
def driver_fixture() -> Iterator[LoopDriver]:
    with loop_driver() as driver:
        yield driver


@pytest.fixture(name="connection")
def connection_fixture(driver: LoopDriver) -> Iterator[Connection]:
    connection = Connection(driver)
    yield connection
    connection.close()


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before
