"""master.doctor.host and findings: what is made of what a host has."""

import json
import os
import sys
from pathlib import Path

import pytest

from master.doctor import host
from master.doctor.findings import Finding, Verdict, all_required

PROBED = [
    {"name": "user namespaces", "ok": True, "required": True, "found": "made", "hint": ""},
    {"name": "landlock", "ok": False, "required": True, "found": "not in this kernel", "hint": "Linux 5.13"},
    {"name": "extra", "ok": False, "required": False, "found": "none", "hint": "install it"},
]


def printing(text: str, code: int = 0) -> tuple[str, ...]:
    """A probe that prints this."""
    return (
        sys.executable,
        "-c",
        f"import sys; sys.stdout.write({text!r}); sys.stderr.write('why\\n'); sys.exit({code})",
    )


def test_verdicts() -> None:
    findings = [Finding.of(fields) for fields in PROBED]
    assert [finding.verdict for finding in findings] == [Verdict.OK, Verdict.MISSING, Verdict.OPTIONAL]
    assert not all_required(findings)
    assert all_required([findings[0], findings[2]])


def test_what_the_probe_says() -> None:
    assert host.sandbox(printing(json.dumps(PROBED))) == [Finding.of(fields) for fields in PROBED]


@pytest.mark.parametrize(
    "probe",
    [
        printing("", 3),
        printing("nothing"),
        printing("[{}]"),
        printing("[3]"),
        printing('{"name": 1}'),
        printing(json.dumps([{**PROBED[0], "ok": "yes"}])),
        ("/no/such/program",),
    ],
)
def test_a_probe_that_fails_is_a_finding(probe: tuple[str, ...]) -> None:
    (finding,) = host.sandbox(probe)
    assert finding.verdict is Verdict.MISSING
    assert finding.found.startswith("the probe of the sandbox failed: ")


def test_a_probe_that_fails_says_why() -> None:
    (finding,) = host.sandbox(printing("", 3))
    assert finding.found.endswith(": why")


@pytest.fixture
def cgroups(tmp_path: Path) -> Path:
    """A tree like /sys/fs/cgroup, where we are in /mine; the file that says so is beside it."""
    root = tmp_path / "cgroup"
    (root / "mine").mkdir(parents=True)
    (root / "cgroup.controllers").write_text("cpu memory\n")
    (root / "mine" / "cgroup.controllers").write_text("cpu memory pids\n")
    (root / "mine" / "cgroup.subtree_control").write_text("")
    (tmp_path / "own").write_text("1:name=systemd:/x\n0::/mine\n")
    return root


def test_memory_limits(cgroups: Path) -> None:
    own = cgroups.parent / "own"
    assert host.memory_limits(cgroups, own).verdict is Verdict.OK
    (cgroups / "mine" / "cgroup.controllers").write_text("cpu pids\n")
    assert "has no memory controller" in host.memory_limits(cgroups, own).found
    own.write_text("0::/gone\n")
    assert "No such file" in host.memory_limits(cgroups, own).found
    own.write_text("4:memory:/x\n")
    found = host.memory_limits(cgroups, own)
    assert (
        found.verdict is Verdict.OPTIONAL and "cgroup v2 is not mounted" in found.found and "Delegate=yes" in found.hint
    )


def test_memory_limits_of_somebody_else(cgroups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    assert "is not delegated" in host.memory_limits(cgroups, cgroups.parent / "own").found


def test_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.device(Path("/dev/null"), "null", "nothing").ok
    missing = host.device(tmp_path / "node", "udmabuf", "sharing")
    assert (missing.verdict, missing.found) == (Verdict.OPTIONAL, f"no {tmp_path / 'node'}")

    def refuse(*_arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    refused = host.device(Path("/dev/null"), "KVM", "speed")
    assert not refused.ok and refused.found == "/dev/null: no permission" and "see its group" in refused.hint


def test_render_nodes(tmp_path: Path) -> None:
    (none,) = host.render_nodes(None, tmp_path)
    assert none.verdict is Verdict.OPTIONAL
    for name in ("renderD129", "renderD128", "card0"):
        (tmp_path / name).symlink_to("/dev/null")
    found = host.render_nodes(None, tmp_path)
    assert [finding.found for finding in found] == [str(tmp_path / name) for name in ("renderD128", "renderD129")]
    (asked,) = host.render_nodes(tmp_path / "renderD130", tmp_path)
    assert asked.verdict is Verdict.MISSING
    (asked,) = host.render_nodes(tmp_path / "renderD128", tmp_path)
    assert asked.verdict is Verdict.OK


def test_the_library_that_is_there() -> None:
    found = host.virglrenderer()
    assert found.ok and found.found.startswith("libvirglrenderer.so.1")
