"""`python -m context_worker.probe`: which parts of the sandbox can be had here, as JSON.

A list of objects: name, ok, required (whether workers are not locked in without it, and so not started), found (what
there is, or what it fails with), hint (how to get it). Each part is tried for real, in a process of its own.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from context_worker import capabilities, landlock, linux, lockdown, namespaces, seccomp
from context_worker.lockdown import Confinement
from context_worker.namespaces import SelfReference, attempt
from context_worker.profiles import profile_for
from context_worker.root import SCRATCH, Root, Trees, driver_paths
from context_worker.sandbox_mode import SandboxMode
from ipc.messages import EngineName
from native.owned_fd import OwnedFd

WANTED_LANDLOCK = 6
"""The first ABI with scopes: signals and abstract sockets. With less, namespaces alone stand for those."""


@dataclass(frozen=True)
class Part:
    """One part, as it was found."""

    name: str
    ok: bool
    required: bool
    found: str
    hint: str = ""


def confinement() -> Confinement:
    """That of a worker without a GPU."""
    profile = profile_for(None, EngineName.VIRGL, for_vtest=True)
    root = Root((*driver_paths(os.environ), *map(Path, profile.read_only))).existing()
    return Confinement(SandboxMode.ENFORCE, inside=True, rooted=True, root=root)


# ---- what is tried; each runs in a process of its own, and what it needs besides is done before


def make_user_namespace() -> list[str]:
    linux.unshare(linux.CLONE_NEWUSER)
    return []


def make_namespaces() -> list[str]:
    namespaces.enter()
    return []


def make_root() -> list[str]:
    ids = namespaces.enter()
    trees = Trees(confinement().root)
    namespaces.become(ids)
    trees.enter()
    return ["the old tree is still there"] if os.path.exists("/proc/self") else []


def lock_in_worker() -> list[str]:
    wanted = confinement()
    proc = OwnedFd(os.open("/proc", os.O_PATH | os.O_CLOEXEC))
    make_root()

    def as_launcher() -> list[str]:
        capabilities.keep(capabilities.LAUNCHER_KEEPS)
        return attempt(as_worker, SelfReference().fork_into_pid_namespace)

    def as_worker() -> list[str]:
        lockdown.separate(wanted, proc.fd)
        lockdown.restrict(wanted, for_vtest=False)
        lockdown.confine(wanted, SCRATCH)
        return [] if os.getpid() == 1 else ["a worker is not alone in its pid namespace"]

    return attempt(as_launcher)


def restrict_files() -> list[str]:
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    landlock.restrict(confinement().root.read_only, (), ())
    try:
        os.close(os.open("/etc", os.O_RDONLY))
    except PermissionError:
        return []
    return ["files can still be opened"]


def filter_system_calls() -> list[str]:
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    listener = seccomp.seal(profile_for(None, EngineName.VIRGL, for_vtest=True), SandboxMode.ENFORCE)
    return [] if listener is not None else ["there is no listener"]


# ---- what is said of it


def probe() -> list[Part]:
    """All parts, in the order in which they build on each other."""
    return [
        _part("user namespace", make_user_namespace, "can be made", _user_namespace_hint),
        _part("namespaces", make_namespaces, "mount, pid, network, IPC, host name", _namespace_hint),
        _part("root", make_root, f"{len(confinement().root.read_only)} places of drivers", _root_hint),
        _landlock(),
        _part("system call filter", filter_system_calls, "seccomp with a listener", _filter_hint),
        _part("worker", lock_in_worker, "no process, no file and no capability of others", _worker_hint),
    ]


def _part(name: str, action: Callable[[], list[str]], found: str, hint: Callable[[], str]) -> Part:
    missing = attempt(action)
    return Part(name, not missing, True, "; ".join(missing) or found, hint() if missing else "")


def _landlock() -> Part:
    version = landlock.abi()
    part = _part("Landlock", restrict_files, f"ABI {version}", _landlock_hint)
    if part.ok and version < WANTED_LANDLOCK:
        return Part("Landlock", False, False, part.found, f"Linux 6.12 has ABI {WANTED_LANDLOCK}, with more in it")
    return part


def _setting(name: str) -> int | None:
    """A number in /proc/sys."""
    try:
        return int(Path("/proc/sys", name.replace(".", "/")).read_text())
    except (OSError, ValueError):
        return None


def _user_namespace_hint() -> str:
    if _setting("user.max_user_namespaces") == 0:
        return "sysctl user.max_user_namespaces=10000"
    if _setting("kernel.unprivileged_userns_clone") == 0:
        return "sysctl kernel.unprivileged_userns_clone=1"
    return (
        "a container may forbid it by its system call filter (podman: --security-opt seccomp=unconfined) or by "
        "user.max_user_namespaces in it"
    )


def _namespace_hint() -> str:
    if _setting("kernel.apparmor_restrict_unprivileged_userns"):
        return "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile that allows userns"
    return "as for the user namespace; the kernel needs CONFIG_PID_NS, NET_NS, IPC_NS, UTS_NS"


def _root_hint() -> str:
    return "Linux 5.12 or newer; an ordinary user needs to be able to read where the drivers are"


def _landlock_hint() -> str:
    return "CONFIG_SECURITY_LANDLOCK=y, and landlock in the boot parameter lsm="


def _filter_hint() -> str:
    return "Linux 5.7 or newer with CONFIG_SECCOMP_FILTER=y, libseccomp 2.5 or newer"


def _worker_hint() -> str:
    return "see the parts before; if all of them are there, report this"


def main() -> int:
    """Print what was found; 0, whatever it is."""
    json.dump([asdict(part) for part in probe()], sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
