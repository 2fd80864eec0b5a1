"""master.control.protocol: what is answered to what."""

import json
from typing import Any

import pytest

from master.control.protocol import MAX_REQUEST_BYTES, answer, encode_event
from tests.control_lab import HOSTILE, FakeService, context, created, incident


def ask(service: FakeService, **request: object) -> dict[str, Any]:
    answered: dict[str, Any] = json.loads(answer(service, json.dumps(request).encode()))
    return answered


def test_status() -> None:
    reply = ask(FakeService(contexts=[context()], quarantined=[""]), command="status")
    assert reply["ok"]
    assert reply["result"]["contexts"][0]["program"] == "kmscube"
    assert reply["result"]["quarantined"] == [{"program": "", "strikes": 3, "since": 1e9}]


def test_incidents_are_whole_and_limited() -> None:
    service = FakeService(listed=[incident(number, resources_lost=(7, 8)) for number in range(1, 1501)])
    assert len(ask(service, command="incidents")["result"]) == 1000
    (last,) = ask(service, command="incidents", limit=1)["result"]
    assert (last["kind"], last["number"], last["resources_lost"]) == ("incident", 1500, [7, 8])
    assert last["cause"] == {"kind": "signal", "text": "killed by SIGKILL", "signal": "SIGKILL", "syscall": None}


def test_release() -> None:
    service = FakeService(quarantined=["glxgears", "", "other"])
    assert ask(service, command="release", program="glxgears") == {"ok": True, "result": ["glxgears"]}
    assert ask(service, command="release", program="glxgears") == {"ok": True, "result": []}
    assert ask(service, command="release", program=None) == {"ok": True, "result": ["", "other"]}


def test_kill() -> None:
    service = FakeService(contexts=[context(3)])
    assert ask(service, command="kill", ctx_id=3) == {"ok": True, "result": None}
    refused = ask(service, command="kill", ctx_id=4)
    assert not refused["ok"] and "no context 4" in refused["error"]
    assert service.killed == [3, 4]


@pytest.mark.parametrize(
    ("request_bytes", "words"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * MAX_REQUEST_BYTES, "not JSON"),
        (b'{"command": ' + b"[" * 3000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b'"status"', "not a JSON object"),
        (b"{}", "no command"),
        (b'{"command": 1}', "no command"),
        (b'{"command": ["status"]}', "no command"),
        (b'{"command": "reboot"}', "unknown command"),
        (b'{"command": "status", "more": 1}', "unknown key: 'more'"),
        (b'{"command": "kill"}', "something is missing"),
        (b'{"command": "kill", "ctx_id": true}', "ctx_id is not a number"),
        (b'{"command": "kill", "ctx_id": "3"}', "ctx_id is not a number"),
        (b'{"command": "kill", "ctx_id": 3.0}', "ctx_id is not a number"),
        (b'{"command": "kill", "ctx_id": -1}', "ctx_id is not a number"),
        (b'{"command": "kill", "ctx_id": 4294967296}', "ctx_id is not a number"),
        (b'{"command": "kill", "ctx_id": ' + b"9" * 4000 + b"}", "ctx_id is not a number"),
        (b'{"command": "release", "program": 1}', "program is not"),
        (b'{"command": "release", "program": "' + b"x" * 300 + b'"}', "program is not"),
        (b'{"command": "release", "program": null, "force": true}', "unknown key: 'force'"),
        (b'{"command": "incidents", "limit": 0}', "limit is not a number from 1 to 1000"),
        (b'{"command": "incidents", "limit": 1001}', "limit is not a number"),
        (b" " * (MAX_REQUEST_BYTES + 1), "more than"),
    ],
)
def test_what_is_refused(request_bytes: bytes, words: str) -> None:
    service = FakeService()
    reply = json.loads(answer(service, request_bytes))
    assert reply["ok"] is False and words in reply["error"]
    assert (service.killed, service.released) == ([], [])


def test_events_are_one_line_of_ascii() -> None:
    kind, body = encode_event(created(HOSTILE))
    assert kind == b"context-created"
    assert body.isascii() and all(byte >= 0x20 for byte in body)
    assert json.loads(body) == {
        "kind": "context-created", "service": "vm-1", "time": 1e9, "ctx_id": 3, "program": HOSTILE, "pid": 4712
    }  # fmt: skip
