"""`isorend status`."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from master.arguments import number
from master.commands.services import add_service, ask, chosen_services, understood
from master.control.errors import ControlError

if TYPE_CHECKING:
    from rich.console import RenderableType

DEFAULT_INTERVAL_S: Final = 1.0
_QUIT: Final = b"qQ\x04"


class StatusCommand:
    """`isorend status` (master.cli.Command)."""

    name = "status"
    help = "show services, their contexts and workers"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser
        parser.description = "Show the services that you run: their contexts, workers and what these are at."
        parser.epilog = f"examples:\n  {parser.prog} --watch\n  {parser.prog} --service=vm-4711 --json\n"
        add_service(parser)
        parser.add_argument("--watch", action="store_true", help="go on showing it until q or Ctrl-C")
        parser.add_argument(
            "--interval",
            metavar="SECONDS",
            type=number(float, 0.1, 3600),
            default=DEFAULT_INTERVAL_S,
            help="how often --watch looks (%(default)g)",
        )

    def run(self, args: argparse.Namespace) -> int:
        if args.watch and args.json:
            self._parser.error("--watch has no meaning with --json")
        if args.watch and not sys.stdout.isatty():
            self._parser.error("--watch needs a terminal")
        if args.watch:
            return _watch(args.service, args.interval)
        services = _look(args.service)
        if args.json:
            from master.commands.terminal import print_json

            print_json(services)
        else:
            from master.commands.terminal import show

            show(_page(services))
        return 0


def _look(name: str | None) -> list[dict[str, Any]]:
    """The status of one service, or of all. Raises ControlError if there is none."""
    services = chosen_services(name)
    answers: list[dict[str, Any]] = []
    for service in services:
        try:
            answers.append(ask(service, "status"))
        except ControlError:
            if len(services) == 1:
                raise
            print(f"isorend status: {service.name} does not answer", file=sys.stderr)
    return answers


def _page(services: list[dict[str, Any]]) -> "RenderableType":
    from master.commands.status_page import service_page

    with understood():
        return service_page(services)


def _watch(name: str | None, interval: float) -> int:
    from rich.live import Live

    from master.commands.terminal import cell, console

    with (
        suppress(KeyboardInterrupt),
        _keys() as pressed,
        Live(console=console(), screen=True, auto_refresh=False) as live,
    ):
        while True:
            try:
                live.update(_page(_look(name)), refresh=True)
            except ControlError as reason:
                live.update(cell(reason), refresh=True)
            if pressed(interval):
                break
    return 0


@contextmanager
def _keys() -> Iterator[Any]:
    """pressed(seconds) waits for so long for q, Ctrl-C or the end of input."""
    import os
    import select
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal) if os.isatty(terminal) else None

    def pressed(seconds: float) -> bool:
        readable = [terminal] if before is not None else []
        if not select.select(readable, [], [], seconds)[0]:
            return False
        keys = os.read(terminal, 64)
        return not keys or any(key in _QUIT for key in keys)

    if before is not None:
        tty.setcbreak(terminal)
    try:
        yield pressed
    finally:
        if before is not None:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)
