"""How the launcher locks itself in, with the workers that it is going to fork.

enclose() is the order of it. What of it each kernel and host allows is tried for real: a worker that is forked for the
trial goes through the same steps as all others will.
"""

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

from context_worker import capabilities, linux, lockdown, namespaces, seccomp, title
from context_worker.cgroups import Cgroups, own_directory
from context_worker.lockdown import Confinement
from context_worker.namespaces import SelfReference
from context_worker.profiles import profile_for
from context_worker.root import SCRATCH, SHARED_SHADERS, Trees
from context_worker.sandbox_mode import SandboxMode
from ipc.channel import Channel
from ipc.messages import EngineName
from native.owned_fd import OwnedFd

log = logging.getLogger(__name__)


class SandboxUnavailable(Exception):
    """What is missing, for a person."""


@dataclass
class Enclosure:
    """Where the launcher is now.

    shared_shaders: the directory that all workers write to, by its path of now. proc: the host's /proc, None without a
    sandbox.
    """

    confinement: Confinement
    reference: SelfReference
    shared_shaders: Path | None
    proc: OwnedFd | None = None
    cgroups: Cgroups | None = None

    def shader_directory(self) -> Path | None:
        """Where every worker keeps shaders; None if each is to be given a directory of its own on the host."""
        return SCRATCH if self.confinement.rooted and self.shared_shaders is None else self.shared_shaders

    def fork(self) -> int:
        """fork(2), for a worker. Raises OSError."""
        return self.reference.fork_into_pid_namespace() if self.confinement.inside else os.fork()


def enclose(wanted: Confinement, render_node: str | None, channel: Channel) -> Enclosure:
    """Lock this process in, as far as `wanted` says; where that takes another process, it is that one that returns.

    `render_node`: the workers' GPU. `channel`: to the master, for the one that returns. Raises SandboxUnavailable.
    """
    shaders = wanted.root.shared_shaders
    if wanted.mode is SandboxMode.OFF:
        log.warning("NO SANDBOX: who takes over a worker may do all that this user may")
        return Enclosure(wanted, SelfReference(), shaders)
    found = replace(wanted, root=wanted.root.existing())
    enclosure = Enclosure(found, SelfReference(), shaders, OwnedFd(os.open("/proc", os.O_PATH | os.O_CLOEXEC)))
    _leave_root(enclosure, Path(render_node) if render_node is not None else None)
    _move_in(enclosure, channel)
    for missing in _trial(enclosure, render_node):
        _missing(wanted.mode, missing)
    return enclosure


def _text(error: OSError) -> str:
    return f"{error.strerror}: {error.filename}" if error.filename is not None else f"{error.strerror}"


def _missing(mode: SandboxMode, what: str) -> None:
    if mode is SandboxMode.ENFORCE:
        raise SandboxUnavailable(what)
    log.warning("audit: part of the sandbox is missing: %s", what)


def _leave_root(enclosure: Enclosure, device: Path | None) -> None:
    """What only root can do, and the end of that."""
    owner = namespaces.workers_user() if namespaces.can_become_another() else None
    enclosure.cgroups = Cgroups.delegated(own_directory(), {os.getpid(), os.getppid()}, owner)
    if owner is not None and enclosure.shared_shaders is not None:
        _give(enclosure.shared_shaders, owner)
    namespaces.leave_groups(device)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    namespaces.leave_keyring()


def _give(directory: Path, owner: tuple[int, int]) -> None:
    """A directory that root made for workers, unless it is theirs since the last time."""
    if directory.stat().st_uid != owner[0]:
        try:
            os.chown(directory, *owner)
        except OSError as error:
            log.warning("workers cannot keep shaders in %s: %s", directory, error.strerror)


def _move_in(enclosure: Enclosure, channel: Channel) -> None:
    mode = enclosure.confinement.mode
    try:
        ids = namespaces.enter()
    except OSError as error:
        _missing(mode, f"namespaces: {_text(error)}")
        return
    enclosure.confinement = replace(enclosure.confinement, inside=True)
    try:
        trees = Trees(enclosure.confinement.root)
        namespaces.become(ids)
        trees.enter()
    except OSError as error:
        _missing(mode, f"a root of its own: {_text(error)}")
        namespaces.become(ids)
    else:
        enclosure.confinement = replace(enclosure.confinement, rooted=True)
        if enclosure.shared_shaders is not None:
            enclosure.shared_shaders = SHARED_SHADERS
    outside = enclosure.reference
    # Nobody else of this user may look into these two (ptrace(2)); a worker is dumpable while it is being born.
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    inside = os.fork()
    if inside:
        channel.close()  # the master sees the launcher's end by it
        title.set_title(title.outside_title())
        namespaces.wait_as_outside(inside)
    outside.die_with()
    outside.close()
    enclosure.reference = SelfReference()
    capabilities.keep(capabilities.LAUNCHER_KEEPS)


def _trial(enclosure: Enclosure, render_node: str | None) -> list[str]:
    """What a worker cannot have of the sandbox."""
    shader_cache = enclosure.shared_shaders or SCRATCH

    def be_locked_in() -> list[str]:
        assert enclosure.proc is not None
        missing = lockdown.separate(enclosure.confinement, enclosure.proc.fd)
        lockdown.restrict(enclosure.confinement, for_vtest=False)
        missing += lockdown.confine(enclosure.confinement, shader_cache)
        try:
            profile = profile_for(render_node, EngineName.VIRGL, for_vtest=True)
            seccomp.seal(profile, enclosure.confinement.mode)
        except OSError as error:
            missing.append(f"system call filter: {error.strerror}")
        return missing

    return namespaces.attempt(be_locked_in, enclosure.fork)
