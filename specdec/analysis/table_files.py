"""The tables of a study as files: all that figures, notebook and results read.

Reading them needs nothing of what made them, so that a figure's job starts quickly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from specdec.utils.errors import SpecdecError

FILES = {
    "generations": "generations.csv",
    "cells": "cells.csv",
    "positions": "positions.csv",
    "rounds": "rounds.csv.gz",
}


class Tables(NamedTuple):
    """The four tables."""

    generations: pd.DataFrame
    cells: pd.DataFrame
    positions: pd.DataFrame
    rounds: pd.DataFrame


def load_table(tables_dir: Path, name: str) -> pd.DataFrame:
    """One table by its name (`generations`, `cells`, `positions`, `rounds`)."""
    path = Path(tables_dir) / FILES[name]
    try:
        # Only an empty field is missing: a domain may be called NA, a pair null.
        table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=_dtypes(name))
    except FileNotFoundError:
        raise SpecdecError(f"{path}: no such table; run `snakemake --cores 1 all` first") from None
    except (ValueError, OSError, EOFError) as error:
        raise SpecdecError(f"{path}: not a table of this project ({error}); delete it") from error
    return table


def load_tables(tables_dir: Path) -> Tables:
    """All four tables of a folder."""
    return Tables(*(load_table(tables_dir, name) for name in FILES))


def _dtypes(name: str) -> dict[str, Any]:
    words = ["pair", "domain", "prompt_id", "config_hash", "acceptance", "device", "threads"]
    words += ["engine", "engine_requested", "engine_reason", "baseline_engine", "verified_by"]
    words += ["instruction_set", "draft_weights", "target_weights"]
    dtypes: dict[str, Any] = dict.fromkeys(words, "str") | {"temperature": "float"}
    if name == "generations":
        dtypes |= dict.fromkeys(["matches_baseline", "differs"], "boolean")
    return dtypes
