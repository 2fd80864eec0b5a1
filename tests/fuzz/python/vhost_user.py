"""A front end's connection: frames and descriptors of any kind, to the real connection and the real device behind it.

No descriptor is left open when it has ended, and it ends by a ProtocolError, an OSError or its own will.
"""

import os
import socket
import struct
from collections.abc import Callable

from master import vhost_user_messages as messages
from master.device import GpuDevice
from master.errors import ProtocolError
from master.options import ServeOptions
from master.vhost_user import VhostUserBackend
from master.vhost_user_messages import Request
from tests.event_loop import LoopDriver
from tests.fuzz.python.choices import Choices, open_fds
from tests.fuzz.python.small_rig import close, small_machine

REQUESTS = [int(request) for request in Request]
FILE_BYTES = 64 << 10
MOST_FDS = 9
_driver: LoopDriver | None = None


def _memory() -> int:
    fd = os.memfd_create("fuzz")
    os.ftruncate(fd, FILE_BYTES)
    return fd


def _socket() -> int:
    ours, theirs = socket.socketpair()
    ours.close()
    return theirs.detach()


OPTIONS = ServeOptions(fd=0, size=(64, 64), hostmem=FILE_BYTES)
_KINDS: list[Callable[[], int]] = [
    _memory,
    _memory,
    lambda: os.eventfd(0),
    _socket,
    lambda: os.open("/dev/null", os.O_RDWR),
]


def run(data: bytes) -> None:
    global _driver
    _driver = _driver or LoopDriver()
    before = open_fds()
    machine, plane = small_machine()
    device = GpuDevice(_driver.loop, plane, machine.table, machine.contexts, [], OPTIONS)
    ours, theirs = socket.socketpair()
    ends: list[Exception | None] = []
    backend = VhostUserBackend(_driver.loop, theirs, device, ends.append)
    device.reply_vring_base = backend.reply_vring_base
    try:
        _talk(_driver, ours, device, Choices(data))
    finally:
        ours.close()
        _driver.turn(2)
        backend.close()
        device.close()
        close(machine, plane)
    assert len(ends) == 1 and isinstance(ends[0], ProtocolError | OSError | None), ends
    assert open_fds() == before


def _talk(driver: LoopDriver, sock: socket.socket, device: GpuDevice, choices: Choices) -> None:
    sock.setblocking(False)
    while choices.more():
        how = choices.byte()
        frame = _frame(choices)
        fds = [choices.of(_KINDS)() for _ in range(_fd_count(frame, how, choices))]
        try:
            _send(driver, sock, frame, fds, choices.byte() if how & 1 else len(frame))
            sock.recv(4096)
        except BlockingIOError:
            pass
        except OSError:
            return  # it has had enough
        finally:
            for fd in fds:
                os.close(fd)
        driver.turn(2)
        if how & 2:
            device.pump()


def _send(driver: LoopDriver, sock: socket.socket, frame: bytes, fds: list[int], cut: int) -> None:
    """A frame in one piece or two; the descriptors come with the first."""
    socket.send_fds(sock, [frame[: max(1, cut)]], fds)
    driver.turn()
    if frame[max(1, cut) :]:
        sock.send(frame[max(1, cut) :])


def _fd_count(frame: bytes, how: int, choices: Choices) -> int:
    """As many as the message should have, mostly."""
    if how & 4:
        return choices.byte() % MOST_FDS
    number, _flags, size = struct.unpack_from("=III", frame)
    if number == Request.SET_MEM_TABLE and size >= messages.MEM_TABLE.size:
        return min(int(struct.unpack_from("=I", frame, 12)[0]), MOST_FDS)
    if number in (Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR):
        return int(not frame[13] & 1) if len(frame) > 13 else 0
    return int(number in (Request.SET_BACKEND_REQ_FD, Request.GPU_SET_SOCKET))


def _frame(choices: Choices) -> bytes:
    kind, flags = choices.byte(), choices.byte()
    number = REQUESTS[kind % len(REQUESTS)] if kind < 240 else choices.number()
    payload = _payload(number, choices)
    size = len(payload) if flags < 250 else choices.number()
    word = messages.VERSION | (messages.FLAG_NEED_REPLY if flags & 1 else 0) | (choices.word() if flags > 245 else 0)
    return struct.pack("=III", number, word, size) + payload


def _region(choices: Choices) -> bytes:
    return messages.MEM_REGION.pack(
        *(choices.number() << 12, choices.number() << 10, choices.number() << 12, choices.number())
    )


def _payload(number: int, choices: Choices) -> bytes:
    if number == Request.SET_MEM_TABLE:
        count = choices.byte() % MOST_FDS
        return messages.MEM_TABLE.pack(count) + b"".join(_region(choices) for _ in range(count))
    if number == Request.SET_VRING_ADDR:
        return messages.VRING_ADDR.pack(choices.byte() % 3, 0, *(choices.number() << 4 for _ in range(4)))
    if number in (Request.GET_CONFIG, Request.SET_CONFIG):
        size = choices.number() % 300
        return messages.CONFIG.pack(choices.number(), size, 0) + choices.take(size)
    if number in (Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.GET_VRING_BASE, Request.SET_VRING_ENABLE):
        return messages.VRING_STATE.pack(choices.byte() % 3, choices.number())
    if number in (Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR):
        return messages.U64.pack(choices.byte() % 3 | (messages.VRING_FD_NONE if choices.byte() & 1 else 0))
    if number in (Request.SET_FEATURES, Request.SET_PROTOCOL_FEATURES):
        return messages.U64.pack(choices.quad())
    return choices.take(choices.byte() % 40) if choices.byte() > 200 else b""
