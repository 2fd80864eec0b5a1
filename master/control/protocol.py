"""What is said on the control plane: JSON objects, one a message.

To request.sock (ZeroMQ REQ or DEALER to a ROUTER), and what `result` of the answer is:

    {"command": "status"}                          a ServiceStatus
    {"command": "incidents", "limit": 20}          the latest, oldest first; limit: at most 1000, the default
    {"command": "release", "program": "glxgears"}  a list of the names released; "" is the guest, null is everything
    {"command": "kill", "ctx_id": 3}               null

    {"ok": true, "result": ...} or {"ok": false, "error": "words for a person"}

From events.sock (ZeroMQ SUB to a PUB): two frames, the event's KIND and a JSON object with "kind" and its fields. When
somebody subscribes, everybody gets a Hello.
"""

import json
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final

from master.control_target import Controlled
from master.events import Event

MAX_REQUEST_BYTES: Final = 4096
MAX_REPLY_BYTES: Final = 64 << 20
MAX_INCIDENTS: Final = 1000
MAX_NAME: Final = 256
_MAX_CTX_ID: Final = 2**32 - 1


class RequestError(Exception):
    """A request that is not answered with a result; the text is for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Event):
    """Somebody has subscribed, and is told all from here on."""

    KIND = "hello"


def answer(target: Controlled, request: bytes) -> bytes:
    """Does what a request says. Returns the reply. Raises nothing but what `target` does."""
    try:
        result = _run(target, _parse(request))
    except RequestError as reason:
        return _encode({"ok": False, "error": str(reason)})
    return _encode({"ok": True, "result": result})


def failure(text: str) -> bytes:
    """The reply that says what went wrong."""
    return _encode({"ok": False, "error": text})


def encode_event(event: Event) -> list[bytes]:
    """Its frames."""
    return [event.KIND.encode(), _encode(event)]


def _run(target: Controlled, request: dict[str, Any]) -> Any:
    match request:
        case {"command": "status"}:
            _only(request)
            return target.status()
        case {"command": "incidents"}:
            _only(request, "limit")
            limit = _integer(request.get("limit", MAX_INCIDENTS), "limit", 1, MAX_INCIDENTS)
            return target.incidents()[-limit:]
        case {"command": "release", "program": program}:
            _only(request, "program")
            if program is not None and (not isinstance(program, str) or len(program) > MAX_NAME):
                raise RequestError(f"program is not null or a name of up to {MAX_NAME} characters")
            return target.release(program)
        case {"command": "kill", "ctx_id": number}:
            _only(request, "ctx_id")
            ctx_id = _integer(number, "ctx_id", 0, _MAX_CTX_ID)
            if not target.kill(ctx_id):
                raise RequestError(f"there is no context {ctx_id} with a worker that lives")
            return None
        case {"command": str(command)}:
            raise RequestError(f"unknown command, or something is missing: {command[:32]!r}")
        case _:
            raise RequestError("no command")


def _parse(request: bytes) -> dict[str, Any]:
    if len(request) > MAX_REQUEST_BYTES:
        raise RequestError(f"more than {MAX_REQUEST_BYTES} bytes")
    try:
        parsed = json.loads(request.decode())
    except (ValueError, RecursionError) as reason:
        raise RequestError("not JSON") from reason
    if not isinstance(parsed, dict):
        raise RequestError("not a JSON object")
    return parsed


def _only(request: dict[str, Any], *known: str) -> None:
    unknown = set(request) - {"command", *known}
    if unknown:
        raise RequestError(f"unknown key: {min(unknown)[:32]!r}")


def _integer(value: object, name: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:  # a bool is an int too
        raise RequestError(f"{name} is not a number from {least} to {most}")
    return value


def _encode(value: object) -> bytes:
    return json.dumps(value, default=_as_object, separators=(",", ":")).encode()


def _as_object(value: object) -> dict[str, Any]:
    """A dataclass as an object of JSON; an event also has its kind. (asdict() would look at every number in it.)"""
    if not is_dataclass(value):
        raise TypeError(f"{type(value).__name__} cannot become JSON")
    kind = {"kind": value.KIND} if isinstance(value, Event) else {}
    return kind | {field.name: getattr(value, field.name) for field in fields(value)}
