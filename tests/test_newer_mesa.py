"""A service with a newer Mesa, all locked in: what the tests of imported memory run on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ipc.messages import Capability, EngineName
from native.storage import Layout, StorageKind
from tests import newer_mesa
from tests.fake_vmm import FakeVmm
from tests.service_process import ServiceProcess
from tests.virgl_lab import (
    B8G8R8A8,
    MESAS,
    OK,
    PAGE,
    Peer,
    announce,
    buffer,
    clear,
    launcher_with,
    memory,
    picture_memory,
    resource,
    set_type,
    texture_of,
)

Factory = Callable[..., ServiceProcess]


def test_a_service_with_it_is_locked_in_and_new_enough(service_factory: Factory) -> None:
    """Its workers have the library that newer ones have in common mapped, and were let go on by the sandbox."""
    service = service_factory(["--sandbox=enforce"], env=newer_mesa.environment())
    with FakeVmm.connect(service.socket_path):
        versions = {
            version for process in psutil.Process(service.pid).children(recursive=True) for version in mesas(process)
        }
    assert versions
    assert min(versions) >= (24, 1)


def mesas(process: psutil.Process) -> set[tuple[int, int]]:
    """Versions of Mesa that a process has mapped; before 24.0 a driver's library has no version in its name."""
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    assert "swrast_dri" not in maps
    return {(int(major), int(minor)) for major, minor in re.findall(r"libgallium-(\d+)\.(\d+)", maps)}


def test_workers_import_memory() -> None:
    with launcher_with("newer") as launcher:
        ready = launcher.start(EngineName.VIRGL).ready
    assert ready
    assert ready.capabilities & Capability.MEMFD_IMPORT
    found = re.search(r"Mesa (\d+)\.(\d+)", ready.version)
    assert found and (int(found[1]), int(found[2])) >= (24, 1)


@pytest.mark.parametrize("mesa", MESAS)
def test_sharing_asks_for_nothing_that_the_sandbox_denies(mesa: str) -> None:
    """A denial ends the worker: all that is done with storage, in one that is locked in."""
    with launcher_with(mesa, "--sandbox=enforce") as launcher:
        peer = Peer(launcher)
        picture = resource(5, 64, 64)
        if peer.capabilities & Capability.MEMFD_IMPORT:
            fd, layout = picture_memory(picture)
            assert peer.take_in(picture, StorageKind.MEMFD, fd, layout) == OK
            unknown = resource(6, 0, 0)
            assert peer.take_in(unknown, StorageKind.DMABUF, fd, Layout(layout.nbytes)) == OK
            assert peer.submit(set_type(resource(6, 64, 64), layout)) == OK
        else:
            assert peer.do(picture) == OK
        assert peer.submit(clear(10, 5, B8G8R8A8, (1, 1, 1, 1))) == OK
        assert peer.take_in(buffer(7, PAGE), StorageKind.MEMFD, memory(PAGE), Layout(PAGE)) == OK
        assert peer.submit(announce(buffer(0, PAGE), 1)) == OK
        assert peer.create_blob(8, 1, PAGE, memory(PAGE))[0] == OK
        assert peer.do(resource(9, 64, 64)) == OK
        assert peer.mirror(resource(9, 64, 64), memory(texture_of(picture).mirror_bytes)) == OK
        assert peer.copy_out(9) == peer.copy_in(9) == OK
        assert [peer.detach(resource_id) for resource_id in (5, 7, 8, 9)] == [OK] * 4
        assert Path(f"/proc/{peer.worker.pid}").exists()
        assert launcher.sealed.get(peer.worker.worker_id, True)


def test_where_it_is_absent_the_test_is_skipped_but_not_in_ci(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if newer_mesa.environment() == {}:
        return  # the system's is new enough
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="make test"):
        newer_mesa.environment()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="make test"):
        newer_mesa.environment()
