"""The cells of a study: what the generations of one pair, domain, temperature, K and engine say.

A cell's numbers are ratios of totals over its prompts, never means of ratios. "Decode" leaves out
the prefill and the first token, which it gives; a *step* is one decoding step of the baseline.
What each column means stands in docs/tables.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from specdec.analysis import theory
from specdec.analysis.statistics import (
    FEWEST_VALUES,
    LEVEL,
    Estimate,
    acceptance_interval,
    estimate,
    proportion_interval,
    quantile_interval,
    quantiles,
    ratio,
)

#: What names a cell. Forced ("synthetic") acceptance is never in one cell with measured, and one
#: engine never with another: `engine` is the path really taken, `engine_requested` the one asked
#: for, which may be `auto`.
CELL = ["pair", "domain", "temperature", "K", "engine", "engine_requested", "acceptance"]
#: Cells that differ in K alone, of which one is the best.
ROW = [name for name in CELL if name != "K"]
#: What a cell was measured with; several values are listed, separated by "; ".
SETTING = ["prompt_source", "draft_dtype", "target_dtype", "vocabulary", "coupled"]
SETTING += ["device", "threads", "instruction_set", "draft_weights", "target_weights"]
#: Of one generation; totals of them make all figures of time. The first weighs a prompt.
AMOUNTS = ["steps", "decode_s", "num_tokens", "total_s", "rounds", "draft_ms", "verify_ms"]

COLUMNS = ["pair", "domain", "temperature", "K", "engine", "n", "paired", "S", "S_low", "S_high"]
COLUMNS += ["S_end_to_end", "S_end_to_end_low", "S_end_to_end_high"]
COLUMNS += ["alpha", "alpha_low", "alpha_high", "alpha_ceiling", "alpha_iid", "tau"]
COLUMNS += ["c", "v", "h", "h0"]
COLUMNS += ["S_theory", "S_parts", "tokens_per_s", "baseline_tokens_per_s"]
COLUMNS += ["p50_ms", "p95_ms", "p99_ms", "peak_memory_mb", "identical", *SETTING]
COLUMNS += ["engine_requested", "engine_reason", "baseline_engine", "acceptance"]
ESTIMATED = ["tau", "c", "v", "h", "h0", "tokens_per_s", "baseline_tokens_per_s"]
ESTIMATED += ["p50_ms", "p95_ms", "p99_ms"]
COLUMNS += [f"{name}_{end}" for name in ESTIMATED for end in ("low", "high")]
COLUMNS += ["best", "S_best_low", "S_best_high", "differing", "verified_by"]
COLUMNS += ["joules_per_token", "baseline_joules_per_token"]

Totals = dict[str, np.ndarray]  # of each of AMOUNTS


def find_baselines(generations: pd.DataFrame) -> pd.DataFrame:
    """The speculative generations with a column `baseline`: the index of the baseline's row.

    That of the same prompt and the engine asked for, from the same run where the run is paired,
    else from the baseline's own job; NaN where there is none.
    """
    baselines = generations[generations.K == 0]
    prompt = ["pair", "domain", "temperature", "engine_requested", "prompt_id"]
    own = baselines[prompt + ["file"]].assign(baseline=baselines.index, paired=True)
    alone = baselines.loc[baselines.job_K == 0, prompt]
    alone = alone.assign(baseline=alone.index, paired=False).drop_duplicates(prompt)
    speculative = generations[generations.K > 0].rename_axis("row").reset_index()
    found = pd.concat(
        [
            speculative[speculative.paired].merge(own, "left", on=[*prompt, "file", "paired"]),
            speculative[~speculative.paired].merge(alone, "left", on=[*prompt, "paired"]),
        ]
    )
    return found.set_index("row")


def positions_table(generations: pd.DataFrame) -> pd.DataFrame:
    """α_i by cell and position: how often the draft token at i was accepted, given those before."""
    rows = []
    for cell, group in generations[generations.K > 0].groupby(CELL):
        decided, accepted = count_positions(group)
        lows, highs = proportion_interval(accepted, decided)
        for i, ends in enumerate(zip(lows, highs, strict=True)):
            n = decided[i].sum()
            rows.append(
                dict(zip(CELL, cell, strict=True))
                | {"position": i + 1, "alpha_i": ratio(accepted[i].sum(), n)}
                | {"low": ends[0], "high": ends[1], "n_proposed_given_previous_accepted": n}
                | {"n": (decided[i] > 0).sum()}
            )
    names = ["pair", "domain", "temperature", "K", "engine", "position", "alpha_i", "low", "high"]
    names += ["n_proposed_given_previous_accepted", "engine_requested", "acceptance", "n"]
    return pd.DataFrame(rows, columns=names)


def count_positions(group: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Decisions at each draft position, and how many accepted, `[positions, prompts]` each.

    A draft token was decided on if all before it were accepted. Where the end token or the budget
    cut a round inside its accepted tokens, the next one was not rejected, only never looked at.
    """
    positions = np.arange(1, group.K.iloc[0] + 1)[:, None]
    decided, accepted = [], []
    for row in group.itertuples():
        kept = np.array(row.accepted_per_round, dtype=int)
        looked_at = np.minimum(kept + 1, np.array(row.proposed_per_round, dtype=int))
        if len(kept):
            last_emitted = row.num_tokens - 1 - (kept[:-1] + 1).sum()
            if last_emitted <= kept[-1]:
                looked_at[-1] = kept[-1]
        decided.append((looked_at >= positions).sum(axis=1))
        accepted.append((kept >= positions).sum(axis=1))
    return np.stack(decided, axis=1), np.stack(accepted, axis=1)


def cells_table(generations: pd.DataFrame) -> pd.DataFrame:
    """One row per cell, sorted; without a speculative run a table of no rows."""
    cells = dict(iter(find_baselines(generations).groupby(CELL)))
    rows = [
        dict(zip(CELL, cell, strict=True)) | _cell_numbers(group, generations)
        for cell, group in cells.items()
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["best"] = False
    for _, row in table[table.S.notna()].groupby(ROW):
        best = row.S.idxmax()
        if len(row) > 1 and row.S[best] > 1:
            both = both_arms(cells[tuple(table.loc[best, CELL])], generations)
            interval = best_of(both, len(row))
            table.loc[best, ["best", "S_best_low", "S_best_high"]] = [True, *interval[1:]]
    return table.astype({"best": bool, "S_best_low": float, "S_best_high": float})


def best_of(arms: tuple[pd.DataFrame, pd.DataFrame], candidates: int) -> Estimate:
    """S of the largest of several cells, whose interval knows that it was chosen for its S.

    The interval of each of `candidates` would hold its own truth so often that all together do
    with 95 %: then that of the chosen one does, whichever is chosen.
    """
    return estimate(speedup, *arms, level=LEVEL ** (1 / candidates))


def both_arms(
    speculative: pd.DataFrame, generations: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """AMOUNTS of a cell's prompts that have a baseline: their own, and the baselines'.

    `speculative`: a cell's rows of `find_baselines`; `generations`: all, for the baselines.
    """
    found = speculative[speculative.baseline.notna()]
    return found[AMOUNTS], generations.loc[found.baseline.astype(int), AMOUNTS]


def _cell_numbers(speculative: pd.DataFrame, generations: pd.DataFrame) -> dict[str, Any]:
    """The arguments are those of `both_arms`."""
    paired, K = bool(speculative.paired.all()), speculative.K.iloc[0]
    if speculative.baseline.notna().any():
        speculative = speculative[speculative.baseline.notna()]
    arms = both_arms(speculative, generations)
    own, baseline = arms
    alone = generations.loc[speculative.baseline.dropna().astype(int)]
    S, end_to_end = estimate(speedup, *arms), estimate(speedup_end_to_end, *arms)
    alpha_low, alpha_high = acceptance_interval(speculative.accepted, speculative.proposed, K)
    matches = speculative.matches_baseline.astype(float)
    setting = pd.concat([speculative, alone])
    numbers = {
        "n": len(speculative),
        "paired": paired,
        **_columns("S", S),
        **_columns("S_end_to_end", end_to_end),
        "alpha": ratio(speculative.accepted.sum(), speculative.proposed.sum()),
        "alpha_low": alpha_low,
        "alpha_high": alpha_high,
        "alpha_ceiling": _ceiling(speculative),
        **_columns("tau", estimate(tokens_per_round, speculative[AMOUNTS])),
        **_columns("tokens_per_s", estimate(tokens_per_s, speculative[AMOUNTS])),
        **_columns("baseline_tokens_per_s", estimate(tokens_per_s, baseline)),
        **_waits(speculative),
        "peak_memory_mb": speculative.peak_memory_mb.max(),
        "identical": matches.mean(),
        "differing": speculative.differs.sum() if matches.notna().any() else np.nan,
        "verified_by": _listed(speculative.verified_by),
        **{name: _listed(setting[name]) for name in SETTING},
        "engine_reason": _listed(speculative.engine_reason),
        "baseline_engine": _listed(alone.engine),
        "joules_per_token": _joules_per_token(speculative),
        "baseline_joules_per_token": _joules_per_token(alone),
    }
    for name in ("c", "v", "h", "h0"):
        # What remains of a round can be nothing, or by a hair less: it has no logarithm.
        found = estimate(
            lambda *totals, name=name: costs(K, *totals)[name], *arms, log=name in ("c", "v")
        )
        numbers |= _columns(name, found)
    parts = [numbers[name] for name in ("c", "v", "h", "h0")]
    decided, accepted = count_positions(speculative)
    alpha_iid = ratio(accepted.sum(), decided.sum())
    expected_tau = theory.tokens_per_round_within(alpha_iid, K, own.steps.astype(int))
    return numbers | {
        "alpha_iid": alpha_iid,
        "S_theory": theory.speedup(expected_tau, K, *parts),
        "S_parts": theory.speedup(numbers["tau"], K, *parts),
    }


def _columns(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _waits(speculative: pd.DataFrame) -> dict[str, float]:
    """Percentiles of the time between hand-overs, in ms, where enough values lie beyond them."""
    times = speculative.round_times
    ms = np.concatenate([np.empty(0), *times]) * 1e3
    prompts = np.repeat(np.arange(len(times)), times.map(len))
    found = {}
    for share, fewest in FEWEST_VALUES.items():
        waits = Estimate(np.nan, np.nan, np.nan)
        if len(ms) >= fewest:
            weights = np.ones(len(ms))
            (value,) = quantiles(ms, weights, [share])
            waits = Estimate(value, *quantile_interval(ms, weights, prompts, share))
        found |= _columns(f"p{share * 100:.0f}_ms", waits)
    return found


def _listed(values: pd.Series) -> str:
    return "; ".join(sorted({str(value) for value in values.dropna()}))


def _joules_per_token(generations: pd.DataFrame) -> float:
    """Energy of the whole GPU, prefill included, of those whose card tells it; else NaN."""
    told = generations[generations.energy_j.notna()]
    return ratio(told.energy_j.astype(float).sum(), told.num_tokens.sum())


def _ceiling(speculative: pd.DataFrame) -> float:
    """The most that α could be, over what was drafted; NaN where the vocabularies are the same."""
    ceilings = speculative[speculative.alpha_ceiling.notna()]
    return ratio((ceilings.alpha_ceiling * ceilings.steps).sum(), ceilings.steps.sum())


def speedup(own: Totals, baseline: Totals) -> np.ndarray | float:
    """S: how many times less a token of decoding took than the baseline's."""
    return ratio(baseline["decode_s"] * own["steps"], baseline["steps"] * own["decode_s"])


def speedup_end_to_end(own: Totals, baseline: Totals) -> np.ndarray | float:
    """The same with the prefill and the first token."""
    return ratio(baseline["total_s"] * own["num_tokens"], baseline["num_tokens"] * own["total_s"])


def tokens_per_round(own: Totals) -> np.ndarray | float:
    """τ: tokens emitted after the prefill ÷ rounds, what the last round was cut by left out."""
    return ratio(own["steps"], own["rounds"])


def tokens_per_s(own: Totals) -> np.ndarray | float:
    """Of decoding, after the first token."""
    return ratio(own["steps"], own["decode_s"])


def costs(K: int, own: Totals, baseline: Totals) -> dict[str, np.ndarray | float]:
    """c, v, h and h₀; NaN where the phases were not timed.

    h is what is left of a round after its drafts and its verification, so that S follows from the
    parts by construction: the identity checks the counting, never the timers.
    """
    step_ms = ratio(baseline["verify_ms"], baseline["steps"])
    rest = 1e3 * own["decode_s"] - own["draft_ms"] - own["verify_ms"]
    return {
        "c": ratio(own["draft_ms"], K * own["rounds"] * step_ms),
        "v": ratio(own["verify_ms"], own["rounds"] * step_ms),
        "h": ratio(rest, own["rounds"] * step_ms),
        "h0": ratio(1e3 * baseline["decode_s"], baseline["verify_ms"]) - 1,
    }
