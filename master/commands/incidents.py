"""`isorend incidents`."""

import argparse
from typing import TYPE_CHECKING, Any, Final

from master.arguments import number
from master.commands.services import add_service, ask, chosen_service, understood
from master.control.errors import ControlError

if TYPE_CHECKING:
    from rich.console import RenderableType

_MAX_NUMBER: Final = 2**63
Incident = dict[str, Any]
"""As an object of JSON (master.blame)."""


class IncidentsCommand:
    """`isorend incidents` (master.cli.Command)."""

    name = "incidents"
    help = "list the contexts that were lost, and why"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.description = "List the contexts that a service has lost: whose, when and why. The latest 1000 are kept."
        parser.epilog = f"examples:\n  {parser.prog}\n  {parser.prog} --last\n  {parser.prog} 3 --json\n"
        which = parser.add_mutually_exclusive_group()
        which.add_argument(
            "number", metavar="NUMBER", nargs="?", type=number(int, 1, _MAX_NUMBER), help="all about this one"
        )
        which.add_argument("--last", action="store_true", help="all about the latest one")
        add_service(parser)

    def run(self, args: argparse.Namespace) -> int:
        from master.commands.terminal import print_json, show

        service = chosen_service(args.service)
        incidents: list[Incident] = ask(service, "incidents")
        with understood():
            if args.last or args.number is not None:
                incident = _one(service.name, incidents, args.number)
                print_json(incident) if args.json else show(_details(incident))
            elif args.json:
                print_json(incidents)
            elif incidents:
                show(_table(incidents))
            else:
                print(f"{service.name}: no incidents")
        return 0


def _one(service: str, incidents: list[Incident], wanted: int | None) -> Incident:
    """The incident with that number, None for the latest. Raises ControlError."""
    for incident in reversed(incidents):
        if wanted in (None, incident["number"]):
            return incident
    what = "no incidents" if wanted is None else f"no incident {wanted} (any more)"
    raise ControlError(f"{service}: {what}")


def _table(incidents: list[Incident]) -> "RenderableType":
    from master.commands.terminal import cell, moment, table

    rows = table(">NO.", "TIME", ">CTX", "PROGRAM", ">WORKER", "CAUSE")
    for incident in incidents:
        what = (incident["number"], moment(incident["time"]), incident["ctx_id"], incident["program"])
        rows.add_row(*map(cell, what), cell(incident["pid"] or "-"), cell(incident["cause"]["text"]))
    return rows


def _details(incident: Incident) -> "RenderableType":
    from rich.console import Group
    from rich.padding import Padding

    from master.commands.descriptions import context
    from master.commands.terminal import cell, moment, table

    cause = incident["cause"]
    facts = {
        "context": context(incident),
        "time": moment(incident["time"]),
        "cause": cause["text"],
        "kind": " ".join(str(word) for word in (cause["kind"], cause["signal"], cause["syscall"]) if word),
        "busy with": incident["under_way"] or "-",
        "fences": f"{incident['fences']} retired",
        "lost": _lost(incident),
    }
    rows = table("", "")
    rows.show_header = False
    for name, value in facts.items():
        rows.add_row(cell(name, "bold"), cell(value))
    commands = [cell(command) for command in incident["last_commands"]] or [cell("(none)")]
    return Group(
        cell(f"incident {incident['number']} of {incident['service']}", "bold"),
        rows,
        cell("last commands, the latest at the end", "bold"),
        *(Padding(command, (0, 0, 0, 2), expand=False) for command in commands),
    )


def _lost(incident: Incident) -> str:
    listed, count = incident["resources_lost"], incident["resources_lost_count"]
    if not count:
        return "no resources"
    more = ", ..." if count > len(listed) else ""
    return f"{count} resource{'s' if count > 1 else ''}: {', '.join(map(str, listed))}{more}"
