"""Print what a study found: a line for each cell, and where its figures are."""

from pathlib import Path

import pandas as pd

from specdec.analysis.table_files import load_table
from specdec.utils.errors import cli

TABLES = Path("results/tables")
FIGURES = Path("figures")


def interval(value: float, low: float, high: float) -> str:
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def show_cells(cells: pd.DataFrame) -> str:
    """The cells as aligned text: S and α with their 95 % intervals, and what makes up S."""
    shown = pd.DataFrame(
        {
            "pair": cells["pair"],
            "domain": cells["domain"],
            "T": cells["temperature"].map("{:g}".format),
            "K": cells["K"],
            "engine": cells["engine"],
            "n": cells["n"],
            "S": list(map(interval, cells["S"], cells["S_low"], cells["S_high"])),
            "acceptance": cells["acceptance"],
            "α": list(map(interval, cells["alpha"], cells["alpha_low"], cells["alpha_high"])),
            # What a draft of another vocabulary could reach: the target's mass on common tokens.
            "α ≤": cells["alpha_ceiling"].map(lambda ceiling: f"{ceiling:.2f}").replace("nan", "1"),
            **{name: cells[name].map("{:.2f}".format) for name in ("tau", "c", "v", "h")},
            "tokens/s": cells["tokens_per_s"].map("{:.1f}".format),
            "baseline": cells["baseline_tokens_per_s"].map("{:.1f}".format),
        }
    )
    if (cells["acceptance"] == "measured").all():
        shown = shown.drop(columns="acceptance")
    return shown.rename(columns={"tau": "τ"}).to_string(index=False)


def main() -> None:
    cells = load_table(TABLES, "cells")
    print(f"\n{show_cells(cells)}\n")
    if not cells["paired"].all():
        print("S is unpaired: the baseline was measured in another process, at another time\n")
    print(f"tables   {TABLES}/")
    for figure in sorted(FIGURES.glob("*.png")):
        print(f"figure   {figure}")


if __name__ == "__main__":
    cli(main)
