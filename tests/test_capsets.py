"""The capability sets as the guest sees them."""

import struct

import pytest

from master.capsets import Capset, for_guest

EVERYTHING = Capset(2, 2, b"\xff" * 760)
CAPABILITY_BITS, CAPABILITY_BITS_V2 = 392, 688  # struct virgl_caps_v2
BUFFER_STORAGE, UNTYPED_RESOURCE = 1 << 31, 1 << 1
TRANSFERS, COUNTERS = 1 << 17 | 1 << 26, 1 << 3 | 1 << 7


@pytest.mark.parametrize("mapped_buffers", [False, True])
@pytest.mark.parametrize("guest_dmabufs", [False, True])
def test_what_this_device_cannot_keep_is_withheld_and_the_rest_left_alone(
    mapped_buffers: bool, guest_dmabufs: bool
) -> None:
    changed = for_guest(EVERYTHING, mapped_buffers=mapped_buffers, guest_dmabufs=guest_dmabufs)
    assert (changed.capset_id, changed.version) == (2, 2)
    words = dict(enumerate(struct.unpack("<190I", changed.data)))
    bits, bits_v2 = (~words.pop(offset // 4) & 0xFFFFFFFF for offset in (CAPABILITY_BITS, CAPABILITY_BITS_V2))
    assert bits == (TRANSFERS if mapped_buffers else TRANSFERS | BUFFER_STORAGE)
    assert bits_v2 == (COUNTERS if guest_dmabufs else COUNTERS | UNTYPED_RESOURCE)
    assert set(words.values()) == {0xFFFFFFFF}


@pytest.mark.parametrize("capset", [Capset(1, 1, b"\xff" * 760), Capset(2, 1, b"\xff" * 308)], ids=["virgl", "short"])
def test_sets_without_those_words_are_as_they_were(capset: Capset) -> None:
    assert for_guest(capset, mapped_buffers=False, guest_dmabufs=False) == capset
