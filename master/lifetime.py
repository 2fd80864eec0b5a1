"""How long a service lives, and the exit code that it ends with."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from master import hardening
from master.supervisor import NoWorkers, ensure_fd_limit

log = logging.getLogger(__name__)

EXIT_FAILURE = 1
EXIT_BUG = 70  # EX_SOFTWARE, sysexits.h


class Lifetime:
    """The end of a service: by a signal, because nothing is left to do, because it cannot go on, or by a bug."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.ended: asyncio.Future[int] = loop.create_future()
        """The exit code, once there is one."""

    def begin(self) -> None:
        """From now on signals and bugs end it."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self.end, 0)
        self._loop.set_exception_handler(self._bug)

    def end(self, code: int) -> None:
        """End with this exit code, unless it is ending already."""
        if not self.ended.done():
            self.ended.set_result(code)

    def fatal(self, why: str) -> None:
        """It cannot go on."""
        log.error("%s", why)
        self.end(EXIT_FAILURE)

    def _bug(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception that nobody caught is a bug of ours: say all about it and stop."""
        log.critical("internal error: %s", context.get("message"), exc_info=context.get("exception"))
        self.end(EXIT_BUG)


def run_service(run: Callable[[asyncio.AbstractEventLoop], Awaitable[int]]) -> int:
    """Runs a service in a loop of its own, as all that this process does. Returns the exit code."""
    hardening.begin()
    ensure_fd_limit()

    async def serve() -> int:
        try:
            return await run(asyncio.get_running_loop())
        except NoWorkers as error:
            log.error("%s", error)
            return EXIT_FAILURE

    return asyncio.run(serve())
