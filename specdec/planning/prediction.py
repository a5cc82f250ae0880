"""c, v(K), h and S of a pair on a card, predicted from bytes, products and launches.

A pass over n tokens takes the time to read its weights (or, with many tokens, to multiply by
them), the time to read the cache, and its launches. Launched from a graph they come one after the
other between the kernels; from the host they cost nothing as long as the device is slower.
"""

from __future__ import annotations

from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

from specdec.analysis.statistics import ratio
from specdec.analysis.tables import load_table
from specdec.analysis.theory import speedup, tokens_per_round
from specdec.models.loading.random_weights import known_configuration
from specdec.planning.calibration import measure_card
from specdec.planning.cards import Card, from_host, published_card
from specdec.planning.costs import ACCEPTANCE, Costs, Estimate, Request
from specdec.planning.plan import GB, make_plan
from specdec.planning.work import Work, count_work, launches, rounds
from specdec.utils.errors import SpecdecError


def predict_on(name: str, request: Request, acceptance: str | None) -> dict[str, Any]:
    """The plan of a pair on a published card, as `make_plan` makes it of measured costs."""
    card = published_card(name, request.engine)
    # A draft of another vocabulary is driven from the host, token by token.
    sides = request.draft, request.target
    sizes = {known_configuration(side).get_text_config().vocab_size for side in sides}
    if len(sizes) > 1 and request.engine == "compiled":
        card = from_host(card, name)
    costs = predict_costs(request, card, card)
    head = {
        "predicted": True,
        "pair": request.pair,
        "device": card.name,
        "engine": request.engine,
        "context": request.context,
        "needed_gb": request.needed / GB,
        "memory_gb": card.memory / GB,
        "both_fit": request.needed <= card.memory,
    }
    plan = make_plan(head, costs)
    if acceptance is not None:
        alpha = find_acceptance(acceptance, request.pair)
        plan["acceptance"] = alpha
        plan["S_at_acceptance"] = {k: speedup_at(alpha, k, costs) for k in request.draft_tokens}
    return plan


def compare_here(request: Request, measured: Costs, acceptance: str | None) -> dict[str, Any]:
    """What this machine's own figures predict of a pair, beside what was measured of it."""
    alpha = ACCEPTANCE if acceptance is None else find_acceptance(acceptance, request.pair)
    draft_card = measure_card(request.draft, request, as_draft=True)
    predicted = predict_costs(request, draft_card, measure_card(request.target, request))
    return {
        "acceptance": alpha,
        "rows": [
            {"K": k, "quantity": name, "predicted": ours, "measured": theirs}
            for k in request.draft_tokens
            for name, ours, theirs in (
                ("c", predicted.c.value, measured.c.value),
                ("v", predicted.v[k].value, measured.v[k].value),
                ("h", predicted.h[k].value, measured.h[k].value),
                ("S", *(speedup_at(alpha, k, costs) for costs in (predicted, measured))),
            )
        ],
    }


def predict_costs(request: Request, draft_card: Card, target_card: Card) -> Costs:
    """What `measure_costs` would measure, each side's passes by a card of its own."""
    own = replace(request.draft, dtype=request.target.dtype) == request.target  # a 4-bit self
    draft = count_work(
        request.draft,
        request.device,
        rounds(request.draft, request),
        unquantised=request.target.dtype if own else None,
    )
    target = count_work(request.target, request.device)
    draft_step = pass_seconds(draft, draft_card, 1, request.context)
    step = pass_seconds(target, target_card, 1, request.context)

    def in_steps(seconds: float) -> Estimate:
        return Estimate(seconds / step, nan, nan)

    return Costs(
        c=in_steps(draft_step),
        v={
            k: in_steps(pass_seconds(target, target_card, k + 1, request.context))
            for k in request.draft_tokens
        },
        h={k: in_steps(round_rest(target, target_card, k)) for k in request.draft_tokens},
        h0=in_steps(target_card.step + target_card.logit * target.vocabulary),
        draft_step=draft_step,
        target_step=step,
        overhead_of=target_card.name,
    )


def pass_seconds(work: Work, card: Card, rows: int, context: int) -> float:
    """Seconds of a pass over `rows` tokens behind `context` cached ones."""
    computing = card.product_seconds(work, rows)
    computing += card.cache_seconds(work, rows, context)
    launching = card.operation * launches(work, card.engine)
    return max(computing, launching) if card.operations_overlap else computing + launching


def round_rest(work: Work, card: Card, k: int) -> float:
    """Seconds of a round beside its passes: K draft tokens are chosen, and K + 1 of the target."""
    choices = (2 * k + 1) * work.vocabulary * card.logit
    return card.round + k * card.proposal + choices


def speedup_at(alpha: float, k: int, costs: Costs) -> float:
    """S of these costs where draft tokens are accepted at α."""
    parts = costs.c, costs.v[k], costs.h[k], costs.h0
    return float(speedup(tokens_per_round(alpha, k), k, *(part.value for part in parts)))


def find_acceptance(given: str, pair: str) -> float:
    """α from a number, or as measured: from the folder of a study's tables.

    Raises:
        SpecdecError: for what is neither, and where the tables hold nothing of the pair.
    """
    try:
        alpha = float(given)
    except ValueError:
        return _measured_acceptance(given, pair)
    if not 0 <= alpha <= 1:
        raise SpecdecError(f"--acceptance: {given} is outside [0, 1]")
    return alpha


def _measured_acceptance(folder: str, pair: str) -> float:
    if not Path(folder).is_dir():
        raise SpecdecError(
            f"--acceptance: {folder!r} is neither a number nor a folder of tables; give α, or the "
            "tables of a study, e.g. results/tables"
        )
    cells = load_table(Path(folder), "cells")
    cells = cells[(cells.pair == pair) & (cells.acceptance == "measured")]
    if cells.empty:
        raise SpecdecError(f"--acceptance: {folder} holds no measured cell of the pair '{pair}'")
    return float(ratio((cells.alpha_iid * cells.n).sum(), cells.n.sum()))
