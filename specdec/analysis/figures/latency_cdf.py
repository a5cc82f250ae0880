"""How long one waits: time between hand-overs, and time per token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from specdec.analysis.figures import style
from specdec.analysis.statistics import FEWEST_VALUES, distribution, quantiles
from specdec.analysis.table_files import load_table

NOTES = [
    "A round hands over 1 to K + 1 tokens at once, the baseline one per step. Left: the time from "
    "one hand-over to the next. Right: that time ÷ its tokens, each token counted once. Dashed: "
    "the baseline that this K is compared with. All domains together, prefill left out; dots: "
    "median (p50) and, from 20 values on, p95; bands: 95 % (over prompts, for K alone).",
]
MARKS = {"p50": 0.5, "p95": 0.95}
#: Where the curves are drawn: finer towards the end, so that the tail is all there.
SHARES = np.unique(
    np.concatenate([np.linspace(0, 0.99, 100), 1 - np.geomspace(1e-2, 1e-5, 30), [1]])
)


@style.styled
def draw(tables_dir: Path, pairs: Sequence[str] = ()) -> Figure:
    """A row per pair and temperature; a curve for each K, and for the baseline of each."""
    cells, rounds = load_table(tables_dir, "cells"), load_table(tables_dir, "rounds")
    facets, colours = style.facets(cells, pairs), style.colours_of_k(cells)
    lines = [Line2D([], [], color=colour, label=f"K = {k}") for k, colour in colours.items()]
    lines.append(Line2D([], [], color=style.BASELINE, linestyle="--", label="its baseline"))
    figure, axes = style.page(
        "Time between hand-overs, and time per token",
        cells,
        NOTES,
        row_heights=[1.35] * len(facets),
        columns=2,
        row_margin=0.6,
        legend=lines,
        sharey=True,
    )
    for (left, right), facet in zip(axes, facets, strict=True):
        _draw_row(left, right, facet, rounds, colours)
        facet.write_heading(left, 45)
        for ax, what in ((left, "time between hand-overs"), (right, "time per token")):
            _finish(ax, f"{what} (ms, log scale)")
        left.set_ylabel("share of hand-overs")
        right.set_ylabel("share of tokens")
    return figure


def _draw_row(left: Axes, right: Axes, facet: style.Facet, rounds: pd.DataFrame, colours) -> None:
    ours = facet.select(rounds[rounds.K > 0])
    for k, group in ours.groupby("K"):
        baseline = style.own_baseline(facet.select_baseline(rounds), k)
        for of, line in ((group, "-"), (baseline, "--")):
            for ax, seconds, weights in (
                (left, of.seconds, np.ones(len(of))),
                (right, of.seconds / of.tokens, of.tokens.to_numpy(float)),
            ):
                _draw_curve(ax, of, seconds.to_numpy() * 1e3, weights, colours[k], line)
    if ours.empty:
        for ax in (left, right):
            style.say_empty(ax, style.NOTHING_DECODED)


def _draw_curve(ax: Axes, rounds: pd.DataFrame, ms, weights, colour, line: str) -> None:
    """The weighted distribution of `ms`, its marks, and the band of a solid one."""
    if rounds.empty:
        return
    grid = np.unique(quantiles(ms, weights, SHARES))
    prompts = rounds.groupby(["domain", "prompt_id"]).ngroup().to_numpy()
    shares, low, high = distribution(ms, weights, prompts, grid)
    solid = line == "-"
    ax.step(grid, shares, line, where="post", color=colour, linewidth=1.2 if solid else 0.8)
    if solid and not np.isnan(low).all():
        ax.fill_between(grid, low, high, step="post", color=colour, alpha=0.18, linewidth=0)
    for share in MARKS.values():
        if len(ms) >= FEWEST_VALUES[share]:
            (at,) = quantiles(ms, weights, [share])
            size = 3.5 if solid else 2.5
            ax.plot(at, share, "o", color=colour, markersize=size, markeredgecolor="white")


def _finish(ax: Axes, label: str) -> None:
    style.log_axis_ms(ax)
    ax.set(xlabel=label, ylim=(0, 1.02), yticks=[0, 0.25, 0.5, 0.75, 1])
    ax.tick_params(labelleft=True)
    for name, share in MARKS.items():
        ax.axhline(share, color="#aaaaaa", linewidth=0.5, zorder=0)
        ax.annotate(
            name,
            (1, share),
            (2, 0),
            xycoords=ax.get_yaxis_transform(),
            textcoords="offset points",
            size=6,
            color="#666666",
            va="center",
        )
