"""Tidy tables made of records; read back by `table_files`.

generations.csv   a row per generation          positions.csv   a row per cell and draft position
cells.csv         a row per cell                rounds.csv.gz   a row per hand-over after the first

Columns ending in `_s` are seconds, in `_ms` milliseconds. The bytes depend on the records alone.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from specdec.analysis.cells import cells_table, find_baselines, positions_table
from specdec.analysis.statistics import ratio
from specdec.analysis.study_records import AGAIN, Record, read_study
from specdec.analysis.table_files import FILES, Tables
from specdec.analysis.table_files import load_table as load_table  # whoever makes tables reads them
from specdec.analysis.table_files import load_tables as load_tables
from specdec.profiling.metrics import SAME_TOKENS, GenerationResult, first_difference
from specdec.utils.errors import SpecdecError
from specdec.utils.files import atomic_write

#: What names one generation among all of a table: what was asked for, the engine with it.
GENERATION = ["pair", "domain", "temperature", "acceptance", "engine_requested", "job_K"]
GENERATION += ["prompt_id", "K"]
#: Columns that the tables are computed from but do not hold.
INTERNAL = ["file", "generated_ids", "steps", "near_ties", "accepted_per_round"]
INTERNAL += ["proposed_per_round", "round_tokens", "round_times"]
#: Ten digits: beyond any clock, and short of the last bits, which differ between processors.
FLOAT_FORMAT = "%.10g"


def write_tables(run_files: list[Path], out_dir: Path) -> None:
    """Read all records of the run files and write the four tables, each whole or not at all.

    Raises SpecdecError on records that are broken, not whole, or not of one study, and where two
    measured the same generation.
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


def make_tables(run_files: list[Path]) -> Tables:
    """The four tables of the records in `run_files`, as frames."""
    rows = [_generation_row(record) for record in read_study(run_files)]
    generations = pd.DataFrame(rows).sort_values(GENERATION, kind="stable")
    _refuse_duplicates(generations)
    generations = _compare_with_baselines(generations)
    return Tables(
        generations=generations.drop(columns=INTERNAL),
        cells=cells_table(generations),
        positions=positions_table(generations),
        rounds=_rounds_table(generations),
    )


def _generation_row(record: Record) -> dict[str, Any]:
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
            "instruction_set": record["environment"].get("instruction_set"),
            "draft_weights": record.get("draft_weights"),
            "target_weights": record.get("target_weights"),
            "acceptance": record["acceptance"],
            "verified_by": result.verified_by or _rule_of(record),
            "file": record["file"],
            "generated_ids": result.generated_ids,
            "steps": result.num_tokens - 1,
            "near_ties": result.near_ties or [],
            "accepted_per_round": accepted,
            "proposed_per_round": proposed,
            "round_tokens": result.round_tokens,
            "round_times": result.round_times,
        }
    except KeyError as error:
        raise SpecdecError(f"{record['file']}: a record without {error}; {AGAIN}") from error


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


def _rule_of(record: Record) -> str | None:
    """By which rule a record was verified that doesn't say it: one of an earlier version."""
    if not record["K"]:
        return None
    if record["synthetic_acceptance"] is not None:
        return "forced"
    if record["temperature"] == 0:
        return "greedy"
    if record["coupled"]:
        return "coupled"
    return "matching" if record.get("drafter") == "ExactMatchDraft" else "rejection"


def _compare_with_baselines(generations: pd.DataFrame) -> pd.DataFrame:
    """The generations with two columns that hold where a rule promises the baseline's tokens.

    `matches_baseline`: whether it is them; `differs`: whether it isn't, and leaves them at a place
    that no near tie explains. Empty for other rules, and without a baseline.
    """
    found = find_baselines(generations)
    found = found[found.verified_by.isin(SAME_TOKENS) & found.baseline.notna()]
    theirs = generations.generated_ids.loc[found.baseline.astype(int)]
    equal, differs = [], []
    for ours, their_ids in zip(found.itertuples(), theirs, strict=True):
        equal.append(ours.generated_ids == their_ids)
        parting = first_difference(ours.generated_ids, their_ids)
        differs.append(parting is not None and parting not in ours.near_ties)
    for name, values in (("matches_baseline", equal), ("differs", differs)):
        column = pd.Series(pd.NA, index=generations.index, dtype="boolean")
        column.loc[found.index] = np.array(values, dtype=bool)
        generations[name] = column
    return generations


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
