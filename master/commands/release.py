"""`isorend release`."""

import argparse
from pathlib import Path

from master.commands.services import add_service, ask, chosen_service, understood
from master.control.errors import ControlError

WHOLE_GUEST = ""


class ReleaseCommand:
    """`isorend release` (master.cli.Command)."""

    name = "release"
    help = "let a quarantined program have contexts again"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser
        parser.description = "End a quarantine that --strikes or --guest-strikes has brought about."
        parser.epilog = f"examples:\n  {parser.prog} glxgears\n  {parser.prog} --all\n"
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("program", metavar="PROGRAM", nargs="?", help="a name that `isorend status` shows")
        which.add_argument("--guest", action="store_true", help="the whole guest")
        which.add_argument("--all", action="store_true", help="everything in quarantine")
        add_service(parser)

    def run(self, args: argparse.Namespace) -> int:
        from master.commands.terminal import print_json, printable

        if args.program == WHOLE_GUEST:
            self._parser.error("PROGRAM is empty; the whole guest is --guest")
        service = chosen_service(args.service)
        wanted = None if args.all else WHOLE_GUEST if args.guest else _as_it_is(service, args.program)
        released = ask(service, "release", program=wanted)
        if not released:
            what = {None: "nothing is", WHOLE_GUEST: "the guest is not"}.get(wanted, f"{wanted} is not")
            raise ControlError(f"{service.name}: {what} in quarantine")
        if args.json:
            print_json({"service": service.name, "released": released})
        else:
            names = ", ".join(printable(str(name)) or "the guest" for name in released)
            print(f"{service.name}: released {names}")
        return 0


def _as_it_is(service: Path, shown: str) -> str:
    """The quarantined name that is shown like this: what cannot be printed cannot be typed either."""
    from master.commands.terminal import printable

    with understood():
        names = [quarantine["program"] for quarantine in ask(service, "status")["quarantined"]]
        return next((name for name in names if printable(name) == shown), shown)
