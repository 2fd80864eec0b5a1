"""The VM lab itself, on QEMU's own 2D virtio-gpu: what the guest tests rely on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm import picture
from tests.vm.guest_process import GuestTimeout
from tests.vm.qemu import Vm
from tests.vm.waiting import wait_until


@pytest.fixture(scope="module")
def plain_vm(vm_factory: Callable[..., Vm]) -> Vm:
    return vm_factory()


def test_guest_programs_run_and_report(plain_vm: Vm) -> None:
    assert plain_vm.gpu_driver() == "virtio_gpu"
    assert plain_vm.run("echo out; echo err >&2; exit 3") == (3, "out\nerr\n")
    assert plain_vm.run("kill -9 $$") == (137, "")
    with pytest.raises(GuestTimeout, match="before the limit"):
        plain_vm.run("echo before the limit; sleep 1000", timeout=2)


def test_background_program_is_watched_and_killed(plain_vm: Vm) -> None:
    program = plain_vm.spawn("echo started; exec sleep 1000")
    wait_until(lambda: "started" in program.output(), "its first line", 60)
    assert program.poll() is None
    program.kill(15)
    assert program.wait(60).code == 143


def test_console_text_is_in_the_screendump_and_survives_reboots(plain_vm: Vm, vm_out_dir: Path) -> None:
    boot_ids = set()
    for how in ("reboot", "sysrq", "reset"):
        plain_vm.reboot(how)
        boot_ids.add(plain_vm.run("cat /proc/sys/kernel/random/boot_id").output)
        pixels = picture.load(plain_vm.screendump(vm_out_dir / f"lab-console-{how}.png"))
        assert 0.001 < picture.foreground_fraction(pixels) < 0.5
    assert len(boot_ids) == 3
