"""`isorend kill`."""

import argparse

from master.arguments import number
from master.commands.services import add_service, ask, chosen_service


class KillCommand:
    """`isorend kill` (master.cli.Command)."""

    name = "kill"
    help = "end the worker of one context"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.description = "End the worker of one context. Its program loses the context; everything else goes on."
        parser.epilog = f"example:\n  {parser.prog} 3\n"
        parser.add_argument(
            "ctx_id", metavar="CTX", type=number(int, 0, 2**32 - 1), help="the number that `isorend status` shows"
        )
        add_service(parser)

    def run(self, args: argparse.Namespace) -> int:
        service = chosen_service(args.service)
        ask(service, "kill", ctx_id=args.ctx_id)
        if args.json:
            from master.commands.terminal import print_json

            print_json({"service": service.name, "killed": args.ctx_id})
        else:
            print(f"{service.name}: ended the worker of ctx {args.ctx_id}")
        return 0
