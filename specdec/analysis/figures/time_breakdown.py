"""Where the time of an emitted token goes: draft, verify, sampling, other; the baseline beside."""

from __future__ import annotations

from pathlib import Path

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
#: Of Okabe and Ito's palette, which colour-blind readers can tell apart; dark and light take turns.
PHASES = {
    "draft": ("draft_ms", "#56b4e9"),
    "verify": ("verify_ms", "#0072b2"),
    "sampling": ("sample_ms", "#e69f00"),
    "other": (None, "#999999"),
}
ROOM_FOR_NUMBER = 0.2  # of the longest bar
OWN_BASELINE = {"color": "black", "markersize": 8, "markeredgewidth": 1.5}


@style.styled
def draw(tables_dir: Path) -> Figure:
    """A row per pair and temperature, a column per domain; a bar per K."""
    cells, generations = load_table(tables_dir, "cells"), load_table(tables_dir, "generations")
    rows = []
    for facet in style.facets(cells):
        here = pd.concat(
            [facet.select_baseline(generations), facet.select(generations[generations.K > 0])]
        )
        rows.append((facet, here, sorted(facet.select(cells).domain.unique())))
    columns = max(len(domains) for _, _, domains in rows)
    keys = [Patch(color=colour, label=name) for name, (_, colour) in PHASES.items()]
    keys.append(Line2D([], [], **OWN_BASELINE, marker="|", linestyle="none", label="its baseline"))
    figure, axes = style.page(
        "Time per emitted token",
        cells,
        NOTES,
        row_heights=[0.2 * here.K.nunique() + 0.1 for _, here, _ in rows],
        columns=columns,
        row_margin=0.85,
        legend=keys,
    )
    for (facet, here, domains), row_axes in zip(rows, axes, strict=True):
        for ax in row_axes[len(domains) :]:
            ax.set_axis_off()
        used = row_axes[: len(domains)]
        for ax, domain in zip(used, domains, strict=True):
            _draw_panel(ax, here[here.domain == domain], labelled=ax is used[0])
            ax.set_title(style.wrap(domain, 80 // columns))
        longest = max(ax.get_xlim()[1] for ax in used)
        for ax in used:
            ax.set_xlim(0, longest)
        facet.write_heading(row_axes[0], 90 // columns)
    return figure


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


def _draw_panel(ax: Axes, generations: pd.DataFrame, labelled: bool) -> None:
    ks = sorted(generations.K.unique())
    bars = [per_token_ms(generations[generations.K == k]) for k in ks]
    own = [own_baseline_ms(generations, k) if k else np.nan for k in ks]
    longest = np.nanmax([*(sum(parts.values()) for parts in bars), *own, 0.0])
    for y, (parts, baseline) in enumerate(zip(bars, own, strict=True)):
        end = 0.0
        for name, (_, colour) in PHASES.items():
            width = np.nan_to_num(max(parts[name], 0))  # events may outlast the clock by a hair
            ax.barh(y, width, 0.75, left=end, color=colour)
            end += width
        ax.plot(baseline, y, **OWN_BASELINE, marker="|")
        total = sum(parts.values())
        said = "no token" if np.isnan(total) else f"{total:#.3g}".rstrip(".")
        if end - 0.02 * longest < baseline < end + ROOM_FOR_NUMBER * longest:
            end = baseline  # the line stands where the number would
        ax.annotate(said, (end, y), (3, 0), textcoords="offset points", va="center", size=6.5)
    names = ["baseline" if k == 0 else f"K = {k}" for k in ks]
    ax.set_yticks(range(len(ks)), names if labelled else [])
    ax.set(ylim=(len(ks) - 0.5, -0.5), xlim=(0, longest * 1.22 or 1))
    ax.set_xlabel("ms per emitted token")
    ax.tick_params(axis="y", length=0)
