"""context_worker.root: the file tree that workers live in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from context_worker import namespaces, root
from context_worker.root import SCRATCH, SHARED_SHADERS, Root, Trees
from tests.in_child import in_child


def rooted(wanted: Root, function: Callable[[], Any]) -> Any:
    """What a function returns in such a tree."""

    def child() -> Any:
        ids = namespaces.enter()
        trees = Trees(wanted)
        namespaces.become(ids)
        trees.enter()
        return function()

    return in_child(child)


def flags(path: str) -> int:
    return os.statvfs(path).f_flag & (os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC)


@pytest.fixture
def drivers(tmp_path: Path) -> Path:
    """A directory of drivers, reached by a link, with a manifest that names a library elsewhere."""
    real = tmp_path / "mesa-1" / "lib"
    real.mkdir(parents=True)
    (real / "driver.so").write_text("code")
    (tmp_path / "icd").mkdir()
    (tmp_path / "icd" / "icd.json").write_text('{"ICD": {"library_path": "../mesa-1/lib/driver.so"}}')
    (tmp_path / "mesa").symlink_to("mesa-1")
    return tmp_path


def test_the_tree_has_what_was_named_and_nothing_else(drivers: Path) -> None:
    def look() -> tuple[list[str], str, str, str, bool]:
        link = drivers / "mesa"
        return (
            sorted(os.listdir("/")),
            (link / "lib" / "driver.so").read_text(),
            os.readlink(link),
            Path("/etc/hostname").read_text(),
            (drivers / "icd").exists(),
        )

    wanted = Root((drivers / "mesa" / "lib", Path("/etc/hostname")), (Path("/dev/null"),))
    top, text, link, host, others = rooted(wanted, look)
    first = drivers.parts[1]
    assert top == sorted({"dev", "etc", "tmp", first})
    assert (text, link, others) == ("code", "mesa-1", False)
    assert host == Path("/etc/hostname").read_text()


def test_nothing_of_it_can_be_written_but_the_shared_shaders(drivers: Path) -> None:
    shaders = drivers / "shaders"
    shaders.mkdir()
    if os.geteuid() == 0:
        os.chown(shaders, *namespaces.workers_user())

    def look() -> tuple[list[int], list[str]]:
        refused = []
        for path in ("/new", f"{drivers}/mesa-1/lib/new", "/tmp/new", "/dev/new"):
            try:
                Path(path).touch()
            except OSError as error:
                refused.append(f"{path}: {error.errno}")
        (SHARED_SHADERS / "new").write_text("shader")
        return [flags("/"), flags(f"{drivers}/mesa-1/lib"), flags("/dev/null"), flags("/shaders")], refused

    wanted = Root((drivers / "mesa-1" / "lib",), (Path("/dev/null"),), shaders)
    found, refused = rooted(wanted, look)
    read_only = os.ST_RDONLY | os.ST_NOSUID
    assert found[0] == read_only | os.ST_NODEV | os.ST_NOEXEC
    assert found[1] == read_only | os.ST_NODEV
    assert found[2] & (read_only | os.ST_NOEXEC) == read_only | os.ST_NOEXEC and not found[2] & os.ST_NODEV
    assert found[3] == os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
    assert len(refused) == 4
    assert (shaders / "new").read_text() == "shader"


def test_devices_can_be_used() -> None:
    assert rooted(Root((), (Path("/dev/zero"),)), lambda: os.read(os.open("/dev/zero", os.O_RDWR), 2)) == b"\0\0"


def test_what_is_below_another_is_taken_once() -> None:
    wanted = Root((Path("/usr/lib/python3"), Path("/usr/lib"), Path("/usr/lib")))
    assert rooted(wanted, lambda: sorted(os.listdir("/usr"))) == ["lib"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can reach what the workers' user cannot")
def test_what_only_root_can_reach_is_reached(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "lib").mkdir(parents=True)
    (closed / "lib" / "driver.so").write_text("code")
    closed.chmod(0o700)
    (closed / "lib").chmod(0o755)
    assert rooted(Root((closed / "lib",)), (closed / "lib" / "driver.so").read_text) == "code"


def test_the_scratch_is_bounded_and_private() -> None:
    def look() -> tuple[int, int, str]:
        root.mount_scratch(1 << 20)
        try:
            (SCRATCH / "large").write_bytes(bytes(2 << 20))
        except OSError as error:
            return flags("/tmp"), error.errno or 0, oct(SCRATCH.stat().st_mode & 0o777)
        return 0, 0, ""

    expected = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
    assert rooted(Root(()), look) == (expected, 28, "0o700")


def test_what_is_not_there_fails_or_is_left_out(tmp_path: Path) -> None:
    missing = Root((tmp_path / "no", tmp_path), (tmp_path / "none",))
    assert missing.existing() == Root((tmp_path,))

    def child() -> str:
        namespaces.enter()
        with pytest.raises(OSError, match="open_tree"):
            Trees(Root((tmp_path / "no",)))
        return "told"

    assert in_child(child) == "told"


def test_drivers_from_elsewhere_are_found_by_their_variables(drivers: Path) -> None:
    manifest = drivers / "icd" / "icd.json"
    found = root.driver_paths(
        {
            "LD_LIBRARY_PATH": f"{drivers}/mesa/lib::relative:/",
            "LIBGL_DRIVERS_PATH": "/opt/dri",
            "VK_DRIVER_FILES": f"{manifest}:/not/there.json",
            "HOME": "/home",
        }
    )
    assert {drivers / "mesa/lib", Path("/opt/dri"), manifest, manifest.parent / "../mesa-1/lib"} <= set(found)
    assert not {Path("/"), Path("relative"), Path("/home"), Path(".")} & set(found)


def test_the_linker_s_directories_are_there() -> None:
    directories = [path.resolve() for path in root.linker_directories()]
    libraries = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libc.so" in line]
    assert libraries and Path(libraries[0]).resolve().parent in directories


@pytest.mark.parametrize("text", ["", "{", "[]", '{"ICD": 1}', '{"ICD": {"library_path": 5}}', '{"ICD": {}}'])
def test_a_manifest_that_is_none_names_nothing(tmp_path: Path, text: str) -> None:
    manifest = tmp_path / "icd.json"
    manifest.write_text(text)
    assert manifest in root.driver_paths({"VK_ICD_FILENAMES": str(manifest)})
