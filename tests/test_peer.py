"""master.peer: who is at the other end, and who is let in."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from ipc.messages import ServeVtest
from master.listener import Listener, SocketOwner
from master.peer import Admission, Peer

NOBODY = 65534
ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")

# Connects to a socket as a user and under a name of its own; ends with the error's number if it cannot.
CONNECT = """
import os, socket, sys
open("/proc/self/comm", "wb").write(bytes.fromhex(sys.argv[2]))
if len(sys.argv) > 3:
    os.setgroups([])
    os.setgid(int(sys.argv[4]))
    os.setuid(int(sys.argv[3]))
with socket.socket(socket.AF_UNIX) as client:
    error = client.connect_ex(sys.argv[1])
    print("done", flush=True)
    sys.stdin.read()
sys.exit(error)
"""


class Stranger:
    """Another process that has tried to connect; ended with `leave()`."""

    def __init__(self, path: Path, name: bytes, *ids: int) -> None:
        """ids: user and group, if not ours."""
        command = [sys.executable, "-c", CONNECT, str(path), name.hex(), *map(str, ids)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"done\n"

    def leave(self) -> int:
        """errno of its connect(), 0 for success."""
        self.process.communicate(timeout=30)
        return self.process.returncode


@pytest.fixture
def path() -> Iterator[Path]:
    """A socket's path in a directory that everybody may enter."""
    with TemporaryDirectory(prefix="isorend-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory) / "vtest.sock"


def test_a_peer_is_a_process_with_a_name(path: Path) -> None:
    with Listener.at(path) as listener:
        stranger = Stranger(path, b"glx gears\n\x1b[2Jx")
        with listener.accept() as connection:
            peer = Peer.of(connection)
        assert stranger.leave() == 0
    assert peer == Peer(stranger.process.pid, os.geteuid(), os.getegid(), r"glx gears\x0a\x1b[2Jx")
    assert str(peer) == rf"glx gears\x0a\x1b[2Jx (pid {peer.pid}, uid {peer.uid})"


def test_the_longest_name_fits_the_message_that_carries_it(path: Path) -> None:
    with Listener.at(path) as listener:
        stranger = Stranger(path, b"\x01" * 15)
        with listener.accept() as connection:
            peer = Peer.of(connection)
        stranger.leave()
    assert peer.program == r"\x01" * 15
    assert len(ServeVtest(1, peer.program).encode()) == ServeVtest.size()


def test_a_peer_that_has_ended_has_no_name(path: Path) -> None:
    with Listener.at(path) as listener:
        stranger = Stranger(path, b"short")
        assert stranger.leave() == 0
        with listener.accept() as connection:
            peer = Peer.of(connection)
    assert peer.pid == stranger.process.pid and peer.program == ""
    assert str(peer).startswith("unknown program (pid ")


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o700, 0o755])
def test_a_socket_for_its_owner_admits_us_and_root(path: Path, mode: int) -> None:
    with Listener.at(path, mode) as listener:
        assert Admission.by(listener.socket) == Admission(frozenset({os.geteuid(), 0}), anybody=False)


@pytest.mark.parametrize("mode", [0o660, 0o602, 0o666, 0o620])
def test_a_wider_mode_decides(path: Path, mode: int) -> None:
    with Listener.at(path, mode) as listener:
        assert Admission.by(listener.socket).admits(Peer(1, 4711, 4711, "anybody"))


@ONLY_ROOT
def test_the_owner_of_the_file_is_admitted(path: Path) -> None:
    with Listener.at(path, 0o600, SocketOwner(4711, 4712)) as listener:
        admission = Admission.by(listener.socket)
    assert admission.admits(Peer(1, 4711, 1, "owner")) and admission.admits(Peer(1, 0, 0, "root"))
    assert not admission.admits(Peer(1, 4712, 4712, "of the group"))


def test_without_a_file_it_is_us_and_root(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0isorend-test-{os.getpid()}")
        abstract.listen()
        assert Admission.by(abstract) == Admission(frozenset({os.geteuid(), 0}), anybody=False)
    with Listener.at(path, 0o666) as listener:
        path.unlink()
        path.write_text("something else")
        path.chmod(0o666)
        assert not Admission.by(listener.socket).anybody


@ONLY_ROOT
@pytest.mark.parametrize(
    ("mode", "owner", "uid", "gid", "connects"),
    [
        (0o600, None, NOBODY, NOBODY, False),
        (0o600, SocketOwner(NOBODY), NOBODY, NOBODY, True),
        (0o600, SocketOwner(4711), NOBODY, NOBODY, False),
        (0o660, SocketOwner(None, 4711), NOBODY, 4711, True),
        (0o660, SocketOwner(None, 4711), NOBODY, NOBODY, False),
        (0o666, None, NOBODY, NOBODY, True),
    ],
)
def test_whom_the_kernel_lets_connect_is_whom_we_admit(
    path: Path, mode: int, owner: SocketOwner | None, uid: int, gid: int, connects: bool
) -> None:
    with Listener.at(path, mode, owner) as listener:
        stranger = Stranger(path, b"stranger", uid, gid)
        assert (stranger.leave() == 0) is connects
        if connects:
            with listener.accept() as connection:
                peer = Peer.of(connection)
            assert (peer.uid, peer.gid) == (uid, gid)
            assert Admission.by(listener.socket).admits(peer)
