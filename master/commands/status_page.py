"""A service's status as a page for people."""

from typing import Any, Final

from rich.console import Group, RenderableType
from rich.text import Text

from master.commands.descriptions import guest_or
from master.commands.terminal import cell, duration, memory, moment, table

_STATE_STYLES: Final = {"running": "green", "lost": "red", "starting": "yellow", "ending": "yellow"}
_SANDBOX_STYLES: Final = {"enforce": "green", "audit": "yellow", "off": "bold red"}


def service_page(services: list[dict[str, Any]]) -> RenderableType:
    """Every ServiceStatus, as an object of JSON, one below the other."""
    parts: list[RenderableType] = []
    for status in services:
        parts += [Text()] if parts else []
        parts += _service(status)
    return Group(*parts)


def _service(status: dict[str, Any]) -> list[RenderableType]:
    parts: list[RenderableType] = [_head(status), cell(_counts(status)), cell(_renderer(status))]
    if status["contexts"]:
        parts += [Text(), _contexts(status)]
    if status["quarantined"]:
        parts += [Text(), _quarantined(status)]
    return parts


def _head(status: dict[str, Any]) -> Text:
    sandbox = str(status["sandbox"])
    return Text.assemble(
        cell(status["service"], "bold"),
        cell(f"  {_whom(status)}, pid {status['pid']}, up {duration(status['seconds'])}, sandbox "),
        cell(sandbox, _SANDBOX_STYLES.get(sandbox, "")),
    )


def _whom(status: dict[str, Any]) -> str:
    return "for VMs" if status["kind"] == "serve" else "for programs (vtest)"


def _renderer(status: dict[str, Any]) -> str:
    return f"rendering by {status['renderer']}" if status["renderer"] else "the first worker is being started"


def _counts(status: dict[str, Any]) -> str:
    front_ends = ("VMM connected", "VMMs connected") if status["kind"] == "serve" else ("client", "clients")
    return ", ".join(
        (
            _number(status["connected"], *front_ends),
            _number(len(status["contexts"]), "context", "contexts"),
            _number(status["spares"], "spare worker", "spare workers"),
            _number(status["resources"], "resource", "resources"),
            _number(status["incidents"], "incident", "incidents"),
        )
    )


def _number(count: int, one: str, several: str) -> str:
    return f"{count or 'no'} {one if count == 1 else several}"


def _contexts(status: dict[str, Any]) -> RenderableType:
    rows = table(">CTX", "PROGRAM", ">WORKER", "STATE", ">FENCES", ">QUEUE", ">SUBMITS", ">MEMORY", ">AGE")
    for context in status["contexts"]:
        state = context["state"]
        rows.add_row(
            cell(context["ctx_id"]),
            cell(context["program"]),
            cell(context["pid"] or "-"),
            cell(state, _STATE_STYLES.get(state, "")),
            cell(context["fences"]),
            cell(context["queued"]),
            cell(context["submits"]),
            cell(memory(context["memory_bytes"])),
            cell(duration(context["seconds"])),
        )
    return rows


def _quarantined(status: dict[str, Any]) -> RenderableType:
    rows = table("QUARANTINED", ">INCIDENTS", "SINCE")
    for quarantine in status["quarantined"]:
        since = moment(quarantine["since"])
        rows.add_row(cell(guest_or(quarantine["program"]), "red"), cell(quarantine["strikes"]), cell(since))
    return rows
