"""context_worker.profiles and system_calls: every condition of every profile, held against the kernel."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import fcntl
import mmap
import os
import resource
import signal
import struct
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from context_worker import profiles
from context_worker.profiles import LAVAPIPE, LLVMPIPE, MESA_DRM, NULL, NVIDIA, PROFILES, DriverProfile
from context_worker.system_calls import F_ADD_SEALS, F_DUPFD_CLOEXEC, F_GET_SEALS, PTHREAD_CLONE
from ipc.messages import EngineName
from native import sandbox
from native.sandbox import Rule
from tests.filter_lab import Outcome, filtered, system_call

EBADF = -errno.EBADF
PROT_EXEC = 4
SIGCHLD = int(signal.SIGCHLD)
F_SETSIG, F_SETOWN_EX, F_NOTIFY = 10, 15, 1026
PR_SET_NAME = 15
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_MM, PR_SET_PTRACER = 4, 22, 35, 0x59616D61
CLONE_VM, CLONE_VFORK, CLONE_NEWUSER, CLONE_THREAD = 0x100, 0x4000, 0x10000000, 0x10000
HIGH = 1 << 32  # the half of a register that the kernel does not look at where it declares an int

Call = tuple[str, Callable[[], int]]


def bare(name: str, *arguments: int | bytes) -> Call:
    """A bare system call, of this name."""
    return name, lambda: system_call(name, *arguments)


def under(profile: DriverProfile, deed: Callable[[], int]) -> Outcome:
    return filtered(profile.rules, deed)


# What a descriptor or address that is none makes of a call that comes through is EBADF, ENOTTY, EFAULT and the like.
EVERYWHERE: dict[str, list[tuple[Call, int]]] = {
    "a name": [(bare("prctl", PR_SET_NAME, b"renamed"), 0), (bare("prctl", PR_SET_NAME | HIGH, b"renamed"), 0)],
    "fcntl": [
        *((bare("fcntl", -1, command), EBADF) for command in (fcntl.F_GETFD, fcntl.F_GETFL, F_GET_SEALS)),
        *((bare("fcntl", -1, command, 0), EBADF) for command in (fcntl.F_SETFD, F_DUPFD_CLOEXEC, F_ADD_SEALS)),
        (bare("fcntl", -1, fcntl.F_SETFL, os.O_NONBLOCK), EBADF),
    ],
    "sendto": [(bare("sendto", -1, b"x", 1, 0, 0, 0), EBADF)],
    "descriptors": [(bare("sendmsg", -1, 0, 0), EBADF), (bare("recvmsg", -1, 0, 0), EBADF)],
    "data": [(bare("mprotect", 1, 1, 3), -errno.EINVAL), (bare("mmap", 0, 0, 3, 0x22, 2**64 - 1, 0), -errno.EINVAL)],
    "advice": [(bare("madvise", 1, 0, advice), -errno.EINVAL) for advice in (4, 8, 14, 102)],
    "files": [(bare("openat", -1, b"nowhere", os.O_RDONLY | os.O_CLOEXEC), EBADF)],
    "a terminal": [(bare("ioctl", -1, 0x5401), EBADF), (bare("ioctl", -1, 0x5401 | HIGH), EBADF)],
    "a thread's urgency": [
        *((bare("sched_setscheduler", -1, policy, 0), -errno.EINVAL) for policy in (os.SCHED_OTHER, os.SCHED_BATCH)),
        (bare("setpriority", os.PRIO_PROCESS, 0, 0), 0),
    ],
    "clone3": [(bare("clone3", 0, 0), -errno.ENOSYS)],
}

# Sockets; other processes; what sees more than a filter; the filter; namespaces, mounts, credentials; limits; what is
# shared with others; and files in ways that no driver has.
DENIED = """
socket socketpair connect bind listen accept accept4 setsockopt
kill tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal pidfd_open pidfd_getfd ptrace process_vm_readv
process_vm_writev process_madvise move_pages migrate_pages
io_uring_setup io_uring_enter io_uring_register perf_event_open userfaultfd
seccomp bpf landlock_add_rule keyctl add_key request_key
unshare setns mount umount2 pivot_root chroot open_tree move_mount fsopen mount_setattr
setuid setresuid setgid setgroups capset personality
setrlimit sched_setattr ioperm iopl
shmget shmat msgget semget mq_open
recvmmsg
inotify_init1 fanotify_init open_by_handle_at name_to_handle_at linkat symlinkat mknodat fchmodat fchownat chdir openat2
execveat wait4 waitid
"""

NOWHERE: list[Call] = [
    *(bare("prctl", option, 1) for option in (PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_MM, PR_SET_PTRACER, 0)),
    *(bare("fcntl", -1, command, 1) for command in (fcntl.F_DUPFD, fcntl.F_SETOWN, F_SETSIG, F_SETOWN_EX, F_NOTIFY)),
    *(bare("fcntl", -1, command, 1) for command in (fcntl.F_SETLK, fcntl.F_SETLKW, fcntl.F_SETLEASE, HIGH)),
    bare("fcntl", -1, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK),
    bare("sendto", -1, b"x", 1, 0, b"\1\0/run/socket", 14),
    # Processes, and threads with anything more or less than pthread_create asks for.
    bare("clone", SIGCHLD, 0),
    bare("clone", CLONE_VM | CLONE_VFORK | SIGCHLD, 0),
    bare("clone", PTHREAD_CLONE | CLONE_NEWUSER, 0),
    bare("clone", PTHREAD_CLONE & ~CLONE_THREAD, 0),
    bare("clone", PTHREAD_CLONE & ~CLONE_VM, 0),
    bare("clone", PTHREAD_CLONE | SIGCHLD, 0),
    bare("clone", 0, 0),
    *((bare("fork"), bare("vfork")) if sandbox.number_of("fork") is not None else ()),
    bare("execve", b"/bin/sh", 0, 0),
    *(bare("sched_setscheduler", 0, policy, 0) for policy in (os.SCHED_FIFO, os.SCHED_RR, os.SCHED_IDLE)),
    *(bare("setpriority", which, 0, 0) for which in (os.PRIO_PGRP, os.PRIO_USER)),
    # ioctl commands that only look like a GPU's: the type byte says terminal, KVM, loop device, vhost, a file.
    *(bare("ioctl", -1, command) for command in (0x5412, 0xAE01, 0x4C00, 0xAF01, 0x6600, 0x5421, 0x5451)),
    *(bare("ioctl", -1, command) for command in (0x64, 0x640000, 0x64000000, 0x6500, 0x7400, 0xE400, 0x4464)),
    # Memory that no limit of the process counts: shared without a file, growing down, huge, droppable.
    *(bare("mmap", 0, 4096, 3, flags, 2**64 - 1, 0) for flags in (0x21, 0x122, 0x40022, 0x28, 0x23, 0x20)),
    bare("mmap", 0, 4096, 3, 0x101, 2**64 - 1, 0),
    *(bare("madvise", 0, 0, advice) for advice in (9, 12, 13, 20, 21, 25, 100, 101)),
    *(bare("memfd_create", b"memory", flags) for flags in (0, 1, 4)),
    *(bare(name, -1, 0, 0, 0, 0, 0) for name in DENIED.split()),
]


def calls(table: list[Call]) -> list[Call]:
    """Those that this machine has."""
    return [(name, deed) for name, deed in table if sandbox.number_of(name) is not None]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
@pytest.mark.parametrize("what", EVERYWHERE)
def test_allowed_everywhere(profile: DriverProfile, what: str) -> None:
    expected = EVERYWHERE[what]

    def all_of_them() -> int:
        for index, ((_, deed), answer) in enumerate(expected):
            if deed() != answer:
                return index + 1
        return 0

    outcome = under(profile, all_of_them)
    assert (outcome.result, outcome.names) == (0, [])


@pytest.mark.parametrize(("name", "deed"), calls(NOWHERE))
def test_denied_without_a_gpu(name: str, deed: Callable[[], int]) -> None:
    for profile in (NULL, LLVMPIPE):
        outcome = under(profile, deed)
        assert (outcome.names, outcome.result) == ([name], None)


@pytest.mark.parametrize("profile", [LAVAPIPE, MESA_DRM, NVIDIA], ids=lambda profile: profile.name)
def test_denied_with_the_others_too(profile: DriverProfile) -> None:
    for name, deed in calls(NOWHERE):
        assert under(profile, deed).names == [name]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_threads_start_and_processes_do_not(profile: DriverProfile) -> None:
    def thread() -> int:
        done = threading.Event()
        started = threading.Thread(target=done.set)
        started.start()
        started.join()
        return int(done.is_set())

    outcome = under(profile, thread)
    assert (outcome.result, outcome.wait_status, outcome.names) == (1, 0, [])
    assert under(profile, os.fork).names == ["clone"]
    assert under(profile, lambda: os.posix_spawn("/bin/true", ["true"], {})).names in (["clone"], ["vfork"])
    assert under(profile, lambda: system_call("clone", PTHREAD_CLONE | CLONE_NEWUSER, 0)).names == ["clone"]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_signals_are_for_itself_alone(profile: DriverProfile) -> None:
    outcome = under(profile, lambda: system_call("tgkill", os.getpid(), os.getpid(), 0))
    assert (outcome.result, outcome.names) == (0, [])
    outcome = under(profile, lambda: system_call("tgkill", os.getpid() | HIGH, os.getpid(), 0))
    assert (outcome.result, outcome.names) == (0, [])
    parent = os.getpid()
    for other in (1, parent, 0, -1):
        assert under(profile, partial(system_call, "tgkill", other, other, 0)).names == ["tgkill"]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_limits_can_be_read_and_not_set(profile: DriverProfile) -> None:
    limit = ctypes.create_string_buffer(16)
    address = ctypes.addressof(limit)

    def read() -> int:
        answer = system_call("prlimit64", 0, resource.RLIMIT_NOFILE, 0, address)
        return answer or int(struct.unpack("<QQ", limit.raw) == resource_limit)

    resource_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert under(profile, read).result == 1
    for pid, new in ((0, address), (1, 0), (os.getpid(), 0)):
        assert under(profile, partial(system_call, "prlimit64", pid, resource.RLIMIT_NOFILE, new, 0)).names == [
            "prlimit64"
        ]


_WRITING = (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_APPEND, os.O_TMPFILE | os.O_RDWR, os.O_ACCMODE)


@pytest.mark.parametrize("flags", _WRITING)
def test_files_are_written_by_drivers_alone(flags: int) -> None:
    deed = partial(system_call, "openat", -1, b"nowhere", flags, 0o600)
    assert under(NULL, deed).names == ["openat"]
    for profile in (LLVMPIPE, MESA_DRM):
        assert under(profile, deed).result in {EBADF, -errno.EINVAL}, profile.name


@pytest.mark.parametrize("name", ["rename", "renameat", "unlink", "unlinkat", "mkdir", "mkdirat", "flock"])
def test_only_drivers_keep_files(name: str) -> None:
    if sandbox.number_of(name) is None:
        pytest.skip("another machine's")
    deed = partial(system_call, name, -1, 0, 0, 0)
    assert under(NULL, deed).names == [name]
    outcome = under(LLVMPIPE, deed)
    assert outcome.names == []
    assert outcome.result in {EBADF, -errno.EFAULT, -errno.EINVAL}


def test_memory_becomes_code_where_there_is_a_compiler() -> None:
    def executable() -> int:
        code = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, code)
        return 1

    protect = partial(system_call, "mprotect", 1, 1, PROT_EXEC)
    assert under(NULL, executable).names == ["mmap"]
    assert under(NULL, protect).names == ["mprotect"]
    for profile in set(PROFILES) - {NULL}:
        assert under(profile, executable).result == 1
        assert under(profile, protect).result == -errno.EINVAL


@pytest.mark.parametrize(
    ("command", "allowed"),
    [
        (0xC0106442, {MESA_DRM, NVIDIA}),  # 'd', of a render node
        (0x6400, {MESA_DRM, NVIDIA}),
        (0x64FF | HIGH, {MESA_DRM, NVIDIA}),
        (0x40086200, {MESA_DRM, NVIDIA}),  # 'b': DMA_BUF_IOCTL_SYNC
        (0xC0303E03, {MESA_DRM, NVIDIA}),  # '>': SYNC_IOC_MERGE
        (0xC00446D6, {NVIDIA}),  # 'F'
        (0x4600, {NVIDIA}),
        (0x30000001, set()),  # UVM_INITIALIZE has no type
        (0x5412, set()),  # TIOCSTI
        (0xAE80, set()),  # KVM_RUN
        (0x4C82, set()),  # LOOP_CTL_GET_FREE
        (0x64, set()),  # 'd' where the number is
        (0x646464 & ~0xFF00, set()),
        (0x64 << 24, set()),
        (0x6400 << 32, set()),
        (0x6500, set()),  # one more bit, one fewer
        (0x2400, set()),
        (0x7400, set()),
        (0xC200, set()),
        (0x3F00, set()),
    ],
    ids=lambda value: hex(value) if isinstance(value, int) else "",
)
def test_ioctls_by_their_exact_type(command: int, allowed: set[DriverProfile]) -> None:
    for profile in PROFILES:
        outcome = under(profile, partial(system_call, "ioctl", -1, command))
        expected = (EBADF, []) if profile in allowed else (None, ["ioctl"])
        assert (outcome.result, outcome.names) == expected, profile.name


def test_files_are_compared_by_gpu_drivers_alone_and_their_own() -> None:

    def mine() -> int:
        return system_call("kcmp", os.getpid(), os.getpid(), 0, 1, 1)

    assert under(MESA_DRM, mine).result == 0
    parent = os.getpid()
    for deed in (
        lambda: system_call("kcmp", parent, os.getpid(), 0, 1, 1),
        lambda: system_call("kcmp", os.getpid(), parent, 0, 1, 1),
        lambda: system_call("kcmp", os.getpid(), os.getpid(), 1, 0, 0),
    ):
        assert under(MESA_DRM, deed).names == ["kcmp"]
    for profile in (NULL, LLVMPIPE, LAVAPIPE, NVIDIA):
        assert under(profile, mine).names == ["kcmp"]


ALWAYS_CONDITIONAL = {
    *("prctl", "fcntl", "sendto", "ioctl", "clone", "tgkill", "prlimit64", "kcmp"),
    *("sched_setscheduler", "setpriority", "madvise"),
}
TRIED = {*ALWAYS_CONDITIONAL, "mmap", "mprotect", "openat", "clone3", "memfd_create"}


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_no_condition_is_untried(profile: DriverProfile) -> None:
    conditional = {rule.name for rule in profile.rules(1) if rule.conditions or rule.error}
    assert conditional <= TRIED
    everything = {rule.name for rule in profile.rules(1) if not rule.conditions}
    assert not everything & ALWAYS_CONDITIONAL


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_profile_is_known_on_every_machine(profile: DriverProfile, machine: str) -> None:
    """No name is misspelt, and what one machine lacks has its other name beside it."""
    names = {rule.name for rule in profile.rules(1)}
    there = {name for name in names if sandbox.number_of(name, machine) is not None}
    substitutes = {
        **{"poll": "ppoll", "epoll_wait": "epoll_pwait", "time": "clock_gettime", "pause": "ppoll"},
        **{"mkdir": "mkdirat", "rename": "renameat", "unlink": "unlinkat", "readlink": "readlinkat"},
        **{"access": "faccessat"},
    }
    assert {substitutes[name] for name in names - there} <= there
    assert not there & {
        "socket",
        "connect",
        "execve",
        "ptrace",
        "seccomp",
        "kill",
        "bpf",
        "io_uring_setup",
        "process_vm_readv",
    }


def test_memory_for_others_is_made_by_vtest_workers_and_the_null_engine() -> None:
    for profile in set(PROFILES) - {NULL}:
        assert under(profile, partial(system_call, "memfd_create", b"memory", 3)).names == ["memfd_create"]
    for profile in (NULL, *(profiles.profile_for(None, engine, for_vtest=True) for engine in EngineName)):
        assert under(profile, partial(system_call, "ftruncate", -1, 0)).result == EBADF
        assert under(profile, partial(system_call, "memfd_create", b"buffer", 3)).names == []
        for flags in (0, 1, 2, 4, 7, 0x10, 3 | HIGH >> 1):
            outcome = under(profile, partial(system_call, "memfd_create", b"buffer", flags))
            assert outcome.names == ["memfd_create"]


def test_rules_are_built_for_the_process_they_are_for() -> None:
    assert Rule("tgkill", (sandbox.Condition(0, 4711, 0xFFFFFFFF),)) in NULL.rules(4711)


# ---- which profile


def test_a_worker_without_a_gpu_has_no_device() -> None:
    assert profiles.profile_for(None, EngineName.VIRGL, for_vtest=False) is LLVMPIPE
    assert profiles.profile_for("/dev/dri/renderD128", EngineName.NULL, for_vtest=False) is NULL
    assert LLVMPIPE.devices == NULL.devices == ()


def test_a_node_that_is_not_nvidia_s_is_mesa_s(tmp_path: Path) -> None:
    node = str(tmp_path / "renderD128")
    profile = profiles.profile_for(node, EngineName.VIRGL, for_vtest=False)
    assert profile == dataclasses.replace(MESA_DRM, devices=(node,))


@pytest.mark.parametrize(
    ("driver", "family"), [("nvidia", NVIDIA), ("amdgpu", MESA_DRM), ("i915", MESA_DRM), ("nouveau", MESA_DRM)]
)
def test_the_kernel_says_whose_driver_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str, family: DriverProfile
) -> None:
    number_of_null = os.stat("/dev/null").st_rdev
    device = tmp_path / f"{os.major(number_of_null)}:{os.minor(number_of_null)}" / "device"
    device.mkdir(parents=True)
    (device / "driver").symlink_to(f"../../bus/pci/drivers/{driver}")
    assert profiles.kernel_driver("/dev/null", tmp_path) == driver
    monkeypatch.setattr(profiles, "kernel_driver", lambda node: driver)
    profile = profiles.profile_for("/dev/null", EngineName.VIRGL, for_vtest=False)
    assert profile.name == family.name
    assert profile.devices[0] == "/dev/null"


def test_sysfs_without_the_node_says_nothing(tmp_path: Path) -> None:
    assert profiles.kernel_driver("/dev/null", tmp_path) is None
    assert profiles.kernel_driver(str(tmp_path / "gone")) is None


def test_untested_profiles_say_so() -> None:
    assert {profile.name for profile in PROFILES if profile.tested} == {"null", "llvmpipe"}
