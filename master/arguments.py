"""Types of arguments: they turn a word of the command line into what it means, or say in a line why it means nothing.

Their ValueErrors would become argparse's own dry words, so they raise ArgumentTypeError.
"""

import argparse
import grp
import math
import os
import pwd
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from master.launch import Sandbox
from master.limits import GIB, MIB, Limits, Rate
from master.listener import ListenError, SocketOwner, check_listening_fd, check_socket_path, connection_from_fd
from master.logging_setup import LEVELS
from master.options import DEFAULT_SPARES

MIN_SIZE: Final = 16
MAX_SIZE: Final = 16384
MAX_SPARES: Final = 64
MIN_HOSTMEM: Final = MIB
MAX_HOSTMEM: Final = 256 * GIB
_MAX_ID: Final = 2**32 - 2  # the last one means "leave as it is", chown(2)


def socket_path(text: str) -> Path:
    """A path that a socket can have."""
    if not text:
        raise argparse.ArgumentTypeError("empty path")
    path = Path(text)
    try:
        check_socket_path(path)
    except ListenError as reason:
        raise argparse.ArgumentTypeError(str(reason)) from reason
    return path


def connected_fd(text: str) -> int:
    """A descriptor that is a connected Unix stream socket."""
    fd: int = _fd_number(text)
    try:
        connection_from_fd(fd).detach()
    except ListenError as reason:
        raise argparse.ArgumentTypeError(str(reason)) from reason
    return fd


def listening_fd(text: str) -> int:
    """A descriptor that is a listening Unix stream socket."""
    fd: int = _fd_number(text)
    try:
        check_listening_fd(fd)
    except ListenError as reason:
        raise argparse.ArgumentTypeError(str(reason)) from reason
    return fd


def socket_mode(text: str) -> int:
    """Permission bits in octal."""
    if not re.fullmatch(r"[0-7]{3,4}", text) or int(text, 8) > 0o777:
        raise argparse.ArgumentTypeError(f"{text!r} is not a mode in octal from 000 to 777")
    return int(text, 8)


def socket_owner(text: str) -> SocketOwner:
    """USER, USER:GROUP or :GROUP, names or numbers, as chown(1) takes them."""
    user, colon, group = text.partition(":")
    if not (user or group) or (colon and not group):
        raise argparse.ArgumentTypeError(f"{text!r} is not USER, USER:GROUP or :GROUP")
    uid = _identity(user, "user", lambda name: pwd.getpwnam(name).pw_uid) if user else None
    gid = _identity(group, "group", lambda name: grp.getgrnam(name).gr_gid) if group else None
    return SocketOwner(uid, gid)


def _identity(text: str, what: str, find: Callable[[str], int]) -> int:
    try:
        return find(text)
    except (KeyError, ValueError):  # ValueError: no name could be like this
        if re.fullmatch(r"[0-9]{1,10}", text) and int(text) <= _MAX_ID:
            return int(text)
        raise argparse.ArgumentTypeError(f"there is no {what} {text!r}") from None


def render_node(text: str) -> Path:
    """A device node that may be used."""
    path = Path(text)
    try:
        mode = path.stat().st_mode
    except OSError as reason:
        raise argparse.ArgumentTypeError(f"{text}: {reason.strerror}") from reason
    if not stat.S_ISCHR(mode):
        raise argparse.ArgumentTypeError(f"{text} is not a device node")
    if not os.access(path, os.R_OK | os.W_OK):
        raise argparse.ArgumentTypeError(f"{text}: no permission to use it")
    return path


def shader_cache(text: str) -> Path:
    """A directory that nobody else can write to, made if need be."""
    if not text:
        raise argparse.ArgumentTypeError("empty path")
    path = Path(text).resolve()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as reason:
        raise argparse.ArgumentTypeError(f"{text}: {reason.strerror}") from reason
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise argparse.ArgumentTypeError(f"{text} belongs to somebody else, or others may write to it")
    return path


def size(text: str) -> tuple[int, int]:
    """Width and height in pixels."""
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(MIN_SIZE <= side <= MAX_SIZE for side in size):
        raise argparse.ArgumentTypeError(f"{text!r} is not WxH with sides of {MIN_SIZE} to {MAX_SIZE} pixels")
    return size


def absolute_path(text: str) -> str:
    """A path from the root."""
    if not os.path.isabs(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an absolute path")
    return text


def number(kind: type[int] | type[float], least: float, most: float) -> Callable[[str], Any]:
    """A type of argument: a number of that kind within limits."""

    def convert(text: str) -> int | float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least:g} to {most:g}")
        return number

    return convert


_fd_number = number(int, 0, 2**31 - 1)
_BYTES: Final = {"": 1, "K": 1 << 10, "M": MIB, "G": GIB, "T": 1 << 40}
_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,47}"


def memory_size(text: str) -> int:
    """Bytes, with K, M, G or T (powers of 1024) if wanted; from 64 MiB to 64 TiB."""
    match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)", text)
    size = int(match[1]) * _BYTES[match[2]] if match else 0
    if not 64 * MIB <= size <= 64 << 40:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size from 64M to 64T")
    return size


def hostmem(text: str) -> int:
    """Bytes as in memory_size(): 0, or a power of two (the region becomes a PCI BAR) from 1 MiB to 256 GiB."""
    match = re.fullmatch(r"([0-9]{1,12})([KMGT]?)", text)
    size = int(match[1]) * _BYTES[match[2]] if match else -1
    if size != 0 and not (MIN_HOSTMEM <= size <= MAX_HOSTMEM and size & (size - 1) == 0):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 0 nor a power of two from 1M to 256G")
    return size


def rate(text: str) -> Rate:
    """N/SECONDS."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6}(?:\.[0-9]{1,3})?)", text)
    if match is None or int(match[1]) < 1 or float(match[2]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not N/SECONDS, as in 3/60")
    return Rate(int(match[1]), float(match[2]))


def service_name(text: str) -> str:
    """A word that can be a file's name."""
    if not re.fullmatch(_NAME, text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name: up to 48 letters, digits, '_', '.' and '-'")
    return text


def add_render_node(group: argparse._ArgumentGroup) -> None:
    """--render-node."""
    group.add_argument("--render-node", metavar="PATH", type=render_node, help="GPU to use, like /dev/dri/renderD128")


def add_shader_cache(group: argparse._ArgumentGroup) -> None:
    """--shader-cache."""
    group.add_argument(
        "--shader-cache",
        metavar="DIR",
        type=shader_cache,
        help="keep compiled shaders there for all workers: programs start faster, but whoever takes one worker over "
        "can leave code there for the others (a cache for each that ends with it)",
    )


def add_spares(group: argparse._ArgumentGroup, whom: str) -> None:
    """--spares, workers for the next `whom`."""
    group.add_argument(
        "--spares",
        metavar="N",
        type=number(int, 0, MAX_SPARES),
        default=DEFAULT_SPARES,
        help=f"workers kept ready for the next {whom} (%(default)s)",
    )


def add_sandbox(group: argparse._ArgumentGroup) -> None:
    """--sandbox and what a worker may use."""
    group.add_argument(
        "--sandbox",
        type=Sandbox,
        choices=list(Sandbox),
        default=Sandbox.ENFORCE,
        metavar="{" + ",".join(Sandbox) + "}",
        help="enforce: workers are locked in, and end when they try to get out; audit: what they try is only logged; "
        "off: nothing holds them (%(default)s)",
    )
    group.add_argument(
        "--max-memory",
        metavar="SIZE",
        type=memory_size,
        default=Limits().context_memory,
        help=f"memory that one worker may use, like 512M or 8G ({Limits().context_memory // GIB}G)",
    )


def add_control(parser: argparse.ArgumentParser) -> None:
    """--name and --no-control."""
    group = parser.add_argument_group("watching it")
    group.add_argument(
        "--name", metavar="NAME", type=service_name, help="what `isorend status` calls this service (its process id)"
    )
    group.add_argument(
        "--no-control", dest="control", action="store_false", help="do not listen to `isorend status` and its like"
    )


def add_strikes(group: argparse._ArgumentGroup) -> None:
    """--strikes."""
    group.add_argument(
        "--strikes",
        metavar="N/SECONDS",
        type=rate,
        help="refuse programs whose name has been to blame N times in so many seconds, until `isorend release` (never)",
    )


def add_log_level(parser: argparse.ArgumentParser) -> None:
    """--log-level."""
    parser.add_argument("--log-level", choices=LEVELS, default="info", help="least level that is logged (%(default)s)")
