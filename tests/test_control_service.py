"""The control plane of real services: watched, told to kill, killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from tests.conftest import ServiceFactory
from tests.control_commands import LIMIT_S, followed, isorend, told
from tests.device_lab import OPTIONS, DeviceLab, triangle, until
from tests.service_process import ServiceEnded


def kinds(lines: str) -> list[str]:
    return [json.loads(line)["kind"] for line in lines.splitlines()]


def test_a_context_is_seen_and_killed(service_factory: ServiceFactory) -> None:
    service = service_factory(OPTIONS)
    lab = DeviceLab(service)
    with followed(service) as events:
        with lab.vmm() as vmm:
            player = triangle(vmm.gpu, "evil\x1b[2J")
            player.gpu.wait(player.frame(0.0, 0)).check("a frame")
            worker = lab.worker_of(player.context.ctx_id)
            status = told(service, "status")
            assert isinstance(status, list)
            (seen,) = status[0]["contexts"]
            assert (seen["ctx_id"], seen["pid"], seen["state"]) == (player.context.ctx_id, worker.pid, "running")
            assert "evil" in seen["program"] and seen["submits"] > 0
            assert (status[0]["pid"], status[0]["kind"], status[0]["connected"]) == (service.pid, "serve", 1)
            assert "llvmpipe" in status[0]["renderer"]
            table = isorend(service, "status").stdout
            assert str(worker.pid) in table and "\x1b" not in table

            assert told(service, "kill", str(player.context.ctx_id)) == {
                "service": f"vm-{service.pid}",
                "killed": seen["ctx_id"],
            }
            until(lambda: told(service, "incidents"), "the incident")
            incident = told(service, "incidents", "--last")
            assert isinstance(incident, dict)
            assert (incident["number"], incident["pid"], incident["cause"]["kind"]) == (1, worker.pid, "operator")
            assert isorend(service, "kill", str(player.context.ctx_id)).returncode == 1
        service.stop()
        output, errors = events.communicate(timeout=LIMIT_S)
    assert errors == f"vm-{service.pid} has ended\n" and events.returncode == 0
    told_of = kinds(output)
    assert told_of[:2] == ["front-end", "context-created"] and "incident" in told_of


def test_vtest_services_too(vtest_factory: ServiceFactory) -> None:
    service = vtest_factory(["--spares=0", "--name=desk"])
    status = told(service, "status")
    assert isinstance(status, list)
    assert (status[0]["service"], status[0]["kind"], status[0]["contexts"]) == ("desk", "vtest", [])
    assert isorend(service, "kill", "1").returncode == 1


def test_a_name_in_use(service_factory: ServiceFactory) -> None:
    first = service_factory(["--engine=null", "--name=desk"])
    with pytest.raises(ServiceEnded, match="there is a service named desk already"):
        service_factory(["--engine=null", "--name=desk"], env={"XDG_RUNTIME_DIR": str(first.runtime_directory)})
    assert isorend(first, "status", "--service=desk").returncode == 0


def test_one_that_was_killed_leaves_nothing_in_the_way(service_factory: ServiceFactory) -> None:
    first = service_factory(["--engine=null", "--name=desk"])
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert isorend(first, "status").returncode == 1
    environment = {"XDG_RUNTIME_DIR": str(first.runtime_directory)}
    second = service_factory(["--engine=null", "--name=desk"], env=environment)
    status = told(first, "status")  # looks in the same place
    assert isinstance(status, list) and status[0]["pid"] == second.pid
    assert second.stop() == 0


@pytest.mark.parametrize("how", ["--no-control", "an open directory"])
def test_without_a_control_plane(service_factory: ServiceFactory, tmp_path: Path, how: str) -> None:
    arguments: Sequence[str] = ["--engine=null", *(["--no-control"] if how == "--no-control" else [])]
    (tmp_path / "isorend").mkdir()
    (tmp_path / "isorend").chmod(0o755)
    service = service_factory(arguments, env={"XDG_RUNTIME_DIR": str(tmp_path)})
    assert ("will not find this service" in service.log) == (how != "--no-control")
    assert list((tmp_path / "isorend").iterdir()) == []
    assert service.stop() == 0


def test_workers_have_nothing_of_it(service_factory: ServiceFactory) -> None:
    """No descriptor of ZeroMQ's is inherited by what the service starts."""
    service = service_factory(OPTIONS)
    assert told(service, "status")
    paths = {str(connection.laddr) for connection in psutil.Process(service.pid).net_connections("unix")}
    assert any(path.endswith("request.sock") for path in paths)
    for process in psutil.Process(service.pid).children(recursive=True):
        for connection in process.net_connections("unix"):
            assert not str(connection.laddr).endswith((".sock",)), connection


def test_a_killed_service_ends_what_follows_it(service_factory: ServiceFactory) -> None:
    service = service_factory(["--engine=null"])
    with followed(service) as events:
        os.kill(service.pid, signal.SIGKILL)
        output, errors = events.communicate(timeout=LIMIT_S)
    assert (events.returncode, output, errors) == (0, "", f"vm-{service.pid} has ended\n")
    service.wait()
