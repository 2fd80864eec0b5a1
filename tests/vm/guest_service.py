"""The isorend service inside a guest, made of these sources, and programs of ours that drive it there.

The native modules are this machine's: cffi builds them for Python's stable interface, so that the guest's newer Python
takes them under the name that says so, and Debian's next release runs what was linked on the one before.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.vm.guest_process import Completed, GuestProcess
from tests.vm.qemu import Vm
from tests.vm.waiting import wait_until

SOCKET = "/run/isorend.sock"
_PLACE = "/tmp/isorend"
_TREE = Path(__file__).resolve().parents[2]
_PARTS = ("context_worker", "ipc", "master", "native", "resource_table", "tests/fake_vmm")
_FILES = ("tests/__init__.py", "tests/sharing_lab.py", "tests/vm/__init__.py")
_NATIVE = re.compile(r"\.cpython-[^.]+\.so$")
_SERVE = "import sys; from master.cli import vhost_user_gpu_main; sys.exit(vhost_user_gpu_main())"
_START_LIMIT_S = 240.0
# numpy's libraries are where update-alternatives would have made links to, had their packages been installed.
_LIBRARIES = ":".join(f"/usr/lib/x86_64-linux-gnu/{name}" for name in ("blas", "lapack"))


class GuestTree:
    """Our sources in a guest, where they can be run."""

    def __init__(self, vm: Vm, programs: tuple[str, ...] = ()) -> None:
        """programs: of tests/vm/, beside what they import of tests/ that drives a service."""
        self._vm = vm
        vm.install(f"{_PLACE}.tar", _packed((*_FILES, *(f"tests/vm/{name}" for name in programs))))
        done = vm.run(f"mkdir {_PLACE} && busybox tar -x -f {_PLACE}.tar -C {_PLACE} && rm {_PLACE}.tar")
        assert done.code == 0, done.output

    def run(self, module: str, *arguments: str, timeout: float) -> Completed:
        """Runs one of the programs and waits for its end. Raises GuestTimeout."""
        return self._vm.run(_python(f"-m {module} {' '.join(arguments)}"), timeout)

    @contextmanager
    def service(self, *options: str) -> Iterator[GuestProcess]:
        """A service that listens at SOCKET; it ends with the context. The guest has no ZeroMQ, so nobody asks it."""
        serve = f"-c '{_SERVE}' --socket-path={SOCKET} --keep-listening --no-control {' '.join(options)}"
        service = self._vm.spawn(_python(serve))

        def listening() -> bool:
            assert service.poll() is None, service.output()
            return "listening on " in service.output()

        try:
            wait_until(listening, "a service in the guest", _START_LIMIT_S, 0.5)
            yield service
        finally:
            service.kill()


def _python(arguments: str) -> str:
    return f"cd {_PLACE} && LD_LIBRARY_PATH={_LIBRARIES} PYTHONPATH={_PLACE} exec python3 {arguments}"


def _packed(files: tuple[str, ...]) -> bytes:
    """A tar file of what the service and its drivers are made of."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for part in _PARTS:
            for path in sorted((_TREE / part).rglob("*")):
                if path.suffix in (".py", ".so"):
                    tar.add(path, _NATIVE.sub(".abi3.so", str(path.relative_to(_TREE))))
        for name in files:
            tar.add(_TREE / name, name)
    return packed.getvalue()
