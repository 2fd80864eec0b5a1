"""Programs in the lab's Debian root: what they see of the host, whose processes they are."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.vm.lab import Lab
from tests.vm.root_command import ENVIRONMENT, command_in_root


def test_a_program_sees_the_root_and_the_directories_it_was_given(vm_lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "from-the-host").write_text("hello")
    script = "cat /run/given/from-the-host /etc/hostname; echo back >/run/given/from-the-root; env | sort"
    command = command_in_root(vm_lab.userland, ["bash", "-c", script], {"/run/given": tmp_path})
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=60)
    hello, *environment = done.stdout.splitlines()
    assert hello == "helloguest"
    assert {f"{name}={value}" for name, value in ENVIRONMENT.items()} <= set(environment)
    assert (tmp_path / "from-the-root").read_text() == "back\n"
    # The mount was the program's alone.
    assert not os.listdir(vm_lab.userland / "run/given")
    assert str(vm_lab.userland) not in Path("/proc/self/mountinfo").read_text()


def test_the_process_is_the_program(vm_lab: Lab) -> None:
    command = command_in_root(vm_lab.userland, ["bash", "-c", "echo $$; read"], {})
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM
