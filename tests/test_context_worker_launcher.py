"""The launcher: workers are its children alone, their deaths are told, and nothing outlives the master."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from context_worker.environment import WORKER_ENVIRONMENT
from context_worker.exit_code import ExitCode
from ipc.channel import channel_pair
from ipc.messages import CreateContext, EngineName, Exited, Fault, Spawned, SpawnFailed, SpawnWorker
from ipc.ring import RecordStatus, RecordType, WorkerMemory
from tests import ring_producer
from tests.ring_producer import ROOT, Launcher, running_launcher, wait_readable, wait_until


def command_line(pid: int) -> str:
    """A process's title."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()


def descriptors(pid: int) -> list[str]:
    """What a process has open, by descriptor number."""
    folder = Path(f"/proc/{pid}/fd")
    return [os.readlink(folder / name) for name in sorted(os.listdir(folder), key=int)]


def status_field(pid: int, name: str) -> str:
    """One line of /proc/pid/status."""
    match = re.search(rf"^{name}:\s*(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match
    return match[1]


def limits(pid: int) -> dict[str, tuple[str, str]]:
    """Soft and hard limits of a process, by their names in /proc/pid/limits."""
    found = (re.match(r"(.*?)  +(\S+) +(\S+)", line) for line in Path(f"/proc/{pid}/limits").read_text().splitlines())
    return {match[1]: (match[2], match[3]) for match in found if match}


@pytest.mark.skipif(os.geteuid() != 0, reason="a worker is not dumpable: only root may look into it")
def test_a_worker_has_its_own_descriptors_and_no_others() -> None:
    with running_launcher() as launcher:
        for _ in range(3):
            worker = launcher.start(EngineName.NULL)
            own = [name for name in descriptors(worker.pid)[3:] if not name.startswith("/dev/")]
            kinds = sorted(re.sub(r":\[\d+\]| \(deleted\)", "", name) for name in own)
            assert kinds == [
                "/memfd:isorend-ring",
                "/memfd:isorend-staging",
                "anon_inode:[eventfd]",
                "anon_inode:[eventpoll]",
                "pipe",
                "socket",
            ]
        assert len([name for name in descriptors(launcher.pid()) if "memfd" in name or "eventfd" in name]) == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into any process")
def test_nobody_but_root_may_look_into_a_worker() -> None:
    with running_launcher() as launcher:
        worker = launcher.start(EngineName.NULL)
        with pytest.raises(PermissionError):
            descriptors(worker.pid)


def test_a_worker_is_restricted_before_it_is_ready() -> None:
    with running_launcher() as launcher:
        worker = launcher.start(EngineName.NULL)
        assert status_field(worker.pid, "NoNewPrivs") == "1"
        assert limits(worker.pid)["Max core file size"] == ("0", "0")
        wait_until(lambda: limits(worker.pid)["Max open files"] == ("1024", "1024"), "the limit that the launcher sets")
        assert limits(worker.pid)["Max locked memory"] == ("65536", "65536")
        ignored = int(status_field(worker.pid, "SigIgn"), 16)
        caught = int(status_field(worker.pid, "SigCgt"), 16)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            assert not (ignored | caught) >> (number - 1) & 1


def test_the_launcher_has_one_thread_and_no_driver() -> None:
    with running_launcher() as launcher:
        launcher.start(EngineName.VIRGL)
        assert status_field(launcher.pid(), "Threads") == "1"
        maps = Path(f"/proc/{launcher.pid()}/maps").read_text()
        assert "libvirglrenderer" in maps
        assert not re.search(r"libLLVM|_dri\.so|libgallium|libEGL_|libnvidia", maps)


def test_titles() -> None:
    with running_launcher() as launcher:
        worker = launcher.start(EngineName.NULL)
        assert command_line(launcher.pid()) == "isorend: launcher"
        assert command_line(launcher.process.pid) == "isorend: sandbox"
        assert command_line(worker.pid) == "isorend: spare (null)"
        worker.producer.wait(worker.producer.control(CreateContext(7, 0, "kms\x1b[2J\xe9cube")))
        assert command_line(worker.pid) == "isorend: ctx 7 kms?[2J?cube (null)"


def test_log_lines_of_workers_begin_with_their_level() -> None:
    read, write = os.pipe()
    with running_launcher(stderr=write) as launcher:
        os.close(write)
        worker = launcher.start(EngineName.NULL)
        worker.producer.wait(worker.producer.control(CreateContext(7, 0, "kmscube")))
        worker.producer.wait(worker.producer.control(CreateContext(8, 0, "a\nforged line")))
        worker.producer.put(RecordType.CONTROL, b"nonsense")
        launcher.wait_exited(worker)
    with os.fdopen(read) as stderr:
        lines = stderr.read().splitlines()
    assert lines
    assert all(re.match(r"isorend: launcher: |error: ", line) for line in lines), lines


def test_a_kill_is_told_by_pidfd_and_exited() -> None:
    with running_launcher() as launcher:
        victim = launcher.start(EngineName.NULL)
        other = launcher.start(EngineName.NULL)
        os.kill(victim.pid, signal.SIGKILL)
        wait_readable(victim.pidfd.fd, "the pidfd of a killed worker")
        wait_readable(victim.channel.fileno(), "the end of its channel")
        status = launcher.wait_exited(victim)
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert not psutil.pid_exists(victim.pid)
        assert other.producer.wait(other.producer.control(CreateContext(1, 0, "x"))) == RecordStatus.OK


def test_a_worker_whose_master_hung_up_ends() -> None:
    with running_launcher() as launcher:
        worker = launcher.start(EngineName.NULL)
        other = launcher.start(EngineName.NULL)
        worker.channel.close()
        assert os.waitstatus_to_exitcode(launcher.wait_exited(worker)) == ExitCode.OK
        assert other.producer.wait(other.producer.control(CreateContext(1, 0, "x"))) == RecordStatus.OK


def test_nothing_is_left_of_a_master_that_is_gone() -> None:
    launcher = Launcher()
    workers = [launcher.start(EngineName.NULL), launcher.start(EngineName.VIRGL), launcher.spawn(EngineName.VIRGL)]
    launcher.channel.close()  # the workers' own channels stay open: the launcher ends them
    assert launcher.process.wait(timeout=ring_producer.LIMIT) == ExitCode.OK
    for worker in workers:
        wait_readable(worker.pidfd.fd, "the end of a worker")
        worker.close()


@pytest.mark.parametrize("killed", ["outside", "inside", "off"])
def test_workers_die_with_a_killed_launcher(killed: str) -> None:
    launcher = Launcher(*(["--sandbox=off"] if killed == "off" else []))
    workers = [launcher.start(EngineName.NULL), launcher.start(EngineName.NULL), launcher.spawn(EngineName.VIRGL)]
    os.kill(launcher.pid() if killed == "inside" else launcher.process.pid, signal.SIGKILL)
    code = launcher.process.wait(timeout=ring_producer.LIMIT)
    assert code == (128 + signal.SIGKILL if killed == "inside" else -signal.SIGKILL)
    wait_readable(launcher.channel.fileno(), "the end of its channel")
    for worker in workers:
        wait_readable(worker.pidfd.fd, "the end of a worker")
        worker.close()
    launcher.channel.close()


def test_a_launcher_dies_with_its_master() -> None:
    program = (
        "import sys; from tests.ring_producer import Launcher; from ipc.messages import EngineName\n"
        "launcher = Launcher(); worker = launcher.start(EngineName.NULL)\n"
        "print(launcher.process.pid, launcher.pid(), worker.pid, flush=True); sys.stdin.read()"
    )
    master = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with master:
        assert master.stdout
        processes = [psutil.Process(int(pid)) for pid in master.stdout.readline().split()]
        assert len(processes) == 3
        master.kill()
    wait_until(
        lambda: all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in processes),
        "launcher and worker to end",
    )


def test_a_launcher_that_is_told_nonsense_ends() -> None:
    with running_launcher() as launcher:
        worker = launcher.start(EngineName.NULL)
        launcher.channel.send(Exited(1, 0))
        assert launcher.process.wait(timeout=ring_producer.LIMIT) == ExitCode.PROTOCOL
        wait_readable(worker.pidfd.fd, "the end of a worker")


def test_memory_that_is_no_ring_is_refused() -> None:
    with running_launcher() as launcher:
        memory = WorkerMemory.create(4096)
        memory.ring, memory.staging = memory.staging, memory.ring
        ours, theirs = channel_pair()
        launcher.channel.send(SpawnWorker(9, EngineName.NULL), [theirs.fileno(), launcher.output, *memory.fds()])
        theirs.close()
        spawned, fds = launcher.channel.recv()
        assert isinstance(spawned, Spawned)
        exited, _ = launcher.channel.recv()
        assert isinstance(exited, Exited)
        assert os.waitstatus_to_exitcode(exited.wait_status) == ExitCode.BUG
        for fd in fds:
            fd.close()
        memory.close()
        ours.close()


def test_a_render_node_that_is_not_there_is_told() -> None:
    with running_launcher("--render-node=/dev/dri/renderD000") as launcher:
        worker = launcher.spawn(EngineName.VIRGL)
        message = worker.recv()
        assert isinstance(message, Fault)
        assert "/dev/dri/renderD000" in message.text
        assert os.waitstatus_to_exitcode(launcher.wait_exited(worker)) == ExitCode.NO_ENGINE


def test_a_launcher_out_of_descriptors_says_so_and_goes_on() -> None:
    with running_launcher("--sandbox=off") as launcher:
        launcher.start(EngineName.NULL)
        process = psutil.Process(launcher.pid())
        wait_until(
            lambda: sum(name.startswith("socket:") for name in descriptors(process.pid)[3:]) == 1,
            "the launcher to close what the first worker has closed",
        )
        limit = process.rlimit(psutil.RLIMIT_NOFILE)
        memory = WorkerMemory.create(4096)
        ours, theirs = channel_pair()
        # Room for the five that arrive, and not for what a worker takes besides: the limit is the seventh that is free.
        taken = {int(name) for name in os.listdir(f"/proc/{process.pid}/fd")}
        free = [number for number in range(100) if number not in taken]
        process.rlimit(psutil.RLIMIT_NOFILE, (free[6], limit[1]))
        launcher.channel.send(SpawnWorker(9, EngineName.NULL), [theirs.fileno(), launcher.output, *memory.fds()])
        while not isinstance((message := launcher.channel.recv()[0]), SpawnFailed):
            launcher.note(message)
        assert message == SpawnFailed(9, errno.EMFILE)
        process.rlimit(psutil.RLIMIT_NOFILE, limit)
        workers = [child for child in process.children() if child.status() != psutil.STATUS_ZOMBIE]  # one may be a `rm`
        assert len(workers) == 1
        launcher.start(EngineName.NULL)
        for end in (memory, ours, theirs):
            end.close()


@pytest.mark.parametrize("arguments", [[], ["--channel-fd=x"], ["--channel-fd=0", "--nonsense"]])
def test_a_wrong_command_line_ends_with_code_2(arguments: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "context_worker.launcher", *arguments],
        cwd=ROOT,
        env=os.environ | WORKER_ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "usage" in result.stderr
