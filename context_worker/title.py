"""How a worker names itself: its process title, which also begins each of its log lines."""

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
    """Begins every line, also those of a traceback, with the current title."""

    title = ""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        return "\n".join(f"{self.title}: {line}" for line in text.splitlines())


_formatter = _Formatter("%(message)s")


def start_logging(level: int = logging.INFO) -> None:
    """Log to stderr behind the title."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)


def set_title(title: str) -> None:
    """Name this process: in ps and /proc, in its log lines and in those of virglrenderer."""
    setproctitle.setproctitle(title)
    _formatter.title = title
    engines.set_virgl_log_prefix(title)
