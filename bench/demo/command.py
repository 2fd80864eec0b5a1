"""`isorend demo`: its arguments. What needs more than the standard library is loaded when the command runs."""

from __future__ import annotations

import argparse
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130
DEFAULT_SECONDS = 8.0
MIN_SECONDS, MAX_SECONDS = 2.0, 600.0
DEFAULT_SIZE = (640, 480)
MIN_SIDE, MAX_SIDE = 64, 4096

_EPILOG = """\
examples:
  isorend demo --out demo-out
      Three guest programs draw at once; one worker is killed; look at demo-out/demo.png afterwards.
  sudo isorend demo --out demo-out --vm
      The same in a Debian guest under QEMU, built on first use: kmscube goes on when weston's worker is killed.

It leaves CONTEXT.png for every guest context, the contact sheet demo.png, summary.json and service.log; with --vm
demo.png is the guest's display.
The exit code is 0 if exactly the killed context was lost and the others rendered every frame.
"""


class DemoCommand:
    """The `demo` subcommand (master.cli.Command)."""

    name = "demo"
    help = "draw with three guest programs and kill a worker"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser
        parser.description = (
            "Start the service, draw with three guest programs at once, kill the worker of one with SIGKILL\n"
            "in the middle of a submit, and show that this context alone was lost."
        )
        parser.epilog = _EPILOG
        parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where pictures and figures go")
        parser.add_argument(
            "--seconds", metavar="N", type=_seconds, default=DEFAULT_SECONDS, help="how long to draw (%(default)g)"
        )
        parser.add_argument(
            "--size",
            metavar="WxH",
            type=_size,
            help=f"size of each program's picture ({DEFAULT_SIZE[0]}x{DEFAULT_SIZE[1]})",
        )
        parser.add_argument("--vm", action="store_true", help="with QEMU and a Debian guest instead (needs root)")

    def run(self, args: argparse.Namespace) -> int:
        if args.vm and args.size is not None:
            self._parser.error("--size has no meaning with --vm")
        self._check_writable(args.out)
        try:
            play = _load(vm=args.vm)
        except ImportError as reason:
            return _fail(f"{reason}; pip install 'isorend[demo]' installs what the demo needs")
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            return play(args.out, args.seconds, args.size or DEFAULT_SIZE)
        except KeyboardInterrupt:
            print("isorend demo: interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _check_writable(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as reason:
            self._parser.error(f"argument --out: cannot write to {directory}: {reason.strerror}")


def _load(*, vm: bool) -> Callable[[Path, float, tuple[int, int]], int]:
    if vm:
        from bench.demo.vm import show
    else:
        from bench.demo.show import show
    return show


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM ends the demo as Ctrl-C does, so that nothing it started stays behind."""
    raise KeyboardInterrupt


def _fail(message: str) -> int:
    print(f"isorend demo: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_FAILURE


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {MIN_SECONDS:g} to {MAX_SECONDS:g}")
    return seconds


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in size):
        raise argparse.ArgumentTypeError(f"{text!r} is not WxH with sides of {MIN_SIDE} to {MAX_SIDE} pixels")
    return size


COMMAND = DemoCommand()
