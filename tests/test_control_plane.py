"""master.control.plane: a service with its control plane, and without."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from master.control.directory import ServiceDirectory
from master.control.errors import NameInUse
from master.control.plane import ControlPlane
from tests.control_lab import FakeService, created
from tests.event_loop import LoopDriver, loop_driver


@pytest.fixture(autouse=True)
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "isorend"


@pytest.fixture
def driver() -> Iterator[LoopDriver]:
    with loop_driver() as driver:
        yield driver


def test_the_name_is_taken_at_once_and_the_sockets_follow(driver: LoopDriver, where: Path) -> None:
    plane = ControlPlane(driver.loop, "desk", FakeService(), name_matters=True)
    assert list((where / "desk").iterdir()) == []
    plane.publish(created())  # to nobody yet
    driver.turn()
    assert {path.name for path in (where / "desk").iterdir()} == {"request.sock", "events.sock"}
    plane.publish(created())
    plane.close()
    plane.close()
    assert list(where.iterdir()) == []


def test_closed_before_it_listens(driver: LoopDriver, where: Path) -> None:
    ControlPlane(driver.loop, "desk", FakeService()).close()
    driver.turn()
    assert list(where.iterdir()) == []


def test_none_is_wanted(driver: LoopDriver, where: Path) -> None:
    plane = ControlPlane(driver.loop, "desk", FakeService(), wanted=False)
    driver.turn()
    plane.publish(created())
    plane.close()
    assert not where.exists()


def test_a_name_that_matters_must_be_had(driver: LoopDriver) -> None:
    with ServiceDirectory.claim("desk"), pytest.raises(NameInUse):
        ControlPlane(driver.loop, "desk", FakeService(), name_matters=True)


def test_another_does_without(driver: LoopDriver, where: Path, caplog: pytest.LogCaptureFixture) -> None:
    where.mkdir(mode=0o755)
    where.chmod(0o755)
    plane = ControlPlane(driver.loop, "vm-1", FakeService())
    driver.turn()
    plane.publish(created())
    plane.close()
    ((_, level, message),) = caplog.record_tuples
    assert level == logging.WARNING
    assert message.startswith("`isorend status` will not find this service: ") and "is open to others" in message


def test_sockets_that_cannot_be_made(driver: LoopDriver, where: Path, caplog: pytest.LogCaptureFixture) -> None:
    plane = ControlPlane(driver.loop, "vm-1", FakeService())
    (where / "vm-1").rmdir()
    driver.turn()
    plane.publish(created())
    plane.close()
    assert "will not find this service: cannot listen in" in caplog.text


def test_zeromq_is_not_there(
    driver: LoopDriver, where: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zmq", None)
    monkeypatch.delitem(sys.modules, "master.control.server", raising=False)
    plane = ControlPlane(driver.loop, "vm-1", FakeService())
    driver.turn()
    plane.publish(created())
    plane.close()
    assert "will not find this service: import of zmq halted" in caplog.text
    assert list(where.iterdir()) == []
