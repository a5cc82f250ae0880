"""What all figures share: page, colours, facets, the lines that say what was measured, saving."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from specdec.utils.errors import SpecdecError
from specdec.utils.files import atomic_write

WIDTH = 7.2  # inches
NOTE_SIZE = 6.5  # points
NOTE_CHARACTERS = 140  # of NOTE_SIZE in WIDTH
LINE = 0.13  # inches, of NOTE_SIZE
LEGEND_COLUMNS = 8

INK = "#222222"
BASELINE = "#555555"
NOTHING_DECODED = "no token after the first"
NO_BASELINE = "no baseline"
WARNING = "#b02a00"
RC = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "figure.constrained_layout.h_pad": 0.06,
    "svg.hashsalt": "specdec",
}
#: Decorates `draw`: what it makes has the style, what others make keeps theirs.
styled = matplotlib.rc_context(RC)


#: What tells facets apart, in the order that they stand in.
FACET = ["pair", "temperature", "acceptance", "engine", "engine_requested"]


class Facet(NamedTuple):
    """What one panel (or row of panels) shows.

    Never two pairs or engines, never forced acceptance beside measured.
    """

    pair: str
    temperature: float
    acceptance: str
    engine: str
    engine_requested: str
    names_engine: bool  # whether the heading does

    def select(self, table: pd.DataFrame) -> pd.DataFrame:
        """The facet's rows of a table."""
        return _where(table, **{name: getattr(self, name) for name in FACET})

    def select_baseline(self, table: pd.DataFrame) -> pd.DataFrame:
        """The baseline's rows (K = 0), where it has none of its own those measured elsewhere."""
        names = ("pair", "temperature", "engine_requested")
        rows = _where(table, K=0, **{name: getattr(self, name) for name in names})
        own = rows[rows.acceptance == self.acceptance]
        return own if len(own) else rows

    def write_heading(self, ax: Axes, characters: int) -> None:
        """The facet's name, wrapped, over the left end of `ax` and over its title if it has one."""
        drawing = "greedy" if self.temperature == 0 else f"T = {self.temperature:g}"
        text = f"{self.pair}, {drawing}"
        if self.names_engine:
            text += f", {self.engine}"
        text = wrap(text, characters)
        title_lines = ax.get_title().count("\n") + 1 if ax.get_title() else 0
        synthetic = self.acceptance != "measured"
        if synthetic:
            rate = self.acceptance.split()[-1]
            text += "\n" + wrap(f"SYNTHETIC ACCEPTANCE {rate}", characters)
        ax.annotate(
            text,
            (0, 1),
            (0, 4 + 4 * (title_lines > 0) + 10 * title_lines),  # points
            xycoords="axes fraction",
            textcoords="offset points",
            va="bottom",
            weight="bold",
            color=WARNING if synthetic else INK,
        )


def _where(table: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The rows of a table that have these values."""
    return table[np.logical_and.reduce([table[name] == value for name, value in values.items()])]


def wrap(text: str, characters: int) -> str:
    """The text on lines of at most so many characters, names broken after _ - / where possible."""
    lines = [""]
    for word in re.findall(r"[^\s_/-]*[\s_/-]*", text):
        if lines[-1] and len(lines[-1]) + len(word.rstrip()) > characters:
            lines.append("")
        lines[-1] += word
        while len(lines[-1].rstrip()) > characters:
            lines[-1:] = [lines[-1][:characters], lines[-1][characters:]]
    return "\n".join(line.rstrip() for line in lines)


def facets(cells: pd.DataFrame, pairs: Sequence[str] = ()) -> list[Facet]:
    """All facets of a study: `pairs` in their order, others behind them by name.

    Raises SpecdecError where there is no cell to draw.
    """
    if cells.empty:
        raise SpecdecError("no speculative run in the tables: nothing to draw; decode a K >= 1")
    engines = cells[["engine", "engine_requested"]].drop_duplicates()
    keys = cells[FACET].drop_duplicates().itertuples(index=False)
    found = sorted(Facet(*key, names_engine=len(engines) > 1) for key in keys)
    place = {pair: i for i, pair in enumerate(pairs)}
    return sorted(found, key=lambda facet: place.get(facet.pair, len(place)))


def own_baseline(baselines: pd.DataFrame, k: int) -> pd.DataFrame:
    """Those rows of baselines that K is compared with: of its own job where it is paired."""
    own = baselines[baselines.job_K == k]
    return own if len(own) else baselines[baselines.job_K == 0]


def say_empty(ax: Axes, why: str) -> None:
    """Say in an empty panel why it is."""
    middle = {"ha": "center", "va": "center", "size": 7, "color": INK}
    ax.text(0.5, 0.5, wrap(why, 24), transform=ax.transAxes, **middle)


def colours_of_k(cells: pd.DataFrame) -> dict[int, tuple]:
    """A colour for each K of the study, ordered from dark to light."""
    ks = sorted(int(k) for k in cells.K.unique())
    places = np.linspace(0, 1, len(ks) + 2)[1:-1]  # without the darkest and the lightest
    return {k: matplotlib.colormaps["viridis"](place) for k, place in zip(ks, places, strict=True)}


def page(
    title: str,
    cells: pd.DataFrame,
    notes: Iterable[str],
    *,
    row_heights: list[float],
    columns: int,
    row_margin: float,
    extra_height: float = 0.1,
    legend: Sequence[Artist] = (),
    sharey: bool = False,
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes [rows, columns], with title, legend and the lines that explain it.

    Heights in inches: of the axes of each row, of the labels around a row, and of what else stands
    once in the figure, as a colour bar does.
    """
    text = "\n".join(wrap(line, NOTE_CHARACTERS) for line in [*notes, *provenance(cells)])
    head, foot = (
        0.32 + 0.18 * math.ceil(len(legend) / LEGEND_COLUMNS),
        LINE * (text.count("\n") + 1) + 0.16,
    )
    height = head + foot + sum(row_heights) + row_margin * len(row_heights) + extra_height
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(rect=(0.005, foot / height, 0.985, 1 - (head + foot) / height))
    figure.text(0.1 / WIDTH, 1 - 0.1 / height, title, size=10, weight="bold", va="top")
    footer = figure.text(0.1 / WIDTH, 0.08 / height, text, va="bottom")
    footer.set(size=NOTE_SIZE, color=INK, linespacing=LINE * 72 / NOTE_SIZE / 1.16)
    if legend:
        corner = (0.04 / WIDTH, 1 - 0.27 / height)
        figure.legend(
            handles=legend, loc="upper left", bbox_to_anchor=corner, ncols=LEGEND_COLUMNS
        ).set_in_layout(False)
    axes = figure.subplots(
        len(row_heights),
        columns,
        squeeze=False,
        sharey=sharey,
        height_ratios=row_heights,
    )
    return figure, axes


def provenance(cells: pd.DataFrame) -> list[str]:
    """Sentences that say on what, with what and how often the cells were measured."""
    machine = ["device", "threads", "instruction_set"]
    machines = cells[machine].fillna("").drop_duplicates().sort_values(machine)
    devices = [_device(*m) for m in machines.itertuples(index=False)]
    engines, dtypes, weights = [], [], []
    told = cells.assign(baseline_engine=cells.baseline_engine.fillna(cells.engine))
    for row in told.fillna({"engine_reason": ""}).itertuples():
        engine = row.engine
        if row.baseline_engine != row.engine:
            engine += f", its baseline {row.baseline_engine}"
        engines.append(f"{engine}, {row.engine_reason}" if row.engine_reason else engine)
        dtypes.append(f"draft {row.draft_dtype}, target {row.target_dtype}")
        sides = {"draft": row.draft_weights, "target": row.target_weights}
        told_of = [f"{side}: {text}" for side, text in sides.items() if pd.notna(text) and text]
        weights.append(", ".join(told_of))
    counts = f"{cells.n.min()}" if cells.n.nunique() == 1 else f"{cells.n.min()} to {cells.n.max()}"
    baseline = "paired (same prompts, same process, alternating order)"
    if not cells.paired.all():
        unpaired = sorted(cells[~cells.paired].pair.unique())
        every = not cells.paired.any()
        baseline = "UNPAIRED" if every else f"{baseline}, but UNPAIRED for {', '.join(unpaired)}"
    return [
        f"Device: {'; '.join(devices)}. Engine: {_by_pair(engines, cells.pair)}.",
        f"Dtypes: {_by_pair(dtypes, cells.pair)}.",
        *([f"Weights: {_by_pair(weights, cells.pair)}."] if any(weights) else []),
        f"Prompts: {_listed(cells.prompt_source)}; n = {counts} per cell. Baseline: {baseline}.",
    ]


#: As people write them.
INSTRUCTION_SETS = {"avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON", "generic": "no vectors"}


def _device(device: str, threads: str, instruction_sets: str) -> str:
    """`EPYC (1 thread, AVX2)`; a mixture of instruction sets is named as such."""
    counted = "1 thread" if threads == "1" else f"{threads} threads"
    named = [INSTRUCTION_SETS.get(name, name) for name in instruction_sets.split("; ") if name]
    if len(named) > 1:
        named = [f"MIXED: {' and '.join(named)}"]
    return f"{device} ({', '.join([counted, *named])})"


def _by_pair(facts: list[str], pairs: pd.Series) -> str:
    """Each fact once, with the pairs that it holds for where that is not all of them.

    An empty fact is none.
    """
    holds: dict[str, dict[str, None]] = {}
    for fact, pair in zip(facts, pairs, strict=True):
        if fact:
            holds.setdefault(fact, {})[pair] = None
    return "; ".join(
        fact if len(names) == pairs.nunique() else f"{fact} ({'; '.join(names)})"
        for fact, names in holds.items()
    )


def _listed(values: pd.Series) -> str:
    return ", ".join(sorted({part for value in values.astype(str) for part in value.split("; ")}))


def log_axis_ms(ax: Axes) -> None:
    """A logarithmic x axis whose ticks are plain numbers, at 1, 2 and 5 of every decade."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def save(figure: Figure, png: Path, svg: Path) -> None:
    """Write both files, each whole or not at all; the same figure gives the same bytes."""
    for path, settings in (
        (Path(png), {"format": "png", "dpi": 200, "metadata": {"Software": None}}),
        (Path(svg), {"format": "svg", "metadata": {"Date": None}}),
    ):
        data = io.BytesIO()
        with matplotlib.rc_context(RC):
            figure.savefig(data, **settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.buffer.write(data.getvalue())
