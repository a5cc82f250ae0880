"""Tidy tables made of records, and read back: the only thing that figures and notebook read.

generations.csv   a row per generation          positions.csv   a row per cell and draft position
cells.csv         a row per cell                rounds.csv.gz   a row per hand-over after the first

Columns ending in `_s` are seconds, in `_ms` milliseconds. The bytes depend on the records alone.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from specdec.analysis.cells import cells_table, find_baselines, positions_table
from specdec.analysis.statistics import ratio
from specdec.profiling.metrics import GenerationResult
from specdec.profiling.records import read_records
from specdec.utils.errors import SpecdecError
from specdec.utils.files import atomic_write

FILES = {
    "generations": "generations.csv",
    "cells": "cells.csv",
    "positions": "positions.csv",
    "rounds": "rounds.csv.gz",
}
#: What names one generation among all of a table: what was asked for, the engine with it.
GENERATION = ["pair", "domain", "temperature", "acceptance", "engine_requested", "job_K"]
GENERATION += ["prompt_id", "K"]
#: Columns that the tables are computed from but do not hold.
INTERNAL = ["file", "generated_ids", "steps", "decode_ms", "accepted_per_round"]
INTERNAL += ["proposed_per_round", "round_tokens", "round_times"]
#: Ten digits: beyond any clock, and short of the last bits, which differ between processors.
FLOAT_FORMAT = "%.10g"


class Tables(NamedTuple):
    """The four tables."""

    generations: pd.DataFrame
    cells: pd.DataFrame
    positions: pd.DataFrame
    rounds: pd.DataFrame


def write_tables(run_files: list[Path], out_dir: Path) -> None:
    """Read all records of the run files and write the four tables, each whole or not at all.

    Raises SpecdecError on a broken record, and where two records measured the same generation.
    """
    tables = make_tables(run_files)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, table in tables._asdict().items():
        text = table.to_csv(index=False, float_format=FLOAT_FORMAT, lineterminator="\n")
        data = text.encode()
        if FILES[name].endswith(".gz"):
            data = gzip.compress(data, mtime=0)
        with atomic_write(out_dir / FILES[name]) as file:
            file.buffer.write(data)


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
    words += ["engine", "engine_requested", "engine_reason", "baseline_engine"]
    dtypes: dict[str, Any] = dict.fromkeys(words, "str") | {"temperature": "float"}
    if name == "generations":
        dtypes["matches_baseline"] = "boolean"
    return dtypes


def make_tables(run_files: list[Path]) -> Tables:
    """The four tables of the records in `run_files`, as frames."""
    records = []
    for path in sorted(map(Path, run_files)):
        records += _labelled_records(path)
    if not records:
        raise SpecdecError("no records to make tables of: the run files are empty")
    rows = [_generation_row(record) for record in records]
    generations = pd.DataFrame(rows).sort_values(GENERATION, kind="stable")
    _refuse_duplicates(generations)
    generations["matches_baseline"] = _matches_baseline(generations)
    return Tables(
        generations=generations.drop(columns=INTERNAL),
        cells=cells_table(generations),
        positions=positions_table(generations),
        rounds=_rounds_table(generations),
    )


def _labelled_records(path: Path) -> list[dict[str, Any]]:
    """The records of one run, each with its file and whether its acceptance is real.

    A baseline belongs to the run it was measured in: beside forced acceptance it counts as such.
    """
    records = read_records(path)
    try:
        forced = {record["synthetic_acceptance"] for record in records} - {None}
        for record in records:
            rate = record["synthetic_acceptance"]
            if rate is None and len(forced) == 1:
                (rate,) = forced
            record["file"] = str(path)
            record["acceptance"] = "measured" if rate is None else f"synthetic {rate:g}"
    except KeyError as error:
        raise SpecdecError(_missing(path, error)) from error
    return records


def _missing(path: Path | str, error: KeyError) -> str:
    return f"{path}: a record without {error}; delete the file to measure again"


def _generation_row(record: dict[str, Any]) -> dict[str, Any]:
    result = GenerationResult.from_dict(record)
    phases = result.phase_times_ms or {}
    accepted, proposed = result.accepted_per_round or [], result.proposed_per_round or []
    speculative, timed = record["K"] > 0, bool(phases)
    rounds = len(accepted) if speculative else None
    draft, verify, sample = (phases.get(name, 0.0) for name in ("draft", "verify", "sample"))
    other = result.decode_time * 1e3 - draft - verify - sample
    try:
        return {
            **{name: record[name] for name in ("pair", "domain", "K", "job_K", "temperature")},
            "prompt_id": record["prompt_id"],
            "config_hash": record["config_hash"],
            "paired": record["paired"],
            "prompt_tokens": record["prompt_tokens"],
            "num_tokens": result.num_tokens,
            "total_s": result.total_time,
            "ttft_s": result.time_to_first_token,
            "decode_s": result.decode_time,
            "accepted": sum(accepted) if speculative else None,
            "proposed": sum(proposed) if speculative else None,
            "rounds": rounds,
            "alpha": ratio(sum(accepted), sum(proposed)) if speculative else None,
            "alpha_ceiling": result.alpha_ceiling,
            "tau": ratio(result.num_tokens - 1, rounds) if speculative else None,
            "draft_ms": draft if timed else None,
            "verify_ms": verify if timed else None,
            "sample_ms": sample if timed else None,
            "prefill_ms": phases.get("prefill"),
            "other_ms": other if timed else None,
            "peak_memory_mb": result.peak_memory_mb,
            "energy_j": (result.gpu or {}).get("energy_j"),
            "finish_reason": result.finish_reason,
            "engine": result.engine,
            "engine_requested": record["engine_requested"],
            "engine_reason": result.engine_reason,
            "matches_baseline": None,
            "prompt_source": record["prompt_source"],
            "draft_dtype": record["draft_dtype"],
            "target_dtype": record["target_dtype"],
            "vocabulary": result.vocabulary_match,
            "coupled": record["coupled"],
            "device": record["environment"].get("device"),
            "threads": record["environment"].get("threads"),
            "acceptance": record["acceptance"],
            "file": record["file"],
            "generated_ids": result.generated_ids,
            "steps": result.num_tokens - 1,
            "decode_ms": result.decode_time * 1e3,
            "accepted_per_round": accepted,
            "proposed_per_round": proposed,
            "round_tokens": result.round_tokens,
            "round_times": result.round_times,
        }
    except KeyError as error:
        raise SpecdecError(_missing(record["file"], error)) from error


def _refuse_duplicates(generations: pd.DataFrame) -> None:
    """Two measurements of one generation would be averaged silently, perhaps of two machines."""
    twice = generations[generations.duplicated(GENERATION, keep=False)]
    if len(twice):
        row = twice.iloc[0]
        files = " and ".join(dict.fromkeys(twice.file.iloc[:2]))
        raise SpecdecError(
            f"{files}: {row.pair}, {row.domain}, T={row.temperature:g}, K={row.K}, engine "
            f"{row.engine_requested}, {row.prompt_id} was measured twice; make tables of one run "
            "at a time"
        )


def _matches_baseline(generations: pd.DataFrame) -> pd.Series:
    """Whether a speculative output equals its prompt's baseline, where it must: greedy or coupled.

    Empty for the others, for forced acceptance (which changes the output) and without a baseline.
    """
    found = find_baselines(generations)
    must = (found.temperature == 0) | found.coupled.astype(bool)
    found = found[must & (found.acceptance == "measured") & found.baseline.notna()]
    theirs = generations.generated_ids.loc[found.baseline.astype(int)]
    equal = np.array([a == b for a, b in zip(found.generated_ids, theirs, strict=True)], dtype=bool)
    column = pd.Series(pd.NA, index=generations.index, dtype="boolean")
    column.loc[found.index] = equal
    return column


def _rounds_table(generations: pd.DataFrame) -> pd.DataFrame:
    """One row per hand-over after the first: its number from 1, tokens and seconds."""
    names = ["pair", "domain", "temperature", "K", "job_K", "engine", "prompt_id"]
    names += ["engine_requested", "acceptance"]
    counts = generations.round_times.map(len)
    rounds = generations.loc[generations.index.repeat(counts), names].reset_index(drop=True)
    columns = {
        "round": [np.arange(1, count + 1) for count in counts],
        "tokens": generations.round_tokens,
        "seconds": generations.round_times,
    }
    for place, (name, parts) in enumerate(columns.items(), start=names.index("engine_requested")):
        values = np.concatenate([np.empty(0), *parts])
        rounds.insert(place, name, values if name == "seconds" else values.astype(int))
    return rounds
