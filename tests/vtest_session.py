"""A vtest session of the null engine in this process, on a thread of its own."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

from ipc.channel import channel_pair
from native.engines import NullEngine
from native.vtest import EngineFault, Named, VtestEvent, VtestSession, VtestStatistics
from tests.fake_vtest import VtestClient, client_pair
from tests.fake_vtest.client import LIMIT


class Null(IntEnum):
    """What the first word of a stream tells the null engine (native/src/null_engine.h)."""

    NOP = 0
    FAIL = 4
    DELAY = 5

    def stream(self, argument: int = 0) -> bytes:
        """A command stream that says so."""
        return struct.pack("<II", self, argument)


class SessionThread:
    """Serves `client` until the end of either; `master` is the master's end of the channel."""

    def __init__(self) -> None:
        self.client, self._theirs = client_pair()
        self.master, self._channel = channel_pair()
        self.events: list[VtestEvent] = []
        self._engine = NullEngine()
        self._session = VtestSession(self._theirs.fileno(), self._channel.fileno(), self._engine)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            self.events.append(self._session.run())
            if not isinstance(self.events[-1], Named | EngineFault):
                break
        self._theirs.close()  # as the end of a worker's process would

    def end(self) -> VtestEvent:
        """Wait for the end."""
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()
        return self.events[-1]

    def statistics(self) -> VtestStatistics:
        """After the end."""
        return self._session.statistics()

    def close(self) -> None:
        """Hang up and let go of everything."""
        self.client.hang_up()
        self.end()
        self._session.close()
        self._engine.close()
        self.master.close()
        self._channel.close()


@contextmanager
def session_thread() -> Iterator[SessionThread]:
    """A SessionThread that is closed."""
    session = SessionThread()
    try:
        yield session
    finally:
        session.close()


def connected(session: SessionThread, version: int = 2) -> VtestClient:
    """Its client, after the handshake."""
    return session.client.begin(version)
