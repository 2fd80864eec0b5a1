"""Turning an asyncio loop by hand, for modules that live on its callbacks."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TIMEOUT_S = 30.0


class LoopDriver:
    """An event loop that moves only when told to. What its callbacks raise is raised by the turn in which it
    happened.
    """

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._raised: list[BaseException] = []
        self.loop.set_exception_handler(self._note)

    def _note(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        exception = context.get("exception")
        self._raised.append(exception if isinstance(exception, BaseException) else RuntimeError(str(context)))

    def turn(self, times: int = 1) -> None:
        """Run what is ready now: Unix sockets deliver at once, so what a peer has sent is."""
        for _ in range(times):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
            if self._raised:
                raise self._raised.pop(0)

    def until(self, condition: Callable[[], object], awaited: str) -> None:
        """Turn until condition() holds; TimeoutError after 30 s."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"did not happen: {awaited}")
            self.turn()

    def close(self) -> None:
        self.loop.close()


@contextmanager
def loop_driver() -> Iterator[LoopDriver]:
    driver = LoopDriver()
    try:
        yield driver
    finally:
        driver.close()
