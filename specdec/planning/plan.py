"""A plan as a plain document: the card of a pair's shapes, and what theory makes of their costs."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from specdec.analysis.theory import break_even_alpha, speedup, tokens_per_round
from specdec.benchmark.card import cache_bytes_per_token
from specdec.models.loading.form import TORCH_DTYPES
from specdec.models.loading.memory_check import available_bytes, weight_bytes
from specdec.models.loading.random_weights import known_configuration, model_without_weights
from specdec.models.registry import ModelSide
from specdec.models.wrapper import ModelWrapper
from specdec.planning.costs import Costs, Estimate, Request
from specdec.planning.measure import slowdown
from specdec.utils.reproducibility import capture_environment

ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
GB = 1e9
SLOW = 2.0  # times as long as in float32: a dtype that is said to be slow


def make_card(request: Request) -> dict[str, Any]:
    """What is known before anything is built: machine, models, memory (GB are 10^9 bytes)."""
    place = capture_environment(request.device)
    return {
        "pair": request.pair,
        "device": place["device"],
        "device_type": place["device_type"],
        "threads": place["threads"],
        "torch": place["torch"],
        "engine": request.engine,
        "context": request.context,
        "draft": _side(request.draft, request),
        "target": _side(request.target, request),
        "needed_gb": request.needed / GB,
        "free_gb": available_bytes(request.device) / GB,
        "both_fit": request.both_fit,
        "slow_dtypes": _slow_dtypes(request),
    }


def make_plan(card: dict[str, Any], costs: Costs) -> dict[str, Any]:
    """The whole document, ready for JSON: None where a number does not exist."""
    rows = [_row(k, costs) for k in costs.v]
    return {
        **card,
        "draft_step_ms": costs.draft_step * 1e3,
        "target_step_ms": costs.target_step * 1e3,
        "h0": _plain(costs.h0),
        "overhead_of": costs.overhead_of,
        "interrupted": costs.interrupted,
        "rows": rows,
        "best_K": {str(alpha): _best(rows, alpha) for alpha in ALPHAS},
    }


def _slow_dtypes(request: Request) -> dict[str, float]:
    """How many times as long as in float32 products take, of the dtypes where it is long."""
    names = dict.fromkeys((request.draft.dtype, request.target.dtype))
    dtypes = [name for name in names if name in TORCH_DTYPES and name != "float32"]
    found = {name: slowdown(TORCH_DTYPES[name], request.device) for name in dtypes}
    return {name: times for name, times in found.items() if times > SLOW}


def _side(side: ModelSide, request: Request) -> dict[str, Any]:
    empty = model_without_weights(side, known_configuration(side), request.device)
    token = cache_bytes_per_token(ModelWrapper(empty, None, "meta"))
    return {
        "model": side.model,
        "shape": side.shape,
        "dtype": side.dtype,
        "weights": side.weights,
        "parameters": empty.num_parameters(),
        "weights_gb": weight_bytes(side, request.device) / GB,
        "cache_gb_per_1000_tokens": 1000 * token / GB,
    }


def _row(k: int, costs: Costs) -> dict[str, Any]:
    ratios = {"c": costs.c.value, "v": costs.v[k].value, "h": costs.h[k].value}
    ratios["h0"] = costs.h0.value
    even = break_even_alpha(k, **ratios)
    return {
        "K": k,
        "c": _plain(costs.c),
        "v": _plain(costs.v[k]),
        "h": _plain(costs.h[k]),
        "break_even_alpha": None if math.isnan(even) else even,
        "S": {str(a): float(speedup(tokens_per_round(a, k), k, **ratios)) for a in ALPHAS},
    }


def _best(rows: list[dict[str, Any]], alpha: float) -> int | None:
    """The K of the largest speedup; None where the target alone is faster."""
    best = max(rows, key=lambda row: row["S"][str(alpha)])
    return best["K"] if best["S"][str(alpha)] > 1 else None


def _plain(estimate: Estimate) -> dict[str, float | None]:
    return {k: None if math.isnan(v) else v for k, v in asdict(estimate).items()}
