"""`isorend events`."""

import argparse
import sys
from pathlib import Path

from master.commands.services import add_service, chosen_service


class EventsCommand:
    """`isorend events` (master.cli.Command)."""

    name = "events"
    help = "follow what happens in a service"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.description = (
            "Print what happens in a service, a line each: contexts that come and go, incidents, quarantines, limits.\n"
            "It goes on until Ctrl-C or the service's end. Who reads too slowly misses lines."
        )
        parser.epilog = f"examples:\n  {parser.prog}\n  {parser.prog} --json | jq 'select(.kind == \"incident\")'\n"
        add_service(parser)

    def run(self, args: argparse.Namespace) -> int:
        from master.commands.terminal import until_reader_leaves

        service = chosen_service(args.service)
        try:
            with until_reader_leaves():
                _follow(service, args.json)
        except KeyboardInterrupt:
            print(file=sys.stderr)  # the terminal has shown ^C
        return 0


def _follow(service: Path, as_json: bool) -> None:
    from master.commands.descriptions import event_line
    from master.commands.terminal import print_json_line
    from master.control.client import EventStream

    with EventStream(service) as stream:
        print(f"watching {stream.name}; Ctrl-C ends this", file=sys.stderr)
        for event in stream:
            if as_json:
                print_json_line(event)
            else:
                print(event_line(event), flush=True)
        print(f"{stream.name} has ended", file=sys.stderr)
