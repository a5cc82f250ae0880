"""Print what a study found: a line for each cell, what is wrong, and where its figures are."""

from pathlib import Path

import pandas as pd

from specdec.analysis.table_files import load_table
from specdec.utils.errors import cli
from specdec.utils.table import aligned

TABLES = Path("results/tables")
FIGURES = Path("figures")


def interval(value: float, low: float, high: float) -> str:
    if pd.isna(value):
        return "–"
    return f"{value:.2f}" if pd.isna(low) else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def show_cells(cells: pd.DataFrame) -> str:
    """The cells as aligned text: S and α with their 95 % intervals, and what makes up S.

    A star marks the best K of several, with the interval that knows that it was chosen.
    """
    named = ["pair", "domain", "T", "K", "engine"]
    forced = not (cells["acceptance"] == "measured").all()
    heading = [*named, "n", "S", *["acceptance"] * forced, "α", "α ≤", "τ", "c", "v", "h"]
    rows = [[*heading, "tokens/s", "baseline"]]
    for cell in cells.itertuples():
        ends = (cell.S_best_low, cell.S_best_high) if cell.best else (cell.S_low, cell.S_high)
        parts = [cell.tau, cell.c, cell.v, cell.h]
        rates = [cell.tokens_per_s, cell.baseline_tokens_per_s]
        rows.append(
            [cell.pair, cell.domain, f"{cell.temperature:g}", cell.K, cell.engine, cell.n]
            + ["*" * cell.best + interval(cell.S, *ends)]
            + [cell.acceptance] * forced
            + [interval(cell.alpha, cell.alpha_low, cell.alpha_high)]
            # What a draft of another vocabulary could reach: the target's mass on common tokens.
            + ["1" if pd.isna(cell.alpha_ceiling) else f"{cell.alpha_ceiling:.2f}"]
            + ["–" if pd.isna(part) else f"{part:.2f}" for part in parts]
            + ["–" if pd.isna(rate) else f"{rate:.1f}" for rate in rates]
        )
    return aligned(rows, words=len(named))


def remarks(cells: pd.DataFrame) -> list[str]:
    """What the figures of the cells don't say of themselves."""
    said = []
    if cells["best"].any():
        said.append("* the best of several K; its interval is wider, as it was chosen for its S")
    if not cells["paired"].all():
        said.append("S is unpaired: the baseline was measured in another process, at another time")
    for cell in cells[cells["differing"] > 0].itertuples():
        said.append(
            f"NOT THE BASELINE'S OUTPUT: {cell.pair}, {cell.domain}, T = {cell.temperature:g}, "
            f"K = {cell.K}, {cell.engine}: {cell.differing:.0f} of {cell.n} prompts, though "
            f"verified by {cell.verified_by}, which promises the same tokens; no near tie explains "
            "it (column `differs` of results/tables/generations.csv)"
        )
    for cell in cells[cells["S"].isna()].itertuples():
        why = "no baseline" if pd.isna(cell.baseline_engine) else "no token after the first"
        said.append(
            f"no S: {cell.pair}, {cell.domain}, T = {cell.temperature:g}, K = {cell.K}: {why}"
        )
    return said


def main() -> None:
    cells = load_table(TABLES, "cells")
    print(f"\n{show_cells(cells)}\n")
    for remark in remarks(cells):
        print(f"{remark}\n")
    print(f"tables   {TABLES}/")
    for figure in sorted(FIGURES.glob("*.png")):
        print(f"figure   {figure}")


if __name__ == "__main__":
    cli(main)
