"""A workload's results as a picture: every round of both sides as a point, medians as strokes, the limit as a line."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report import number
from bench.runner import Results, Row

_OURS, _LIMIT = "#1f6fb4", "#222222"
_PEERS = ("#d95f02", "#2a9d57", "#b0479b", "#8c6d1f")
_DASHES = ((2, 1), (5, 1), (1, 2), (5, 1, 1, 1))
_WIDTH_IN, _ROW_IN, _PANEL_IN = 11.0, 0.36, 0.85
_LOG_FROM = 20.0  # values that span more than this factor are drawn on a logarithmic axis
# Parts of a row's height: where a side's points lie, beside the row's middle, and how far a limit's line goes.
_HALF, _LIMIT_HALF = 0.17, 0.42
_DPI = 110


def draw(results: Results, path: Path) -> None:
    """Write the picture, one panel for each unit. Raises OSError."""
    panels = results.by_unit()
    heights = [_ROW_IN * len(rows) + _PANEL_IN for rows in panels]
    figure = Figure(figsize=(_WIDTH_IN, sum(heights) + 0.9), layout="constrained")
    figure.suptitle(f"{results.workload}: {results.summary}", fontsize=11, wrap=True)
    axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    styles = _Styles(results.rows)
    for axis, rows in zip(axes, panels, strict=True):
        _panel(axis, rows, styles)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=_DPI)


class _Styles:
    """Peers differ by colour, limits by dashes."""

    def __init__(self, rows: Sequence[Row]) -> None:
        peers = dict.fromkeys(row.peer_name for row in rows if row.peer)
        limits = dict.fromkeys(row.limit_name for row in rows if row.limits)
        self.colors = dict(zip(peers, cycle(_PEERS), strict=False))
        self.dashes = {name: (0, dashes) for name, dashes in zip(limits, cycle(_DASHES), strict=False)}


def _panel(axis: Axes, rows: Sequence[Row], styles: _Styles) -> None:
    for place, row in enumerate(rows):
        both = bool(row.peer)
        _side(axis, row.ours, place - _HALF * both, _OURS, "o", "isorend")
        if both:
            _side(axis, row.peer, place + _HALF, styles.colors[row.peer_name], "s", row.peer_name)
        if row.limit is not None:
            ends = [place - _LIMIT_HALF, place + _LIMIT_HALF]
            axis.plot(
                [row.limit] * 2, ends, color=_LIMIT, lw=1.6, ls=styles.dashes[row.limit_name], label=row.limit_name
            )
        axis.text(1.01, place, _note(row), transform=axis.get_yaxis_transform(), va="center", fontsize=8)
    for place in range(len(rows) - 1):
        axis.axhline(place + 0.5, color="#e6e6e6", lw=0.6, zorder=0)
    _scale(axis, [value for row in rows for value in (*row.ours, *row.peer, *row.limits)])
    axis.set_yticks(range(len(rows)), [row.case for row in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", color="#e6e6e6", lw=0.6)
    axis.set_axisbelow(True)
    axis.set_xlabel(f"{rows[0].unit} ({rows[0].better} is better)", fontsize=8)
    for edge in ("top", "right"):
        axis.spines[edge].set_visible(False)


def _side(axis: Axes, values: Sequence[float], place: float, color: str, marker: str, label: str) -> None:
    axis.plot(values, [place] * len(values), marker, color=color, ms=4, alpha=0.55, mew=0, label=label)
    axis.plot([statistics.median(values)], [place], "|", color=color, ms=11, mew=2.2)


def _note(row: Row) -> str:
    """Beside the row: the ratio to the peer, else to the limit."""
    if row.ratios:
        return f"{number(statistics.median(row.ratios))} of peer"
    return f"{number(statistics.median(row.ours) / row.limit)} of limit" if row.limit else ""


def _scale(axis: Axes, values: Sequence[float]) -> None:
    low, high = min(values), max(values)
    if low > 0 and high / low > _LOG_FROM:
        axis.set_xscale("log")
        axis.set_xlim(low / 1.6, high * 1.6)
    else:
        axis.set_xlim(min(0.0, low), high * 1.05 or 1.0)
