"""`isorend vtest` as it runs: its socket, its clients (unmodified Mesa), its end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from bench.clients.build import Programs
from tests.conftest import ServiceFactory
from tests.fake_vtest.client import VtestClient
from tests.service_lab import LIMIT, gone, until
from tests.service_process import ServiceEnded, ServiceProcess
from tests.test_hostile_socket import needs_the_kernel, send_fd
from tests.test_peer import NOBODY, ONLY_ROOT, Stranger
from tests.vtest_lab import GEARS, GEARS_FRAMES, OPTIONS, SPARES, MesaProgram, VtestLab, connect, is_served
from tests.vtest_pictures import Picture, assert_same_picture, read_ppm

PROGRAM = [sys.executable, str(Path(sys.executable).parent / "isorend"), "vtest"]


@pytest.fixture(scope="module")
def service(start_vtest: ServiceFactory) -> Iterator[ServiceProcess]:
    """One that these tests share."""
    service = start_vtest(OPTIONS)
    yield service
    service.check_running()
    assert service.stop() == 0


@pytest.fixture
def lab(service: ServiceProcess) -> VtestLab:
    return VtestLab(service)


# --- clients --------------------------------------------------------------------------------------------------------


def test_a_mesa_program_renders_by_virgl_in_a_worker_named_after_it(
    lab: VtestLab, programs: Programs, gears: Picture, tmp_path: Path
) -> None:
    picture = tmp_path / "gears.ppm"
    with lab.nothing_left():
        with MesaProgram(programs, lab.service, *GEARS, picture=picture) as program:
            (worker,) = lab.wait_for_workers(1)
            assert worker.engine == "virgl" and "isorend-bench" in worker.name
            program.go()
            report = program.result()
        assert "virgl" in report["renderer"].lower() and report["frames"] == GEARS_FRAMES
        assert_same_picture(read_ppm(picture), gears)
    lines = lab.log.splitlines()
    connected = rf"isorend: vtest {worker.number} isorend-bench-c: connected \(isorend-bench-c \(pid \d+, uid \d+\), "
    assert [line for line in lines if re.match(connected, line)]
    assert f"isorend: vtest {worker.number} isorend-bench-c: gone" in lines


def test_two_programs_at_once_have_two_workers(
    lab: VtestLab, programs: Programs, gears: Picture, tmp_path: Path
) -> None:
    with lab.nothing_left(), ExitStack() as stack:
        pictures = [tmp_path / "one.ppm", tmp_path / "other.ppm"]
        clients = [stack.enter_context(MesaProgram(programs, lab.service, *GEARS, picture=path)) for path in pictures]
        assert len({worker.pid for worker in lab.wait_for_workers(2)}) == 2
        for program in clients:
            program.go()
        for program in clients:
            assert "virgl" in program.result()["renderer"].lower()
        for path in pictures:
            assert_same_picture(read_ppm(path), gears)


def test_clients_in_a_burst_are_all_served(lab: VtestLab) -> None:
    count = SPARES + 3
    with lab.nothing_left(), ExitStack() as stack:
        connections = [stack.enter_context(lab.connect()) for _ in range(count)]
        assert all([is_served(connection) for connection in connections])
        assert len({worker.pid for worker in lab.wait_for_workers(count)}) == count


@needs_the_kernel
def test_clients_send_no_descriptors(lab: VtestLab) -> None:
    with lab.nothing_left(), lab.connect() as connection:
        with pytest.raises(PermissionError):
            send_fd(connection.socket, 0)
        assert is_served(connection)


def test_a_spare_is_taken_and_another_made(lab: VtestLab) -> None:
    lab.wait_until_idle()
    (spare,) = lab.spares()
    with lab.nothing_left(), lab.connect() as connection:
        assert is_served(connection)
        assert [worker.pid for worker in lab.wait_for_workers(1)] == [spare]
        until(lambda: len(lab.spares()) == SPARES, "another spare")


def test_more_clients_than_allowed_are_refused(vtest_factory: ServiceFactory) -> None:
    lab = VtestLab(vtest_factory([*OPTIONS, "--max-clients=2"]))
    with lab.nothing_left(), lab.connect() as one, lab.connect() as other:
        assert is_served(one) and is_served(other)
        for _ in range(50):
            with lab.connect() as third:
                assert not is_served(third)
        until(lambda: "2 clients are being served" in lab.log, "a line about it")
        assert lab.log.count("2 clients are being served") < 10
        one.socket.close()
        until(lambda: len(lab.workers()) == 1, "the end of the first client")
        until(lambda: lab.log.count(": gone") == 1, "its burial")
        with lab.connect() as fourth:
            assert is_served(fourth)
        assert other.ping()


BOX = ["--unshare-all", "--die-with-parent", "--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib"]
BOX += ["--symlink", "usr/lib64", "/lib64", "--symlink", "usr/bin", "/bin", "--proc", "/proc", "--dev", "/dev"]
BOX += ["--tmpfs", "/tmp", "--setenv", "GALLIUM_DRIVER", "virpipe", "--setenv", "LIBGL_ALWAYS_SOFTWARE", "1"]


def bubblewrap_works() -> bool:
    """Whether it is there and may make namespaces."""
    if shutil.which("bwrap") is None:
        return False
    return subprocess.run(["bwrap", *BOX, "true"], capture_output=True, timeout=60, check=False).returncode == 0


def test_a_program_in_a_container_that_has_the_socket(lab: VtestLab, programs: Programs) -> None:
    if not bubblewrap_works():
        pytest.skip("no bubblewrap, or it may not make namespaces")
    box = ["bwrap", *BOX, "--ro-bind", str(programs.client), "/tmp/client"]
    box += ["--bind", str(lab.service.socket_path), "/tmp/.virgl_test", "/tmp/client", "--scene=gears", "--frames=2"]
    with lab.nothing_left():
        inside = subprocess.run(box, capture_output=True, text=True, timeout=120, check=False)
        assert inside.returncode == 0, inside.stderr
        assert "virgl" in json.loads(inside.stdout)["renderer"].lower()


# --- who may connect ------------------------------------------------------------------------------------------------


def let_in(path: Path) -> None:
    """Lets everybody enter the socket's directory."""
    path.parent.chmod(0o755)


@ONLY_ROOT
def test_mode_and_owner_let_others_connect(vtest_factory: ServiceFactory) -> None:
    service = vtest_factory([*OPTIONS, "--socket-mode=0660", f"--socket-owner=nobody:{NOBODY}"])
    status = service.socket_path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (NOBODY, NOBODY, 0o660)
    let_in(service.socket_path)
    assert Stranger(service.socket_path, b"of the group", 4711, NOBODY).leave() == 0
    until(lambda: "of the group: gone" in service.log, "that it was served")
    assert Stranger(service.socket_path, b"of another", 4711, 4711).leave() != 0


@ONLY_ROOT
def test_a_file_that_others_have_opened_does_not_let_them_in(lab: VtestLab) -> None:
    path = lab.service.socket_path
    let_in(path)
    path.chmod(0o666)
    try:
        assert Stranger(path, b"stranger", NOBODY, NOBODY).leave() == 0  # it did connect
        line = f"uid {NOBODY}): not a user who may connect"
        until(lambda: line in lab.log, "its refusal")
    finally:
        path.chmod(0o600)
    with lab.connect() as ours:
        assert is_served(ours)


# --- the socket -----------------------------------------------------------------------------------------------------


def test_a_socket_in_use_is_left_alone(lab: VtestLab) -> None:
    path = f"--socket-path={lab.service.socket_path}"
    second = subprocess.run([*PROGRAM, path], capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert second.stderr == f"isorend: {lab.service.socket_path} is in use by another process\n"
    with lab.connect() as connection:
        assert is_served(connection)


def test_an_inherited_listening_socket_is_served_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "vtest.sock"
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        listener.bind(str(path))
        listener.listen()
        command_line = ["setpriv", "--pdeathsig", "KILL", *PROGRAM, "--spares=0", f"--fd={listener.fileno()}"]
        errors = stack.enter_context((tmp_path / "log").open("w"))
        service = subprocess.Popen(command_line, pass_fds=[listener.fileno()], stderr=errors)
        stack.callback(service.wait, LIMIT)
        stack.callback(service.terminate)
        with VtestClient(connect(path)) as client:
            assert is_served(client)
        service.terminate()
        assert service.wait(LIMIT) == 0
        assert path.exists()


# --- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all(vtest_factory: ServiceFactory, number: signal.Signals) -> None:
    lab = VtestLab(vtest_factory(OPTIONS))
    lab.wait_until_idle()
    with lab.connect() as connection:
        assert is_served(connection)
        family = lab.processes()
        assert len(family) >= 3
        os.kill(lab.pid, number)
        assert lab.service.wait() == 0
        assert psutil.wait_procs(family[1:], timeout=LIMIT)[1] == []
        assert not lab.service.socket_path.exists()
        assert not is_served(connection)


def test_killing_the_master_leaves_no_worker(vtest_factory: ServiceFactory) -> None:
    lab = VtestLab(vtest_factory(OPTIONS))
    lab.wait_until_idle()
    with lab.connect() as connection, lab.connect() as hanging:
        assert is_served(connection) and is_served(hanging)
        os.kill(lab.wait_for_workers(2)[1].pid, signal.SIGSTOP)
        family = [process.pid for process in lab.processes()]
        os.kill(lab.pid, signal.SIGKILL)
        assert lab.service.wait() == -signal.SIGKILL
        until(lambda: all(gone(pid) for pid in family), "the end of its processes")
        assert not is_served(connection)


def test_without_a_renderer_it_does_not_start(start_vtest: ServiceFactory) -> None:
    with pytest.raises(ServiceEnded, match="first worker ended before it could serve"):
        start_vtest(OPTIONS, env={"__EGL_VENDOR_LIBRARY_FILENAMES": "/dev/null"})
