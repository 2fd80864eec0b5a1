"""The capability sets as the guest sees them."""

from master.capsets import Capset, for_guest


def test_what_needs_the_guest_s_pages_is_withheld_and_the_rest_left_alone() -> None:
    everything = Capset(2, 2, b"\xff" * 760)
    changed = for_guest(everything)
    assert (changed.capset_id, changed.version) == (2, 2)
    # TRANSFER, COPY_TRANSFER and ARB_BUFFER_STORAGE of capability_bits, two bits of capability_bits_v2
    assert [n for n in range(760) if changed.data[n] != 0xFF] == [394, 395, 688]


def test_sets_without_those_words_are_as_they_were() -> None:
    assert for_guest(Capset(1, 1, b"\xff" * 760)).data == b"\xff" * 760
    assert for_guest(Capset(2, 1, b"\xff" * 308)).data == b"\xff" * 308
