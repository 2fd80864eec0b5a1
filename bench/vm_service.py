"""The isorend service inside a Debian root: built from these sources with the root's Python, Mesa and virglrenderer."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.fake_vmm import BackEndProcess
from tests.vm.debian_tree import DebianTree
from tests.vm.parts import build_part, locked
from tests.vm.root_command import ENVIRONMENT
from tests.vm.waiting import wait_until

_SOURCES = Path(__file__).resolve().parent.parent
_PACKAGES = ("context_worker", "ipc", "master", "native", "resource_table")
_SERVICE_MOUNT, _MODULES_MOUNT = "/run/isorend", "/run/isorend-modules"
_START = "import sys; from master.cli import vhost_user_gpu_main; sys.exit(vhost_user_gpu_main())"
_START_TIMEOUT_S = 120.0
_BUILDERS = ("native/build_dataplane.py", "native/build_engines.py", "native/build_sandbox.py")


def start_service(tree: DebianTree, stack: ExitStack) -> BackEndProcess:
    """A service that listens on the host and renders with the root's drivers; it ends with `stack`.

    Raises LabError without root, RuntimeError when it cannot be built there or does not start.
    """
    sources = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="isorend-sources-")))
    for package in _PACKAGES:
        shutil.copytree(
            _SOURCES / package, sources / package, ignore=shutil.ignore_patterns("__pycache__", "_*.so", ".*")
        )
    for module in _built_modules(tree, sources).iterdir():
        shutil.copy(module, sources / "native")
    # The socket is in the host's directory for temporary files, which the service sees at the same path.
    temporary = Path(tempfile.gettempdir()).absolute()
    program = ["python3", "-c", _START, "--no-control"]  # the root has no ZeroMQ
    command = tree.command(program, {_SERVICE_MOUNT: sources, str(temporary): temporary})
    service = stack.enter_context(BackEndProcess(command, env={**ENVIRONMENT, "PYTHONPATH": _SERVICE_MOUNT}))

    def listening() -> bool:
        if not service.running:
            raise RuntimeError(f"the service ended:\n{service.log[-4000:]}")
        return "listening on " in service.log

    wait_until(listening, "the service", _START_TIMEOUT_S)
    return service


def _built_modules(tree: DebianTree, sources: Path) -> Path:
    """Directory with the native modules of these sources for the root's Python; built once and kept beside the root."""
    digest = hashlib.sha256()
    for path in sorted(path for path in (sources / "native").rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(sources)).encode() + b"\0" + path.read_bytes())

    def build(target: Path) -> None:
        for builder in _BUILDERS:
            command = tree.command(
                ["python3", f"{_SERVICE_MOUNT}/{builder}", _MODULES_MOUNT],
                {_SERVICE_MOUNT: sources, _MODULES_MOUNT: target},
            )
            result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
            if result.returncode != 0:
                raise RuntimeError(f"{builder} failed in {tree.root}:\n{result.stdout[-2000:]}{result.stderr[-4000:]}")

    place = tree.path / f"native-{digest.hexdigest()[:16]}"
    with locked(tree.path / "lock"):
        build_part(place, build)
        for other in tree.path.glob("native-" + "?" * 16):
            if other != place:
                shutil.rmtree(other)
    return place
