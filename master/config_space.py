"""The device's configuration space: struct virtio_gpu_config.

Source: virtio 1.3 section 5.7.4. Fields, all u32 and little endian: events_read, events_clear, num_scanouts,
num_capsets, and in later headers blob_alignment. The front end reads it by pieces of its own choosing (QEMU 11 asks
its GPU device for 20 bytes and its generic device for as many as its command line says), so what lies behind the last
field reads as zero.
"""

import struct
from typing import Final

from master.errors import HandlerError
from master.virtio_gpu import MAX_SCANOUTS, Event

_LAYOUT: Final = struct.Struct("<5I")
_EVENTS_CLEAR_OFFSET: Final = 4
_EVENTS_CLEAR: Final = struct.Struct("<I")
MAX_BYTES: Final = 256  # what vhost-user can carry


class ConfigSpace:
    """The space, and the events that the guest has not cleared yet."""

    def __init__(self, num_scanouts: int, num_capsets: int, blob_alignment: int = 0) -> None:
        """num_scanouts: 1 to 16, or 0 for a device without display. blob_alignment: bytes, 0 without that feature."""
        if not 0 <= num_scanouts <= MAX_SCANOUTS:
            raise ValueError(f"{num_scanouts} scanouts, a device has at most {MAX_SCANOUTS}")
        self.num_scanouts = num_scanouts
        self.num_capsets = num_capsets
        self.blob_alignment = blob_alignment
        self._events = Event(0)

    @property
    def events(self) -> Event:
        """events_read: what has happened and has not been cleared."""
        return self._events

    def raise_event(self, event: Event) -> bool:
        """Set an event. True if it was not set before, so that a configuration change must be told."""
        news = event & ~self._events
        self._events |= event
        return bool(news)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`. HandlerError outside 256 bytes. events_clear reads as zero."""
        _check(offset, size)
        fields = _LAYOUT.pack(self._events, 0, self.num_scanouts, self.num_capsets, self.blob_alignment)
        return fields.ljust(MAX_BYTES, b"\0")[offset : offset + size]

    def write(self, offset: int, data: bytes) -> None:
        """A write of the guest's. Bits set in events_clear clear events; the other fields are read-only and keep
        their values.

        Front ends write the whole structure back, so read-only fields in it are not an error. HandlerError outside
        256 bytes.
        """
        _check(offset, len(data))
        start = _EVENTS_CLEAR_OFFSET - offset
        if start >= 0 and start + _EVENTS_CLEAR.size <= len(data):
            (clear,) = _EVENTS_CLEAR.unpack_from(data, start)
            self._events &= ~Event(clear & Event.DISPLAY)

    def reset(self) -> None:
        """Device reset: no events."""
        self._events = Event(0)


def _check(offset: int, size: int) -> None:
    if offset + size > MAX_BYTES:
        raise HandlerError(f"configuration access of {size} bytes at {offset}")
