"""Typed face of native._engines: a session that serves one vtest client (native/src/vtest_session.h)."""

import os
from dataclasses import dataclass
from typing import Any

from native._engines import ffi, lib
from native.engines import NativeEngine

MAX_SUBMIT_BYTES: int = lib.ISO_VTEST_MAX_SUBMIT_BYTES


@dataclass(frozen=True)
class Named:
    """The client has said its name, in whatever bytes. The session goes on."""

    name: str


@dataclass(frozen=True)
class EngineFault:
    """The engine reported `count` errors since the last such event; `text` is the latest. The session goes on."""

    text: str
    count: int


@dataclass(frozen=True)
class ClientLeft:
    """The end: the client closed its socket."""


@dataclass(frozen=True)
class ClientRefused:
    """The end: the client broke the protocol or asked for what it cannot have; `text` says what."""

    text: str


@dataclass(frozen=True)
class MasterGone:
    """The end: the other end of the channel is closed."""


@dataclass(frozen=True)
class MasterSpoke:
    """The end: something arrived on the channel, where nothing may while a client is served."""


VtestEvent = Named | EngineFault | ClientLeft | ClientRefused | MasterGone | MasterSpoke


@dataclass(frozen=True)
class VtestStatistics:
    """Counts since the start: commands, of which submits and so on; fences made; recv and send calls."""

    commands: int
    submits: int
    transfers: int
    resources: int
    waits: int
    fences: int
    receives: int
    sends: int


class VtestSession:
    """Serves one client on the calling thread."""

    def __init__(self, client_fd: int, channel_fd: int, engine: NativeEngine) -> None:
        """The descriptors, a connected stream socket and the channel to the master, stay the caller's.

        Raises OSError.
        """
        self._engine = engine  # kept alive: C has its address
        self._event: Any = ffi.new("struct iso_vtest_event *")
        self._session = lib.iso_vtest_session_new(client_fd, channel_fd, engine.pointer)
        if self._session == ffi.NULL:
            raise OSError(ffi.errno, os.strerror(ffi.errno))

    def run(self) -> VtestEvent:
        """Serve until there is something to decide. Runs without the interpreter lock. After an end, the same again."""
        event = self._event
        reason = lib.iso_vtest_session_run(self._session, event)
        text = bytes(ffi.buffer(event.text)).partition(b"\0")[0].decode("latin-1")
        if reason == lib.ISO_VTEST_NAMED:
            return Named(text)
        if reason == lib.ISO_VTEST_FAULT:
            return EngineFault(text, event.faults)
        if reason == lib.ISO_VTEST_LEFT:
            return ClientLeft()
        if reason == lib.ISO_VTEST_HUNG_UP:
            return MasterGone()
        if reason == lib.ISO_VTEST_SPOKEN:
            return MasterSpoke()
        return ClientRefused(text)

    def statistics(self) -> VtestStatistics:
        """Counts since the start."""
        raw = ffi.new("struct iso_vtest_statistics *")
        lib.iso_vtest_session_statistics(self._session, raw)
        return VtestStatistics(**{name: getattr(raw, name) for name in VtestStatistics.__dataclass_fields__})

    def close(self) -> None:
        """Let go of everything but the descriptors and the engine."""
        if self._session != ffi.NULL:
            lib.iso_vtest_session_free(self._session)
            self._session = ffi.NULL
