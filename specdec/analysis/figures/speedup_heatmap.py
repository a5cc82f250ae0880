"""Speedup S of every cell, on a logarithmic colour scale centred at 1×."""

from __future__ import annotations

import math
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
from specdec.analysis.tables import load_table

NOTES = [
    "S = time per token of the baseline ÷ of the speculative run, prefill excluded; in brackets "
    "its 95 % interval (bootstrap over prompts). Hatched: the interval holds 1×, so neither gain "
    "nor loss is shown. Outlined: the best K of the row.",
]
TICKS = [1 / 2, 2 / 3, 0.8, 1, 1.25, 1.5, 2]  # where nothing lies further from 1; else powers of 2
MISSING = "#dddddd"
CELL_HEIGHT = 0.42  # inches


@style.styled
def draw(tables_dir: Path) -> Figure:
    """A panel per pair and temperature, in it a row per domain and a column per K."""
    cells = load_table(tables_dir, "cells")
    panels = [(facet, facet.select(cells)) for facet in style.facets(cells)]
    ks = max(4, *(panel.K.nunique() for _, panel in panels))
    columns = 1 if len(panels) == 1 or ks > 5 else 2
    grid = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    domains = [max(panel.domain.nunique() for _, panel in row) for row in grid]
    figure, axes = style.page(
        "Speedup over decoding without a draft",
        cells,
        NOTES,
        row_heights=[CELL_HEIGHT * count for count in domains],
        columns=columns,
        row_margin=0.55,
        extra_height=0.6,
    )
    farthest = np.nanmax(np.abs(np.log2(cells.S)), initial=1)
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
    best = cells.loc[cells.dropna(subset="S").groupby("domain").S.idxmax()].index
    for cell in cells.itertuples():
        corner = (ks.index(cell.K), domains.index(cell.domain))
        _draw_cell(ax, corner, cell, colours)
        if cell.Index in best:
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
    undecided = cell.S_low <= 1 <= cell.S_high
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
    value = "no data" if unknown else f"{cell.S:.2f}×"
    interval = "no interval" if np.isnan(cell.S_low) else f"[{cell.S_low:.2f}, {cell.S_high:.2f}]"
    halo = {"facecolor": face, "edgecolor": "none", "pad": 1.0} if undecided else None
    for height, text, size in ((0.36, value, 8.5), (0.73, interval, 6)):
        label = ax.text(x, y + height, text, size=size, color=ink, ha="center", va="center")
        label.set(zorder=5, bbox=halo)
