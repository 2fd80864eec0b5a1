"""`isorend status` and its like, run for a service of a test (tests.service_process gives each a place of its own)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.service_lab import RunningService

PROGRAM = Path(sys.executable).parent / "isorend"
LIMIT_S = 60.0


def isorend(service: RunningService, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command, run by whoever runs this service."""
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(service.socket_path.parent)}
    command = [str(PROGRAM), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def told(service: RunningService, *arguments: str) -> object:
    """What a command says as JSON."""
    done = isorend(service, *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def followed(service: RunningService) -> subprocess.Popen[str]:
    """`isorend events --json`, once it watches."""
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(service.socket_path.parent)}
    process = subprocess.Popen(
        [str(PROGRAM), "events", "--json"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("watching vm-")
    return process
