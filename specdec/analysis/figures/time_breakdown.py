"""Where the time of an emitted token goes: draft, verify, sampling, other; the baseline beside."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from specdec.analysis.figures import style
from specdec.analysis.tables import load_table

NOTES = [
    "Decoding time ÷ emitted tokens, prefill and the first token left out; number: total. "
    "Verify: passes of the target, the baseline's single steps too. Other: the rest of the clock; "
    "all of it where phases were not timed. Baseline bar: all its measurements together; black "
    "line: the baseline that this K is compared with, measured along with it where paired.",
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
ROOM_FOR_NUMBER = 0.2  # of the longest bar
ROOM_FOR_C = 0.35  # the same, at the right edge
GAP = 0.4  # of a bar's room, between the bars of one K and the next
OWN_BASELINE = {"color": "black", "markersize": 8, "markeredgewidth": 1.5}


class Bar(NamedTuple):
    """One bar: how far down it stands, in bars; its parts and its baseline, in ms per token."""

    name: str
    y: float
    parts: dict[str, float]
    baseline: float
    c: float | None  # where it is to be shown


@style.styled
def draw(tables_dir: Path) -> Figure:
    """A row per pair and temperature, a column per domain; a bar per K and engine.

    A row that holds several engines has them side by side, bar by bar, with the c of each.
    """
    cells, generations = load_table(tables_dir, "cells"), load_table(tables_dir, "generations")
    rows = list(_rows(cells, generations))
    columns = max(len(panels) for _, _, panels in rows)
    keys = [Patch(color=colour, label=name) for name, (_, colour) in PHASES.items()]
    keys.append(Line2D([], [], **OWN_BASELINE, marker="|", linestyle="none", label="its baseline"))
    figure, axes = style.page(
        "Time per emitted token",
        cells,
        NOTES + [ENGINE_NOTE] * any(several for _, several, _ in rows),
        row_heights=[
            0.2 * max(bars[-1].y for bars in panels.values()) + 0.3 for *_, panels in rows
        ],
        columns=columns,
        row_margin=0.85,
        legend=keys,
    )
    for (facet, several, panels), row_axes in zip(rows, axes, strict=True):
        for ax in row_axes[len(panels) :]:
            ax.set_axis_off()
        row = [bar for bars in panels.values() for bar in bars]
        longest = np.nanmax([0.0] + [max(sum(bar.parts.values()), bar.baseline) for bar in row])
        for ax, (domain, bars) in zip(row_axes, panels.items(), strict=False):
            _draw_panel(ax, bars, longest, labelled=ax is row_axes[0])
            ax.set_title(style.wrap(domain, 80 // columns))
        facet = facet._replace(names_engine=facet.names_engine and not several)
        facet.write_heading(row_axes[0], 90 // columns)
    return figure


def _rows(
    cells: pd.DataFrame, generations: pd.DataFrame
) -> Iterator[tuple[style.Facet, bool, dict[str, list[Bar]]]]:
    """For facets that differ in the engine only: one of them, whether engines differ, the bars."""
    for _, group in groupby(style.facets(cells), key=lambda facet: facet[:3]):
        group = list(group)
        ours = pd.concat([facet.select(cells) for facet in group])
        parts = [facet.select_baseline(generations) for facet in group]
        here = pd.concat([*parts, *(facet.select(generations) for facet in group)])
        here = here[~here.index.duplicated()]
        several = len(here[["engine", "engine_requested"]].drop_duplicates()) > 1
        panels = {
            domain: _bars(here[here.domain == domain], ours[ours.domain == domain], several)
            for domain in sorted(ours.domain.unique())
        }
        yield group[0], several, panels


def per_token_ms(generations: pd.DataFrame) -> dict[str, float]:
    """ms per emitted token of each phase, which add up to the whole; NaN where none was emitted."""
    tokens = (generations.num_tokens - 1).sum()
    whole = generations.decode_s.sum() * 1e3
    parts = {name: generations[c].fillna(0).sum() for name, (c, _) in PHASES.items() if c}
    parts["other"] = whole - sum(parts.values())
    return {name: ms / tokens if tokens else np.nan for name, ms in parts.items()}


def own_baseline_ms(generations: pd.DataFrame, k: int) -> float:
    """ms per emitted token of the baseline that K is compared with; NaN where there is none."""
    baseline = generations[generations.K == 0]
    own = baseline[baseline.job_K == k]
    return sum(per_token_ms(own if len(own) else baseline[baseline.job_K == 0]).values())


def _bars(generations: pd.DataFrame, cells: pd.DataFrame, several: bool) -> list[Bar]:
    """The bars of one panel, by K, and within a K by engine; `several` names the engines."""
    costs = cells.set_index(["K", "engine", "engine_requested"]).c.dropna() if several else {}
    bars = []
    for place, (k, of_k) in enumerate(generations.groupby("K")):
        for (engine, requested), rows in of_k.groupby(["engine", "engine_requested"]):
            name = "baseline" if k == 0 else f"K = {k}"
            name += f", {engine}" * several
            asked = generations[generations.engine_requested == requested]
            baseline = own_baseline_ms(asked, k) if k else np.nan
            y, c = len(bars) + GAP * place * several, costs.get((k, engine, requested))
            bars.append(Bar(name, y, per_token_ms(rows), baseline, c))
    return bars


def _draw_panel(ax: Axes, bars: list[Bar], longest: float, labelled: bool) -> None:
    """`longest`: ms of the longest bar or baseline of the row, to whose scale all are drawn."""
    for bar in bars:
        end = 0.0
        for name, (_, colour) in PHASES.items():
            width = np.nan_to_num(max(bar.parts[name], 0))  # events may outlast the clock by a hair
            ax.barh(bar.y, width, 0.75, left=end, color=colour)
            end += width
        ax.plot(bar.baseline, bar.y, **OWN_BASELINE, marker="|")
        total = sum(bar.parts.values())
        said = "no token" if np.isnan(total) else f"{total:#.3g}".rstrip(".")
        if end - 0.02 * longest < bar.baseline < end + ROOM_FOR_NUMBER * longest:
            end = bar.baseline  # the line stands where the number would
        beside = {"va": "center", "size": 6.5}
        ax.annotate(said, (end, bar.y), (3, 0), textcoords="offset points", **beside)
        if bar.c is not None:
            edge = ax.get_yaxis_transform()
            ax.text(1, bar.y, f"c = {bar.c:.2f}", transform=edge, ha="right", **beside)
    room = 1.22 + ROOM_FOR_C * any(bar.c is not None for bar in bars)
    ax.set_yticks([bar.y for bar in bars], [bar.name for bar in bars] if labelled else [])
    ax.set(ylim=(bars[-1].y + 0.5, -0.5), xlim=(0, longest * room or 1))
    ax.set_xlabel("ms per emitted token")
    ax.tick_params(axis="y", length=0)
