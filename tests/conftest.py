"""Fixtures of the tests that need the real service: one that is shared, ones of one's own, a VM connected to one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from xprocess.xprocess import XProcess

from bench.clients.build import Programs
from bench.clients.build import build as build_clients
from tests import sanitized
from tests.fake_vmm import FakeVmm
from tests.service_process import VTEST_COMMAND, ServiceProcess, forget_crashed_runs
from tests.vtest_lab import GEARS, MesaProgram
from tests.vtest_pictures import Picture, read_ppm

ROOT = Path(__file__).resolve().parent.parent

# Where set-up unpacks QEMU's back end if the system has none; tests/fake_vmm/back_end_process.py reads the variable.
_UNPACKED_PEER = ROOT / "build" / "peer" / "usr" / "lib" / "qemu" / "vhost-user-gpu"
if _UNPACKED_PEER.exists():
    os.environ.setdefault("QEMU_VHOST_USER_GPU", str(_UNPACKED_PEER))

ServiceFactory = Callable[..., ServiceProcess]


@pytest.fixture(scope="session")
def service_environment() -> dict[str, str]:
    """What is added to services' environment: with ISOREND_TEST_SANITIZED=1 they run on sanitized native modules."""
    return sanitized.environment() if os.environ.get("ISOREND_TEST_SANITIZED") == "1" else {}


@pytest.fixture(scope="session")
def start_service(xprocess: XProcess, service_environment: dict[str, str]) -> ServiceFactory:
    """Starts a service that the caller stops: start_service(["--engine=null"], env={...}, keep_listening=True)."""
    forget_crashed_runs(xprocess)

    def start(
        arguments: list[str] | None = None, *, env: dict[str, str] | None = None, keep_listening: bool = True
    ) -> ServiceProcess:
        environment = {**service_environment, **(env or {})}
        every_time = ["--keep-listening"] if keep_listening else []
        return ServiceProcess(xprocess, [*every_time, *(arguments or [])], env=environment)

    return start


@pytest.fixture(scope="session")
def start_vtest(xprocess: XProcess, service_environment: dict[str, str]) -> ServiceFactory:
    """Starts a vtest service that the caller stops: start_vtest(["--max-clients=1"], env={...})."""
    forget_crashed_runs(xprocess)

    def start(arguments: list[str] | None = None, *, env: dict[str, str] | None = None) -> ServiceProcess:
        environment = {**service_environment, **(env or {})}
        return ServiceProcess(xprocess, arguments or [], command=VTEST_COMMAND, env=environment)

    return start


@pytest.fixture(scope="session")
def _shared_services(start_service: ServiceFactory) -> Iterator[list[ServiceProcess]]:
    services: list[ServiceProcess] = []
    yield services
    _stop(services)


@pytest.fixture
def service(start_service: ServiceFactory, _shared_services: list[ServiceProcess]) -> Iterator[ServiceProcess]:
    """A service (virgl, --keep-listening) that tests share. A test that ends it fails, and the next has a new one."""
    if not _shared_services or _shared_services[-1].exit_code is not None:
        _shared_services.append(start_service())
    yield _shared_services[-1]
    _shared_services[-1].check_running()


@pytest.fixture
def service_factory(start_service: ServiceFactory) -> Iterator[ServiceFactory]:
    """As start_service, but the services end with the test, and those that still run then have to end with code 0."""
    yield from _stopped_in_the_end(start_service)


@pytest.fixture
def vtest_factory(start_vtest: ServiceFactory) -> Iterator[ServiceFactory]:
    """As start_vtest, with ends as in service_factory."""
    yield from _stopped_in_the_end(start_vtest)


@pytest.fixture(scope="session")
def programs() -> Programs:
    """Those of bench/clients, built."""
    return build_clients()


@pytest.fixture(scope="session")
def gears(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Picture:
    """What GEARS of vtest_lab draws on Mesa's own renderer."""
    path = tmp_path_factory.mktemp("gears") / "gears.ppm"
    with MesaProgram(programs, None, *GEARS, picture=path) as program:
        program.go()
        program.result()
    return read_ppm(path)


def _stopped_in_the_end(start: ServiceFactory) -> Iterator[ServiceFactory]:
    services: list[ServiceProcess] = []

    def start_and_note(*arguments: object, **settings: object) -> ServiceProcess:
        services.append(start(*arguments, **settings))
        return services[-1]

    yield start_and_note
    _stop(services)


def _stop(services: list[ServiceProcess]) -> None:
    running = {service.name for service in services if service.exit_code is None}
    codes = {service.name: service.stop() for service in services}
    wrong = {name: code for name, code in codes.items() if name in running and code != 0}
    assert not wrong, f"exit codes of services that were asked to end: {wrong}"


@pytest.fixture
def vmm(service: ServiceProcess) -> Iterator[FakeVmm]:
    """A booted VM with a display on the shared service."""
    with FakeVmm.connect(service.socket_path) as machine:
        yield machine
