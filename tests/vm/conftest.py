"""Fixtures of the VM tests: the lab (built if it is not there), VMs, a guest on the isorend service."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.vm.lab import Lab
from tests.vm.qemu import Vm
from tests.vm.recipe import Recipe
from tests.vm.service import Service

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
def vm_service(vm_out_dir: Path) -> Iterator[Service]:
    """The isorend service listening on a socket of its own; its log is out/service.log."""
    with (
        tempfile.TemporaryDirectory(prefix="isorend-") as run_dir,
        Service(Path(run_dir) / "gpu.sock", vm_out_dir / "service.log") as service,
    ):
        yield service


@pytest.fixture(scope="module")
def guest(vm_service: Service, vm_factory: VmFactory) -> Vm:
    """One guest with the service as its GPU, shared by the tests of a module."""
    # The order of the arguments has QEMU end first: without its back end it would log errors as fast as it can.
    return vm_factory(vm_service.socket_path)
