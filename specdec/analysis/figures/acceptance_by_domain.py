"""Acceptance rate α by domain: how it is distributed over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from specdec.analysis.figures import style
from specdec.analysis.table_files import load_table

NOTES = [
    "α = accepted ÷ proposed draft tokens. A dot per prompt; from 10 prompts on a box: quartiles "
    "and median, whiskers: the most distant prompts within 1.5 times the box. Diamond: α of the "
    "cell (ratio of totals) with its 95 % interval (over prompts). α falls with K, since all that "
    "follows a rejected token counts as proposed.",
]
GROUP_WIDTH = 0.84  # of the room of a domain
DIAMOND = {"marker": "D", "markersize": 3.5, "color": "black", "markeredgecolor": "white"}
WIDEST = 0.2
FEWEST_FOR_BOX = 10  # prompts: below, box, dots and interval would only hide each other
DODGE = 0.18  # of a box's width, that dots may stray


@style.styled
def draw(tables_dir: Path, pairs: Sequence[str] = ()) -> Figure:
    """A panel per pair and temperature; boxes by domain and K."""
    cells, generations = load_table(tables_dir, "cells"), load_table(tables_dir, "generations")
    facets, colours = style.facets(cells, pairs), style.colours_of_k(cells)
    columns = 1 if len(facets) == 1 else 2
    domains = max(facet.select(cells).domain.nunique() for facet in facets)
    keys = [Patch(color=colour, label=f"K = {k}") for k, colour in colours.items()]
    keys.append(Line2D([], [], **DIAMOND, linestyle="none", label="α of the cell"))
    figure, axes = style.page(
        "Acceptance rate by domain",
        cells,
        NOTES,
        row_heights=[1.5] * -(-len(facets) // columns),
        columns=columns,
        row_margin=0.55,
        legend=keys,
        sharey=True,
    )
    for ax in axes.flat[len(facets) :]:
        ax.set_axis_off()
    for ax, facet in zip(axes.flat, facets, strict=False):
        _draw_panel(ax, facet.select(cells), facet.select(generations), colours)
        ax.set_xlim(-0.5, domains - 0.5)  # boxes of one width in all panels
        facet.write_heading(ax, 80 // columns)
    for ax in axes[:, 0]:
        ax.set_ylabel("acceptance rate α")
    return figure


def _draw_panel(ax: Axes, cells, generations, colours) -> None:
    domains, ks = sorted(cells.domain.unique()), sorted(cells.K.unique())
    width = min(GROUP_WIDTH / len(colours), WIDEST)
    jitter = np.random.default_rng(0)
    for cell in cells.itertuples():
        x = domains.index(cell.domain) + (ks.index(cell.K) - (len(ks) - 1) / 2) * width
        rows = generations[(generations.domain == cell.domain) & (generations.K == cell.K)]
        alphas = rows.alpha.dropna().to_numpy()
        if len(alphas) == 0:
            continue
        if len(alphas) >= FEWEST_FOR_BOX:
            _draw_box(ax, x, width * 0.8, alphas, colours[cell.K])
        places = x + width * DODGE * jitter.uniform(-1, 1, len(alphas))
        ax.plot(places, alphas, ".", color=colours[cell.K], markersize=2.5, alpha=0.8, zorder=3)
        ax.plot([x, x], [cell.alpha_low, cell.alpha_high], color="black", linewidth=1.2, zorder=4)
        ax.plot(x, cell.alpha, **DIAMOND, zorder=5)
    if cells.alpha.isna().all():
        style.say_empty(ax, style.NOTHING_DECODED)
    ax.set_ylim(0, 1.03)
    ax.set_xticks(range(len(domains)), [style.wrap(domain, 14) for domain in domains])
    ax.tick_params(axis="x", length=0)
    ax.tick_params(axis="y", labelleft=True)


def _draw_box(ax: Axes, x: float, width: float, alphas: np.ndarray, colour) -> None:
    boxes = ax.boxplot(
        [alphas],
        positions=[x],
        widths=width,
        patch_artist=True,
        showfliers=False,
        manage_ticks=False,
        medianprops={"color": style.INK, "linewidth": 1},
        whiskerprops={"color": style.INK, "linewidth": 0.6},
        capprops={"color": style.INK, "linewidth": 0.6},
    )
    boxes["boxes"][0].set(facecolor=(*colour[:3], 0.45), edgecolor=style.INK, linewidth=0.6)
