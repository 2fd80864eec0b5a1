"""context_worker.landlock: what is allowed works, and nothing else does."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from context_worker import landlock, linux
from tests.in_child import in_child

pytestmark = pytest.mark.skipif(landlock.abi() < 6, reason="this kernel has no Landlock, or one of before scopes")


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A directory to read, with a file and a program, and one to write."""
    readable, writable = tmp_path / "readable", tmp_path / "writable"
    readable.mkdir()
    writable.mkdir()
    (readable / "file").write_text("text")
    (readable / "program").write_text("#!/bin/sh\n")
    (readable / "program").chmod(0o755)
    return readable, writable


def attempt(places: tuple[Path, Path], action: Callable[[Path, Path], object]) -> str:
    """The outcome of an action under restrict(): "" or the name of its exception."""

    def child() -> str:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        landlock.restrict([places[0], Path("/not/there")], [places[1]], [Path("/dev/zero")])
        try:
            action(*places)
        except OSError as error:
            return type(error).__name__
        return ""

    return str(in_child(child))


@pytest.mark.parametrize(
    "action",
    [
        lambda readable, _: (readable / "file").read_text(),
        lambda readable, _: os.listdir(readable),
        lambda _, writable: (writable / "new").write_text("text"),
        lambda _, writable: (writable / "directory").mkdir(),
        lambda *_: os.open("/dev/zero", os.O_RDWR),
        lambda *_: os.kill(os.getpid(), 0),
        lambda readable, _: os.stat("/etc/passwd"),  # attributes are not Landlock's: the root hides those
    ],
    ids=["read", "list", "write", "mkdir", "device", "signal-self", "stat"],
)
def test_what_is_allowed(places: tuple[Path, Path], action: Callable[[Path, Path], object]) -> None:
    assert attempt(places, action) == ""


@pytest.mark.parametrize(
    "action",
    [
        lambda readable, _: (readable / "file").write_text("text"),
        lambda readable, _: os.truncate(readable / "file", 0),
        lambda readable, _: (readable / "new").touch(),
        lambda readable, _: (readable / "file").unlink(),
        lambda readable, writable: os.rename(readable / "file", writable / "file"),
        lambda readable, _: os.execv(readable / "program", ["program"]),
        lambda *_: Path("/etc/passwd").read_text(),
        lambda *_: os.listdir("/"),
        lambda *_: os.open("/dev/null", os.O_RDWR),
        lambda *_: os.open("/proc/self/status", os.O_RDONLY),
        lambda *_: os.kill(os.getppid(), 0),
        lambda *_: socket.create_connection(("127.0.0.1", 9)),
        lambda *_: socket.create_server(("127.0.0.1", 0)),
    ],
    ids=[
        *("write", "truncate", "create", "unlink", "rename", "execute", "elsewhere", "list-elsewhere", "other-device"),
        *("proc", "signal-parent", "tcp-connect", "tcp-bind"),
    ],
)
def test_what_is_not(places: tuple[Path, Path], action: Callable[[Path, Path], object]) -> None:
    assert attempt(places, action) == "PermissionError"


def test_an_abstract_socket_of_others(places: tuple[Path, Path]) -> None:
    name = f"\0isorend-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as others:
        others.bind(name)
        others.listen()
        assert attempt(places, lambda *_: socket.socket(socket.AF_UNIX).connect(name)) == "PermissionError"


def test_a_library_is_loaded_by_reading_it(places: tuple[Path, Path]) -> None:
    loaded = next(
        Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if "libffi" in line
    )
    copy = places[0] / "copy.so"
    copy.write_bytes(loaded.read_bytes())
    assert attempt(places, lambda *_: ctypes.CDLL(str(copy))) == ""


def test_without_no_new_privs_it_is_refused() -> None:
    def child() -> bool:
        if os.geteuid() == 0:
            linux.unshare(linux.CLONE_NEWUSER)
            linux.capset(0, 0, 0)
        with pytest.raises(PermissionError, match="landlock_restrict_self"):
            landlock.restrict([], [], [])
        return signal.getsignal(signal.SIGTERM) is not None

    assert in_child(child)
