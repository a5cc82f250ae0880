"""Acceptance α_i by position in the draft, against the constant α that theory assumes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from specdec.analysis.figures import style
from specdec.analysis.table_files import load_table

NOTES = [
    "α_i: how often the draft token at position i was accepted, given that those before it were; "
    "bars: 95 % (over prompts). Dashed: the best-fitting constant α, which "
    "the i.i.d. formula τ = (1 − α^(K+1)) / (1 − α) assumes. Falling points: the draft loses the "
    "thread; rising ones: easy stretches.",
]


@style.styled
def draw(tables_dir: Path, pairs: Sequence[str] = ()) -> Figure:
    """A row per pair and temperature, a column per domain; a line per K."""
    cells, positions = load_table(tables_dir, "cells"), load_table(tables_dir, "positions")
    facets, colours = style.facets(cells, pairs), style.colours_of_k(cells)
    rows = [(facet, sorted(facet.select(cells).domain.unique())) for facet in facets]
    columns = max(len(domains) for _, domains in rows)
    keys = [
        Line2D([], [], color=colour, marker="o", markersize=3.5, label=f"K = {k}")
        for k, colour in colours.items()
    ]
    keys.append(Line2D([], [], color=style.INK, linestyle="--", label="constant α", linewidth=0.9))
    figure, axes = style.page(
        "Acceptance by position in the draft",
        cells,
        NOTES,
        row_heights=[1.25] * len(facets),
        columns=columns,
        row_margin=0.75,
        legend=keys,
        sharey=True,
    )
    for (facet, domains), row_axes in zip(rows, axes, strict=True):
        for ax in row_axes[len(domains) :]:
            ax.set_axis_off()
        for ax, domain in zip(row_axes, domains, strict=False):
            ours = [facet.select(table) for table in (cells, positions)]
            _draw_panel(ax, *(table[table.domain == domain] for table in ours), colours)
            ax.set_title(style.wrap(domain, 80 // columns))
        row_axes[0].set_ylabel("acceptance $\\alpha_i$")
        facet.write_heading(row_axes[0], 90 // columns)
    return figure


def _draw_panel(ax: Axes, cells, positions, colours) -> None:
    ks = sorted(cells.K)
    for cell in cells.itertuples():
        rows = positions[(positions.K == cell.K) & positions.alpha_i.notna()]
        shift = 0.09 * (ks.index(cell.K) - (len(ks) - 1) / 2)  # so that bars don't hide each other
        ax.errorbar(
            rows.position + shift,
            rows.alpha_i,
            [(rows.alpha_i - rows.low).clip(0), (rows.high - rows.alpha_i).clip(0)],
            color=colours[cell.K],
            marker="o",
            markersize=2.8,
            linewidth=0.9,
            elinewidth=0.8,
        )
        ends = [0.6, positions[positions.K == cell.K].position.max() + 0.4]
        ax.plot(ends, [cell.alpha_iid] * 2, "--", color=colours[cell.K], linewidth=0.8, zorder=1)
    if positions.alpha_i.isna().all():
        style.say_empty(ax, style.NOTHING_DECODED)
    ax.set(ylim=(0, 1.03), xlim=(0.4, positions.position.max() + 0.6), xlabel="position i")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.tick_params(labelleft=True)
