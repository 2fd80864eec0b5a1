"""Writes the seeds in corpus/: what honest peers say, in each target's own form of input.

    python -m tests.fuzz.seeds

A target reads bytes as steps and numbers (c/input.h, python/choices.py); a seed is a short story told in them. Inputs
named `regression-...` made a target fail once and are left as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import count

from ipc.fields import Blob, Choice, Field, Flags, Text
from master.vhost_user_messages import Request
from master.virtio_gpu import CommandType
from tests.fake_vmm import Format, GpuCommand, Rect, ResourceDescription, commands
from tests.fake_vmm.virgl.encoder import CommandStream
from tests.fake_vmm.virgl.protocol import ClearBuffer, ObjectType, Shader
from tests.fake_vmm.virgl.protocol import Command as VirglCommand
from tests.fake_vmm.virgl.triangle import TriangleScene
from tests.fake_vtest import protocol as vtest
from tests.fake_vtest.protocol import Command as VtestCommand
from tests.fuzz.python.messages import LISTENERS
from tests.fuzz.targets import TARGETS

MOST_BYTES = 300 << 10  # of all seeds


def number(value: int) -> bytes:
    """As input_number() reads it."""
    return bytes([value]) if value < 240 else b"\xff" + struct.pack("<I", value)


def numbers(*values: int) -> bytes:
    return b"".join(map(number, values))


def address(gpa: int) -> bytes:
    """As guest_address() reads one of the low region."""
    return b"\0" + struct.pack("<H", gpa)


# --- virtqueues -----------------------------------------------------------------------------------------------------

NO_REGIONS = b"\0"


def descriptor(index: int, flags: int, gpa: int, length: int, *, in_table: bool = False) -> bytes:
    return bytes([0, index, flags | (16 if in_table else 0)]) + address(gpa) + number(length)


def virtqueue() -> Iterator[bytes]:
    set_up, offer, give_back, call = b"\x05", b"\1\0", b"\3\0" + bytes(4), b"\6"
    look = numbers(0) + struct.pack("<H", 64)
    for event_idx in (0, 8):
        start = NO_REGIONS + bytes([5 | event_idx])
        chain = descriptor(0, 1, 0x5000, 64) + descriptor(1, 1, 0x6000, 32) + descriptor(2, 2, 0x7000, 100)
        yield start + chain + offer + look + give_back + call + b"\5"
        table = descriptor(0, 1, 0x5000, 64, in_table=True) + descriptor(1, 2, 0x6000, 64, in_table=True)
        yield start + table + descriptor(0, 4, 0x4000, 32) + offer + bytes(4) + look + give_back + call
        yield start + descriptor(0, 0, 0x5000, 24) + (offer + look + give_back) * 4 + call + set_up
    yield b"\2" + address(0) + number(4096) + address(0) + number(0) + address(0x2000) + numbers(4096, 0, 4096) + b"\5"


# --- the plane and its lanes ----------------------------------------------------------------------------------------

PLANE_STEPS = {
    **{"send": 0, "take": 3, "work": 4, "front": 6, "answer": 7, "resource": 8, "lane": 9, "pass": 10},
    "share": 12,
}
LANE_STEPS = {"send": 0, "take": 2, "work": 3, "header": 5, "scribble": 6, "resource": 8, "lane": 9}
SUBMIT, TO_HOST, FROM_HOST, TRANSFER_2D, FLUSH, SET_SCANOUT, OTHER = range(7)
MORE_BYTES, INDIRECT, PASS = 4, 32, 64  # shapes of a chain
FENCE = 1


def story(steps: dict[str, int], *told: tuple[str, bytes]) -> bytes:
    return b"".join(bytes([steps[name]]) + arguments for name, arguments in told)


def guest_command(kind: int, *words: int, ctx_id: int = 1, flags: int = 0, shape: int = PASS) -> tuple[str, bytes]:
    kind_bytes = bytes([kind]) if kind != OTHER else b"\6\xff" + struct.pack("<I", words[0])
    head = bytes([0, shape]) + kind_bytes[:1] + bytes([flags | ctx_id << 2, len(words)])
    return "send", head + kind_bytes[1:] + numbers(*words)


def open_lane(ctx_id: int = 1) -> list[tuple[str, bytes]]:
    return [("lane", b"\0\0"), ("lane", bytes([2 | (ctx_id - 1) << 4, 0]))]


def texture(size: int) -> list[tuple[str, bytes]]:
    """Resource 1: 2D, B8G8R8A8, backed by 16 KiB, attached to context 1."""
    arguments = b"\0\2" + numbers(1, size, size) + bytes(4)
    backing = b"\1\1" + address(0x3000) + number(128) + b"\7"
    return [("resource", arguments), ("resource", backing), ("resource", b"\3\0")]


def plane() -> Iterator[bytes]:
    submit = guest_command(SUBMIT, 64, 0, flags=FENCE, shape=MORE_BYTES | PASS)
    box = (0, 0, 0, 8, 8, 1, 0, 0, 1, 0, 0, 0)
    work, consume, complete = ("work", b"\0\3"), ("work", b"\0\1"), ("work", b"\0\2")
    yield story(PLANE_STEPS, *open_lane(), submit, work, submit, submit, consume, complete, complete)
    for kind in (TO_HOST, FROM_HOST):
        for shape in (PASS, PASS | INDIRECT, PASS | 1):
            transfer = guest_command(kind, *box, flags=FENCE, shape=shape)
            yield story(PLANE_STEPS, *open_lane(), *texture(16), transfer, work, transfer, consume, complete)
    large_box = guest_command(TO_HOST, 0, 0, 0, 64, 64, 1, 0, 0, 1, 0, 0, 0, flags=FENCE)
    yield story(PLANE_STEPS, *open_lane(), *texture(64), large_box, large_box, work)
    picture = ("resource", b"\5\x0f\x0f\1")
    shown = ("resource", b"\6\0\0\x0f\x0f\0\1\0")
    drawn = guest_command(TRANSFER_2D, 0, 0, 8, 8, 0, 0, 1, 0), guest_command(FLUSH, 0, 0, 8, 8, 1, 0)
    flip = guest_command(SET_SCANOUT, 0, 0, 16, 16, 0, 1)
    yield story(PLANE_STEPS, *texture(16), picture, shown, *drawn, flip, ("take", b"\0"))
    other = guest_command(OTHER, 0x100)
    yield story(PLANE_STEPS, *open_lane(), other, submit, ("take", b"\1"), ("answer", bytes(3)), work, ("front", b"\3"))
    yield story(PLANE_STEPS, *open_lane(), submit, ("lane", b"\5\0"), submit, ("lane", b"\6\0"), submit)
    message, large, back = ("lane", b"\x1d\0\x08"), ("lane", b"\x0c\0\x40"), ("lane", b"\x08\0\x1f\x1f\0\0\x08\x08\0")
    release = ("lane", b"\x0b\0\2")
    yield story(PLANE_STEPS, *open_lane(), message, large, large, large, work, back, work, ("take", b"\0"), release)
    stop, start, no_memory, memory, ring_idx = (("front", step) for step in (b"\2", b"\0\1", b"\4", b"\5", b"\x26"))
    yield story(PLANE_STEPS, stop, start, no_memory, submit, memory, ring_idx)
    yield from sharing(consume, complete)


def sharing(consume: tuple[str, bytes], complete: tuple[str, bytes]) -> Iterator[bytes]:
    """Two contexts with one resource. `consume` and `complete`: what the first one's worker does."""
    lanes = [("lane", b"\0\0"), ("lane", b"\0\1"), ("lane", b"\x02\0"), ("lane", b"\x12\1")]
    one, other = (guest_command(SUBMIT, 64, 0, ctx_id=ctx_id, shape=MORE_BYTES | PASS) for ctx_id in (1, 2))
    shared, mirrored, written, sync = (("share", step) for step in (b"\0\3", b"\1\x81", b"\2", b"\3"))
    reserve, fill, look = ("share", b"\4\0"), ("share", b"\5\0\0" + number(64)), ("share", b"\6\1")
    forget, lost = ("lane", b"\4\0"), ("lane", b"\5\0")
    start = [*lanes, shared]
    yield story(PLANE_STEPS, *start, one, other, look, consume, complete, look, one, other)
    yield story(PLANE_STEPS, *start, mirrored, one, other, consume, complete, written, other, sync, one)
    yield story(PLANE_STEPS, *start, reserve, one, other, fill, consume, complete, sync, sync)
    yield story(PLANE_STEPS, *start, one, other, forget, consume, other, lost, sync)


def lane() -> Iterator[bytes]:
    submit = guest_command(SUBMIT, 64, 0, flags=FENCE, shape=MORE_BYTES | PASS)
    right, again, unknown = ("work", b"\0\x09\0"), ("work", b"\0\x0a\1\0"), ("work", b"\0\x0c" + bytes(8) + b"\0")
    yield story(LANE_STEPS, *open_lane(), submit, right, again)
    yield story(LANE_STEPS, *open_lane(), submit, unknown, submit)
    box = (0, 0, 0, 8, 8, 1, 0, 0, 1, 0, 0, 0)
    drawn = [guest_command(kind, *box, flags=FENCE) for kind in (TO_HOST, FROM_HOST)]
    yield story(LANE_STEPS, *open_lane(), *texture(16), *drawn, right, again, right)
    for word in range(8):
        for value in (0, 1, 0x8000_0000, 0xFFFF_FFFF):
            write = ("header", bytes([word | 128]) + number(value) + b"\0")
            yield story(LANE_STEPS, *open_lane(), submit, write, submit)
    back, release, look = ("lane", b"\x08\0\x1f\x1f\0\0\x08\x08\0"), ("lane", b"\x0b\0\1"), ("lane", b"\7\0")
    yield story(LANE_STEPS, *open_lane(), back, right, ("take", b"\0"), right, release, back, look)
    scribble, zero = ("scribble", b"\0\0\0\x20" + b"\x55" * 96), ("work", b"\0\7" + bytes(9))
    yield story(LANE_STEPS, *open_lane(), submit, scribble, zero, submit)


# --- the worker's side ----------------------------------------------------------------------------------------------


def consumer() -> Iterator[bytes]:
    for what in (8, 9, 10, 40):
        for kind in (1, 2, 3, 4, 16):
            yield bytes(4) + (bytes([what]) + bytes([7 if kind in (2, 3) else 6, kind, 8, 0]) + bytes(12)) * 4
        for kind in (5, 6):
            yield bytes(4) + (bytes([what]) + bytes([14, kind]) + bytes(14)) * 4
    yield b"\1\2\0\0" + bytes([11, 0, 1, 100, 0]) * 20
    yield bytes(3) + b"\xfa" + bytes(range(64))


def vtest_command(number_: VtestCommand, *words: int, length: int | None = None, data: bytes = b"") -> bytes:
    body = vtest.pack_words(*words) + data
    return vtest.pack_words(len(body) // 4 if length is None else length, number_) + body


def vtest_seeds() -> Iterator[bytes]:
    hello = vtest.pack_words(5, VtestCommand.CREATE_RENDERER) + b"fuzz\0"
    plain = vtest.Texture(2, 1, 1 << 1, 16, 16).words()
    resource = vtest_command(VtestCommand.RESOURCE_CREATE, 1, *plain)
    box = (0, 0, 0, 4, 4, 1)
    get = vtest_command(VtestCommand.TRANSFER_GET, 1, 0, 0, 0, *box, 64)
    put = vtest_command(VtestCommand.TRANSFER_PUT, 1, 0, 0, 0, *box, 64, data=bytes(64))
    submit = vtest_command(VtestCommand.SUBMIT_CMD, data=bytes(CommandStream().emit(VirglCommand.NOP, [0] * 3)))
    wait = vtest_command(VtestCommand.RESOURCE_BUSY_WAIT, 1, 1)
    caps = vtest_command(VtestCommand.GET_CAPS) + vtest_command(VtestCommand.GET_CAPS2)
    drop = vtest_command(VtestCommand.RESOURCE_UNREF, 1)
    for head in (b"\0\0", b"\1\0", b"\xff\0", b"\3\4"):
        yield head + hello + caps + resource + get + put + submit + wait + drop

    def version(number_: int) -> bytes:
        return vtest_command(VtestCommand.PING_PROTOCOL_VERSION) + vtest_command(VtestCommand.PROTOCOL_VERSION, number_)

    shared = vtest_command(VtestCommand.RESOURCE_CREATE2, 1, *plain, 1024)
    both = vtest_command(VtestCommand.TRANSFER_PUT2, 1, 0, *box, 0, 0)
    both += vtest_command(VtestCommand.TRANSFER_GET2, 1, 0, *box, 0, 0)
    yield b"\0\0" + hello + version(2) + shared + both + drop + shared + both
    syncs = vtest_command(VtestCommand.SYNC_CREATE, 1, 0) * 2
    points = [vtest.SyncPoint(1, 5), vtest.SyncPoint(2, 7)]
    sync_wait = vtest_command(VtestCommand.SYNC_WAIT, 0, 100, data=vtest.pack_points(points))
    write = vtest_command(VtestCommand.SYNC_WRITE, 1, 9, 0) + vtest_command(VtestCommand.SYNC_READ, 1)
    batches = vtest.pack_batches([vtest.Batch(bytes(16), points), vtest.Batch(bytes(8), points, 3)])
    init = vtest_command(VtestCommand.GET_PARAM, 1) + vtest_command(VtestCommand.GET_CAPSET, 2, 1)
    init += vtest_command(VtestCommand.CONTEXT_INIT, 2)
    blob = vtest_command(VtestCommand.RESOURCE_CREATE_BLOB, vtest.BlobMemory.GUEST, 1, 4096, 0, 0, 0)
    batch = vtest_command(VtestCommand.SUBMIT_CMD2, data=batches)
    unnumbered = vtest_command(VtestCommand.RESOURCE_CREATE2, 0, *plain, 64)
    for head in (b"\0\0", b"\1\x20"):
        yield head + hello + version(3) + init + syncs + sync_wait + write + batch + wait + blob
        yield head + hello + version(3) + unnumbered + syncs + sync_wait


def virgl_limits() -> Iterator[bytes]:
    scene = TriangleScene("fuzz")
    scene.resources(count(1).__next__)
    yield scene.setup()
    yield scene.frame(0.0, 0)
    yield bytes(CommandStream().create_shader(1, Shader.VERTEX, "VERT\n" + "  0: END\n" * 50))
    yield bytes(CommandStream().emit(VirglCommand.GET_QUERY_RESULT, [1, 0]).emit(VirglCommand.NOP, [0] * 20))
    yield bytes(virgl_writers())


def virgl_writers() -> CommandStream:
    """A command of each kind that says where something is written, to the resources 1 to 4."""
    stream = CommandStream().create_sub_context(2).set_sub_context(2)
    for kind, words in ((ObjectType.SURFACE, [1, 67, 0, 0]), (ObjectType.STREAMOUT_TARGET, [2, 0, 64])):
        stream.emit(VirglCommand.CREATE_OBJECT, [kind, *words], kind)
    stream.set_framebuffer([ObjectType.SURFACE], 0)
    stream.emit(VirglCommand.SET_STREAMOUT_TARGETS, [0, ObjectType.STREAMOUT_TARGET])
    stream.emit(VirglCommand.SET_SHADER_BUFFERS, [Shader.FRAGMENT, 0, 0, 64, 3])
    stream.emit(VirglCommand.SET_SHADER_IMAGES, [Shader.FRAGMENT, 0, 67, 3, 0, 0, 4])
    stream.emit(VirglCommand.SET_ATOMIC_BUFFERS, [0, 0, 64, 3])
    stream.clear(ClearBuffer.COLOR0)
    for number, length, at in ((9, 12, 0), (16, 21, 3), (17, 13, 0), (43, 13, 0), (45, 14, 11), (47, 12, 0)):
        stream.emit(number, [1 if word == at else 0 for word in range(length)])
    stream.emit(VirglCommand.DESTROY_OBJECT, [ObjectType.SURFACE])
    return stream.destroy_sub_context(2)


# --- Python's targets -----------------------------------------------------------------------------------------------

COMMAND_TYPES = [int(kind) for kind in CommandType]
FRONT_END_REQUESTS = [request.name for request in Request]


def device_command(command: GpuCommand, *, cursor: bool = False) -> bytes:
    """As python/wire.py reads it."""
    data = command.body + (bytes(command.payload) if isinstance(command.payload, bytes) else b"")
    words = struct.unpack(f"<{len(data) // 4}I", data[: len(data) // 4 * 4])[:39]
    head = bytes([7 if cursor else 0, COMMAND_TYPES.index(command.type), command.ctx_id, len(words)])
    return head + numbers(*words)


def wire() -> Iterator[bytes]:
    whole = Rect(16, 16)
    two = [commands.resource_create_2d(1, Format.B8G8R8X8, 16, 16), commands.resource_attach_backing(1, [(4096, 1024)])]
    shown = [commands.set_scanout(0, 1, whole), commands.transfer_to_host_2d(1, whole)]
    shown += [commands.resource_flush(1, whole)]
    asked = [commands.get_display_info(), commands.get_edid(0)]
    asked += [commands.get_capset_info(0), commands.get_capset(1, 1, 64)]
    three = [commands.resource_create_3d(2, ResourceDescription(16, 16)), commands.ctx_create(1, "program")]
    three += [commands.ctx_attach_resource(1, 2), commands.set_scanout(0, 2, whole), commands.resource_flush(2, whole)]
    ended = [commands.ctx_detach_resource(1, 2), commands.resource_unref(2), commands.ctx_destroy(1)]
    gone = [commands.resource_assign_uuid(1), commands.resource_detach_backing(1), commands.resource_unref(1)]
    yield b"".join(map(device_command, [*two, *shown, *gone]))
    yield b"".join(map(device_command, [*three, *ended]))
    yield b"".join(map(device_command, three)) + bytes([235, 0]) + b"".join(map(device_command, ended))
    yield b"\xc9" + b"".join(map(device_command, asked)) + b"\xd2\xd2" + b"".join(map(device_command, asked))
    blobs = [commands.ctx_create(1, "program", 2), commands.resource_create_blob(3, 2, 1, 4096, ctx_id=1, blob_id=7)]
    blobs += [commands.resource_create_blob(4, 1, 0, 4096, segments=[(4096, 4096)]), commands.ctx_attach_resource(1, 4)]
    used = [commands.resource_map_blob(3, 4096), commands.set_scanout_blob(0, 3, whole, (16, 16), 2, [64])]
    used += [commands.resource_flush(3, whole), commands.resource_unmap_blob(3), commands.resource_unref(3)]
    yield b"".join(map(device_command, [*blobs, *used]))
    yield b"".join(map(device_command, [*blobs, used[0]])) + bytes([235, 0]) + b"".join(map(device_command, used[1:]))
    cursor = [commands.update_cursor(0, 1, 2, 1), commands.move_cursor(0, 3, 4)]
    yield b"".join(map(device_command, two)) + b"".join(device_command(command, cursor=True) for command in cursor)


def vhost_user() -> Iterator[bytes]:
    def frame(request: str, payload: bytes = b"", fds: bytes = b"", flags: int = 0) -> bytes:
        return bytes([2, FRONT_END_REQUESTS.index(request), flags]) + payload + fds

    features = frame("GET_FEATURES", b"\0") + frame("SET_FEATURES", struct.pack("<Q", 1 << 32 | 0x17))
    protocol = frame("GET_PROTOCOL_FEATURES", b"\0") + frame("SET_PROTOCOL_FEATURES", struct.pack("<Q", 0x402229))
    memory = frame("SET_MEM_TABLE", b"\2" + numbers(0, 32, 16, 0) + numbers(8, 16, 24, 0), b"\0\0", flags=1)
    queue = frame("SET_VRING_NUM", b"\0" + numbers(16)) + frame("SET_VRING_BASE", b"\0" + numbers(0))
    queue += frame("SET_VRING_ADDR", b"\0" + numbers(0x1000, 0x1200, 0x1100, 0))
    queue += frame("SET_VRING_CALL", b"\0\0", b"\2") + frame("SET_VRING_KICK", b"\0\0", b"\2")
    queue += frame("SET_VRING_ENABLE", b"\0" + numbers(1))
    config = frame("GET_CONFIG", numbers(24, 0) + bytes(24)) + frame("SET_CONFIG", numbers(4, 4) + bytes(4))
    display = frame("GPU_SET_SOCKET", b"\0", b"\3") + frame("SET_BACKEND_REQ_FD", b"\0", b"\3")
    protocol += frame("GET_SHMEM_CONFIG", b"\0")
    stop = frame("GET_VRING_BASE", b"\0" + numbers(0)) + frame("RESET_DEVICE", b"\0")
    yield features + protocol + frame("SET_OWNER", b"\0") + frame("GET_QUEUE_NUM", b"\0")
    yield memory + queue + config + stop
    yield features + display + memory + memory + stop


def display() -> Iterator[bytes]:
    def answer(index: int, body: bytes) -> bytes:
        return b"\xc8\0" + bytes([index]) + body

    hello = b"\x78\x00" + answer(0, b"\0" + b"\3" + bytes(7))
    info = answer(1, b"\x3f" + bytes(24) + struct.pack("<6I", 0, 0, 640, 480, 1, 0) + bytes(23))
    yield b"\0\1" + hello + info + b"\0\0\0" + answer(3, numbers(128)) + b"\x78"
    yield b"\1\0\1\x20\x20" + hello + b"\2\0\7\7\0\x78\2\0\7\7\0"
    yield hello + b"\1\0\0" + bytes(8) + b"\2\0\7\7\1" + answer(2, b"") + b"\3\0\0\3\0\1\3\0\2"


def sample(field: Field) -> bytes:
    """A field's bytes with something in them."""
    match field:
        case Text():
            return field.pack("program")
        case Choice():
            return field.pack(next(iter(field.kind)))
        case Flags():
            return field.pack(field.kind(0))
        case Blob():
            return field.pack(b"\1" * 40)
        case _:
            return (1).to_bytes(field.size, "little")


def messages_seeds() -> Iterator[bytes]:
    for which, accepts in enumerate(LISTENERS):
        told = b""
        for index, kind in enumerate(accepts):
            body = b"".join(sample(field) for field in kind.fields().values())[:255]
            told += bytes([0, index, len(body)]) + body
        yield bytes([which, 0]) + told
        yield bytes([which, 1]) + told * 2


SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    **{"virtqueue": virtqueue, "plane": plane, "lane": lane, "consumer": consumer, "vtest": vtest_seeds},
    **{"virgl_limits": virgl_limits, "wire": wire, "vhost_user": vhost_user, "display": display},
    "messages": messages_seeds,
}


def main() -> None:
    """Writes them all anew. Raises AssertionError if they have become too many."""
    total = 0
    for name, target in TARGETS.items():
        target.corpus.mkdir(parents=True, exist_ok=True)
        for old in target.corpus.glob("seed-*"):
            old.unlink()
        for index, data in enumerate(SEEDS[name]()):
            (target.corpus / f"seed-{index:02}").write_bytes(data[: target.max_len])
        total += sum(path.stat().st_size for path in target.corpus.iterdir())
    assert total <= MOST_BYTES, f"{total} bytes of seeds"


if __name__ == "__main__":
    main()
