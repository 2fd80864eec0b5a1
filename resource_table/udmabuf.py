"""The pages of a guest blob as one dma-buf, by /dev/udmabuf (Linux: drivers/dma-buf/udmabuf.c).

The kernel wants guest RAM that is a memfd sealed against shrinking, which is what VMMs give with a memory back end of
that kind, and whole pages of it; and it takes only so many parts and bytes for one dma-buf. Where anything is missing
the guest's pages are read by their addresses instead, and nothing but speed is lost: so it is said once, and not again.
"""

import fcntl
import logging
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from native.guest_memory import Backing
from native.linux import PAGE_BYTES, get_seals, udmabuf_create_list
from native.owned_fd import OwnedFd

log = logging.getLogger(__name__)

DEVICE: Final = Path("/dev/udmabuf")
PARAMETERS: Final = Path("/sys/module/udmabuf/parameters")

# What the module takes if nobody set it otherwise.
_LIST_LIMIT: Final = 1024
_SIZE_LIMIT_MB: Final = 64

_Part: TypeAlias = tuple[int, int, int]


class GuestRegion(Protocol):
    """A region of guest RAM: `size` bytes at `offset` of the file `fd`, which is lent, are guest-physical `gpa`."""

    @property
    def fd(self) -> OwnedFd: ...

    @property
    def gpa(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def offset(self) -> int: ...


class Unavailable(Exception):
    """Why there is no udmabuf."""


class Udmabuf:
    """The device, opened when it is first wanted."""

    def __init__(
        self,
        device: Path = DEVICE,
        parameters: Path = PARAMETERS,
        create_list: Callable[[int, Sequence[_Part]], int] = udmabuf_create_list,
    ) -> None:
        self._path = device
        self._parameters = parameters
        self._create_list = create_list
        self._device: OwnedFd | None = None
        self._told: set[str] = set()

    def create(self, backing: Backing, regions: Sequence[GuestRegion]) -> OwnedFd | None:
        """All pages of a backing as one dma-buf; None where that cannot be had, and the log says why."""
        try:
            if self._device is None:
                self._device = OwnedFd(os.open(self._path, os.O_RDWR | os.O_CLOEXEC))
            if backing.pieces > self._parameter("list_limit", _LIST_LIMIT):
                raise Unavailable("the guest's pages are too scattered (list_limit)")
            if backing.nbytes > self._parameter("size_limit_mb", _SIZE_LIMIT_MB) << 20:
                raise Unavailable("a guest blob is too large (size_limit_mb)")
            parts = parts_of(backing.segments(), regions)
            check_files({fd for fd, _, _ in parts})
            return OwnedFd(self._create_list(self._device.fd, parts))
        except Unavailable as reason:
            self._tell(str(reason))
        except OSError as error:
            self._tell(os.strerror(error.errno or 0))
        return None

    def _parameter(self, name: str, default: int) -> int:
        """Of the module; it can be changed while it is in use."""
        try:
            return int((self._parameters / name).read_text("ascii"))
        except (OSError, ValueError):
            return default

    def _tell(self, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            log.info("no udmabuf (%s): guest blobs are copied where they are shown", reason)

    def close(self) -> None:
        """Gives the device back; the dma-bufs are their owners'."""
        if self._device is not None:
            self._device.close()
            self._device = None


def parts_of(segments: Sequence[tuple[int, int]], regions: Sequence[GuestRegion]) -> list[_Part]:
    """Where pieces of guest memory lie in the files that it is made of. Raises Unavailable.

    A piece may go on from one region into the next.
    """
    ordered = sorted(regions, key=lambda region: region.gpa)
    starts = [region.gpa for region in ordered]
    parts: list[_Part] = []
    for gpa, length in segments:
        while length:
            index = bisect_right(starts, gpa) - 1
            if index < 0 or gpa >= ordered[index].gpa + ordered[index].size:
                raise Unavailable("the guest's pages are not in its RAM")
            region = ordered[index]
            here = min(length, region.gpa + region.size - gpa)
            offset = region.offset + gpa - region.gpa
            if offset % PAGE_BYTES or here % PAGE_BYTES:
                raise Unavailable("the guest gave parts of pages")
            parts.append((region.fd.fd, offset, here))
            gpa += here
            length -= here
    return parts


def check_files(fds: set[int]) -> None:
    """Whether the kernel will take pages of these files. Raises Unavailable."""
    for fd in fds:
        try:
            seals = get_seals(fd)
        except OSError as error:
            raise Unavailable("guest RAM is not a memfd") from error
        if not seals & fcntl.F_SEAL_SHRINK:
            raise Unavailable("guest RAM is not sealed against shrinking")
        if seals & fcntl.F_SEAL_WRITE:
            raise Unavailable("guest RAM is sealed against writing")
