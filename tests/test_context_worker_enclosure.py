"""context_worker.enclosure and lockdown: what the launcher and its workers are in, in each mode."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from context_worker import capabilities, linux, lockdown, namespaces
from context_worker.environment import WORKER_ENVIRONMENT
from context_worker.exit_code import ExitCode
from ipc import messages
from ipc.channel import Channel, channel_pair
from ipc.messages import EngineName, NoSandbox
from tests.ring_producer import LIMIT, ROOT, running_launcher, wait_readable
from tests.service_process import VTEST_COMMAND

FORBIDDING = (
    "bwrap",
    "--die-with-parent",
    "--unshare-user",
    "--disable-userns",
    "--bind",
    "/",
    "/",
    "--dev",
    "/dev",
    "--proc",
    "/proc",
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a worker is not dumpable: only root may look into it")
needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap forbids namespaces")


def status(pid: int) -> dict[str, str]:
    """/proc/pid/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def namespaces_of(pid: int) -> dict[str, str]:
    names = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
    return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in names}


@needs_root
@pytest.mark.parametrize("mode", ["enforce", "audit"])
def test_a_worker_is_in_namespaces_of_its_own(mode: str) -> None:
    with running_launcher(f"--sandbox={mode}") as launcher:
        one, two = launcher.start(EngineName.NULL), launcher.start(EngineName.NULL)
        ours, theirs = namespaces_of(os.getpid()), namespaces_of(launcher.pid())
        first, second = namespaces_of(one.pid), namespaces_of(two.pid)
        assert all(first[name] != ours[name] for name in ours)
        assert all(first[name] != theirs[name] for name in ("mnt", "pid", "ipc", "cgroup"))
        assert all(first[name] != second[name] for name in ("mnt", "pid", "ipc", "cgroup"))
        assert status(one.pid)["NSpid"].split()[-1] == "1"


@needs_root
def test_who_a_worker_is_and_what_it_may() -> None:
    with running_launcher() as launcher:
        worker = launcher.start(EngineName.VIRGL)
        uid, gid = namespaces.workers_user()
        found = status(worker.pid)
        assert found["Uid"].split() == [str(uid)] * 4 and found["Gid"].split() == [str(gid)] * 4
        assert found["Groups"] == ""
        assert not any(capabilities.of_process(worker.pid).values())
        assert found["NoNewPrivs"] == "1" and found["Seccomp"] == "2"
        assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text().strip() == "1000"
        assert Path(f"/proc/{launcher.pid()}/oom_score_adj").read_text().strip() != "1000"
        kept = sum(1 << number for number in capabilities.LAUNCHER_KEEPS)
        assert capabilities.of_process(launcher.pid())["CapEff"] == kept


@needs_root
def test_a_worker_s_tree_is_the_drivers() -> None:
    with running_launcher() as launcher:
        worker = launcher.start(EngineName.VIRGL)
        top = set(os.listdir(f"/proc/{worker.pid}/root"))
        assert (
            {"usr", "etc", "tmp"} <= top <= {"usr", "etc", "tmp", "lib", "lib32", "lib64", "sys", "opt", "nix", "run"}
        )
        mounts = Path(f"/proc/{worker.pid}/mountinfo").read_text().splitlines()
        writable = [line.split()[4] for line in mounts if re.match(r"rw\b", line.split()[5])]
        assert writable == ["/tmp"]
        assert os.listdir(f"/proc/{launcher.pid()}/root/tmp") == []


@needs_root
def test_without_a_sandbox_there_is_none_of_it() -> None:
    with running_launcher("--sandbox=off") as launcher:
        worker = launcher.start(EngineName.NULL)
        assert namespaces_of(worker.pid) == namespaces_of(os.getpid())
        assert status(worker.pid)["Seccomp"] == "0" and status(worker.pid)["NoNewPrivs"] == "1"
        assert launcher.pid() == launcher.process.pid


def test_a_memory_limit() -> None:
    with running_launcher(f"--memory-limit={1 << 30}") as launcher:
        worker = launcher.start(EngineName.VIRGL)
        text = Path(f"/proc/{worker.pid}/limits").read_text()
        expected = {
            "Max data size": 1 << 30,
            "Max file size": lockdown.SCRATCH_BYTES,
            "Max realtime priority": 0,
            "Max nice priority": 0,
            "Max msgqueue size": 0,
            "Max pending signals": lockdown.MAX_QUEUED_SIGNALS,
        }
        if linux.kernel_version() >= (5, 14):
            expected["Max processes"] = lockdown.MAX_THREADS
        for name, most in expected.items():
            assert re.search(rf"^{name} +{most} +{most} ", text, re.MULTILINE), name


@needs_root
def test_workers_are_counted_by_themselves() -> None:
    """Each in a user namespace of its own, in which its threads are those of a user with no other process."""
    with running_launcher() as launcher:
        workers = [launcher.start(EngineName.NULL) for _ in range(2)]
        users = [os.stat(f"/proc/{pid}/ns/user").st_ino for pid in (launcher.pid(), *(each.pid for each in workers))]
        assert len({*users, os.stat("/proc/self/ns/user").st_ino}) == 4


def test_launcher_and_workers_are_closed_to_their_user() -> None:
    """What is not dumpable belongs to root in /proc (proc_pid(5))."""
    with running_launcher() as launcher:
        worker = launcher.start(EngineName.NULL)
        for pid in (launcher.process.pid, launcher.pid(), worker.pid):
            assert os.stat(f"/proc/{pid}/fd").st_uid == 0


def test_a_worker_is_sealed_when_the_launcher_has_seen_it() -> None:
    with running_launcher() as launcher:
        worker = launcher.start(EngineName.NULL)
        while worker.worker_id not in launcher.sealed:
            launcher.note(launcher._recv()[0])
        assert launcher.sealed == {worker.worker_id: True}


@needs_bwrap
def test_where_it_cannot_be_made_the_launcher_says_what_is_missing_and_ends() -> None:
    ours, theirs = channel_pair()
    with theirs:
        launcher = subprocess.Popen(
            [*FORBIDDING, sys.executable, "-m", "context_worker.launcher", f"--channel-fd={theirs.fileno()}"],
            cwd=ROOT,
            env=os.environ | WORKER_ENVIRONMENT,
            pass_fds=[theirs.fileno()],
        )
    with Channel(ours, messages.FROM_LAUNCHER) as channel:
        wait_readable(channel.fileno(), "the launcher's word")
        message, _ = channel.recv()
    assert isinstance(message, NoSandbox) and message.missing.startswith("namespaces: unshare: ")
    assert launcher.wait(timeout=LIMIT) == ExitCode.NO_SANDBOX


def service(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    program = Path(sys.executable).parent / VTEST_COMMAND[0]
    command = [sys.executable, str(program), "serve", "--engine=null", f"--socket-path={tmp_path}/gpu.sock", *options]
    return subprocess.Popen([*FORBIDDING, *command], stderr=subprocess.PIPE, text=True)


@needs_bwrap
def test_a_service_that_cannot_lock_workers_in_does_not_start(tmp_path: Path) -> None:
    with service(tmp_path) as running:
        _, log = running.communicate(timeout=LIMIT)
    assert running.returncode == 1
    (line,) = (line for line in log.splitlines() if "error" in line)
    assert "unshare" in line and "isorend doctor" in line and "--sandbox=off" in line
    assert "Traceback" not in log


@needs_bwrap
@pytest.mark.parametrize("mode", ["audit", "off"])
def test_unless_it_is_told_to(tmp_path: Path, mode: str) -> None:
    with service(tmp_path, f"--sandbox={mode}") as running:
        assert running.stderr
        lines = []
        for line in running.stderr:
            lines.append(line)
            if "listening on" in line:
                break
        running.terminate()
        running.wait(timeout=LIMIT)
    log = "".join(lines)
    assert "listening on" in log
    assert ("part of the sandbox is missing: namespaces" in log) == (mode == "audit")
