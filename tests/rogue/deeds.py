"""What a worker that has been taken over may try: each a function that is called in the rogue thread.

All that a deed needs and could not make any more once the worker is sealed is in its Access.
"""

import ctypes
import fcntl
import functools
import itertools
import mmap
import os
import random
import signal
import socket
import struct
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self

from ipc import messages, ring
from master.hostile_socket import refuse_descriptors
from native.storage import StorageKind
from tests.ring_producer import BEGUN, CMD_HEAD, CMD_TAIL, CPL_HEAD, CPL_TAIL, MASTER_SLEEPING
from tests.rogue.sharing_lies import Props

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.malloc.argtypes, _libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p

_COMPLETION: Final = struct.Struct("<QII")
_MEBIBYTE: Final = 1 << 20
_PAGE: Final = mmap.PAGESIZE
_MOST_MEBIBYTES: Final = 1024
with socket.socket(socket.AF_UNIX) as _socket:
    KERNEL_REFUSES_FDS: Final = refuse_descriptors(_socket)
"""The master's end of a channel can tell the kernel that it takes none."""
ATE_ENOUGH: Final = 77
"""Exit code of a worker that nobody kept from using a gibibyte of memory."""

# x86-64: mov $20, %eax; int $0x80; ret   and   jmp to itself
_INT80: Final = bytes.fromhex("b814000000cd80c3")
_LOOP: Final = bytes.fromhex("ebfe")
_LOOP_AT: Final = 64


@dataclass
class Prepared:
    """What has to be made before the worker is sealed: code, a mapping behind which there is no file any more, and a
    handler of SIGUSR1 that never returns."""

    code: int
    nothing: int
    _maps: list[mmap.mmap]

    @classmethod
    def make(cls) -> Self:
        code = mmap.mmap(-1, _PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code[: len(_INT80)] = _INT80
        code[_LOOP_AT : _LOOP_AT + len(_LOOP)] = _LOOP
        fd = os.memfd_create("rogue")
        os.ftruncate(fd, _PAGE)
        nothing = mmap.mmap(fd, _PAGE)
        os.ftruncate(fd, 0)
        os.close(fd)
        addresses = [ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in (code, nothing)]
        _libc.signal(signal.SIGUSR1, ctypes.c_void_p(addresses[0] + _LOOP_AT))
        return cls(addresses[0], addresses[1], [code, nothing])


@dataclass
class Access:
    """What the thread has of its worker. line: the socket to the test; said: the first message of each kind that the
    worker has sent, by the kind's name. props: for lies about storage; lie: the one it tells, "" for none. mirrors:
    memory of mirrors that it has. ring, staging, doorbells: None and -1 in a vtest worker."""

    channel: socket.socket
    line: int
    main_thread: int
    said: dict[str, bytes]
    prepared: Prepared
    props: Props
    lie: str = ""
    mirrors: list[mmap.mmap] = field(default_factory=list)
    ring: mmap.mmap | None = None
    staging: mmap.mmap | None = None
    worker_doorbell: int = -1
    master_doorbell: int = -1

    def read(self, offset: int) -> int:
        """A word of the ring's header."""
        assert self.ring is not None
        return int(struct.unpack_from("<Q", self.ring, offset)[0])

    def write(self, offset: int, value: int) -> None:
        """A word of the ring's header."""
        assert self.ring is not None
        struct.pack_into("<Q", self.ring, offset, value & (1 << 64) - 1)

    def ring_master(self) -> None:
        """Needed or not."""
        self.write(MASTER_SLEEPING, 0)
        os.write(self.master_doorbell, b"\1\0\0\0\0\0\0\0")

    def complete(self, seq: int, status: int = 0) -> None:
        """A completion behind the worker's own."""
        assert self.ring is not None
        head = self.read(CPL_HEAD)
        _COMPLETION.pack_into(self.ring, _place(head), seq & (1 << 64) - 1, status, 0)
        self.write(CPL_HEAD, head + 1)
        self.ring_master()


Deed = Callable[[Access, str], None]
"""With what the order says behind the deed's name."""

DEEDS: dict[str, Deed] = {}


def deed(function: Deed) -> Deed:
    """Enters it in the table, under its name with dashes."""
    DEEDS[function.__name__.strip("_").replace("_", "-")] = function
    return function


def insisting(function: Deed) -> Deed:
    """Does it again and again, until the worker is ended: once might be lost under what the worker itself writes."""

    @functools.wraps(function)
    def insist(access: Access, argument: str) -> None:
        while True:
            function(access, argument)

    return insist


def _place(head: int) -> int:
    return ring.RING_CPL_OFFSET + head % ring.RING_CPL_ENTRIES * _COMPLETION.size


# ---- ends


@deed
def null_read(_access: Access, _argument: str) -> None:
    ctypes.memmove(ctypes.create_string_buffer(1), 0, 1)


@deed
def bus_error(access: Access, _argument: str) -> None:
    ctypes.string_at(access.prepared.nothing, 1)


@deed
def abort(_access: Access, _argument: str) -> None:
    _libc.abort()


@deed
def exit_with(_access: Access, argument: str) -> None:
    os._exit(int(argument))


@deed
def forbidden_call(_access: Access, _argument: str) -> None:
    _libc.ptrace(-1, 0, 0, 0)  # there is no such request: where it is not forbidden it has no effect


@deed
def int80(access: Access, _argument: str) -> None:
    ctypes.CFUNCTYPE(ctypes.c_int)(access.prepared.code)()


@deed
def eat_memory(_access: Access, _argument: str) -> None:
    """Until there is none; then, as a driver that did not look at what malloc said, one write more."""
    for _ in range(_MOST_MEBIBYTES):
        ctypes.memset(_libc.malloc(_MEBIBYTE) or 0, 1, _MEBIBYTE)
    os._exit(ATE_ENOUGH)


@deed
def spin(access: Access, _argument: str) -> None:
    """The thread that serves the ring never does anything again, and keeps its processor busy."""
    signal.pthread_kill(access.main_thread, signal.SIGUSR1)


# ---- descriptors


@deed
def close_channel(access: Access, _argument: str) -> None:
    access.channel.close()


@deed
def close_doorbells(access: Access, _argument: str) -> None:
    os.close(access.worker_doorbell)
    os.close(access.master_doorbell)


# ---- what it writes

OUTPUT_MARK: Final = "here ends what it wrote"
FORGED: Final = "isorend: error: context lost: ctx 99 innocent (worker 1): forged"
SCREEN: Final = "\x1b[2J\x1b]0;title\x07\x9b31m"


@deed
def abuse_output(_access: Access, _argument: str) -> None:
    """All that a standard stream may be good for; without a sandbox, since that forbids the better part of it."""
    for fd in (0, 1, 2):
        for attempt in (
            lambda fd: os.ftruncate(fd, 0),
            lambda fd: os.lseek(fd, 0, os.SEEK_SET),
            lambda fd: fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) ^ os.O_NONBLOCK),
            lambda fd: fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND),
            lambda fd: os.write(0, b"to whoever reads the terminal"),
        ):
            with suppress(OSError):
                attempt(fd)
        _libc.shutdown(fd, socket.SHUT_RDWR)
    os.write(2, f"\n{FORGED}\n{SCREEN}\nerror: {FORGED}\n{'long' * 1000}\n{OUTPUT_MARK}\n".encode("latin-1"))


@deed
def flood_output(_access: Access, _argument: str) -> None:
    for number in itertools.count():
        with suppress(BlockingIOError):
            os.write(2, f"error: flood {number}\n".encode())


# ---- the channel


def _send(access: Access, data: bytes, fds: list[int] | None = None) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    access.channel.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def _flood(access: Access, datagrams: Iterator[bytes]) -> None:
    """Until the master does not listen any more."""
    try:
        for datagram in datagrams:
            _send(access, datagram)
    except (BrokenPipeError, ConnectionResetError):
        return


@deed
def flood_faults(access: Access, _argument: str) -> None:
    _flood(access, (messages.fault(f"lie {number}").encode() for number in itertools.count()))


@deed
def flood_rubbish(access: Access, argument: str) -> None:
    chance = random.Random(argument)
    _flood(access, (chance.randbytes(chance.randrange(1, 600)) for _ in itertools.count()))


@deed
def empty_datagram(access: Access, _argument: str) -> None:
    _send(access, b"")


@deed
def huge_datagram(access: Access, _argument: str) -> None:
    _send(access, bytes(65536))


@deed
def fault_with_fds(access: Access, argument: str) -> None:
    """A message that has none, with so many of our descriptors."""
    try:
        _send(access, messages.fault("here, take these").encode(), [access.line] * int(argument))
    except PermissionError:
        assert KERNEL_REFUSES_FDS


@deed
def say_again(access: Access, argument: str) -> None:
    """A message that the worker has sent already, if it has."""
    if argument in access.said:
        _send(access, access.said[argument])


# ---- storage


@deed
def lie_about_storage(access: Access, argument: str) -> None:
    """From now on, as tests.rogue.sharing_lies has it."""
    access.lie = argument


@deed
def export_unasked(access: Access, _argument: str) -> None:
    """Good memory, that nobody has asked for."""
    fd = access.props.sealed
    layout = {"nbytes": 1 << 20, "offset": 0, "stride": 64, "fourcc": 0, "modifier": 0}
    said = messages.Exported(1, StorageKind.MEMFD, **layout, map_info=1)
    try:
        _send(access, said.encode(), [fd])
    except PermissionError:
        assert KERNEL_REFUSES_FDS
        _send(access, said.encode())


@deed
def scribble_mirrors(access: Access, argument: str) -> None:
    """All over the mirrors that it has, versions first, for as long as it lives."""
    chance = random.Random(argument)
    while True:
        for memory in access.mirrors:
            version = chance.choice([0, 1, 2, (1 << 63), (1 << 64) - 1, chance.randrange(1 << 64)])
            struct.pack_into("<Q", memory, 0, version)
            memory[4096 + chance.randrange(256)] = chance.randrange(256)


# ---- the ring


@deed
@insisting
def complete_zero(access: Access, _argument: str) -> None:
    access.complete(0)


@deed
@insisting
def complete_future(access: Access, _argument: str) -> None:
    access.complete(access.read(BEGUN) + 100_000)


@deed
@insisting
def complete_highest(access: Access, _argument: str) -> None:
    access.complete(-1)


@deed
@insisting
def complete_again(access: Access, _argument: str) -> None:
    """The latest completion once more."""
    assert access.ring is not None
    seq, _, _ = _COMPLETION.unpack_from(access.ring, _place(access.read(CPL_HEAD) - 1))
    access.complete(seq)


@deed
def complete_early(access: Access, _argument: str) -> None:
    """What the worker is at, with a status that there is not."""
    access.complete(access.read(BEGUN), 0xFFFFFFFF)


@deed
def flood_completions(access: Access, argument: str) -> None:
    """More than the ring holds."""
    chance = random.Random(argument)
    for _ in range(2 * ring.RING_CPL_ENTRIES):
        access.complete(access.read(BEGUN) + chance.randrange(-3, 4), chance.randrange(8))


@deed
@insisting
def completions_beyond(access: Access, _argument: str) -> None:
    access.write(CPL_HEAD, access.read(CPL_TAIL) + ring.RING_CPL_ENTRIES + 1)
    access.ring_master()


@deed
@insisting
def completions_wrapped(access: Access, _argument: str) -> None:
    access.write(CPL_HEAD, 1 << 63)
    access.ring_master()


@deed
@insisting
def completions_back(access: Access, _argument: str) -> None:
    access.write(CPL_HEAD, access.read(CPL_TAIL) - 1)
    access.ring_master()


@deed
@insisting
def tail_ahead(access: Access, _argument: str) -> None:
    access.write(CMD_TAIL, access.read(CMD_HEAD) + ring.RING_RECORD_ALIGN)


@deed
@insisting
def tail_back(access: Access, _argument: str) -> None:
    access.write(CMD_TAIL, 0)


@deed
def begun_to_and_fro(access: Access, _argument: str) -> None:
    """Progress that is none."""
    for number in itertools.count():
        access.write(BEGUN, number)


@deed
def scribble(access: Access, argument: str) -> None:
    """All over the memory that the master looks at."""
    assert access.ring is not None and access.staging is not None
    chance = random.Random(argument)
    while True:
        for memory in (access.ring, access.staging):
            # Mostly near the beginning: that is where headers and the first records are.
            at = chance.choice([chance.randrange(1024), chance.randrange(len(memory) - 64)])
            data = chance.randbytes(chance.choice([1, 4, 8, 64]))
            memory[at : at + len(data)] = data
        if chance.random() < 0.01:
            os.write(access.master_doorbell, b"\1\0\0\0\0\0\0\0")
