"""The workloads by name; each is the `WORKLOAD` of a module of its own.

first_frame is part of `contexts` and has no name of its own.
"""

from __future__ import annotations

from importlib import import_module

from bench.workload import Workload

NAMES = (
    "control-queue", "submit", "transfer", "contexts", "clients", "neighbours", "vm", "crash", "models", "sandbox",
    "sharing",
)  # fmt: skip


def _module(name: str) -> str:
    return f"{__name__}.{name.replace('-', '_')}"


def load(name: str) -> Workload:
    """The workload of that name, one of NAMES."""
    workload: Workload = import_module(_module(name)).WORKLOAD
    return workload
