"""The configuration space, as front ends of different minds read and write it."""

import struct

import pytest

from master.config_space import ConfigSpace
from master.errors import HandlerError
from master.virtio_gpu import Event


def test_reads_have_the_size_that_was_asked() -> None:
    config = ConfigSpace(num_scanouts=2, num_capsets=3, blob_alignment=4096)
    assert config.read(0, 20) == struct.pack("<5I", 0, 0, 2, 3, 4096)
    assert config.read(0, 24) == struct.pack("<5I", 0, 0, 2, 3, 4096) + bytes(4)
    assert config.read(8, 4) == struct.pack("<I", 2)
    assert config.read(13, 2) == b"\0\0"
    assert config.read(250, 6) == bytes(6)
    assert config.read(256, 0) == b""


@pytest.mark.parametrize(("offset", "size"), [(0, 257), (256, 1), (0xFFFFFFFF, 4)])
def test_accesses_outside(offset: int, size: int) -> None:
    config = ConfigSpace(1, 0)
    with pytest.raises(HandlerError):
        config.read(offset, size)
    with pytest.raises(HandlerError):
        config.write(offset, bytes(size))


def test_an_event_is_news_until_the_guest_clears_it() -> None:
    config = ConfigSpace(1, 2)
    assert config.raise_event(Event.DISPLAY)
    assert not config.raise_event(Event.DISPLAY)
    assert config.read(0, 4) == struct.pack("<I", 1)
    config.write(4, struct.pack("<I", 1))
    assert config.events == Event(0)
    assert config.read(0, 8) == bytes(8)
    assert config.raise_event(Event.DISPLAY)
    config.write(0, struct.pack("<6I", 0, 0xFFFFFFFF, 9, 9, 9, 9))
    assert config.events == Event(0)


def test_the_guest_cannot_change_the_rest() -> None:
    config = ConfigSpace(1, 2)
    before = config.read(0, 24)
    config.write(0, struct.pack("<6I", 1, 0, 9, 9, 9, 9))
    config.write(8, struct.pack("<I", 16))
    assert config.read(0, 24) == before


@pytest.mark.parametrize(("offset", "size"), [(4, 3), (5, 4), (0, 7), (8, 4), (4, 0)])
def test_writes_that_miss_events_clear_clear_nothing(offset: int, size: int) -> None:
    config = ConfigSpace(1, 2)
    config.raise_event(Event.DISPLAY)
    config.write(offset, b"\xff" * size)
    assert config.events == Event.DISPLAY


def test_reset_forgets_events() -> None:
    config = ConfigSpace(1, 2)
    config.raise_event(Event.DISPLAY)
    config.reset()
    assert config.events == Event(0)


def test_no_device_has_so_many_scanouts() -> None:
    with pytest.raises(ValueError):
        ConfigSpace(17, 0)
