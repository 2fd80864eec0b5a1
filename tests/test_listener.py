"""master.listener: sockets at a path and inherited ones."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from master.listener import Listener, ListenError, SocketOwner, check_listening_fd, connection_from_fd


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gpu.sock"


def test_listening(path: Path) -> None:
    before = os.umask(0)
    try:
        with Listener.at(path) as listener:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with pytest.raises(BlockingIOError):
                listener.accept()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                with listener.accept() as connection:
                    connection.send(b"hello")
                    assert client.recv(10) == b"hello"
    finally:
        os.umask(before)
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o777, 0o000])
def test_the_mode_is_what_was_asked_for_whatever_the_umask(path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        with Listener.at(path, mode):
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize(
    ("owner", "ids"),
    [(SocketOwner(65534, 4), (65534, 4)), (SocketOwner(65534), (65534, 0)), (SocketOwner(None, 4), (0, 4))],
)
def test_the_owner_is_what_was_asked_for(path: Path, owner: SocketOwner, ids: tuple[int, int]) -> None:
    with Listener.at(path, 0o640, owner):
        status = path.stat()
        assert (status.st_uid, status.st_gid) == ids and stat.S_IMODE(status.st_mode) == 0o640
    assert not path.exists()


def test_an_owner_that_cannot_be_leaves_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(ListenError, match=r"cannot give .* to 1:2: Operation not permitted"):
        Listener.at(path, 0o600, SocketOwner(1, 2))
    assert not path.exists()


def test_a_socket_that_cannot_be_made_leaves_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "chmod", refuse)
    with pytest.raises(ListenError, match="No space left"):
        Listener.at(path)
    assert not path.exists()


def test_an_accepted_connection_blocks_and_the_listener_does_not(path: Path) -> None:
    with Listener.at(path) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        with listener.accept() as connection:
            assert os.get_blocking(connection.fileno()) and not os.get_inheritable(connection.fileno())
            assert not os.get_blocking(listener.fileno())


def test_a_stale_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
        stale.listen()
    assert path.exists()
    with Listener.at(path) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        listener.accept().close()


def test_a_live_socket_is_left_alone(path: Path) -> None:
    with Listener.at(path) as first:
        with pytest.raises(ListenError, match="in use"):
            Listener.at(path)
        with pytest.raises(BlockingIOError):
            first.accept()  # it was not even connected to
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            first.accept().close()


@pytest.mark.parametrize("content", ["file", "directory", "link"])
def test_what_is_no_socket_is_left_alone(path: Path, content: str) -> None:
    if content == "file":
        path.write_text("precious")
    elif content == "directory":
        path.mkdir()
    else:
        path.symlink_to(path.parent / "precious")
    with pytest.raises(ListenError, match="not a socket"):
        Listener.at(path)
    assert os.path.lexists(path)


def test_a_socket_that_was_replaced_is_not_removed(path: Path) -> None:
    listener = Listener.at(path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        listener.close()
        listener.close()
        assert path.exists()


def test_the_longest_path(tmp_path: Path) -> None:
    room = 107 - len(os.fsencode(tmp_path)) - 1
    if room < 1:
        pytest.skip(f"the temporary directory's own name is too long: {tmp_path}")
    Listener.at(tmp_path / ("x" * room)).close()
    with pytest.raises(ListenError, match="too long: 108 bytes"):
        Listener.at(tmp_path / ("x" * (room + 1)))


@pytest.fixture
def unix_listener(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield listener


def test_descriptors_that_are_no_connection(unix_listener: socket.socket) -> None:
    datagram, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    read_end, write_end = os.pipe()
    with datagram, other, socket.socket() as internet:
        for fd, words in (
            (unix_listener.fileno(), "listening"),
            (datagram.fileno(), "not a Unix stream"),
            (internet.fileno(), "not a Unix stream"),
            (read_end, "not an open socket"),
        ):
            with pytest.raises(ListenError, match=words):
                connection_from_fd(fd)
            os.fstat(fd)  # it is still the caller's
    os.close(read_end)
    os.close(write_end)


def test_an_inherited_listening_socket(unix_listener: socket.socket, path: Path) -> None:
    os.set_inheritable(unix_listener.fileno(), True)
    check_listening_fd(unix_listener.fileno())
    with Listener.inherited(unix_listener.detach()) as listener, socket.socket(socket.AF_UNIX) as client:
        assert not os.get_inheritable(listener.fileno())
        with pytest.raises(BlockingIOError):
            listener.accept()
        client.connect(str(path))
        listener.accept().close()
    assert path.exists()  # it belongs to whoever made it


def test_a_connection_is_not_a_listening_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for use in (check_listening_fd, Listener.inherited):
            with pytest.raises(ListenError, match="a connected socket, a listening one is expected"):
                use(ours.fileno())
            os.fstat(ours.fileno())
