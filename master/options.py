"""What the service has been asked to do, checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

ENGINES: Final = ("virgl", "null")
DEFAULT_SIZE: Final = (1280, 800)
DEFAULT_SPARES: Final = 2
DEFAULT_HANG_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Exactly one of socket_path (to listen on) and fd (a connected Unix stream socket, open) is given.

    render_node: the GPU to use, None for the default one. engine: one of ENGINES. spares: workers kept warm.
    hang_timeout_s: seconds without progress after which a context is given up. size: width and height in pixels of the
    display if the front end has none. log_level: a level name of the logging module.
    """

    socket_path: Path | None = None
    fd: int | None = None
    render_node: Path | None = None
    engine: str = "virgl"
    keep_listening: bool = False
    spares: int = DEFAULT_SPARES
    hang_timeout_s: float = DEFAULT_HANG_TIMEOUT_S
    size: tuple[int, int] = DEFAULT_SIZE
    log_level: str = "INFO"

    def __post_init__(self) -> None:
        if (self.socket_path is None) == (self.fd is None):
            raise ValueError("exactly one of socket_path and fd must be given")
        if self.engine not in ENGINES:
            raise ValueError(f"engine {self.engine!r} is none of {', '.join(ENGINES)}")
