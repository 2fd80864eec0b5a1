"""Blobs, host-visible memory and timelines in a real guest, whose programs speak to Linux's virtio-gpu driver.

QEMU's own GPU device passes none of that on, so the guest has its generic vhost-user device. Linux maps a blob into the
guest when it is made and unmaps it when it goes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from master.options import DEFAULT_SPARES
from tests.conftest import ServiceFactory
from tests.service_process import ServiceProcess
from tests.vm.conftest import VmFactory
from tests.vm.guest_process import GuestProcess
from tests.vm.guest_programs import build_blobs
from tests.vm.lab import Lab
from tests.vm.qemu import VHOST_USER_GENERIC, Vm
from tests.vm.test_deaths import kill_worker, worker_named
from tests.vm.test_guest import GL_TIMEOUT_S, running
from tests.vm.waiting import wait_until

_PROGRAM = "/run/blobs"
_CYCLES = 10_000
_CYCLES_LIMIT_S = 280.0
_HELD = 12
_LOOKS = 4  # that see the same
# Longer than a busy machine needs for some fences, shorter than what the service takes for a hang.
_SLOW_RING_MS, _HANG_TIMEOUT_S = 8000, 60

# What Linux logs when the device has refused something: drivers/gpu/drm/virtio/virtgpu_vq.c.
_REFUSED = re.compile(r"^.*\*ERROR\* response 0x12.*$", re.MULTILINE)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """programs/blobs.c, built."""
    return build_blobs(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="module")
def blob_service(start_service: ServiceFactory) -> Iterator[ServiceProcess]:
    """A service of the module's own."""
    service = start_service()
    yield service
    assert service.stop() == 0


@pytest.fixture(scope="module")
def blob_guest(blob_service: ServiceProcess, vm_factory: VmFactory, program: bytes) -> Vm:
    """A guest on it that can use all it offers."""
    vm = vm_factory(blob_service.socket_path, gpu=VHOST_USER_GENERIC)
    vm.install(_PROGRAM, program)
    return vm


@dataclass(frozen=True)
class Holdings:
    """What blobs could leave behind: shared memory that processes have mapped, descriptors, the service's resources."""

    qemu_maps: int
    qemu_fds: int
    master_maps: int
    master_fds: int
    resources: int

    @classmethod
    def now(cls, vm: Vm, service: ServiceProcess) -> Holdings:
        """Counted, once nothing comes or goes: no program of ours has a context, and the spare workers are there."""
        looks: list[Holdings] = []

        def settled() -> bool:
            told = status(service)
            if told["spares"] != DEFAULT_SPARES or any(context["program"] == "blobs" for context in told["contexts"]):
                looks.clear()
                return False
            look = cls(_maps(vm.pid), _fds(vm.pid), _maps(service.pid), _fds(service.pid), told["resources"])
            if look not in looks:
                looks.clear()
            looks.append(look)
            return len(looks) == _LOOKS

        wait_until(settled, "a settled service", GL_TIMEOUT_S)
        return looks[-1]


def _maps(pid: int) -> int:
    return Path(f"/proc/{pid}/maps").read_text().count("/memfd:")


def _fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def status(service: ServiceProcess) -> dict[str, Any]:
    """What the service says of itself."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "isorend"), "status", "--json"],
        env={**os.environ, "XDG_RUNTIME_DIR": str(service.runtime_directory)},
        capture_output=True,
        text=True,
        timeout=GL_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def blobs(vm: Vm, what: str, timeout: float = GL_TIMEOUT_S) -> list[str]:
    """Runs the program, for which all must have gone well; the lines that it has written."""
    code, output = vm.run(f"exec {_PROGRAM} {what}", timeout)
    assert code == 0, (output, refusals(vm))
    return output.splitlines()


def refusals(vm: Vm) -> list[str]:
    """What of Linux's commands the device has refused since the guest booted."""
    return _REFUSED.findall(vm.run("dmesg").output)


@pytest.fixture
def nothing_refused(blob_guest: Vm) -> Iterator[None]:
    """The device takes all that Linux asks of it during the test."""
    before = len(refusals(blob_guest))
    yield
    assert refusals(blob_guest)[before:] == []


def hold(vm: Vm) -> GuestProcess:
    """Starts a program that has some blobs mapped and goes on having them."""
    holder = vm.spawn(f"exec {_PROGRAM} hold {_HELD}")

    def has_them() -> bool:
        assert holder.poll() is None, holder.output()
        return f"{_HELD} blobs are mapped" in holder.output()

    wait_until(has_them, "mapped blobs", GL_TIMEOUT_S)
    return holder


def test_linux_finds_blobs_rings_and_host_visible_memory(blob_guest: Vm) -> None:
    log = blob_guest.run("dmesg").output
    assert "+resource_blob +host_visible" in log
    assert "+context_init" in log
    assert "Host memory window: " in log


@pytest.mark.usefixtures("nothing_refused")
def test_two_processes_and_contexts_see_the_same_bytes_of_a_host_blob(blob_guest: Vm) -> None:
    assert blobs(blob_guest, "share") == [
        "mapped a host blob",
        "the other process maps the same bytes",
        "the other context copies the same bytes",
        "what the other context draws is in its mapping",
        "what the other context drew is in the first mapping",
        "the first context copies what the other one drew",
    ]


@pytest.mark.usefixtures("nothing_refused")
def test_a_guest_blob_is_the_same_in_two_processes(blob_guest: Vm) -> None:
    assert blobs(blob_guest, "guest") == ["a guest blob is the same in two processes"]


@pytest.mark.usefixtures("nothing_refused")
def test_many_blobs_leave_nothing_behind(blob_guest: Vm, blob_service: ServiceProcess) -> None:
    blobs(blob_guest, "cycles 20")
    before = Holdings.now(blob_guest, blob_service)
    assert blobs(blob_guest, f"cycles {_CYCLES}", _CYCLES_LIMIT_S) == [f"{_CYCLES} blobs came and went"]
    assert Holdings.now(blob_guest, blob_service) == before


def test_a_worker_dies_that_has_mapped_blobs(blob_guest: Vm, blob_service: ServiceProcess) -> None:
    before = Holdings.now(blob_guest, blob_service)
    holder = hold(blob_guest)
    assert status(blob_service)["resources"] >= before.resources + _HELD
    kill_worker(blob_service, worker_named(blob_service, "blobs"))
    # The memory is the guest's as before: only who drew into it is gone.
    assert blobs(blob_guest, "share")
    assert holder.poll() is None, holder.output()
    holder.kill(signal.SIGKILL)
    assert Holdings.now(blob_guest, blob_service) == before


@pytest.mark.parametrize("how", ["reboot", "sysrq", "reset"])
def test_reboot_with_mapped_blobs(
    blob_guest: Vm, blob_service: ServiceProcess, program: bytes, how: Literal["reboot", "sysrq", "reset"]
) -> None:
    before = Holdings.now(blob_guest, blob_service)
    hold(blob_guest)
    blob_guest.reboot(how)
    assert Holdings.now(blob_guest, blob_service) == before
    blob_guest.install(_PROGRAM, program)
    assert blobs(blob_guest, "share")
    assert Holdings.now(blob_guest, blob_service) == before


def test_a_slow_ring_holds_up_no_other(
    service_factory: ServiceFactory, vm_lab: Lab, vm_out_dir: Path, program: bytes
) -> None:
    service = service_factory(["--engine=null", f"--hang-timeout={_HANG_TIMEOUT_S}"])
    log_dir = vm_out_dir / "test_blobs-rings"
    with Vm(vm_lab, service.socket_path, gpu=VHOST_USER_GENERIC, log_dir=log_dir) as vm:
        vm.install(_PROGRAM, program)
        assert blobs(vm, f"rings {_SLOW_RING_MS}") == [
            "fences of the other rings are signalled",
            "the slow ring's are not",
            "now they are",
        ]
        assert refusals(vm) == []


@pytest.mark.usefixtures("nothing_refused")
def test_gl_with_blobs(blob_guest: Vm) -> None:
    """Mesa's own use of them: it offers memory that stays mapped, and programs that ran without blobs still do."""
    assert "GL_ARB_buffer_storage" in blob_guest.run("eglinfo -p surfaceless", GL_TIMEOUT_S).output
    with running(blob_guest, "weston --backend=headless --renderer=gl --no-config --socket=blobs") as weston:
        wait_until(lambda: blob_guest.run('[ -S "$XDG_RUNTIME_DIR/blobs" ]').code == 0, "weston", GL_TIMEOUT_S)
        egl = blob_guest.spawn("WAYLAND_DISPLAY=blobs exec stdbuf -oL es2gears_wayland")
        wait_until(lambda: "frames in" in egl.output(), "frames of es2gears", GL_TIMEOUT_S)
        assert weston.poll() is None, weston.output()
        egl.kill(signal.SIGKILL)
