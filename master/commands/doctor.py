"""`isorend doctor`."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from master.doctor.findings import Finding

EXIT_MISSING: Final = 1
_STYLES: Final = {"ok": "green", "missing": "bold red", "optional": "yellow"}


class DoctorCommand:
    """`isorend doctor` (master.cli.Command)."""

    name = "doctor"
    help = "say what this host offers and what is missing"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.description = (
            "Look at what this host offers, then start a worker in its sandbox and have it draw.\n"
            "The exit code is 0 if nothing that is needed is missing, else 1."
        )
        parser.epilog = f"examples:\n  {parser.prog}\n  {parser.prog} --render-node=/dev/dri/renderD128\n"
        parser.add_argument("--render-node", metavar="PATH", type=Path, help="the GPU to use, and to insist on")
        parser.add_argument("--json", action="store_true", help="print JSON, for programs")

    def run(self, args: argparse.Namespace) -> int:
        from master.doctor.findings import all_required

        findings = _examine(args.render_node)
        healthy = all_required(findings)
        if args.json:
            from master.commands.terminal import print_json

            rows = [{"verdict": finding.verdict, **asdict(finding)} for finding in findings]
            print_json({"ok": healthy, "findings": rows})
        else:
            _show(findings, healthy)
        return 0 if healthy else EXIT_MISSING


def _examine(render_node: Path | None) -> "list[Finding]":
    import asyncio

    from master.doctor.host import look
    from master.doctor.trial import run_trial
    from master.logging_setup import set_up_logging

    set_up_logging("error", "isorend doctor")
    return [*look(render_node), *asyncio.run(run_trial(render_node))]


def _show(findings: "list[Finding]", healthy: bool) -> None:
    from master.commands.terminal import cell, show, table

    rows = table("", "", "")
    rows.show_header = False
    for finding in findings:
        rows.add_row(cell(finding.verdict, _STYLES[finding.verdict]), cell(finding.name), cell(finding.found))
        if not finding.ok and finding.hint:
            rows.add_row("", "", cell(f"-> {finding.hint}", "dim"))
    show(rows)
    missing = sum(not finding.ok and finding.required for finding in findings)
    show(cell("All that is needed is there." if healthy else f"Missing: {missing}, see above.", "bold"))
