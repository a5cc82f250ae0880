"""How long one waits: time between hand-overs, and time per token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from specdec.analysis.figures import style
from specdec.analysis.statistics import bootstrap_interval
from specdec.analysis.tables import load_table

NOTES = [
    "A round hands over 1 to K + 1 tokens at once, the baseline one per step. Left: the time from "
    "one hand-over to the next. Right: that time ÷ its tokens, each token counted once. All "
    "domains together, prefill left out; dots: median (p50) and p95; bands: 95 % (bootstrap over "
    "prompts).",
]
MARKS = {"p50": 0.5, "p95": 0.95}
#: Where the curves are drawn: finer towards the end, so that the tail is all there.
SHARES = np.unique(
    np.concatenate([np.linspace(0, 0.99, 100), 1 - np.geomspace(1e-2, 1e-5, 30), [1]])
)


@style.styled
def draw(tables_dir: Path) -> Figure:
    """A row per pair and temperature; a curve for the baseline and for each K."""
    cells, rounds = load_table(tables_dir, "cells"), load_table(tables_dir, "rounds")
    facets, colours = style.facets(cells), style.colours_of_k(cells)
    lines = [Line2D([], [], color=style.BASELINE, label="baseline")]
    lines += [Line2D([], [], color=colour, label=f"K = {k}") for k, colour in colours.items()]
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
        curves = [("baseline", style.BASELINE, facet.select_baseline(rounds))]
        ours = facet.select(rounds[rounds.K > 0])
        curves += [(f"K = {k}", colours[k], group) for k, group in ours.groupby("K")]
        for _, colour, group in curves:
            per_token = group.seconds / group.tokens
            _draw_curve(left, group, group.seconds, np.ones(len(group)), colour)
            _draw_curve(right, group, per_token, group.tokens.to_numpy(), colour)
        facet.write_heading(left, 45)
        for ax, what in ((left, "time between hand-overs"), (right, "time per token")):
            _finish(ax, f"{what} (ms, log scale)")
        left.set_ylabel("share of hand-overs")
        right.set_ylabel("share of tokens")
    return figure


def _draw_curve(
    ax: Axes, rounds: pd.DataFrame, seconds: pd.Series, weights: np.ndarray, colour
) -> None:
    """The weighted distribution of `seconds`, its band, and its marks."""
    if rounds.empty:
        return
    values = seconds.to_numpy() * 1e3
    grid = np.unique(weighted_quantiles(values, weights, SHARES))
    prompts = rounds.groupby(["domain", "job_K", "prompt_id"]).ngroup().to_numpy()
    shape = (prompts.max() + 1, len(grid))
    counts = np.zeros(shape)
    np.add.at(counts, (prompts, np.searchsorted(grid, values).clip(max=shape[1] - 1)), weights)
    below = np.cumsum(counts, axis=1)  # [prompts, grid]
    ax.step(grid, below.sum(axis=0) / weights.sum(), where="post", color=colour, linewidth=1.2)
    low, high = bootstrap_interval([below], lambda totals: totals / totals[-1], draws=1000)
    if np.ndim(low):
        ax.fill_between(grid, low, high, step="post", color=colour, alpha=0.18, linewidth=0)
    for share in MARKS.values():
        (at,) = weighted_quantiles(values, weights, [share])
        ax.plot(at, share, "o", color=colour, markersize=3.5, markeredgecolor="white", zorder=4)


def weighted_quantiles(values: np.ndarray, weights: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """For each share the least value that at least this share of the weights does not exceed."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / np.sum(weights)
    places = np.searchsorted(reached, np.asarray(shares) - 1e-12).clip(max=len(values) - 1)
    return values[order][places]


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
