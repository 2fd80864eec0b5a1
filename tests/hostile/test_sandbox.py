"""From inside real workers with real drivers: whatever is tried there is denied, and told.

tests.hostile.attempts is the table of what is tried. The workers are those of a real supervisor and a real launcher.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipc.messages import EngineName
from master import supervisor as supervisor_module
from master.lane_worker import LaneWorker
from master.launch import LaunchSettings
from tests.hostile.attacker import SOCKET, UNFILTERED, WORLD
from tests.hostile.attempts import ATTEMPTS, Attempt
from tests.ring_producer import LIMIT, ROOT
from tests.worker_nursery import WorkerNursery

MODULE = "tests.hostile.attacker"


class Siege:
    """A supervisor whose workers attack, and what comes of it."""

    def __init__(self, directory: Path, unfiltered: bool) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._abstract = socket.socket(socket.AF_UNIX)
        path, name = str(directory / "hub"), f"isorend-siege-{os.getpid()}-{unfiltered}"
        self._listener.bind(path)
        self._listener.listen()
        self._abstract.bind(f"\0{name}")
        self._abstract.listen()
        (directory / "secret").write_text("secret")
        maps = Path("/proc/self/maps").read_text().splitlines()
        world = {
            "file": str(directory / "secret"),
            "socket_path": path,
            "abstract": name,
            "master": os.getpid(),
            "checkout": str(ROOT / "README.md"),
            "libc": next(line.split()[-1] for line in maps if "/libc.so" in line or "/libc-" in line),
        }
        os.environ.update({SOCKET: path, WORLD: json.dumps(world), **({UNFILTERED: "1"} if unfiltered else {})})
        settings = LaunchSettings(log_level="ERROR", module=MODULE)
        self._nursery = WorkerNursery(1, EngineName.VIRGL, settings=settings)
        self._seen: dict[int, LaneWorker] = {}
        self._nursery.started()
        self._hub, _ = self._listener.accept()

    def attempt(self, name: str) -> str:
        """What a worker says came of it, or `denied CALL` or the signal that ended it."""
        supervisor = self._nursery.supervisor
        before = {worker.worker_id: worker for worker in supervisor.workers()}
        self._hub.send(name.encode())

        def over() -> bool:
            before.update({worker.worker_id: worker for worker in supervisor.workers()})
            return self._answered() or any(worker.wait_status is not None for worker in before.values())

        self._nursery.until(over, f"the outcome of {name}")
        if self._answered():
            said, _, outcome = self._hub.recv(4096).decode().partition("\n")
            assert said == name
            return outcome
        (dead,) = (worker for worker in before.values() if worker.wait_status is not None)
        assert dead.wait_status is not None
        end = signal.Signals(os.WTERMSIG(dead.wait_status)).name if os.WIFSIGNALED(dead.wait_status) else "an exit"
        return f"denied {dead.denied}" if dead.denied and end == "SIGKILL" else end

    def _answered(self) -> bool:
        return bool(select.select([self._hub], [], [], 0)[0])

    def close(self) -> None:
        self._nursery.close()
        for end in (self._hub, self._listener, self._abstract):
            end.close()


@contextmanager
def siege(directory: Path, unfiltered: bool) -> Iterator[Siege]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor_module, "REFILL_DELAY", 0.0)
        for name in (SOCKET, WORLD, UNFILTERED):  # so that they are as before in the end
            patch.setenv(name, "")
            patch.delenv(name)
        made = Siege(directory, unfiltered)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    with siege(tmp_path_factory.mktemp("sealed"), unfiltered=False) as made:
        yield made


@pytest.fixture(scope="module")
def unfiltered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    with siege(tmp_path_factory.mktemp("unfiltered"), unfiltered=True) as made:
        yield made


@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS)
def test_denied(sealed: Siege, attempt: Attempt) -> None:
    outcome = sealed.attempt(attempt.name)
    if attempt.signal:
        assert outcome == attempt.signal
    elif attempt.denied:
        assert outcome in (f"denied {attempt.denied}", "ENOSYS")  # ENOSYS: not on this machine, whoever asks
    else:
        assert attempt.errors and outcome in attempt.errors


STANDING = {name: each for name, each in ATTEMPTS.items() if each.errors is not None}


@pytest.mark.parametrize("attempt", STANDING.values(), ids=STANDING)
def test_denied_without_the_filter(unfiltered: Siege, attempt: Attempt) -> None:
    assert attempt.errors
    assert unfiltered.attempt(attempt.name) in attempt.errors | {"ENOSYS"}


USER = 12345


def _readable_to_others() -> bool:
    """Whether another user gets at the checkout and its interpreter."""
    needed = [*ROOT.parents, ROOT, Path(sys.executable).resolve()]
    return all(path.stat().st_mode & 0o005 == 0o005 for path in needed)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can become another user")
@pytest.mark.skipif(not _readable_to_others(), reason="the checkout is closed to other users")
def test_so_it_is_for_an_ordinary_user(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--bounding-set=-all"),
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", "--timeout=120"),
            *("-k", "passwd or checkout or library or loopback or master or exec or mount", "-x"),
            f"{ROOT}/tests/hostile/test_sandbox.py",
        ],
        cwd="/",
        env={**os.environ, "HOME": "/", "TMPDIR": "/tmp", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=5 * LIMIT,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
