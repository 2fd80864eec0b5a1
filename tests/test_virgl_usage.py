"""What of a context's streams counts as writing to a resource that is watched."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from native.engines import Status
from native.virgl import StreamUsage, check_stream
from tests.fake_vmm.virgl.encoder import CommandStream
from tests.fake_vmm.virgl.protocol import Command, ObjectType

WATCHED, ANOTHER = 5, 6
SURFACE, STREAMOUT, QUERY = ObjectType.SURFACE, ObjectType.STREAMOUT_TARGET, ObjectType.QUERY
MSAA_SURFACE = 11
CLEAR_SURFACE, LINK_SHADER, DECODE_BITSTREAM = 62, 52, 59
FRAGMENT, COMPUTE = 1, 5

CLEAR = CommandStream().emit(Command.CLEAR, [4, 0, 0, 0, 0, 0, 0, 0])
DRAW = CommandStream().emit(Command.DRAW_VBO, [0] * 12)
LAUNCH = CommandStream().emit(Command.LAUNCH_GRID, [1] * 6 + [0, 0])


class Followed:
    """A context that is followed, with one resource that is watched."""

    def __init__(self) -> None:
        self.usage = StreamUsage()
        self.was_written: Callable[[], bool] = self.usage.watch(WATCHED)

    def writes(self, *streams: CommandStream | bytes) -> bool:
        """Whether a stream of these wrote to it."""
        found = check_stream(b"".join(map(bytes, streams)), usage=self.usage)
        assert found.status is Status.OK
        return self.was_written()


@pytest.fixture
def context() -> Iterator[Followed]:
    followed = Followed()
    yield followed
    followed.usage.close()


def surface(handle: int, resource_id: int, kind: int = SURFACE) -> CommandStream:
    words = [handle, resource_id, 1, 0, 0]
    return CommandStream().emit(Command.CREATE_OBJECT, words + [4] * (kind == MSAA_SURFACE), kind)


def framebuffer(*handles: int, depth: int = 0) -> CommandStream:
    return CommandStream().set_framebuffer(handles, depth)


@pytest.mark.parametrize("drawing", [CLEAR, DRAW])
def test_what_is_drawn_to(context: Followed, drawing: CommandStream) -> None:
    assert not context.writes(surface(1, WATCHED), surface(2, ANOTHER), framebuffer(1))
    assert context.writes(drawing)
    assert context.writes(drawing)
    assert not context.writes(framebuffer(2), drawing)
    assert not context.writes(framebuffer(1))
    assert context.writes(drawing, framebuffer(2))
    assert context.writes(framebuffer(2, 1), drawing)
    assert context.writes(framebuffer(0, 0, 1), drawing)
    assert context.writes(framebuffer(2, depth=1), drawing)
    assert context.writes(framebuffer(depth=1), drawing)
    assert not context.writes(framebuffer(), drawing)
    assert context.writes(surface(3, WATCHED, MSAA_SURFACE), framebuffer(3), drawing)


def test_a_surface_that_is_gone_is_drawn_to_while_it_is_bound(context: Followed) -> None:
    gone = CommandStream().destroy_object(SURFACE, 1)
    assert context.writes(surface(1, WATCHED), framebuffer(1), gone, CLEAR)
    assert context.writes(CLEAR)
    assert not context.writes(surface(1, ANOTHER), framebuffer(1), CLEAR)


def test_without_a_framebuffer_nothing_is_written(context: Followed) -> None:
    assert not context.writes(CLEAR, DRAW, LAUNCH)
    assert not context.writes(CommandStream().emit(38, [0, 0]), DRAW)


def test_a_framebuffer_of_unknown_surfaces_may_be_anything(context: Followed) -> None:
    assert context.writes(framebuffer(99), CLEAR)


def test_each_sub_context_has_its_own(context: Followed) -> None:
    assert not context.writes(surface(1, WATCHED), framebuffer(1), CommandStream().create_sub_context(2), CLEAR)
    assert not context.writes(CLEAR)
    assert context.writes(CommandStream().set_sub_context(0), CLEAR)
    assert not context.writes(CommandStream().set_sub_context(2), surface(1, ANOTHER), framebuffer(1), CLEAR)
    assert context.writes(CommandStream().set_sub_context(0), CLEAR)
    assert context.writes(CommandStream().set_sub_context(77), CLEAR), "there is none: the same as before"
    assert context.writes(CommandStream().create_sub_context(2), CLEAR), "it is there: the same as before"
    assert not context.writes(CommandStream().set_sub_context(2), CLEAR)
    assert context.writes(CommandStream().destroy_sub_context(2), CLEAR), "back to the first"
    assert context.writes(CommandStream().destroy_sub_context(0), CLEAR), "which always stays"


def words(number: int, length: int, **at: int) -> CommandStream:
    """A command of a length, with some words set: w4=5 is word 4, as the protocol counts them."""
    return CommandStream().emit(number, [at.get(f"w{i}", 0) for i in range(1, length + 1)])


WRITES = {
    "inline write": words(Command.RESOURCE_INLINE_WRITE, 12, w1=WATCHED),
    "copy": words(Command.RESOURCE_COPY_REGION, 13, w1=WATCHED, w6=ANOTHER),
    "blit": words(Command.BLIT, 21, w4=WATCHED, w13=ANOTHER),
    "clear of a texture": words(Command.CLEAR_TEXTURE, 12, w1=WATCHED),
    "transfer": words(Command.TRANSFER3D, 13, w1=WATCHED, w13=1),
    "copying transfer": words(Command.COPY_TRANSFER3D, 14, w1=WATCHED, w12=ANOTHER),
    "copying transfer back": words(Command.COPY_TRANSFER3D, 14, w1=ANOTHER, w12=WATCHED, w14=2),
    "query result": words(Command.GET_QUERY_RESULT_QBO, 6, w2=WATCHED),
    "memory information": words(50, 1, w1=WATCHED),
    "video": words(DECODE_BITSTREAM, 5),
    "a command of tomorrow": words(99, 3),
}
READS = {
    "copy from it": words(Command.RESOURCE_COPY_REGION, 13, w1=ANOTHER, w6=WATCHED),
    "blit from it": words(Command.BLIT, 21, w4=ANOTHER, w13=WATCHED),
    "vertices": CommandStream().emit(Command.SET_VERTEX_BUFFERS, [0, 0, WATCHED]),
    "indices": CommandStream().emit(Command.SET_INDEX_BUFFER, [WATCHED, 2, 0]),
    "constants": CommandStream().emit(Command.SET_UNIFORM_BUFFER, [0, 1, 0, 64, WATCHED]),
    "texture": CommandStream().emit(Command.CREATE_OBJECT, [9, WATCHED, 1, 0, 0, 0], ObjectType.SAMPLER_VIEW),
    "shaders": words(LINK_SHADER, 6, w1=WATCHED),
    "nothing": words(Command.NOP, 3, w1=WATCHED),
}


@pytest.mark.parametrize("name", WRITES)
def test_what_writes(context: Followed, name: str) -> None:
    assert context.writes(WRITES[name])
    assert not context.writes(words(Command.NOP, 1))


@pytest.mark.parametrize("name", READS)
def test_what_reads(context: Followed, name: str) -> None:
    assert not context.writes(surface(1, ANOTHER), framebuffer(1), READS[name], DRAW)


def test_a_surface_is_cleared_by_its_handle(context: Followed) -> None:
    assert context.writes(surface(1, WATCHED), words(CLEAR_SURFACE, 10, w2=1))
    assert not context.writes(surface(2, ANOTHER), words(CLEAR_SURFACE, 10, w2=2))


def test_the_result_of_a_query(context: Followed) -> None:
    query = CommandStream().emit(Command.CREATE_OBJECT, [3, 0, 0, WATCHED], QUERY)
    assert not context.writes(query)
    assert context.writes(CommandStream().get_query_result(3))


BINDINGS = {
    "stream output": (
        CommandStream().emit(Command.CREATE_OBJECT, [4, WATCHED, 0, 64], STREAMOUT),
        CommandStream().emit(Command.SET_STREAMOUT_TARGETS, [0, 0, 4]),
        CommandStream().emit(Command.SET_STREAMOUT_TARGETS, [0]),
    ),
    "a shader's buffer": (
        CommandStream(),
        CommandStream().emit(Command.SET_SHADER_BUFFERS, [FRAGMENT, 30, 0, 64, ANOTHER, 0, 64, WATCHED]),
        CommandStream().emit(Command.SET_SHADER_BUFFERS, [FRAGMENT, 31, 0, 0, 0]),
    ),
    "a shader's image": (
        CommandStream(),
        CommandStream().emit(Command.SET_SHADER_IMAGES, [COMPUTE, 0, 1, 2, 0, 0, WATCHED]),
        CommandStream().emit(Command.SET_SHADER_IMAGES, [COMPUTE, 0, 0, 0, 0, 0, 0]),
    ),
    "counters": (
        CommandStream(),
        CommandStream().emit(Command.SET_ATOMIC_BUFFERS, [7, 0, 64, WATCHED]),
        CommandStream().emit(Command.SET_ATOMIC_BUFFERS, [7, 0, 0, 0]),
    ),
}


@pytest.mark.parametrize("name", BINDINGS)
@pytest.mark.parametrize("work", [DRAW, LAUNCH])
def test_what_shaders_write_to(context: Followed, name: str, work: CommandStream) -> None:
    made, bound, unbound = BINDINGS[name]
    assert not context.writes(made, bound)
    assert context.writes(work)
    assert not context.writes(unbound, work)


def test_bindings_beyond_what_there_are(context: Followed) -> None:
    """virglrenderer gives such a context up."""
    for stream in (
        CommandStream().emit(Command.SET_SHADER_BUFFERS, [6, 0, 0, 64, WATCHED]),
        CommandStream().emit(Command.SET_SHADER_BUFFERS, [0, 32, 0, 64, WATCHED]),
        CommandStream().emit(Command.SET_SHADER_IMAGES, [0, 0xFFFFFFFF, 1, 2, 0, 0, WATCHED]),
        CommandStream().emit(Command.SET_ATOMIC_BUFFERS, [33, 0, 64, WATCHED]),
        CommandStream().emit(Command.SET_STREAMOUT_TARGETS, [0] * 18),
        CommandStream().emit(Command.SET_FRAMEBUFFER_STATE, [9, 0, *range(9)]),
        CommandStream().emit(Command.SET_FRAMEBUFFER_STATE, [2, 0, 1]),
    ):
        assert not context.writes(stream, DRAW)


# ---- what cannot be followed


def test_a_stream_that_is_refused_leaves_everything_written(context: Followed) -> None:
    cut = bytes(words(Command.NOP, 3))[:-4]
    assert check_stream(bytes(surface(1, WATCHED)) + cut, usage=context.usage).status is Status.INVALID_PARAMETER
    assert context.was_written()
    assert context.writes(words(Command.NOP, 1)), "from now on"


def test_too_many_objects(context: Followed) -> None:
    for start in range(1, (1 << 16) + 1, 4096):
        assert not context.writes(*(surface(start + i, ANOTHER) for i in range(4096)))
    assert not context.writes(CommandStream().destroy_object(SURFACE, 1), surface(1, ANOTHER))
    context.writes(surface(1 << 20, ANOTHER))
    assert context.writes(words(Command.NOP, 1))


def test_too_many_sub_contexts(context: Followed) -> None:
    assert not context.writes(*(CommandStream().create_sub_context(i) for i in range(1, 257)))
    assert not context.writes(CommandStream().destroy_sub_context(1), CommandStream().create_sub_context(1))
    context.writes(CommandStream().create_sub_context(1000))
    assert context.writes(words(Command.NOP, 1))


@given(st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 70).map(lambda n: n | 2 << 16), max_size=60))
def test_any_words(stream: list[int]) -> None:
    followed = Followed()
    try:
        for _ in range(2):
            found = check_stream(struct.pack(f"<{len(stream)}I", *stream), usage=followed.usage)
            if found.status is not Status.OK:
                assert followed.was_written()
    finally:
        followed.usage.close()
