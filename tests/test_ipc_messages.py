"""ipc.messages and ipc.fields: every message survives the wire, and nothing malformed gets through."""

import dataclasses
from enum import IntFlag

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc import messages
from ipc.errors import ProtocolError
from ipc.fields import Blob, Boolean, Choice, Field, Flags, Integer, Text
from ipc.messages import (
    AttachResource,
    Capability,
    Capset,
    CreateContext,
    Denied,
    EngineName,
    Exited,
    Message,
    Ready,
)

ALL = tuple(messages.MESSAGES.values())


def values_of(field: Field) -> st.SearchStrategy[object]:
    """Everything a field can hold."""
    match field:
        case Integer(size, signed, minimum):
            low = -(1 << (8 * size - 1)) if signed else 0
            high = (1 << (8 * size - signed)) - 1
            return st.integers(low if minimum is None else max(low, minimum), high)
        case Boolean():
            return st.booleans()
        case Text(size):
            return st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=size - 1)
        case Choice(kind):
            return st.sampled_from(list(kind))
        case Flags(kind):
            return st.lists(st.sampled_from(list(kind))).map(lambda flags: union(kind, flags))
        case Blob(capacity):
            return st.binary(max_size=min(capacity, 2000))
    raise AssertionError(field)


def union(kind: type[IntFlag], flags: list[IntFlag]) -> IntFlag:
    """All of `flags`."""
    value = 0
    for flag in flags:
        value |= flag.value
    return kind(value)


@given(st.data())
@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_message_survives_the_wire(kind: type[Message], data: st.DataObject) -> None:
    message = kind(**{name: data.draw(values_of(field)) for name, field in kind.fields().items()})
    wire = message.encode()
    assert len(wire) == kind.size()
    assert messages.decode(wire, ALL) == message


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_field_of_a_message_is_on_the_wire(kind: type[Message]) -> None:
    assert list(kind.fields()) == [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    assert 4 + sum(field.size for field in kind.fields().values()) == kind.size()


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
@given(st.data())
def test_any_other_length_is_refused(kind: type[Message], data: st.DataObject) -> None:
    length = data.draw(st.integers(0, kind.size() + 64).filter(lambda n: n != kind.size()))
    wire = kind.ID.to_bytes(4, "little").ljust(kind.size() + 64, b"\0")[:length]
    with pytest.raises(ProtocolError):
        messages.decode(wire, ALL)


@given(st.binary(max_size=600))
def test_arbitrary_bytes_are_decoded_or_refused(wire: bytes) -> None:
    try:
        message = messages.decode(wire, ALL)
    except ProtocolError:
        return
    assert message.encode() == wire


def test_unknown_and_unexpected_ids_are_refused() -> None:
    with pytest.raises(ProtocolError, match="unknown"):
        messages.decode((999).to_bytes(4, "little"), ALL)
    with pytest.raises(ProtocolError, match="CreateContext"):
        messages.decode(CreateContext(1, 2, "x").encode(), messages.FROM_WORKER)


def patched(message: Message, name: str, data: bytes) -> bytes:
    """The wire bytes of `message` with field `name` replaced."""
    at = 4
    for other, field in message.fields().items():
        if other == name:
            assert len(data) == field.size
            return message.encode()[:at] + data + message.encode()[at + field.size :]
        at += field.size
    raise KeyError(name)


@pytest.mark.parametrize(
    ("message", "name", "data"),
    [
        (CreateContext(1, 2, "kmscube"), "name", b"x" * 72),
        (CreateContext(1, 2, "kmscube"), "name", b"kmscube\0junk".ljust(72, b"\0")),
        (CreateContext(1, 2, "kmscube"), "ctx_id", bytes(4)),
        (Ready(EngineName.NULL, Capability(0), "", ""), "engine", b"vulcan".ljust(16, b"\0")),
        (Ready(EngineName.NULL, Capability(0), "", ""), "capabilities", (1 << 30).to_bytes(4, "little")),
        (Denied(1, "socket", False), "audit", (2).to_bytes(4, "little")),
        (Denied(1, "socket", True), "name", b"x" * 32),
        (Capset(1, 1, b"abc"), "data", (messages.MAX_CAPSET_BYTES + 1).to_bytes(4, "little") + bytes(8192)),
        (Capset(1, 1, b"abc"), "data", (2).to_bytes(4, "little") + b"abc".ljust(8192, b"\0")),
    ],
)
def test_values_out_of_range_are_refused(message: Message, name: str, data: bytes) -> None:
    with pytest.raises(ProtocolError):
        messages.decode(patched(message, name, data), ALL)


@pytest.mark.parametrize(
    "message",
    [
        CreateContext(0, 2, "x"),
        CreateContext(1 << 32, 2, "x"),
        CreateContext(1, 2, "x" * 72),
        CreateContext(1, 2, "nul\0inside"),
        Exited(1, 1 << 31),
        Denied(1, "x" * 32, True),
        Denied(1, "socket", 1),  # type: ignore[arg-type]
        Capset(1, 1, bytes(messages.MAX_CAPSET_BYTES + 1)),
        AttachResource(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, -1),
    ],
)
def test_what_does_not_fit_cannot_be_encoded(message: Message) -> None:
    with pytest.raises(ValueError):
        message.encode()


def test_a_guest_s_debug_name_of_64_arbitrary_bytes_fits() -> None:
    name = bytes(range(192, 256)).decode("latin-1")
    message = CreateContext(1, 2, name)
    assert messages.decode(message.encode(), ALL) == message


def test_long_driver_strings_are_clipped() -> None:
    ready = messages.ready(EngineName.VIRGL, Capability(0), "r\0" * 1000, "∞")
    assert messages.decode(ready.encode(), ALL) == Ready(EngineName.VIRGL, Capability(0), "r" * 255, "?")
    assert messages.fault("x" * 1000).text == "x" * 255


def test_names_of_system_calls_are_clipped() -> None:
    assert messages.denied(3, "x" * 100, True) == Denied(3, "x" * 31, True)
