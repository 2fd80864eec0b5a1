"""What of a virgl stream is refused before virglrenderer gets it, and that a worker outlives it."""

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.messages import CreateContext, EngineName, Fault
from ipc.ring import RecordStatus
from native.engines import MAX_SHADER_BYTES, SPARE_TOKENS, Status
from native.virgl import Finding, check_stream
from tests.fake_vmm.virgl.encoder import CommandStream
from tests.fake_vmm.virgl.protocol import SHADER_CONTINUATION, Command, ObjectType, Shader
from tests.ring_producer import Launcher, running_launcher

LIMIT = 1000
NOP = CommandStream().emit(Command.NOP, [0] * 3)


def shader(offset: int, tokens: int, text: bytes = b"VERT\n\0\0\0") -> CommandStream:
    """One piece of a shader."""
    words = [1, Shader.VERTEX, offset, tokens, 0, *struct.unpack(f"<{len(text) // 4}I", text)]
    return CommandStream().emit(Command.CREATE_OBJECT, words, ObjectType.SHADER)


def status(stream: CommandStream | bytes, limit: int = LIMIT) -> Status:
    """What becomes of a stream between two NOPs."""
    return check_stream(bytes(NOP) + bytes(stream) + bytes(NOP), limit).status


def test_shaders_up_to_the_limit_pass() -> None:
    assert status(shader(LIMIT, LIMIT)) is Status.OK
    assert status(shader(LIMIT | SHADER_CONTINUATION, LIMIT)) is Status.OK
    assert status(shader(LIMIT + 1, 1)) is Status.OUT_OF_MEMORY
    assert status(shader(LIMIT + 1 | SHADER_CONTINUATION, 1)) is Status.OUT_OF_MEMORY
    assert status(shader(2**31 - 1, 1), 2**32 - 1) is Status.OK


def test_tokens_have_to_be_somewhere_in_the_text() -> None:
    most = 4 * SPARE_TOKENS
    assert status(shader(8, SPARE_TOKENS)) is Status.OK
    assert status(shader(8, SPARE_TOKENS + 1)) is Status.OUT_OF_MEMORY
    assert status(shader(2 * SPARE_TOKENS, 2 * SPARE_TOKENS), most) is Status.OK
    assert status(shader(2 * SPARE_TOKENS, 2 * SPARE_TOKENS + 1), most) is Status.OUT_OF_MEMORY
    assert status(shader(8 | SHADER_CONTINUATION, most), most) is Status.OK
    assert status(shader(8 | SHADER_CONTINUATION, most + 1), most) is Status.OUT_OF_MEMORY


def test_what_is_no_shader_is_not_looked_at() -> None:
    words = [1, 2, LIMIT + 1, 2**32 - 1, 0]
    assert status(CommandStream().emit(Command.CREATE_OBJECT, words, ObjectType.SAMPLER_STATE)) is Status.OK
    assert status(CommandStream().emit(Command.BIND_OBJECT, words, ObjectType.SHADER)) is Status.OK
    assert status(CommandStream().emit(Command.CREATE_OBJECT, words[:4], ObjectType.SHADER)) is Status.OK  # too short


def test_the_text_says_what() -> None:
    too_long = "a shader of 1001 bytes, more than the 1000 that are allowed"
    assert check_stream(bytes(shader(LIMIT + 1, 1)), LIMIT).text == too_long
    assert check_stream(bytes(shader(8, 2**32 - 11)), LIMIT).text == "a shader of 4294967285 tokens in 8 bytes"
    assert check_stream(bytes(NOP)[:-4]).text == "command 0 at word 0 has 3 words, the stream 3"


@pytest.mark.parametrize("cut", [4, 8, 12])
def test_a_command_must_end_within_its_stream(cut: int) -> None:
    assert check_stream((bytes(NOP) * 2)[:-cut]).status is Status.INVALID_PARAMETER


def test_queries_are_seen() -> None:
    query = CommandStream().emit(Command.GET_QUERY_RESULT, [1, 0])
    assert check_stream(bytes(NOP) + bytes(query)).asks_for_query
    assert not check_stream(bytes(NOP) + bytes(NOP)).asks_for_query
    assert check_stream(b"") == Finding(Status.OK, "", asks_for_query=False, has_blobs=False)


def test_a_shader_in_pieces_passes() -> None:
    text = "FRAG\n" + "  0: MOV OUT[0], IN[0]\n" * 4000 + "  1: END\n"
    stream = CommandStream().create_shader(1, Shader.FRAGMENT, text)
    assert check_stream(bytes(stream), 100_000).status is Status.OK
    assert check_stream(bytes(stream), 80_000).status is Status.OUT_OF_MEMORY


@given(st.lists(st.integers(0, 2**32 - 1), max_size=30), st.integers(0, 40))
def test_any_words(words: list[int], limit: int) -> None:
    found = check_stream(struct.pack(f"<{len(words)}I", *words), limit)
    assert found.status in {Status.OK, Status.INVALID_PARAMETER, Status.OUT_OF_MEMORY}
    assert bool(found.text) == (found.status is not Status.OK)


# --- a worker -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with running_launcher() as running:
        yield running


@pytest.mark.parametrize(
    ("stream", "expected", "text"),
    [
        (shader(MAX_SHADER_BYTES + 1, 10), RecordStatus.OUT_OF_MEMORY, f"a shader of {MAX_SHADER_BYTES + 1} bytes"),
        (shader(8, 2**32 - 11), RecordStatus.OUT_OF_MEMORY, "a shader of 4294967285 tokens in 8 bytes"),
        (CommandStream().raw([9 << 16]), RecordStatus.INVALID_PARAMETER, "command 0 at word 0 has 9 words"),
    ],
)
def test_a_worker_refuses_the_record_and_goes_on(
    launcher: Launcher, stream: CommandStream, expected: RecordStatus, text: str
) -> None:
    worker = launcher.start(EngineName.VIRGL)
    producer = worker.producer
    assert producer.wait(producer.control(CreateContext(7, 2, "shaders"))) == RecordStatus.OK
    assert producer.wait(producer.submit(bytes(stream))) == expected
    fault = worker.recv()
    assert isinstance(fault, Fault)
    assert fault.text.startswith(text)
    assert producer.wait(producer.submit(bytes(NOP))) == RecordStatus.OK
