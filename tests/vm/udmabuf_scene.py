"""What a service does with real dma-bufs; test_udmabuf.py runs this in a guest, where there is a /dev/udmabuf.

usage: python3 -m tests.vm.udmabuf_scene SOCKET PID

PID: of the service that listens at SOCKET. Prints one JSON object, what was seen; an exception ends it otherwise.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.fake_vmm import FakeVmm, Feature, commands
from tests.fake_vmm.memory import GuestBuffer
from tests.fake_vmm.virgl.encoder import CommandStream
from tests.fake_vmm.virgl.protocol import Bind, Format, Target
from tests.fake_vmm.virgl.resources import Resource
from tests.fake_vmm.wire import BlobFlag, BlobMem
from tests.sharing_lab import PICTURE, SHARED_PICTURE, Canvas, Program, assert_all, canvas, shade

_SIDE = 64
_RENDERING_S = 120.0


def dmabufs(pid: int) -> int:
    """How many of a process's descriptors are dma-bufs."""
    count = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            count += os.readlink(fd).startswith("/dmabuf:")
    return count


def share(vmm: FakeVmm, bind: Bind, held: Callable[[], int]) -> int:
    """Two contexts draw into one picture, and each sees what the other drew; the dma-bufs that the service had."""
    shared = canvas(vmm.gpu, _SIDE, _SIDE, bind)
    first = Program(vmm.gpu, "first", shared)
    first.paint(shared, shade(1))
    second = Program(vmm.gpu, "second", shared)
    assert_all(second.picture(shared), 1)
    second.paint(shared, shade(2))
    assert_all(first.picture(shared), 2)
    count = held()
    first.leave()
    second.paint(shared, shade(3))
    assert_all(second.picture(shared), 3)
    second.leave()
    shared.unref()
    return count


def guest_blob(vmm: FakeVmm, held: Callable[[], int]) -> int:
    """Two contexts see what the guest writes into its own pages, with nothing transferred; the dma-bufs of it."""
    gpu = vmm.gpu
    nbytes = 4 * _SIDE * _SIDE
    pages = gpu.memory.buffer(nbytes, scattered=True)
    resid = gpu.new_resource_id()
    create = commands.resource_create_blob(
        resid, BlobMem.GUEST, BlobFlag.MAPPABLE | BlobFlag.SHAREABLE, nbytes, segments=pages.segments()
    )
    gpu.call(create).check("RESOURCE_CREATE_BLOB")
    what = Resource(resid, Target.TEXTURE_2D, Format.B8G8R8A8_UNORM, PICTURE, _SIDE, _SIDE)
    blob = Canvas(gpu, what, pages)
    count = held()
    programs = []
    for number, name in enumerate(("first", "second"), 1):
        write(pages, number)
        program = Program(gpu, name, blob)
        program.submit(CommandStream().set_resource_type(what))
        assert_sees(program, blob, number)
        programs.append(program)
    for program in programs:
        write(pages, 7)
        assert_sees(program, blob, 7)
        program.leave()
    blob.unref()
    return count


def write(pages: GuestBuffer, number: int) -> None:
    """A picture of one shade in guest memory."""
    pages.write(bytes(shade(number)) * (pages.size // 4))


def assert_sees(program: Program, blob: Canvas, number: int) -> None:
    """The program copies the blob by GL; the copy is of one shade."""
    copy = canvas(program.gpu, _SIDE, _SIDE, PICTURE)
    program.attach(copy)
    program.copy(copy, blob)
    assert_all(program.picture(copy), number)
    program.detach(copy)
    copy.unref()


def main(socket_path: str, pid: int) -> None:
    """See the module."""
    features = Feature.VIRGL | Feature.EDID | Feature.RESOURCE_UUID | Feature.RESOURCE_BLOB | Feature.CONTEXT_INIT
    with FakeVmm.connect(socket_path, features=features, ram=64 << 20, timeout=_RENDERING_S) as vmm:
        before = dmabufs(pid)

        def held() -> int:
            return dmabufs(pid) - before

        seen: dict[str, object] = {"shared from the start": share(vmm, SHARED_PICTURE, held)}
        seen["shared late"] = share(vmm, PICTURE, held)
        seen["guest blob"] = guest_blob(vmm, held)
        vmm.gpu.display_info()
        seen["left behind"] = held()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
