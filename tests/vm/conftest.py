"""Fixtures of the VM tests: the lab (built if it is not there), VMs, a guest on the isorend service."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import ServiceFactory
from tests.service_process import ServiceProcess
from tests.vm.lab import Lab
from tests.vm.qemu import Vm
from tests.vm.recipe import Recipe

OUT_DIR = Path(__file__).parent / "out"

VmFactory = Callable[..., Vm]


@pytest.fixture(scope="session")
def vm_lab() -> Lab:
    """The built lab. Without root the VM tests are skipped with what to do, but never in CI."""
    lab = Lab.of(Recipe())
    if os.geteuid() != 0 and os.environ.get("CI") != "true":
        pytest.skip("VM tests need root: run them as root or with sudo")
    lab.build()
    return lab


@pytest.fixture(scope="session")
def vm_out_dir() -> Path:
    """Where screendumps and logs of the VM tests are kept after them."""
    OUT_DIR.mkdir(exist_ok=True)
    return OUT_DIR


@pytest.fixture(scope="module")
def vm_factory(vm_lab: Lab, vm_out_dir: Path, request: pytest.FixtureRequest) -> Iterator[VmFactory]:
    """Boots VMs that end with the module: vm_factory(socket_path=None, **options of Vm); logs: out/<module>-vm<n>/."""
    module = re.sub(r"\W+", "-", request.module.__name__.rpartition(".")[2])
    with ExitStack() as stack:
        count = 0

        def boot(socket_path: Path | None = None, **options: int | str) -> Vm:
            nonlocal count
            count += 1
            vm = Vm(vm_lab, socket_path, log_dir=vm_out_dir / f"{module}-vm{count}", **options)  # type: ignore[arg-type]
            return stack.enter_context(vm)

        yield boot


@pytest.fixture(scope="module")
def vm_service(start_service: ServiceFactory, vm_out_dir: Path) -> Iterator[ServiceProcess]:
    """A service of the module's own; its log is left in out/service.log."""
    service = start_service(["--log-level=debug"])
    try:
        yield service
        service.check_running()
    finally:
        service.stop()
        (vm_out_dir / "service.log").write_text(service.log)


@pytest.fixture(scope="module")
def guest(vm_service: ServiceProcess, vm_factory: VmFactory) -> Vm:
    """One guest with the service as its GPU, shared by the tests of a module."""
    # The order of the arguments has QEMU end first: without its back end it would log errors as fast as it can.
    return vm_factory(vm_service.socket_path)
