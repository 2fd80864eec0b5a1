"""native.owned_fd: one descriptor, closed once."""

import os

import pytest

from native.owned_fd import OwnedFd


def is_open(fd: int) -> bool:
    """True if `fd` is a descriptor of this process."""
    return os.path.exists(f"/proc/self/fd/{fd}")


def test_closed_by_the_with_statement() -> None:
    with OwnedFd(os.memfd_create("test")) as owned:
        fd = owned.fileno()
        assert is_open(fd)
    assert owned.closed
    assert not is_open(fd)


def test_closing_twice_does_not_close_what_got_the_number_since() -> None:
    owned = OwnedFd(os.memfd_create("test"))
    fd = owned.fd
    owned.close()
    other = os.memfd_create("other")
    assert other == fd
    owned.close()
    assert is_open(other)
    os.close(other)


def test_take_moves_the_ownership() -> None:
    owned = OwnedFd(os.memfd_create("test"))
    fd = owned.take()
    assert owned.closed
    owned.close()
    del owned
    assert is_open(fd)
    os.close(fd)


def test_a_dropped_owner_closes() -> None:
    owned = OwnedFd(os.memfd_create("test"))
    fd = owned.fd
    del owned
    assert not is_open(fd)


def test_duplicate_leaves_the_original_alone() -> None:
    with OwnedFd(os.memfd_create("test")) as owned:
        with OwnedFd.duplicate(owned) as copy:
            assert copy.fd != owned.fd
            assert os.fstat(copy.fd).st_ino == os.fstat(owned.fd).st_ino
            assert not os.get_inheritable(copy.fd)
        assert is_open(owned.fd)


def test_use_after_close_is_an_error() -> None:
    owned = OwnedFd(os.memfd_create("test"))
    assert repr(owned) == f"OwnedFd({owned.fd})"
    owned.close()
    assert repr(owned) == "OwnedFd(closed)"
    with pytest.raises(ValueError):
        _ = owned.fd
    with pytest.raises(ValueError):
        owned.fileno()
    with pytest.raises(ValueError):
        owned.take()


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError):
        OwnedFd(-1)
