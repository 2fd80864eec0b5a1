"""master.control.directory: whose the place is, which names are taken, what the dead leave."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from master.control.directory import ServiceDirectory, running_services, runtime_directory
from master.control.errors import DirectoryError, NameInUse


@pytest.fixture
def where(tmp_path: Path) -> Path:
    return tmp_path / "isorend"


@contextmanager
def listening(directory: ServiceDirectory) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory.requests))
        listener.listen()
        yield


def die_with(name: str, where: Path) -> None:
    """A service takes the name and is killed."""
    code = (
        "import os, signal, socket, sys; from pathlib import Path\n"
        "from master.control.directory import ServiceDirectory\n"
        "claimed = ServiceDirectory.claim(sys.argv[1], Path(sys.argv[2]))\n"
        "socket.socket(socket.AF_UNIX).bind(str(claimed.requests))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, name, str(where)], timeout=60, check=False)
    assert done.returncode < 0


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_nobody_else_may_look_in(where: Path) -> None:
    before = os.umask(0)
    try:
        with ServiceDirectory.claim("vm-1", where) as claimed:
            assert (mode(where), mode(claimed.path)) == (0o700, 0o700)
    finally:
        os.umask(before)
    assert list(where.iterdir()) == []


def test_a_name_is_one_services(where: Path) -> None:
    with (
        ServiceDirectory.claim("desk", where),
        ServiceDirectory.claim("other", where),
        pytest.raises(NameInUse, match="there is a service named desk already"),
    ):
        ServiceDirectory.claim("desk", where)
    with ServiceDirectory.claim("desk", where) as again:
        again.close()
        assert not again.path.exists()


def test_what_the_dead_leave_is_removed(where: Path) -> None:
    for name in ("other", "desk"):  # the next service's name, or not
        die_with("desk", where)
        assert [path.name for path in where.iterdir()] == ["desk"]
        assert running_services(where) == []
        with ServiceDirectory.claim(name, where) as claimed:
            assert list(where.iterdir()) == [claimed.path]
            assert list(claimed.path.iterdir()) == []


def test_what_is_not_ours_stays(where: Path) -> None:
    die_with("desk", where)
    (where / "desk" / "notes").write_text("keep")
    (where / "file").write_text("keep")
    (where / "link").symlink_to(where.parent)
    with ServiceDirectory.claim("vm-1", where), pytest.raises(NameInUse):
        ServiceDirectory.claim("desk", where)
    assert (where / "desk" / "notes").exists() and (where / "file").exists() and (where / "link").is_symlink()


def test_a_directory_that_others_may_use(where: Path) -> None:
    where.mkdir()
    where.chmod(0o750)
    for ask in (lambda: ServiceDirectory.claim("vm-1", where), lambda: running_services(where)):
        with pytest.raises(DirectoryError, match="is open to others"):
            ask()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory away takes root")
def test_a_directory_of_somebody_else(where: Path) -> None:
    where.mkdir(mode=0o700)
    os.chown(where, 65534, 65534)
    with pytest.raises(DirectoryError, match="belongs to somebody else"):
        ServiceDirectory.claim("vm-1", where)
    with pytest.raises(DirectoryError, match="belongs to somebody else"):
        running_services(where)


def test_a_link_is_not_followed(where: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    where.symlink_to(tmp_path / "elsewhere")
    for ask in (lambda: ServiceDirectory.claim("vm-1", where), lambda: running_services(where)):
        with pytest.raises(DirectoryError, match="isorend"):
            ask()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_no_directory_can_be_made(tmp_path: Path) -> None:
    with pytest.raises(DirectoryError, match="No such file or directory"):
        ServiceDirectory.claim("vm-1", tmp_path / "none" / "isorend")


def test_a_path_that_no_socket_can_have(tmp_path: Path) -> None:
    with pytest.raises(DirectoryError, match="too long"):
        ServiceDirectory.claim("x" * 48, tmp_path / ("y" * 80))
    assert list(tmp_path.iterdir()) == []


def test_services_that_run(where: Path) -> None:
    assert running_services(where) == []
    with (
        ServiceDirectory.claim("b", where) as b,
        ServiceDirectory.claim("a", where) as a,
        ServiceDirectory.claim("c", where),  # does not listen yet
        listening(a),
        listening(b),
    ):
        assert running_services(where) == [a.path, b.path]


def test_where_that_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_directory() == tmp_path / "isorend"
    fallbacks = {Path("/run/isorend"), Path(f"/tmp/isorend-{os.geteuid()}")}
    tmp_path.chmod(0o777)  # others could put theirs there
    assert runtime_directory() in fallbacks
    for given in ("relative", str(tmp_path / "none"), ""):
        monkeypatch.setenv("XDG_RUNTIME_DIR", given)
        assert runtime_directory() in fallbacks
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert runtime_directory() == Path("/run/isorend")
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert runtime_directory() == Path("/tmp/isorend-4711")
