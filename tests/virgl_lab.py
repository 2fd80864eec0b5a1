"""Workers with the virgl engine whose contexts share resources: what a master would send them, and how to compare."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count

import pytest

from ipc.messages import (
    AttachResource,
    BlobObject,
    Capability,
    CreateBlob,
    CreateContext,
    DetachResource,
    EngineName,
    Message,
    ResourceToObject,
)
from ipc.ring import RecordFlag, RecordStatus, RecordType
from native.owned_fd import OwnedFd
from native.shared_formats import linear_layout
from native.storage import Layout, StorageKind
from native.texture import MirrorLevel, Texture
from tests import newer_mesa
from tests.fake_vmm.virgl.encoder import CommandStream
from tests.fake_vmm.virgl.protocol import Bind, Command, ObjectType, Target
from tests.ring_producer import Box, Launcher, Worker, running_launcher

OK = RecordStatus.OK
PAGE = 4096
MESAS = ("system", "newer")
B8G8R8A8, B8G8R8X8, R8 = 1, 2, 64
STAGING_BYTES = 4 << 20


@contextmanager
def launcher_with(mesa: str, *arguments: str) -> Iterator[Launcher]:
    """A launcher whose workers have the system's Mesa, or a newer one."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (newer_mesa.environment() if mesa == "newer" else {}).items():
            patch.setenv(name, value)
        with running_launcher(*arguments) as launcher:
            yield launcher


def resource(
    resource_id: int,
    width: int,
    height: int = 1,
    *,
    target: int = Target.TEXTURE_2D,
    format: int = B8G8R8A8,
    bind: int = Bind.RENDER_TARGET | Bind.SAMPLER_VIEW,
    depth: int = 1,
    array_size: int = 1,
    last_level: int = 0,
    samples: int = 0,
    flags: int = 0,
) -> AttachResource:
    """A v1 resource; a texture unless told otherwise."""
    sizes = (width, height, depth, array_size, last_level, samples)
    return AttachResource(resource_id, target, format, bind, *sizes, flags)


def buffer(resource_id: int, nbytes: int, bind: int = Bind.VERTEX_BUFFER) -> AttachResource:
    """A buffer."""
    return resource(resource_id, nbytes, target=Target.BUFFER, format=R8, bind=bind)


def texture_of(made: AttachResource) -> Texture:
    """Its v1 arguments alone."""
    return Texture(**{name: value for name, value in vars(made).items() if name != "resource_id"})


def memory(nbytes: int, seals: int = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL) -> OwnedFd:
    """A memfd, as the master makes them."""
    fd = OwnedFd(os.memfd_create("storage", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC))
    os.ftruncate(fd.fd, nbytes)
    if seals:
        fcntl.fcntl(fd.fd, fcntl.F_ADD_SEALS, seals)
    return fd


def picture_memory(made: AttachResource) -> tuple[OwnedFd, Layout]:
    """A memfd for a picture, and how it is to lie there."""
    layout = linear_layout(made.format, made.width, made.height)
    return memory(layout.nbytes), layout


def rows(fd: OwnedFd, layout: Layout, height: int, row_bytes: int) -> bytes:
    """The pixels in memory, without what is between rows."""
    with mmap.mmap(fd.fd, layout.nbytes) as mapped:
        starts = [layout.offset + y * layout.stride for y in range(height)]
        return b"".join(mapped[start : start + row_bytes] for start in starts)


def bits(color: Sequence[float]) -> tuple[int, ...]:
    """Floats as words."""
    return struct.unpack(f"<{len(color)}I", struct.pack(f"<{len(color)}f", *color))


def clear(surface: int, resource_id: int, format: int, color: Sequence[float]) -> CommandStream:
    """Make a surface of a resource, the framebuffer of it, and clear that."""
    return (
        CommandStream()
        .emit(Command.CREATE_OBJECT, [surface, resource_id, format, 0, 0], ObjectType.SURFACE)
        .set_framebuffer([surface])
        .emit(Command.CLEAR, [4, *bits(color), 0, 0, 0])
    )


def announce(made: AttachResource, blob_id: int) -> CommandStream:
    """PIPE_RESOURCE_CREATE."""
    arguments = [value for name, value in vars(made).items() if name != "resource_id"]
    return CommandStream().emit(Command.PIPE_RESOURCE_CREATE, [*arguments, blob_id])


def set_type(made: AttachResource, layout: Layout, planes: int = 1) -> CommandStream:
    """PIPE_RESOURCE_SET_TYPE."""
    words = [made.resource_id, made.format, made.bind, made.width, made.height, 0]
    words += [layout.modifier & 0xFFFFFFFF, layout.modifier >> 32]
    return CommandStream().emit(Command.PIPE_RESOURCE_SET_TYPE, words + [layout.stride, layout.offset] * planes)


class Peer:
    """A worker with a context."""

    def __init__(self, launcher: Launcher) -> None:
        self.worker: Worker = launcher.start(EngineName.VIRGL, staging_bytes=STAGING_BYTES)
        self.producer = self.worker.producer
        self._tickets = count(1)
        assert self.do(CreateContext(7, 2, "peer")) == OK

    @property
    def capabilities(self) -> Capability:
        """What it said of its driver."""
        assert self.worker.ready
        return self.worker.ready.capabilities

    def do(self, message: Message) -> int:
        """How a control record ends."""
        return self.producer.wait(self.producer.control(message))

    def take_in(self, made: AttachResource, kind: StorageKind, fd: OwnedFd, layout: Layout) -> int:
        """ResourceToObject of lent storage."""
        ticket = next(self._tickets)
        self.worker.hand(ticket, fd)
        return self.do(ResourceToObject(**vars(made), kind=kind, ticket=ticket, **_words(layout)))

    def mirror(self, made: AttachResource, fd: OwnedFd) -> int:
        """Give the resource its mirror."""
        return self.take_in(made, StorageKind.MIRROR, fd, Layout(texture_of(made).mirror_bytes))

    def create_blob(
        self, resource_id: int, blob_id: int, nbytes: int, fd: OwnedFd | None
    ) -> tuple[int, BlobObject | None]:
        """CreateBlob, in lent memory or without, and its answer."""
        ticket = next(self._tickets) if fd else 0
        if fd:
            self.worker.hand(ticket, fd)
        status = self.do(CreateBlob(resource_id, 2, 1, blob_id, nbytes, ticket))
        if status != OK:
            return status, None
        message, _ = self.worker.answer()
        assert isinstance(message, BlobObject)
        return status, message

    def detach(self, resource_id: int) -> int:
        """Detach it."""
        return self.do(DetachResource(resource_id))

    def submit(self, stream: CommandStream | bytes) -> int:
        """How a stream ends, with all it does."""
        return self.producer.wait(self.producer.submit(bytes(stream)))

    def copy_out(self, resource_id: int) -> int:
        """To its mirror."""
        return self.producer.wait(self.producer.copy(RecordType.COPY_OUT, resource_id))

    def copy_in(self, resource_id: int) -> int:
        """From its mirror."""
        return self.producer.wait(self.producer.copy(RecordType.COPY_IN, resource_id))

    def write(self, made: AttachResource, data: bytes, level: int = 0, z: int = 0) -> None:
        """Packed pixels to a layer of a level, or bytes to a buffer."""
        self.producer.staging[: len(data)] = data
        assert self._transfer(RecordType.TRANSFER_WRITE, made, len(data), level, z) == OK

    def read(self, made: AttachResource, level: int = 0, z: int = 0) -> bytes:
        """And back. For formats that cannot be drawn to, virglrenderer wants room for all layers of the level."""
        at = _level(made, level)
        self.producer.staging[: at.layer_stride] = b"\xee" * at.layer_stride
        assert self._transfer(RecordType.TRANSFER_READ, made, at.layer_stride * at.depth, level, z) == OK
        return self.producer.staging[: at.layer_stride]

    def _transfer(self, kind: RecordType, made: AttachResource, length: int, level: int, z: int) -> int:
        at = _level(made, level)
        stride = 0 if made.target == Target.BUFFER else at.stride
        box = Box(0, 0, z, at.width, at.height, 1)
        flags = RecordFlag.FENCE
        return self.producer.wait(
            self.producer.transfer(kind, made.resource_id, box, stride=stride, length=length, level=level, flags=flags)
        )


def _level(made: AttachResource, level: int) -> MirrorLevel:
    at = texture_of(made).mirror_level(level)
    assert at
    return at


def _words(layout: Layout) -> dict[str, int]:
    names = ("nbytes", "offset", "stride", "fourcc", "modifier")
    return {name: getattr(layout, name) for name in names}
