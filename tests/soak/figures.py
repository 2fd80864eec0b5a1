"""The figures at the end of a soak, and whether they are what they have to be."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, median

from rich.console import Console
from rich.table import Table

GROWTH_LIMIT = 6 << 20
"""Bytes that a process may have more at the end than after the first quarter of the run: what an allocator keeps."""

_KIB = 1 << 10


@dataclass(frozen=True)
class Figure:
    """One line. limit: the most that it may be; None if it only tells what was done."""

    what: str
    value: float
    limit: float | None = None
    unit: str = ""

    @property
    def good(self) -> bool:
        return self.limit is None or self.value <= self.limit


def growth(samples: list[int]) -> int:
    """Bytes between the medians of the second quarter and of the last one; the first is the warm-up."""
    quarter = max(1, len(samples) // 4)
    return int(median(samples[-quarter:]) - median(samples[quarter : 2 * quarter] or samples[:1]))


def slope(samples: list[int]) -> float:
    """Least squares over all samples but the first quarter, in bytes a sample."""
    kept = samples[len(samples) // 4 :]
    if len(kept) < 2:
        return 0.0
    middle, level = (len(kept) - 1) / 2, mean(kept)
    spread = sum((x - middle) ** 2 for x in range(len(kept)))
    return sum((x - middle) * (y - level) for x, y in enumerate(kept)) / spread


def memory_figures(name: str, process: str, samples: list[int]) -> list[Figure]:
    """Of one process of a service."""
    return [
        Figure(f"{name}: {process}'s memory grew", growth(samples) / _KIB, GROWTH_LIMIT / _KIB, "KiB"),
        Figure(f"{name}: {process}'s memory, by least squares", slope(samples) / _KIB, None, "KiB a session"),
    ]


def print_figures(figures: list[Figure], console: Console) -> bool:
    """The table. Whether all of them are good."""
    table = Table("figure", title="soak")
    table.add_column("value", justify="right")
    table.add_column("at most", justify="right")
    table.add_column("")
    for figure in figures:
        limit = "" if figure.limit is None else f"{figure.limit:g}"
        table.add_row(
            figure.what, f"{figure.value:.6g} {figure.unit}".strip(), limit, "" if figure.good else "TOO MUCH"
        )
    console.print(table)
    return all(figure.good for figure in figures)
