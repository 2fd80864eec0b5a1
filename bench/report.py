"""What a run leaves: a table on the terminal, NAME.json, NAME.png."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console, JustifyMethod
from rich.table import Table

from bench.runner import Results, Row


def table(results: Results) -> Table:
    """Medians, spreads (lowest to highest round), paired ratios (median, lowest, highest), and ours over the limit."""
    peers, limits = ([*dict.fromkeys(filter(None, names))] for names in zip(*map(_names, results.rows), strict=True))
    columns: list[tuple[str, JustifyMethod, Callable[[Row], str]]] = [
        ("case", "left", lambda row: row.case),
        ("unit", "left", lambda row: f"{row.unit} {'↑' if row.better == 'higher' else '↓'}"),
        ("isorend", "right", lambda row: spread(row.ours)),
    ]
    if peers:
        columns += [("peer", "right", lambda row: spread(row.peer)), ("isorend / peer", "right", _ratio)]
    if len(peers) > 1:
        columns.append(("peer is", "left", lambda row: row.peer_name))
    if limits:
        columns += [("limit", "right", _limit), ("isorend / limit", "right", _of_limit)]
    if len(limits) > 1:
        columns.append(("limit is", "left", lambda row: row.limit_name))
    captions = ["↑ higher is better, ↓ lower is better; median (lowest … highest round), ratios paired by round"]
    captions += [f"{what}: {names[0]}" for what, names in (("peer", peers), ("limit", limits)) if len(names) == 1]
    result = Table(
        title=f"{results.workload}: {results.summary}", title_justify="left",
        caption="\n".join(captions), caption_justify="left",
    )  # fmt: skip
    for title, justify, _ in columns:
        result.add_column(title, justify=justify, no_wrap=justify == "right", overflow="fold")
    for rows in results.by_unit():
        for row in rows:
            result.add_row(*(text(row) for _, _, text in columns))
        result.add_section()
    return result


def _names(row: Row) -> tuple[str, str]:
    return row.peer_name, row.limit_name


def number(value: float) -> str:
    """Three digits that matter, or all before the point, thousands separated."""
    if not value or abs(value) >= 100:
        return f"{value:,.0f}"
    decimals = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{decimals}f}" if decimals < 6 else f"{value:.2e}"


def spread(values: Sequence[float]) -> str:
    """Median (lowest … highest)."""
    if not values:
        return ""
    middle = number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({number(min(values))} … {number(max(values))})"


def _ratio(row: Row) -> str:
    return spread(row.ratios)


def _limit(row: Row) -> str:
    return "" if row.limit is None else number(row.limit)


def _of_limit(row: Row) -> str:
    return number(statistics.median(row.ours) / row.limit) if row.limit else ""


def save(results: Results, directory: Path) -> tuple[Path, Path]:
    """Writes NAME.json and NAME.png into `directory`, which is made; their paths. Raises OSError."""
    from bench.plot import draw  # matplotlib takes a second to load

    directory.mkdir(parents=True, exist_ok=True)
    data, picture = (directory / f"{results.workload}.{suffix}" for suffix in ("json", "png"))
    data.write_text(json.dumps(results.as_json(), indent=2, ensure_ascii=False) + "\n")
    draw(results, picture)
    return data, picture


def show(results: Results, console: Console) -> None:
    """Print the table."""
    console.print(table(results))
