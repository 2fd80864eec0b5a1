"""What the service has been asked to do, checked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from master.launch import LaunchSettings, Sandbox
from master.limits import MIB, Limits, Rate
from master.listener import OWNER_ONLY, SocketOwner

ENGINES: Final = ("virgl", "null")
VTEST_ENGINES: Final = ("virgl",)
SHARING: Final = ("auto", "mirrored")
DEFAULT_HOSTMEM: Final = 256 * MIB
DEFAULT_SIZE: Final = (1280, 800)
DEFAULT_SPARES: Final = 2
DEFAULT_HANG_TIMEOUT_S: Final = 10.0
DEFAULT_MAX_CLIENTS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Exactly one of socket_path (to listen on) and fd (a connected Unix stream socket, open) is given.

    render_node: the GPU to use, None for the default one. engine: one of ENGINES. spares: workers kept warm.
    shader_cache: where workers keep compiled shaders for each other, None for nowhere. share_worker: one worker for
    all contexts, which isolates nothing from each other. hang_timeout_s: seconds without progress after which a
    context is given up. size: width and height in pixels of the display if the front end has none. outputs:
    scanouts that the guest may use. display_dmabufs: whether the front end's display is given dma-bufs if it says
    that it takes them. hostmem: bytes of the host-visible memory region, 0 for none. sharing: one of SHARING, how
    contents get from one worker to another. guest_handles: whether guests may ask for blobs with
    CREATE_GUEST_HANDLE, which is not in the standard. sandbox: how workers are locked in. limits: what the guest
    may use. strikes: after how many incidents no program of that name gets a context any more, None for never;
    guest_strikes: after how many the whole guest gets none. name: what `isorend status` and others call this
    service, None for a name of its own. control: whether it listens to them. log_level: a level name of the logging
    module.
    """

    socket_path: Path | None = None
    fd: int | None = None
    render_node: Path | None = None
    engine: str = "virgl"
    shader_cache: Path | None = None
    share_worker: bool = False
    keep_listening: bool = False
    spares: int = DEFAULT_SPARES
    hang_timeout_s: float = DEFAULT_HANG_TIMEOUT_S
    size: tuple[int, int] = DEFAULT_SIZE
    outputs: int = 1
    display_dmabufs: bool = False
    hostmem: int = DEFAULT_HOSTMEM
    sharing: str = "auto"
    guest_handles: bool = False
    sandbox: Sandbox = Sandbox.ENFORCE
    limits: Limits = field(default_factory=Limits)
    strikes: Rate | None = None
    guest_strikes: Rate | None = None
    name: str | None = None
    control: bool = True
    log_level: str = "INFO"

    def __post_init__(self) -> None:
        _check_source(self.socket_path, self.fd)
        _check_engine(self.engine, ENGINES)
        if self.sharing not in SHARING:
            raise ValueError(f"sharing {self.sharing!r} is none of {', '.join(SHARING)}")

    def launch_settings(self) -> LaunchSettings:
        """What its workers have in common."""
        return LaunchSettings(
            render_node=self.render_node,
            shader_cache=self.shader_cache,
            share_worker=self.share_worker,
            sandbox=self.sandbox,
            memory_limit=self.limits.context_memory,
            max_shader_bytes=self.limits.shader_bytes,
            log_level=self.log_level,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VtestOptions:
    """Exactly one of socket_path (to make and listen on) and fd (a listening Unix stream socket, open) is given.

    socket_mode: permission bits of the socket's file; socket_owner: whose it becomes. max_clients: clients served at a
    time; more are refused. The rest as in ServeOptions; engine is one of VTEST_ENGINES.
    """

    socket_path: Path | None = None
    fd: int | None = None
    socket_mode: int = OWNER_ONLY
    socket_owner: SocketOwner | None = None
    max_clients: int = DEFAULT_MAX_CLIENTS
    render_node: Path | None = None
    engine: str = "virgl"
    shader_cache: Path | None = None
    spares: int = DEFAULT_SPARES
    sandbox: Sandbox = Sandbox.ENFORCE
    limits: Limits = field(default_factory=Limits)
    strikes: Rate | None = None
    name: str | None = None
    control: bool = True
    log_level: str = "INFO"

    def __post_init__(self) -> None:
        _check_source(self.socket_path, self.fd)
        _check_engine(self.engine, VTEST_ENGINES)

    def launch_settings(self) -> LaunchSettings:
        """What its workers have in common."""
        return LaunchSettings(
            render_node=self.render_node,
            shader_cache=self.shader_cache,
            sandbox=self.sandbox,
            memory_limit=self.limits.context_memory,
            max_shader_bytes=self.limits.shader_bytes,
            log_level=self.log_level,
        )


def _check_source(socket_path: Path | None, fd: int | None) -> None:
    if (socket_path is None) == (fd is None):
        raise ValueError("exactly one of socket_path and fd must be given")


def _check_engine(engine: str, known: tuple[str, ...]) -> None:
    if engine not in known:
        raise ValueError(f"engine {engine!r} is none of {', '.join(known)}")
