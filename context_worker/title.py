"""How launcher and workers name themselves: by their process title, which also begins each log line of the launcher.

What a worker logs goes to the master, which knows whose it is: its lines begin with their level only.
"""

import logging
import sys

import setproctitle

from ipc.messages import EngineName
from native import engines

_MAX_NAME = 64


def printable(name: str) -> str:
    """`name`, which a guest wrote, as at most 64 printable ASCII characters; any other becomes `?`."""
    return "".join(char if " " <= char <= "~" else "?" for char in name[:_MAX_NAME]).strip()


def launcher_title() -> str:
    """The launcher's title."""
    return "isorend: launcher"


def outside_title() -> str:
    """That of the process which waits outside for the launcher, when that is in namespaces."""
    return "isorend: sandbox"


def spare_title(engine: EngineName) -> str:
    """A worker's that has no guest context yet."""
    return f"isorend: spare ({engine})"


def context_title(ctx_id: int, name: str, engine: EngineName) -> str:
    """A worker's with guest context `ctx_id`, whose debug_name is `name`."""
    return " ".join(filter(None, (f"isorend: ctx {ctx_id}", printable(name), f"({engine})")))


def shared_title(engine: EngineName) -> str:
    """That of the worker that serves all guest contexts."""
    return f"isorend: shared ({engine})"


def vtest_spare_title(engine: EngineName) -> str:
    """That of a worker which waits for a vtest client."""
    return f"isorend: vtest spare ({engine})"


def vtest_title(client_id: int, name: str, engine: EngineName) -> str:
    """That of a worker which serves vtest client `client_id`, the program `name`."""
    return " ".join(filter(None, (f"isorend: vtest {client_id}", printable(name), f"({engine})")))


class _Formatter(logging.Formatter):
    """Begins every line, also those of a traceback, with the current title, or for the master with the level."""

    title = ""
    for_master = False

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if self.for_master:
            return "\n".join(f"{record.levelname.lower()}: {line}" for line in text.splitlines())
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        return "\n".join(f"{self.title}: {line}" for line in text.splitlines())


_formatter = _Formatter("%(message)s")


def start_logging(level: int = logging.INFO) -> None:
    """Log to stderr behind the title."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)


def log_to_master() -> None:
    """From now on, on the same stream; virglrenderer's lines too, of which only warnings are let out."""
    _formatter.for_master = True
    engines.set_virgl_log_prefix("warning")


def set_title(title: str) -> None:
    """Name this process, in ps and /proc."""
    setproctitle.setproctitle(title)
    _formatter.title = title
