"""Speedup S of every cell, on a logarithmic colour scale centred at 1×."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from specdec.analysis.figures import style
from specdec.analysis.table_files import load_table

NOTES = [
    "S = time per token of the baseline ÷ of the speculative run, prefill excluded; in brackets "
    "its 95 % interval (over prompts). Hatched: the interval holds 1×, so neither gain nor loss is "
    "shown. Outlined: the best K of the row, where one of several pays; its interval is wider, as "
    "it was chosen for its S.",
]
DIFFERS_NOTE = (
    "≠: the output of so many prompts is not the baseline's, though the rule of verification "
    "promises its tokens and no near tie explains it: engine, kernels or records are at fault."
)
TICKS = [1 / 2, 2 / 3, 0.8, 1, 1.25, 1.5, 2]  # where nothing lies further from 1; else powers of 2
MISSING = "#dddddd"
CELL_HEIGHT = 0.42  # inches


@style.styled
def draw(tables_dir: Path, pairs: Sequence[str] = ()) -> Figure:
    """A panel per pair and temperature, in it a row per domain and a column per K."""
    cells = load_table(tables_dir, "cells")
    cells["names_n"] = cells.n.nunique() > 1  # else the lines below the figure say it
    panels = [(facet, facet.select(cells)) for facet in style.facets(cells, pairs)]
    ks = max(panel.K.nunique() for _, panel in panels)
    columns = min(len(panels), 3 if ks == 1 else 2 if ks <= 5 else 1)
    grid = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    domains = [max(panel.domain.nunique() for _, panel in row) for row in grid]
    figure, axes = style.page(
        "Speedup over decoding without a draft",
        cells,
        NOTES + [DIFFERS_NOTE] * bool((cells.differing > 0).any()),
        row_heights=[CELL_HEIGHT * count for count in domains],
        columns=columns,
        row_margin=0.55,
        extra_height=0.6,
    )
    farthest = max([1.0, *np.abs(np.log2(cells.S.dropna()))])
    colours = ScalarMappable(Normalize(-farthest, farthest), matplotlib.colormaps["PuOr"])
    for ax in axes.flat:
        ax.set_axis_off()
    for row, row_axes, height in zip(grid, axes, domains, strict=True):
        for (facet, panel), ax in zip(row, row_axes, strict=False):
            _draw_panel(ax, panel, colours)
            ax.set(xlim=(0, ks), ylim=(height, 0))  # cells of one size in all panels
            facet.write_heading(ax, 80 // columns)
    bar = figure.colorbar(colours, ax=axes, location="bottom", shrink=0.7, aspect=40)
    ticks = TICKS if farthest <= 1 else [2.0**n for n in range(-int(farthest), int(farthest) + 1)]
    bar.set_ticks([math.log2(tick) for tick in ticks], labels=[f"{t:.3g}×" for t in ticks])
    bar.ax.minorticks_off()
    bar.set_label("speedup S (log scale)")
    return figure


def _draw_panel(ax: Axes, cells: pd.DataFrame, colours: ScalarMappable) -> None:
    domains, ks = sorted(cells.domain.unique()), sorted(cells.K.unique())
    for cell in cells.itertuples():
        corner = (ks.index(cell.K), domains.index(cell.domain))
        _draw_cell(ax, corner, cell, colours)
        if cell.best:
            frame = Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=2, zorder=4)
            ax.add_patch(frame).set_clip_on(False)
    beside = {"textcoords": "offset points", "size": 7}
    for x, k in enumerate(ks):
        below = (x + 0.5, len(domains))
        ax.annotate(f"K = {k}", below, (0, -4), ha="center", va="top", **beside)
    for y, domain in enumerate(domains):
        text = style.wrap(domain, 20)
        ax.annotate(text, (0, y + 0.5), (-5, 0), ha="right", va="center", **beside)


def _draw_cell(ax: Axes, corner: tuple[int, int], cell, colours: ScalarMappable) -> None:
    unknown = np.isnan(cell.S)
    face = MISSING if unknown else colours.to_rgba(math.log2(cell.S))
    low, high = (cell.S_best_low, cell.S_best_high) if cell.best else (cell.S_low, cell.S_high)
    undecided = low <= 1 <= high
    ax.add_patch(
        Rectangle(
            corner,
            1,
            1,
            facecolor=face,
            edgecolor="white" if not undecided else "#999999",
            hatch="////" if undecided else None,
            linewidth=0,
            zorder=2,
        )
    )
    ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="white", linewidth=1.5, zorder=3))
    luminance = np.dot(matplotlib.colors.to_rgb(face), [0.299, 0.587, 0.114])
    ink = "white" if luminance < 0.5 else "black"
    x, y = corner[0] + 0.5, corner[1]
    value = _why_empty(cell) if unknown else f"{cell.S:.2f}×"
    interval = "no interval" if np.isnan(low) else f"[{low:.2f}, {_upper(high)}]"
    halo = {"facecolor": face, "edgecolor": "none", "pad": 1.0} if undecided else None
    if unknown:
        lines = [(0.5, value, 6)]
    elif cell.names_n:
        lines = [(0.26, value, 8.5), (0.57, interval, 6), (0.83, f"n = {cell.n}", 5.5)]
    else:
        lines = [(0.36, value, 8.5), (0.73, interval, 6)]
    for height, text, size in lines:
        label = ax.text(x, y + height, text, size=size, color=ink, ha="center", va="center")
        label.set(zorder=5, bbox=halo)
    if cell.differing > 0:
        mark = ax.text(corner[0] + 0.97, y + 0.06, f"≠ {cell.differing:.0f}", size=6)
        mark.set(ha="right", va="top", color=style.WARNING, zorder=6, weight="bold")
        mark.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8})


def _upper(high: float) -> str:
    """Two prompts can leave it open by any factor."""
    return f"{high:.2f}" if high < 100 else "…"


def _why_empty(cell) -> str:
    without_baseline = pd.isna(cell.baseline_engine)
    return style.wrap(style.NO_BASELINE if without_baseline else style.NOTHING_DECODED, 14)
