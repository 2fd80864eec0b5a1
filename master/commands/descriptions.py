"""Events and incidents in words.

They come as objects of JSON from a service that may be of another version: what is not known is shown as it came.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from master.commands.terminal import moment, printable

Fields = Mapping[str, Any]


def event_line(event: Fields) -> str:
    """One event in a line that can be printed anywhere."""
    return printable(f"{_time(event)}  {event.get('service')}  {event.get('kind')}: {_what(event)}")


def context(event: Fields) -> str:
    """Whom it is about."""
    worker = f"worker {event['pid']}" if event.get("pid") else "worker starting"
    return f"ctx {event['ctx_id']} {event['program']} ({worker})"


def guest_or(program: str) -> str:
    """A program's name; the empty one stands for all of them."""
    return program or "the whole guest"


def _what(event: Fields) -> str:
    try:
        return _WORDS[event["kind"]](event)
    except (LookupError, TypeError):
        rest = {name: value for name, value in event.items() if name not in ("kind", "service", "time")}
        return json.dumps(rest)


def _time(event: Fields) -> str:
    try:
        return moment(event["time"])
    except (LookupError, TypeError, ValueError, OverflowError):
        return "-"


def _incident(event: Fields) -> str:
    return f"{event['number']}, {context(event)}: {event['cause']['text']}"


def _front_end(event: Fields) -> str:
    reason = f": {event['reason']}" if event["reason"] else ""
    return f"{'connected' if event['connected'] else 'gone'}{reason}"


def _quarantined(event: Fields) -> str:
    return f"{guest_or(event['program'])}, after {event['strikes']} incidents"


def _limit(event: Fields) -> str:
    return f"ctx {event['ctx_id']} {event['program']}: {event['limit']}"


_WORDS: Final[Mapping[str, Callable[[Fields], str]]] = {
    "context-created": context,
    "context-ended": context,
    "incident": _incident,
    "front-end": _front_end,
    "quarantined": _quarantined,
    "released": lambda event: guest_or(event["program"]),
    "limit": _limit,
}
