"""master.doctor.trial and virgl_caps: what a worker must show, and what is found when it does not."""

import asyncio
import struct
from pathlib import Path

import pytest

from ipc.messages import Capability, EngineName, Ready
from master.capsets import Capset
from master.doctor import trial
from master.doctor.findings import Finding, Verdict
from master.doctor.virgl_caps import V2_BYTES, faults_of, glsl_level
from master.launch import LaunchSettings


def caps(version: int = 2, formats: int = 0xFFFFFFFF, glsl: int = 330, size: int = V2_BYTES) -> bytes:
    data = bytearray(V2_BYTES)
    struct.pack_into("<I", data, 0, version)
    struct.pack_into("<I", data, 4, formats)
    struct.pack_into("<I", data, 68, formats)
    struct.pack_into("<I", data, 264, glsl)
    return bytes(data).ljust(size, b"\0")[:size]


def examined(render_node: Path | None = None) -> dict[str, Finding]:
    return {finding.name: finding for finding in asyncio.run(trial.run_trial(render_node))}


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "0 bytes"),
        (caps(size=308), "308 bytes, at least 1376"),
        (caps(version=1), "max_version is 1"),
        (caps(formats=0), "B8G8R8A8 cannot be sampled"),
        (caps(formats=1), "B8G8R8A8 cannot be sampled"),
        (caps(glsl=120), "GLSL 120 is too old"),
    ],
)
def test_capability_sets_that_cannot_be_right(data: bytes, fault: str) -> None:
    assert faults_of(data)[0].startswith(fault)


def test_capability_sets_that_can() -> None:
    assert faults_of(caps()) == faults_of(caps(size=V2_BYTES + 96)) == []
    assert glsl_level(caps(glsl=450)) == 450
    assert len(faults_of(bytes(V2_BYTES))) == 4


class FakeWorker:
    def __init__(self, renderer: str = "llvmpipe", capsets: tuple[Capset, ...] = ()) -> None:
        self.ready = Ready(EngineName.VIRGL, Capability(0), renderer, "4.5")
        self.capsets = capsets

    def renderer(self) -> str:
        return self.ready.renderer


@pytest.mark.parametrize(
    ("renderer", "wanted", "verdict"),
    [
        ("virgl: llvmpipe (LLVM 15.0.6, 256 bits)", None, Verdict.OPTIONAL),
        ("virgl: llvmpipe (LLVM 15.0.6, 256 bits)", Path("/dev/dri/renderD128"), Verdict.MISSING),
        ("virgl: softpipe", Path("/dev/dri/renderD128"), Verdict.MISSING),
        ("virgl: AMD Radeon RX 6600 (radeonsi, navi23)", Path("/dev/dri/renderD128"), Verdict.OK),
    ],
)
def test_a_software_renderer_is_told(renderer: str, wanted: Path | None, verdict: Verdict) -> None:
    finding = trial._gpu(FakeWorker(renderer), wanted)  # type: ignore[arg-type]
    assert finding.verdict is verdict
    assert ("software renderer" in finding.found) == (verdict is not Verdict.OK)


def test_capability_sets_of_a_worker() -> None:
    finding = trial._capset(FakeWorker(capsets=(Capset(1, 1, b""),)))  # type: ignore[arg-type]
    assert finding.verdict is Verdict.MISSING and "no virgl 2 (found: 1.1)" in finding.found
    finding = trial._capset(FakeWorker(capsets=(Capset(2, 2, b"x"),)))  # type: ignore[arg-type]
    assert finding.verdict is Verdict.MISSING and "cannot be right: 1 bytes" in finding.found
    finding = trial._capset(FakeWorker(capsets=(Capset(2, 2, caps()),)))  # type: ignore[arg-type]
    assert finding.verdict is Verdict.OK


def test_a_real_worker_shows_it_all() -> None:
    findings = examined()
    assert list(findings) == ["sandboxed worker", "GPU", "capability sets", "context, submit and fence"]
    assert all(finding.verdict is not Verdict.MISSING for finding in findings.values()), findings
    assert findings["context, submit and fence"].ok


def test_a_worker_that_does_not_come_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LaunchSettings, "command", lambda _settings, _fd: ["/bin/false"])
    findings = examined()
    assert list(findings) == ["sandboxed worker"]
    assert findings["sandboxed worker"].verdict is Verdict.MISSING


def test_a_worker_that_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "START_TIMEOUT_S", 0.0)
    assert examined()["sandboxed worker"].found == "not ready after 0 s"


def test_a_submit_that_the_worker_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "STREAM", struct.pack("<2I", 0xFF | 1 << 16, 0))  # no such command
    finding = examined()["context, submit and fence"]
    assert finding.verdict is Verdict.MISSING and "was answered ERR_INVALID_PARAMETER" in finding.found


def test_a_fence_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "WORK_TIMEOUT_S", 0.0)
    finding = examined()["context, submit and fence"]
    assert finding.verdict is Verdict.MISSING and "did not come within 0 s" in finding.found
