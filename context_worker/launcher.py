"""The process that all workers are forked from.

It has imported all that a worker needs and has touched no driver: OpenGL drivers do not survive a fork, and some must
not even be loaded before one. So a worker costs a fork and the start of its driver, not that of an interpreter.

The master starts it as `python -m context_worker.launcher --channel-fd N`, with environment.WORKER_ENVIRONMENT in its
environment, and asks for workers over that channel. It has one thread, answers SpawnWorker and SpawnVtestWorker by
Spawned with a pidfd, reaps what ends (Exited), and when the master is gone kills its workers and ends. If it dies
itself, the kernel kills them.
"""

import argparse
import gc
import logging
import os
import resource
import selectors
import signal
import socket
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from context_worker import linux, lockdown, sources, title, worker
from context_worker.allocator import keep_freed_memory
from context_worker.cgroups import WorkerCgroup
from context_worker.denials import Denials, Watch, reporter_pair
from context_worker.enclosure import Enclosure, SandboxUnavailable, enclose
from context_worker.exit_code import ExitCode
from context_worker.lockdown import Confinement
from context_worker.profiles import profile_for
from context_worker.root import Root, driver_paths
from context_worker.sandbox_mode import SandboxMode
from context_worker.shader_cache import ShaderCaches
from context_worker.worker import RingDescriptors, WorkerStart
from ipc import messages
from ipc.channel import Channel
from ipc.errors import ChannelClosed, ProtocolError
from ipc.messages import EngineName, Exited, Spawned, SpawnFailed, SpawnVtestWorker, SpawnWorker
from native.engines import MAX_SHADER_BYTES
from native.owned_fd import OwnedFd

log = logging.getLogger(__name__)

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

SPAWN_PATIENCE = 0.2
"""Seconds that the launcher tries to send a pidfd, while it does nothing else (ipc.channel.send_fds). Workers that are
sealed get no further than to their own limit, which is below the launcher's where the host allows that."""


@dataclass(frozen=True)
class Child:
    """One worker that runs: the master's name for it, its process, the pidfd that says when it ended, where it keeps
    shaders, its cgroup if it has one, and who waits for what its filter denies."""

    worker_id: int
    pid: int
    pidfd: OwnedFd
    shader_cache: Path
    cgroup: WorkerCgroup | None
    watch: Watch


class Launcher:
    """Forks workers and reaps them."""

    def __init__(
        self,
        channel: Channel,
        enclosure: Enclosure,
        render_node: str | None,
        shader_caches: ShaderCaches,
        share_worker: bool,
        max_shader_bytes: int = MAX_SHADER_BYTES,
    ) -> None:
        self._channel = channel
        self._enclosure = enclosure
        self._render_node = render_node
        self._shader_caches = shader_caches
        self._share_worker = share_worker
        self._max_shader_bytes = max_shader_bytes
        self._children: dict[int, Child] = {}  # by pid
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel, selectors.EVENT_READ)
        self._denials = Denials(self._selector, channel, enclosure.confinement.mode, self._limit)

    def serve(self) -> None:
        """Do what the master asks until it is gone. Raises ProtocolError when it asks for what there is not."""
        try:
            while True:
                for key, _ in self._selector.select():
                    if isinstance(key.data, Child):
                        self._reap(key.data)
                    elif isinstance(key.data, Watch):
                        self._denials.attend(key.data)
                    else:
                        self._answer()
        except ChannelClosed:
            log.debug("the master is gone")
        finally:
            self._end_children()

    def _limit(self, watch: Watch) -> None:
        (child,) = (child for child in self._children.values() if child.watch is watch)
        with suppress(ProcessLookupError):  # it has ended
            lockdown.limit_descriptors(child.pid)

    def _answer(self) -> None:
        message, fds = self._channel.recv()
        assert isinstance(message, SpawnWorker | SpawnVtestWorker)  # the channel accepts no other
        try:
            self._spawn(message, fds)
        finally:
            for fd in fds:
                fd.close()

    def _spawn(self, message: SpawnWorker | SpawnVtestWorker, fds: list[OwnedFd]) -> None:
        try:
            child = self._start(message, fds)
        except OSError as error:
            self._channel.send(SpawnFailed(message.worker_id, error.errno or 0))
            return
        try:
            self._channel.send(Spawned(message.worker_id), [child.pidfd], SPAWN_PATIENCE)
        except OSError as error:  # others have too many descriptors under way
            self._children[child.pid] = child
            signal.pidfd_send_signal(child.pidfd.fd, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            self._drop(child)
            self._channel.send(SpawnFailed(message.worker_id, error.errno or 0))
            return
        self._children[child.pid] = child
        self._selector.register(child.pidfd, selectors.EVENT_READ, child)

    def _start(self, message: SpawnWorker | SpawnVtestWorker, fds: list[OwnedFd]) -> Child:
        """Raises OSError, with nothing left."""
        with ExitStack() as undo:
            shader_cache = self._shader_caches.give()
            undo.callback(self._shader_caches.take_back, shader_cache)
            cgroup = self._make_cgroup(message.worker_id)
            if cgroup is not None:
                undo.callback(self._leave_cgroup, cgroup)
            ours, theirs = reporter_pair()
            undo.enter_context(ours)
            with theirs:
                pid = self._enclosure.fork()
                if pid == 0:
                    worker.run(self._worker_start(message, fds, shader_cache, cgroup, theirs))
            try:
                pidfd = OwnedFd(os.pidfd_open(pid))
            except OSError:  # out of descriptors: a worker that cannot be watched is not kept
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
            undo.pop_all()
            watch = self._denials.expect(message.worker_id, pidfd, ours)
            return Child(message.worker_id, pid, pidfd, shader_cache, cgroup, watch)

    def _worker_start(
        self,
        message: SpawnWorker | SpawnVtestWorker,
        fds: list[OwnedFd],
        shader_cache: Path,
        cgroup: WorkerCgroup | None,
        reporter: socket.socket,
    ) -> WorkerStart:
        channel, output, *memory = (fd.fd for fd in fds)
        enclosure = self._enclosure
        return WorkerStart(
            engine=message.engine,
            render_node=self._render_node,
            shader_cache=shader_cache,
            shared=self._share_worker,
            max_shader_bytes=self._max_shader_bytes,
            launcher=enclosure.reference,
            confinement=enclosure.confinement,
            channel_fd=channel,
            output_fd=output,
            ring=RingDescriptors(*memory) if isinstance(message, SpawnWorker) else None,
            reporter=reporter,
            proc_fd=enclosure.proc.fd if enclosure.proc is not None else -1,
            cgroup_fd=cgroup.directory.fd if cgroup is not None else -1,
        )

    def _make_cgroup(self, worker_id: int) -> WorkerCgroup | None:
        if self._enclosure.cgroups is None:
            return None
        return self._enclosure.cgroups.make(worker_id, self._enclosure.confinement.memory_limit)

    def _leave_cgroup(self, cgroup: WorkerCgroup) -> None:
        assert self._enclosure.cgroups is not None
        self._enclosure.cgroups.leave(cgroup)

    def _reap(self, child: Child) -> None:
        pid, wait_status = os.waitpid(child.pid, os.WNOHANG)
        if pid != child.pid:
            return
        out_of_memory = child.cgroup is not None and child.cgroup.was_out_of_memory()
        self._forget(child)
        self._channel.send(Exited(child.worker_id, wait_status, out_of_memory))

    def _forget(self, child: Child) -> None:
        self._selector.unregister(child.pidfd)
        self._drop(child)

    def _drop(self, child: Child) -> None:
        self._denials.forget(child.watch)
        child.pidfd.close()
        del self._children[child.pid]
        self._shader_caches.take_back(child.shader_cache)
        if child.cgroup is not None:
            self._leave_cgroup(child.cgroup)

    def _end_children(self) -> None:
        for child in list(self._children.values()):
            signal.pidfd_send_signal(child.pidfd.fd, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            self._forget(child)


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line; exits with code 2 when it is wrong."""
    parser = argparse.ArgumentParser(prog="context_worker.launcher", description="Starts workers for isorend's master.")
    parser.add_argument("--channel-fd", type=int, required=True, metavar="N", help="SOCK_SEQPACKET socket to master")
    parser.add_argument("--render-node", metavar="PATH", help="GPU for the workers; without it, EGL's default")
    parser.add_argument("--shader-cache", type=Path, metavar="DIR", help="shared by all workers; without it, one each")
    parser.add_argument("--share-worker", action="store_true", help="let a worker serve several contexts")
    modes = list(SandboxMode)
    parser.add_argument("--sandbox", default=modes[0], type=SandboxMode, choices=modes, help="how to lock workers in")
    parser.add_argument("--memory-limit", type=int, metavar="BYTES", help="that a worker may use")
    parser.add_argument("--max-shader-bytes", type=int, default=MAX_SHADER_BYTES, metavar="N", help="of its text")
    parser.add_argument("--log-level", default="INFO", choices=LOG_LEVELS, help="least to log")
    return parser.parse_args(arguments)


def leave_terminal() -> None:
    """Have a session of our own: a terminal's Ctrl-C is for the master, which ends us in its own order."""
    if os.getsid(0) != os.getpid():
        os.setsid()


def allow_descriptors() -> None:
    """As many as we may have: see lockdown.limit_descriptors."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def wanted_confinement(options: argparse.Namespace) -> Confinement:
    """How the command line wants workers to be locked in."""
    profile = profile_for(options.render_node, EngineName.VIRGL, for_vtest=False)  # files and devices are the same
    read_only = (*driver_paths(os.environ), *map(Path, profile.read_only))
    root = Root(read_only, tuple(map(Path, profile.devices)), options.shader_cache)
    return Confinement(options.sandbox, root=root, memory_limit=options.memory_limit)


def refuse(channel: Channel, missing: str) -> None:
    """Tell the master what the sandbox lacks, and wait until it has hung up: were we to go before what it has sent is
    read, it would see the broken socket first."""
    try:
        channel.send(messages.no_sandbox(missing))
        while True:
            for fd in channel.recv()[1]:
                fd.close()
    except ChannelClosed:
        return


def main(arguments: list[str]) -> int:
    """Serve the master behind --channel-fd; the exit code. With a sandbox it is another process that serves, and this
    one waits for it."""
    options = parse_arguments(arguments)
    channel = Channel.from_fd(options.channel_fd, accepts=messages.TO_LAUNCHER)
    leave_terminal()
    allow_descriptors()
    title.start_logging(getattr(logging, options.log_level))
    title.set_title(title.launcher_title())
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)  # should the master end before this, the channel says so
    if not keep_freed_memory():
        log.debug("this malloc gives back to the kernel what is freed as it likes")
    sources.keep()
    try:
        enclosure = enclose(wanted_confinement(options), options.render_node, channel)
    except SandboxUnavailable as error:
        refuse(channel, str(error))
        return ExitCode.NO_SANDBOX
    gc.collect()
    gc.freeze()  # the collector of a child does not touch, and so copy, what all children share
    shader_caches = ShaderCaches(enclosure.shader_directory())
    try:
        limits = (options.share_worker, options.max_shader_bytes)
        Launcher(channel, enclosure, options.render_node, shader_caches, *limits).serve()
    except ProtocolError as error:
        log.error("%s", error)
        return ExitCode.PROTOCOL
    finally:
        shader_caches.close()
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
