"""The workloads that the fake VMM drives: they open, and the sides of the steps tried have the same cases."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from bench import workloads
from bench.workload import Settings, Step, WorkloadUnavailable

_TRIED = {
    "control-queue": ["2D mix, fenced, batch 64", "no-op, unfenced, batch 1"],
    "submit": [
        "null, fence of 64 B, one at a time, on one CPU, p50",
        "virgl, 1 context, 64 KiB",
        "null, 8 contexts, 64 B, rate",
    ],
    "transfer": ["null, to host, 4 KiB", "virgl, from host, 64 KiB", "2D, to host, 64 KiB"],
    "contexts": ["null, CTX_CREATE to first fence", "memory"],
    "crash": ["the kill", "frames of that run"],
    "models": [
        "2 contexts, 200 small draws",
        "2 contexts: memory of all processes",
        "CTX_CREATE to first fence, beside a context that is there",
    ],
    "sharing": [
        "mirrored",
        "mirrored, copied",
        "zero copy, newer Mesa",
        "zero copy, newer Mesa, copied",
        "1080p on the display, 30 flushes a second: CPU time for one",
    ],
    "sandbox": [
        "null, fence of 64 B, one at a time, on one CPU, p50",
        "null, SUBMIT_3D of 64 KiB",
        "virgl, TRANSFER_TO_HOST_3D of 64 KiB",
        "virgl, CTX_CREATE to first fence",
        "vtest, draws, 1 client",
    ],
}
_MAY_BE_ZERO = {"frames lost by 3 others", "zero copy, newer Mesa, copied for a frame"}


@pytest.mark.parametrize("name", _TRIED)
def test_sides_measure_the_same_cases(name: str, tmp_path: Path) -> None:
    settings = Settings(rounds=1, quick=True, out=tmp_path)
    with ExitStack() as stack:
        try:
            steps = {step.name: step for step in workloads.load(name).open(settings, stack)}
        except WorkloadUnavailable as reason:
            pytest.skip(str(reason))
        for tried in _TRIED[name]:
            _try(steps[tried])


def _try(step: Step) -> None:
    ours = step.ours()
    assert ours
    for measure in (step.peer, step.limit):
        if measure is not None:
            values = measure()
            assert set(values) == set(ours)
            assert all(value > 0 for value in values.values())
    assert all(value > 0 for case, value in ours.items() if case not in _MAY_BE_ZERO)
