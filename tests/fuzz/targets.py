"""The targets by name, and what each is made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from native.build_dataplane import SOURCES as DATAPLANE

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"


@dataclass(frozen=True)
class Target:
    """One fuzzer. max_len: bytes of an input; runs: of a short run in the tests, some seconds' worth."""

    name: str
    summary: str
    max_len: int
    runs: int

    @property
    def corpus(self) -> Path:
        """Its seeds, and the inputs that once made it fail (named `regression-...`)."""
        return CORPUS / self.name


@dataclass(frozen=True)
class NativeTarget(Target):
    """c/NAME.c with further files of c/ and some of native/src. wrapped: functions that c/ takes the place of."""

    helpers: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    wrapped: tuple[str, ...] = ()


@dataclass(frozen=True)
class PythonTarget(Target):
    """python/NAME.py, whose function `run(data)` gets the inputs."""


_VTEST = (
    *("engine.c", "idmap.c", "vtest_session.c", "vtest_commands.c", "vtest_commands3.c"),
    *("vtest_stream.c", "vtest_resources.c", "vtest_syncs.c"),
)
_MMAP = ("mmap", "munmap")
_GUEST = ("guest.c", "guest_changes.c", "guarded_mmap.c")
_CHANGING = (*_MMAP, "iso_guestmem_read")
_PLAYED_SOCKET = ("recv", "send", "sendmsg", "iso_stream_scratch", "pthread_create", "pthread_join")
_WORLD = ("plane_world.c", "plane_workers.c", "plane_sharing.c", *_GUEST)

TARGETS: dict[str, NativeTarget | PythonTarget] = {
    target.name: target
    for target in (
        NativeTarget(
            *("virtqueue", "virtqueues and guest memory, which changes between two reads", 1024, 30_000),
            helpers=_GUEST,
            sources=("virtqueue.c", "guestmem.c"),
            wrapped=_CHANGING,
        ),
        NativeTarget(
            *("plane", "the way of guest commands through the data plane", 1024, 5_000),
            helpers=_WORLD,
            sources=DATAPLANE,
            wrapped=_CHANGING,
        ),
        NativeTarget(
            *("lane", "the master's side of a ring that a hostile worker writes", 1024, 5_000),
            helpers=_WORLD,
            sources=DATAPLANE,
            wrapped=_CHANGING,
        ),
        NativeTarget(
            *("consumer", "the worker's side of a command ring", 2048, 8_000),
            helpers=("quiet_engine.c", "guarded_mmap.c"),
            sources=("consumer.c", "engine.c", "sealed_memory.c"),
            wrapped=_MMAP,
        ),
        NativeTarget(
            *("vtest", "a vtest session's commands", 4096, 5_000),
            helpers=("quiet_engine.c", "guarded_mmap.c"),
            sources=_VTEST,
            wrapped=(*_MMAP, *_PLAYED_SOCKET),
        ),
        NativeTarget(
            *("virgl_limits", "virgl command streams before virglrenderer", 1024, 200_000),
            sources=("virgl_limits.c", "virgl_usage.c", "idmap.c"),
        ),
        PythonTarget("vhost_user", "the front end's messages and descriptors", 1024, 1_500),
        PythonTarget("display", "the front end's display socket", 2048, 1_500),
        PythonTarget("wire", "guest commands: decoded, and done by the dispatcher", 1024, 1_500),
        PythonTarget("messages", "what master, launcher and workers tell each other", 2048, 1_500),
    )
}


def chosen(names: list[str]) -> list[NativeTarget | PythonTarget]:
    """The targets of these names, all if there are none. KeyError for a name that is no target."""
    return [TARGETS[name] for name in names] if names else list(TARGETS.values())
