"""master.hardening, in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from master.hardening import CAP_KILL, CAP_SETGID, CAP_SETUID, IN_EFFECT, KEPT
from tests.conftest import ServiceFactory

ROOT = Path(__file__).resolve().parent.parent
ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has no capabilities to drop; root has")


def run(script: str) -> list[str]:
    """What a process says that runs the script."""
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from master import hardening\n{script}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


STATUS = """
def words(path):
    return {line.split(":")[0]: line.split()[1] for line in open(path) if len(line.split()) > 1}
def caps(path="/proc/self/status"):
    found = words(path)
    return [int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]
"""


def test_from_the_start() -> None:
    script = """
import os, resource
hardening.begin()
os.close(os.open("/dev/null", os.O_RDONLY))
words = {line.split(":")[0]: line.split()[1] for line in open("/proc/self/status") if len(line.split()) > 1}
print(words["NoNewPrivs"], words["Umask"], *resource.getrlimit(resource.RLIMIT_CORE))
"""
    assert run(script) == ["1", "0077", "0", "0"]


@ONLY_ROOT
def test_root_keeps_three_capabilities_and_one_in_effect() -> None:
    kept, in_effect = (sum(1 << number for number in numbers) for numbers in (KEPT, IN_EFFECT))
    assert run(f"{STATUS}\nhardening.begin()\nhardening.drop_capabilities()\nprint(*caps())") == [
        "0", str(kept), str(in_effect), str(kept), "0",
    ]  # fmt: skip
    assert {CAP_KILL, CAP_SETGID, CAP_SETUID} == KEPT and {CAP_KILL} == IN_EFFECT


@ONLY_ROOT
def test_threads_that_come_later_have_no_more() -> None:
    script = f"""{STATUS}
import threading
hardening.drop_capabilities()
thread = threading.Thread(target=lambda: print(*caps("/proc/thread-self/status")[1:3]))
thread.start()
thread.join()
"""
    assert run(script) == [str(1 << CAP_KILL | 1 << CAP_SETGID | 1 << CAP_SETUID), str(1 << CAP_KILL)]


@ONLY_ROOT
def test_what_it_executes_can_become_another_user_and_do_nothing_else() -> None:
    child = """
import os
try:
    os.chown("/dev/null", 0, 1)
    print("chown")
except PermissionError:
    pass
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
print(os.geteuid())
try:
    os.setresuid(0, 0, 0)
    print("root again")
except PermissionError:
    print("for good")
"""
    script = f"""
import os, signal, subprocess
hardening.begin()
hardening.drop_capabilities()
print(subprocess.run([sys.executable, "-c", {child!r}], capture_output=True, text=True, check=True).stdout)
try:
    os.setuid(65534)
    print("the master did it itself")
except PermissionError:
    print("not the master")
"""
    assert run(script) == ["65534", "for", "good", "not", "the", "master"]


@ONLY_ROOT
def test_workers_of_another_user_can_still_be_ended() -> None:
    script = """
import os, signal, subprocess
worker = subprocess.Popen(["sleep", "1000"], user=65534, group=65534, extra_groups=[])
hardening.drop_capabilities()
signal.pidfd_send_signal(os.pidfd_open(worker.pid), signal.SIGKILL)
print(worker.wait(30))
"""
    assert run(script) == ["-9"]


def test_who_has_none_has_nothing_to_drop() -> None:
    script = f"""{STATUS}
import os
if os.geteuid() == 0:
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
hardening.begin()
hardening.drop_capabilities()
print(*caps()[:3])
"""
    assert run(script) == ["0", "0", "0"]


def test_the_master_of_a_service_that_runs(service_factory: ServiceFactory) -> None:
    service = service_factory(["--engine=null", "--spares=1"])
    tasks = list(Path(f"/proc/{service.pid}/task").iterdir())
    assert len(tasks) > 1  # the data plane's at least
    for task in tasks:
        words = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        assert words["NoNewPrivs"].strip() == "1"
        assert int(words["CapEff"], 16) in (0, 1 << CAP_KILL) and int(words["CapInh"], 16) == 0
    limits = Path(f"/proc/{service.pid}/limits").read_text()
    assert [line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core")] == [["0", "0"]]
