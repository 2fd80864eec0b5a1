"""A person's terminal on the root console (hvc0) of a VM."""

from __future__ import annotations

import os
import select
import socket
import sys
import termios
import tty
from pathlib import Path

from tests.vm.debian_root import say
from tests.vm.lab import Lab
from tests.vm.qemu import Vm

END_KEY = b"\x1d"


def run_console(lab: Lab, socket_path: Path | None) -> int:
    """Boots a VM and connects this terminal to it until Ctrl-] or the end of QEMU; returns the exit code."""
    say("booting")
    with Vm(lab, socket_path) as vm, socket.socket(socket.AF_UNIX) as console:
        say(f"ready, QEMU is process {vm.pid}; Ctrl-] ends")
        console.connect(str(vm.console_socket))
        console.sendall(b"\n")
        _relay(console)
    return 0


def _relay(console: socket.socket) -> None:
    stdin, stdout = sys.stdin.fileno(), sys.stdout.fileno()
    saved = termios.tcgetattr(stdin) if os.isatty(stdin) else None
    if saved is not None:
        tty.setraw(stdin)
    try:
        while True:
            ready, _, _ = select.select([stdin, console], [], [])
            if console in ready:
                data = console.recv(4096)
                if not data:
                    return
                os.write(stdout, data)
            if stdin in ready:
                data = os.read(stdin, 4096)
                if not data or END_KEY in data:
                    return
                console.sendall(data)
    finally:
        if saved is not None:
            termios.tcsetattr(stdin, termios.TCSADRAIN, saved)
