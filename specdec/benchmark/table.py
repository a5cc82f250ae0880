"""The table of a benchmark: figures of each arm, with 95 % intervals over the prompts.

Every figure is a ratio of totals over the prompts; its interval is that over prompts, and what was
measured on one prompt stays together, whichever arm measured it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from specdec.analysis.cells import costs
from specdec.analysis.statistics import acceptance_interval, ratio
from specdec.analysis.statistics import estimate as estimate_of_arms
from specdec.analysis.theory import speedup as speedup_of_parts
from specdec.benchmark.arms import AMOUNTS, Run
from specdec.profiling.metrics import first_difference

Totals = dict[str, np.ndarray]  # of each of AMOUNTS, and "prompts"
Estimate = dict[str, float]  # value, low, high
COSTS = ["c", "v", "h", "h0"]
#: The figures of a row that depend on how often the draft is right.
BY_ACCEPTANCE = ["tokens_per_s", "tokens_per_s_with_prefill", "S", "S_with_prefill", "tau", "alpha"]


def amounts(runs: list[Run]) -> Totals:
    """AMOUNTS of an arm, and of how many prompts, `[prompts]` each."""
    found = {name: np.array([run.amounts[name] for run in runs], float) for name in AMOUNTS}
    return found | {"prompts": np.ones(len(runs))}


def estimate(
    statistic: Callable[..., np.ndarray | float], *arms: Totals, log: bool = True
) -> Estimate:
    """A statistic of the totals of one or more arms (`amounts`), with interval."""
    return estimate_of_arms(statistic, *arms, log=log)._asdict()


def tokens_per_s(arm: Totals) -> np.ndarray | float:
    """Of decoding, after the first hand-over."""
    return ratio(arm["steps"], arm["decode_s"])


def tokens_per_s_with_prefill(arm: Totals) -> np.ndarray | float:
    return ratio(arm["tokens"], arm["total_s"])


def first_token_ms(arm: Totals) -> np.ndarray | float:
    """From the request to the first hand-over: the prompt is read, on both sides of a pair."""
    return 1e3 * ratio(arm["total_s"] - arm["decode_s"], arm["prompts"])


def ms_per_round(arm: Totals) -> np.ndarray | float:
    """Of rounds in which K tokens were drafted; without a draft a round is a step."""
    return 1e3 * ratio(arm["full_rounds_s"], arm["full_rounds"])


def speedup(arm: Totals, baseline: Totals) -> np.ndarray | float:
    """How many times faster the first decodes than the second."""
    return ratio(tokens_per_s(arm), tokens_per_s(baseline))


def speedup_with_prefill(arm: Totals, baseline: Totals) -> np.ndarray | float:
    return ratio(tokens_per_s_with_prefill(arm), tokens_per_s_with_prefill(baseline))


def speedup_of_rounds(arm: Totals, baseline: Totals) -> np.ndarray | float:
    """How many times less a round of the first takes than one of the second."""
    return ratio(ms_per_round(baseline), ms_per_round(arm))


def geometric_mean(comparison: Callable, ours: list[Totals], theirs: list[Totals]):
    """The geometric mean over K of `comparison(ours, theirs)`, with interval."""

    def mean(*arms: Totals) -> np.ndarray | float:
        half = len(arms) // 2
        pairs = zip(arms[:half], arms[half:], strict=True)
        return np.exp(np.mean([np.log(comparison(*pair)) for pair in pairs], axis=0))

    return estimate(mean, *ours, *theirs)


def speeds(
    runs: list[Run], baseline: list[Run], allowed_ms: float, read_to_copy: float
) -> dict[str, Any]:
    """How fast an arm is; `allowed_ms` is what the bandwidth of a copy allows its round or step,
    and `read_to_copy` that of a read ÷ that of a copy."""
    own, alone = amounts(runs), amounts(baseline)
    return {
        "tokens_per_s": estimate(tokens_per_s, own),
        "tokens_per_s_with_prefill": estimate(tokens_per_s_with_prefill, own),
        "first_token_ms": estimate(first_token_ms, own),
        "ms_per_round": estimate(ms_per_round, own),
        "share_of_bandwidth": estimate(lambda arm: ratio(allowed_ms, ms_per_round(arm)), own),
        "share_of_read": estimate(
            lambda arm: ratio(allowed_ms / read_to_copy, ms_per_round(arm)), own
        ),
        "S": estimate(speedup, own, alone),
        "S_with_prefill": estimate(speedup_with_prefill, own, alone),
        "peak_memory_mib": max(run.peak_memory_mb for run in runs),
    }


def acceptances(K: int, runs: list[Run]) -> dict[str, Estimate]:
    """τ and α of a speculative arm."""
    own = amounts(runs)
    accepted, proposed = own["accepted"], own["proposed"]
    low, high = acceptance_interval(accepted, proposed, K)
    alpha = {"value": float(ratio(accepted.sum(), proposed.sum())), "low": low, "high": high}
    return {"tau": estimate(lambda arm: ratio(arm["steps"], arm["rounds"]), own), "alpha": alpha}


def parts(K: int, tau: float, runs: list[Run], baseline: list[Run]) -> dict[str, Any]:
    """c, v, h and h₀ of a speculative arm, and S put together from them (`S_parts`)."""
    both = amounts(runs), amounts(baseline)
    found = {
        # h and h₀ may be nothing, or by a hair less: they have no logarithm.
        name: estimate(
            lambda *arms, name=name: costs(K, *arms)[name], *both, log=name in ("c", "v")
        )
        for name in COSTS
    }
    values = (found[name]["value"] for name in COSTS)
    return found | {"S_parts": float(speedup_of_parts(tau, K, *values))}


def differences(runs: dict[str, list[Run]], prompt_ids: list[str]) -> dict[str, dict[str, int]]:
    """Where each arm's tokens first differ from the baseline's: position by prompt, by arm."""
    return {
        name: {
            prompt_id: place
            for prompt_id, run, alone in zip(prompt_ids, arm, runs["baseline"], strict=True)
            if (place := first_difference(run.ids, alone.ids)) is not None
        }
        for name, arm in runs.items()
        if name != "baseline"
    }
