"""What the host offers: sandboxing, memory limits, devices, libraries. Nothing is loaded and nothing is changed."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from master.doctor.findings import Finding

PROBE: Final = (sys.executable, "-m", "context_worker.probe")
PROBE_TIMEOUT_S: Final = 60.0
_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_CGROUP: Final = Path("/proc/self/cgroup")
_RENDER_NODES: Final = Path("/dev/dri")


def sandbox(probe: tuple[str, ...] = PROBE) -> list[Finding]:
    """What of the sandbox can be had, tried in a process of its own."""
    try:
        done = subprocess.run(probe, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=True)
        return [Finding.of(fields) for fields in json.loads(done.stdout)]
    except subprocess.CalledProcessError as reason:
        last = (reason.stderr.strip().splitlines() or [f"exit code {reason.returncode}"])[-1]
        return [_probe_failed(last)]
    except (OSError, subprocess.TimeoutExpired, ValueError, TypeError, LookupError) as reason:
        return [_probe_failed(str(reason))]


def _probe_failed(why: str) -> Finding:
    return Finding("sandbox", False, True, f"the probe of the sandbox failed: {why}", "report this, with that line")


def memory_limits(root: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> Finding:
    """Whether workers can be given a cgroup with memory.max (cgroups(7), kernel doc cgroup-v2, "Delegation")."""
    name = "cgroup for each worker"
    hint = (
        "start the service with systemd-run --user --scope -p Delegate=yes, or in a unit with Delegate=yes; without it "
        "programs that misbehave are held to their memory (RLIMIT_DATA, and a look every second), hostile code is not"
    )
    try:
        lines = own.read_text().splitlines()
        path = next((line[3:] for line in lines if line.startswith("0::")), None)
        if path is None or not (root / "cgroup.controllers").exists():
            return Finding(name, False, False, "cgroup v2 is not mounted, or has no controllers here", hint)
        ours = root / path.lstrip("/")
        if "memory" not in (ours / "cgroup.controllers").read_text().split():
            return Finding(name, False, False, f"{ours} has no memory controller", hint)
    except OSError as reason:
        return Finding(name, False, False, f"cannot be looked at: {reason.strerror}", hint)
    if not os.access(ours, os.W_OK) or not os.access(ours / "cgroup.subtree_control", os.W_OK):
        return Finding(name, False, False, f"{ours} is not delegated to this user", hint)
    return Finding(name, True, False, f"memory can be limited below {ours}")


def device(path: Path, name: str, needed_for: str) -> Finding:
    """A device node that would be good to have."""
    wanted = f"{needed_for}; it needs "
    if not path.exists():
        return Finding(name, False, False, f"no {path}", f"{wanted}the kernel's driver for {path}")
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as reason:
        if reason.errno in (errno.EACCES, errno.EPERM):
            owner = f"permission to use {path} (see its group: ls -l {path})"
            return Finding(name, False, False, f"{path}: no permission", wanted + owner)
        return Finding(name, False, False, f"{path}: {reason.strerror}", wanted + "a kernel that has it")
    return Finding(name, True, False, str(path))


def render_nodes(wanted: Path | None, directory: Path = _RENDER_NODES) -> list[Finding]:
    """The GPUs; `wanted` is the one that was asked for."""
    if wanted is not None:
        found = device(wanted, "render node", "it was asked for by --render-node")
        return [Finding(found.name, found.ok, True, found.found, found.hint)]
    nodes = sorted(directory.glob("renderD*"))
    if not nodes:
        hint = "a GPU with a kernel driver (DRM) has one"
        return [Finding("render node", False, False, f"none in {directory}", hint)]
    return [device(node, "render node", "rendering by this GPU") for node in nodes]


def virglrenderer() -> Finding:
    """The library that workers load, by its file."""
    name = "virglrenderer"
    hint = "install it; Debian: libvirglrenderer1"
    try:
        done = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return Finding(name, False, False, "ldconfig does not tell", hint)
    paths = [line.rpartition("=> ")[2] for line in done.stdout.splitlines() if "libvirglrenderer.so.1 " in line]
    if not paths:
        return Finding(name, False, True, "not known to ldconfig", hint)
    return Finding(name, True, True, Path(paths[0]).resolve().name)


def look(render_node: Path | None) -> list[Finding]:
    """All of it."""
    return [
        *sandbox(),
        memory_limits(),
        virglrenderer(),
        *render_nodes(render_node),
        device(Path("/dev/udmabuf"), "udmabuf", "sharing guest memory with workers without copies"),
        device(Path("/dev/kvm"), "KVM", "virtual machines at full speed: VMMs use it, isorend does not"),
    ]
