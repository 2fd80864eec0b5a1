"""The test's end of the lines to rogue workers."""

from __future__ import annotations

import array
import re
import selectors
import socket
import struct
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

HUB_VARIABLE: Final = "ISOREND_ROGUE_HUB"
"""The environment variable that names the hub's socket."""

LIMIT: Final = 60.0
"""Seconds after which something awaited is taken for never coming."""

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_FD_BYTES = array.array("i").itemsize
_CONTEXT = re.compile(r"^isorend: ctx (\d+)\b")


@dataclass(eq=False)
class RogueWorker:
    """A worker that takes orders. pid: as the kernel says, in our own namespace. ready: it listens; orders that come
    before that are carried out then."""

    pid: int
    line: socket.socket
    title: str = ""
    ready: bool = False
    gone: bool = False
    did: list[str] = field(default_factory=list)

    def order(self, name: str, argument: str = "") -> bool:
        """Has it do that (deeds.DEEDS). False if it is gone."""
        if self.gone:
            return False
        try:
            self.line.send(f"{name} {argument}".encode())
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    @property
    def serves(self) -> int | None:
        """The guest context that its title names."""
        match = _CONTEXT.match(self.title)
        return int(match[1]) if match else None

    @property
    def is_spare(self) -> bool:
        """Whether it listens and serves nobody."""
        return self.ready and not self.gone and "spare" in self.title

    def hear(self, text: str) -> None:
        """What its thread says."""
        word, _, rest = text.partition(" ")
        if word == "title":
            self.title = rest
        elif word == "ready":
            self.ready = True
        elif word == "did":
            self.did.append(rest)


class Hub:
    """Knows every rogue worker that lives. Nothing happens by itself: pump() listens.

    on_birth: called with each worker when its line comes.
    """

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="isorend-hub-")
        path = Path(self._directory.name) / "hub"
        self.environment = {HUB_VARIABLE: str(path)}
        self.on_birth: Callable[[RogueWorker], None] = lambda _worker: None
        self.workers: list[RogueWorker] = []
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        self._launchers: list[socket.socket] = []
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def pump(self, timeout: float = 0.0) -> None:
        """Hears what there is to hear, waiting at most so many seconds for it."""
        while ready := self._selector.select(timeout):
            for key, _ in ready:
                key.data()
            timeout = 0.0

    def until(self, condition: Callable[[], object], awaited: str) -> None:
        """Listens until the condition holds. Raises TimeoutError."""
        deadline = time.monotonic() + LIMIT
        self.pump()
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{awaited}; workers: {[(w.pid, w.title, w.ready) for w in self.workers]}")
            self.pump(0.02)

    def find(self, ctx_id: int) -> RogueWorker | None:
        """The worker of a guest context, if it has taken its title."""
        return next((worker for worker in self.workers if worker.serves == ctx_id), None)

    def worker_of(self, ctx_id: int) -> RogueWorker:
        """The same, waited for."""
        self.until(lambda: self.find(ctx_id), f"the worker of context {ctx_id}")
        found = self.find(ctx_id)
        assert found is not None
        return found

    def spares(self) -> list[RogueWorker]:
        """Those that listen and serve nobody."""
        self.pump()
        return [worker for worker in self.workers if worker.is_spare]

    def _accept(self) -> None:
        launcher, _ = self._listener.accept()
        launcher.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        launcher.setblocking(False)
        self._launchers.append(launcher)
        self._selector.register(launcher, selectors.EVENT_READ, lambda: self._born(launcher))

    def _born(self, launcher: socket.socket) -> None:
        room = socket.CMSG_SPACE(_FD_BYTES) + socket.CMSG_SPACE(_CREDENTIALS.size)
        data, ancillary, _, _ = launcher.recvmsg(64, room, socket.MSG_CMSG_CLOEXEC)
        if not data:
            self._selector.unregister(launcher)
            self._launchers.remove(launcher)
            launcher.close()
            return
        pid, fd = 0, -1
        for level, kind, body in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                pid, _, _ = _CREDENTIALS.unpack(body)
            elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fd = array.array("i", body)[0]
        assert pid > 0 and fd >= 0
        worker = RogueWorker(pid, socket.socket(fileno=fd))
        worker.line.setblocking(False)
        self.workers.append(worker)
        self._selector.register(worker.line, selectors.EVENT_READ, lambda: self._hear(worker))
        self.on_birth(worker)

    def _hear(self, worker: RogueWorker) -> None:
        try:
            data = worker.line.recv(4096)
        except ConnectionResetError:
            data = b""
        if data:
            worker.hear(data.decode(errors="replace"))
            return
        worker.gone = True
        self.workers.remove(worker)
        self._selector.unregister(worker.line)
        worker.line.close()

    def close(self) -> None:
        for worker in self.workers:
            worker.line.close()
        for launcher in self._launchers:
            launcher.close()
        self._selector.close()
        self._listener.close()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
