"""The cells of a study: what the generations of one pair, domain, temperature, K and engine say.

A cell's numbers are ratios of totals over its prompts, never means of ratios. "Decode" leaves out
the prefill and the first token, which it gives; a *step* is one decoding step of the baseline.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from specdec.analysis import theory
from specdec.analysis.statistics import bootstrap_interval, ratio, wilson_interval

#: What names a cell. Forced ("synthetic") acceptance is never in one cell with measured, and one
#: engine never with another: `engine` is the path really taken, `engine_requested` the one asked
#: for, which may be `auto`.
CELL = ["pair", "domain", "temperature", "K", "engine", "engine_requested", "acceptance"]
#: What a cell was measured with; several values are listed, separated by "; ".
SETTING = ["prompt_source", "draft_dtype", "target_dtype", "vocabulary", "coupled"]
SETTING += ["device", "threads"]


#: Tokens and seconds that the speedups are ratios of: of decoding, and with the prefill.
AMOUNTS = ["steps", "decode_s", "num_tokens", "total_s"]
COLUMNS = ["pair", "domain", "temperature", "K", "engine", "n", "paired", "S", "S_low", "S_high"]
COLUMNS += ["S_end_to_end", "S_end_to_end_low", "S_end_to_end_high"]
COLUMNS += ["alpha", "alpha_low", "alpha_high", "alpha_ceiling", "alpha_iid", "tau"]
COLUMNS += ["c", "v", "h", "h0"]
COLUMNS += ["S_theory", "S_parts", "tokens_per_s", "baseline_tokens_per_s"]
COLUMNS += ["p50_ms", "p95_ms", "p99_ms", "peak_memory_mb", "identical", *SETTING]
COLUMNS += ["engine_requested", "engine_reason", "baseline_engine", "acceptance"]
COLUMNS += ["joules_per_token", "baseline_joules_per_token"]


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
        trials, successes = count_positions(group)
        for i, (n, accepted) in enumerate(zip(trials, successes, strict=True), start=1):
            low, high = wilson_interval(accepted, n)
            rows.append(
                dict(zip(CELL, cell, strict=True))
                | {"position": i, "alpha_i": ratio(accepted, n), "low": low, "high": high}
                | {"n_proposed_given_previous_accepted": n}
            )
    names = ["pair", "domain", "temperature", "K", "engine", "position", "alpha_i", "low", "high"]
    names += ["n_proposed_given_previous_accepted", "engine_requested", "acceptance"]
    return pd.DataFrame(rows, columns=names)


def count_positions(group: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Decisions at each draft position, and how many of them accepted ([positions] each).

    A draft token was decided on if all before it were accepted. Where the end token or the budget
    cut a round inside its accepted tokens, the next one was not rejected, only never looked at.
    """
    decided = []
    for row in group.itertuples():
        accepted = np.array(row.accepted_per_round, dtype=int)
        looked_at = np.minimum(accepted + 1, np.array(row.proposed_per_round, dtype=int))
        if len(accepted):
            last_emitted = row.num_tokens - 1 - (accepted[:-1] + 1).sum()
            if last_emitted <= accepted[-1]:
                looked_at[-1] = accepted[-1]
        decided.append(np.stack([looked_at, accepted]))
    looked_at, accepted = np.concatenate(decided, axis=1)
    positions = np.arange(1, max(group.K.iloc[0], looked_at.max(initial=0)) + 1)[:, None]
    return (looked_at >= positions).sum(axis=1), (accepted >= positions).sum(axis=1)


def cells_table(generations: pd.DataFrame) -> pd.DataFrame:
    """One row per cell, sorted; without a speculative run a table of no rows."""
    rows = [
        dict(zip(CELL, cell, strict=True)) | _cell_numbers(group, generations)
        for cell, group in find_baselines(generations).groupby(CELL)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _cell_numbers(speculative: pd.DataFrame, generations: pd.DataFrame) -> dict[str, Any]:
    """`speculative`: a cell's rows of `find_baselines`; `generations`: all, for the baselines."""
    paired = bool(speculative.paired.all())
    if paired:
        speculative = speculative[speculative.baseline.notna()]
    baseline = generations.loc[speculative.baseline.dropna().astype(int)]
    ours, theirs = speculative[AMOUNTS].to_numpy(float), baseline[AMOUNTS].to_numpy(float)
    samples = [np.hstack([theirs, ours])] if paired else [theirs, ours]
    S_low, S_high = bootstrap_interval(samples, _decode_speedup)
    e2e_low, e2e_high = bootstrap_interval(samples, _end_to_end_speedup)
    accepted = speculative[["accepted", "proposed"]].to_numpy(float)
    alpha_low, alpha_high = bootstrap_interval([accepted], lambda totals: ratio(*totals))
    totals = [sample.sum(axis=0) for sample in samples]
    seconds = np.concatenate([[], *speculative.round_times])
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99]) * 1e3 if len(seconds) else [np.nan] * 3
    both = pd.concat([speculative, baseline])
    return {
        "n": len(speculative),
        "paired": paired,
        "S": _decode_speedup(*totals),
        "S_low": S_low,
        "S_high": S_high,
        "S_end_to_end": _end_to_end_speedup(*totals),
        "S_end_to_end_low": e2e_low,
        "S_end_to_end_high": e2e_high,
        "alpha": ratio(*accepted.sum(axis=0)),
        "alpha_low": alpha_low,
        "alpha_high": alpha_high,
        "alpha_ceiling": _ceiling(speculative),
        **_parts(speculative, baseline),
        "tokens_per_s": ratio(*ours.sum(axis=0)[:2]),
        "baseline_tokens_per_s": ratio(*theirs.sum(axis=0)[:2]),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "peak_memory_mb": speculative.peak_memory_mb.max(),
        "identical": speculative.matches_baseline.astype(float).mean(),
        **{name: _listed(both[name]) for name in SETTING},
        "engine_reason": _listed(speculative.engine_reason),
        "baseline_engine": _listed(baseline.engine),
        "joules_per_token": _joules_per_token(speculative),
        "baseline_joules_per_token": _joules_per_token(baseline),
    }


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


def _decode_speedup(*totals: np.ndarray) -> np.ndarray | float:
    """S of totals of AMOUNTS, first the baseline's, then the speculative run's."""
    their_steps, their_s, _, _, our_steps, our_s, _, _ = np.concatenate(totals)
    return ratio(their_s * our_steps, their_steps * our_s)


def _end_to_end_speedup(*totals: np.ndarray) -> np.ndarray | float:
    """The same with the prefill and the first token."""
    _, _, their_tokens, their_s, _, _, our_tokens, our_s = np.concatenate(totals)
    return ratio(their_s * our_tokens, their_tokens * our_s)


def _parts(speculative: pd.DataFrame, baseline: pd.DataFrame) -> dict[str, float]:
    """Where the speedup comes from: τ, c, v, h, h₀, and S put together from them.

    Untimed phases leave c, v, h, h₀ NaN. `S_parts` is S again, by the identity of `theory.speedup`;
    `S_theory` replaces the measured τ by that of the best-fitting constant α, `alpha_iid`.
    """
    K = speculative.K.iloc[0] if len(speculative) else 0
    draft, verify, decode = (_total(speculative, f"{x}_ms") for x in ("draft", "verify", "decode"))
    rounds = _total(speculative, "rounds")
    steps, step, alone = (_total(baseline, x) for x in ("steps", "verify_ms", "decode_ms"))
    c, v, h, h0 = cost_ratios(K, rounds, draft, verify, decode, steps, step, alone)
    tau = ratio(_total(speculative, "steps"), rounds)
    decisions, acceptances = count_positions(speculative)
    alpha_iid = ratio(acceptances.sum(), decisions.sum())
    expected_tau = theory.tokens_per_round(alpha_iid, K)
    return {
        "alpha_iid": alpha_iid,
        "tau": tau,
        "c": c,
        "v": v,
        "h": h,
        "h0": h0,
        "S_theory": theory.speedup(expected_tau, K, c, v, h, h0),
        "S_parts": theory.speedup(tau, K, c, v, h, h0),
    }


def cost_ratios(
    K: int,
    rounds: ArrayLike,
    draft: ArrayLike,
    verify: ArrayLike,
    decode: ArrayLike,
    steps: ArrayLike,
    step: ArrayLike,
    alone: ArrayLike,
) -> tuple[np.ndarray | float, ...]:
    """c, v, h and h₀ of totals: numbers, or arrays of one shape, which the results have.

    Of the speculative runs: `rounds`, the milliseconds of their drafts and verifications, and of
    the whole decoding. Of the baseline's: `steps`, the milliseconds of their target passes
    (`step`), and of the whole decoding (`alone`).
    """
    step_ms = ratio(step, steps)
    c = ratio(draft, K * rounds * step_ms)
    v = ratio(verify, rounds * step_ms)
    h = ratio(decode - draft - verify, rounds * step_ms)
    return c, v, h, ratio(alone, steps * step_ms) - 1


def _total(rows: pd.DataFrame, name: str) -> float:
    return float(rows[name].to_numpy(float).sum())
