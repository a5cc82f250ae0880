"""Where the time of an emitted token goes: draft, verify, sampling, other; the baseline beside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from specdec.analysis.figures import style
from specdec.analysis.table_files import load_table

NOTES = [
    "Decoding time ÷ emitted tokens, prefill and the first token left out; number: total. "
    "Verify: passes of the target, the baseline's single steps too. Other: the rest of the clock; "
    "all of it where phases were not timed. Under each K, hatched, the baseline that it is "
    "compared with: measured along with it where paired.",
]
ENGINE_NOTE = (
    "c: one draft step ÷ one step of the baseline: the ratio of the models' layers where a step "
    "costs by its layers, of their sizes where it costs by the bytes that it reads."
)
#: Of Okabe and Ito's palette, which colour-blind readers can tell apart; dark and light take turns.
PHASES = {
    "draft": ("draft_ms", "#56b4e9"),
    "verify": ("verify_ms", "#0072b2"),
    "sampling": ("sample_ms", "#e69f00"),
    "other": (None, "#999999"),
}
ROOM_FOR_NUMBER = 1.22  # of the longest bar, that bar included
ROOM_FOR_C = 0.35  # the same, at the right edge
GAP = 0.4  # of a bar's room, between one K and the next
BAR_HEIGHT = 0.2  # inches, with the room around it


class Bar(NamedTuple):
    """One bar: how far down it stands, in bars, and its parts in ms per token."""

    name: str
    y: float
    parts: dict[str, float]
    is_baseline: bool
    empty: str  # why, where there are no parts
    c: float | None  # where it is to be shown


@style.styled
def draw(tables_dir: Path, pairs: Sequence[str] = ()) -> Figure:
    """A row per pair and temperature, a column per domain; a bar per K and engine.

    A row that holds several engines has them side by side, with the c of each.
    """
    cells, generations = load_table(tables_dir, "cells"), load_table(tables_dir, "generations")
    rows = list(_rows(cells, generations, pairs))
    columns = max(len(panels) for _, _, panels in rows)
    keys = [Patch(color=colour, label=name) for name, (_, colour) in PHASES.items()]
    keys.append(Patch(facecolor="white", edgecolor=style.INK, hatch="////", label="its baseline"))
    figure, axes = style.page(
        "Time per emitted token",
        cells,
        NOTES + [ENGINE_NOTE] * any(several for _, several, _ in rows),
        row_heights=[
            BAR_HEIGHT * max(bars[-1].y for bars in panels.values()) + 0.3 for *_, panels in rows
        ],
        columns=columns,
        row_margin=0.85,
        legend=keys,
    )
    for (facet, several, panels), row_axes in zip(rows, axes, strict=True):
        for ax in row_axes[len(panels) :]:
            ax.set_axis_off()
        totals = [sum(bar.parts.values()) for bars in panels.values() for bar in bars]
        longest = np.nanmax([0.0, *totals])
        for ax, (domain, bars) in zip(row_axes, panels.items(), strict=False):
            _draw_panel(ax, bars, longest, labelled=ax is row_axes[0])
            ax.set_title(style.wrap(domain, 80 // columns))
        facet = facet._replace(names_engine=facet.names_engine and not several)
        facet.write_heading(row_axes[0], 90 // columns)
    return figure


def _rows(
    cells: pd.DataFrame, generations: pd.DataFrame, pairs: Sequence[str]
) -> Iterator[tuple[style.Facet, bool, dict[str, list[Bar]]]]:
    """For facets that differ in the engine only: one of them, whether engines differ, the bars."""
    for _, group in groupby(style.facets(cells, pairs), key=lambda facet: facet[:3]):
        group = list(group)
        several = len(group) > 1
        domains = sorted(pd.concat([facet.select(cells) for facet in group]).domain.unique())
        panels = {}
        for domain in domains:
            found = [
                (k, facet, facet.select(cells), rows)
                for facet in group
                for k, rows in facet.select(generations[generations.domain == domain]).groupby("K")
                if k > 0
            ]
            found.sort(key=lambda entry: entry[0])
            baselines = generations[generations.domain == domain]
            panels[domain] = list(_bars(found, baselines, domain, several))
        yield group[0], several, panels


def _bars(found: list, generations: pd.DataFrame, domain: str, several: bool) -> Iterator[Bar]:
    """The bars of one panel: by K, within a K by engine, and under each its baseline."""
    for place, (k, facet, cells, rows) in enumerate(found):
        y = place * (2 + GAP)
        name = f"K = {k}" + f", {facet.engine}" * several
        costs = cells[(cells.domain == domain) & (cells.K == k)].c.dropna()
        c = costs.iloc[0] if several and len(costs) else None
        yield Bar(name, y, per_token_ms(rows), False, style.NOTHING_DECODED, c)
        baseline = style.own_baseline(facet.select_baseline(generations), k)
        why = style.NO_BASELINE if baseline.empty else style.NOTHING_DECODED
        yield Bar("baseline", y + 1, per_token_ms(baseline), True, why, None)


def per_token_ms(generations: pd.DataFrame) -> dict[str, float]:
    """ms per emitted token of each phase, which add up to the whole; NaN where none was emitted."""
    tokens = (generations.num_tokens - 1).sum()
    whole = generations.decode_s.sum() * 1e3
    parts = {name: generations[c].fillna(0).sum() for name, (c, _) in PHASES.items() if c}
    parts["other"] = whole - sum(parts.values())
    return {name: ms / tokens if tokens else np.nan for name, ms in parts.items()}


def _draw_panel(ax: Axes, bars: list[Bar], longest: float, labelled: bool) -> None:
    """`longest`: ms of the longest bar of the row, to whose scale all are drawn."""
    for bar in bars:
        end = 0.0
        look = {"hatch": "////", "edgecolor": "white", "linewidth": 0} if bar.is_baseline else {}
        for name, (_, colour) in PHASES.items():
            width = np.nan_to_num(max(bar.parts[name], 0))  # events may outlast the clock by a hair
            ax.barh(bar.y, width, 0.85, left=end, color=colour, **look)
            end += width
        total = sum(bar.parts.values())
        said = bar.empty if np.isnan(total) else f"{total:#.3g}".rstrip(".")
        beside = {"va": "center", "size": 6.5}
        ax.annotate(said, (end, bar.y), (3, 0), textcoords="offset points", **beside)
        if bar.c is not None:
            edge = ax.get_yaxis_transform()
            ax.text(1, bar.y, f"c = {bar.c:.2f}", transform=edge, ha="right", **beside)
    room = ROOM_FOR_NUMBER + ROOM_FOR_C * any(bar.c is not None for bar in bars)
    ax.set_yticks([bar.y for bar in bars], [bar.name for bar in bars] if labelled else [])
    ax.set(ylim=(bars[-1].y + 0.5, -0.5), xlim=(0, longest * room or 1))
    ax.set_xlabel("ms per emitted token")
    ax.tick_params(axis="y", length=0)
