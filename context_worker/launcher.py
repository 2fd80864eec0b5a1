"""The process that all workers are forked from.

It has imported all that a worker needs and has touched no driver: OpenGL drivers do not survive a fork, and some must
not even be loaded before one. So a worker costs a fork and the start of its driver, not that of an interpreter.

The master starts it as `python -m context_worker.launcher --channel-fd N`, with lockdown.WORKER_ENVIRONMENT in its
environment, and asks for workers over that channel. It has one thread, answers SpawnWorker and SpawnVtestWorker by
Spawned with a pidfd, reaps what ends (Exited), and when the master is gone kills its workers and ends. If it dies
itself, the kernel kills them.
"""

import argparse
import gc
import logging
import os
import selectors
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from context_worker import lockdown, title, worker
from context_worker.allocator import keep_freed_memory
from context_worker.exit_code import ExitCode
from context_worker.shader_cache import ShaderCaches
from context_worker.worker import RingDescriptors, WorkerStart
from ipc import messages
from ipc.channel import Channel
from ipc.errors import ChannelClosed, ProtocolError
from ipc.messages import Exited, Spawned, SpawnFailed, SpawnVtestWorker, SpawnWorker
from native.owned_fd import OwnedFd

log = logging.getLogger(__name__)

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
SANDBOX_MODES = ("enforce", "audit", "off")


@dataclass(frozen=True)
class Child:
    """One worker that runs: the master's name for it, its process, the pidfd that says when it ended, and where it
    keeps shaders."""

    worker_id: int
    pid: int
    pidfd: OwnedFd
    shader_cache: Path


class Launcher:
    """Forks workers and reaps them."""

    def __init__(
        self, channel: Channel, render_node: str | None, shader_caches: ShaderCaches, share_worker: bool
    ) -> None:
        self._channel = channel
        self._render_node = render_node
        self._shader_caches = shader_caches
        self._share_worker = share_worker
        self._children: dict[int, Child] = {}  # by pid
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel, selectors.EVENT_READ)

    def serve(self) -> None:
        """Do what the master asks until it is gone. Raises ProtocolError when it asks for what there is not."""
        try:
            while True:
                for key, _ in self._selector.select():
                    if isinstance(key.data, Child):
                        self._reap(key.data)
                    else:
                        self._answer()
        except ChannelClosed:
            log.debug("the master is gone")
        finally:
            self._end_children()

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
            shader_cache = self._shader_caches.give()
        except OSError as error:
            self._channel.send(SpawnFailed(message.worker_id, error.errno or 0))
            return
        try:
            child = self._fork(self._worker_start(message, fds, shader_cache), message.worker_id)
        except OSError as error:
            self._shader_caches.take_back(shader_cache)
            self._channel.send(SpawnFailed(message.worker_id, error.errno or 0))
            return
        self._children[child.pid] = child
        self._selector.register(child.pidfd, selectors.EVENT_READ, child)
        self._channel.send(Spawned(message.worker_id, child.pid), [child.pidfd])

    @staticmethod
    def _fork(start: WorkerStart, worker_id: int) -> Child:
        """Raises OSError, with no process left."""
        pid = os.fork()
        if pid == 0:
            worker.run(start)
        try:
            return Child(worker_id, pid, OwnedFd(os.pidfd_open(pid)), start.shader_cache)
        except OSError:  # out of descriptors: a worker that cannot be watched is not kept
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise

    def _worker_start(
        self, message: SpawnWorker | SpawnVtestWorker, fds: list[OwnedFd], shader_cache: Path
    ) -> WorkerStart:
        channel, *memory = (fd.fd for fd in fds)
        return WorkerStart(
            engine=message.engine,
            render_node=self._render_node,
            shader_cache=shader_cache,
            shared=self._share_worker,
            parent_pid=os.getpid(),
            channel_fd=channel,
            ring=RingDescriptors(*memory) if isinstance(message, SpawnWorker) else None,
        )

    def _reap(self, child: Child) -> None:
        pid, wait_status = os.waitpid(child.pid, os.WNOHANG)
        if pid != child.pid:
            return
        self._forget(child)
        self._channel.send(Exited(child.worker_id, child.pid, wait_status))

    def _forget(self, child: Child) -> None:
        self._selector.unregister(child.pidfd)
        child.pidfd.close()
        del self._children[child.pid]
        self._shader_caches.take_back(child.shader_cache)

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
    parser.add_argument("--sandbox", default="enforce", choices=SANDBOX_MODES, help="how workers are locked in")
    parser.add_argument("--memory-limit", type=int, metavar="BYTES", help="that a worker may use")
    parser.add_argument("--log-level", default="INFO", choices=LOG_LEVELS, help="least to log")
    return parser.parse_args(arguments)


def leave_terminal() -> None:
    """Have a session of our own: a terminal's Ctrl-C is for the master, which ends us in its own order."""
    if os.getsid(0) != os.getpid():
        os.setsid()


def main(arguments: list[str]) -> int:
    """Serve the master behind --channel-fd; the exit code."""
    options = parse_arguments(arguments)
    channel = Channel.from_fd(options.channel_fd, accepts=messages.TO_LAUNCHER)
    leave_terminal()
    title.start_logging(getattr(logging, options.log_level))
    title.set_title(title.launcher_title())
    lockdown.prctl(lockdown.PR_SET_PDEATHSIG, signal.SIGKILL)  # should the master end before this, the channel says so
    gc.collect()
    gc.freeze()  # the collector of a child does not touch, and so copy, what all children share
    if not keep_freed_memory():
        log.debug("this malloc gives back to the kernel what is freed as it likes")
    shader_caches = ShaderCaches(options.shader_cache)
    try:
        Launcher(channel, options.render_node, shader_caches, options.share_worker).serve()
    except ProtocolError as error:
        log.error("%s", error)
        return ExitCode.PROTOCOL
    finally:
        shader_caches.close()
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
