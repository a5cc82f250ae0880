"""The figures of this machine, as a card: from passes of two models made for it.

A narrow model has next to no weights, so its passes cost what operations cost; a wide one has few
layers, so its passes cost what its weights cost, at each number of rows. Neither has the pair's
shapes: what they predict of the pair is a test of the prediction. What attention costs is how much
longer the narrow model's passes take behind many tokens than behind few.
"""

from __future__ import annotations

import numpy as np
import torch

from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.models.loading.random_weights import load_random_weights
from specdec.models.registry import ModelSide
from specdec.planning.cards import Card
from specdec.planning.costs import ACCEPTANCE, Request
from specdec.planning.measure import (
    interleave,
    reader,
    time_pass,
    time_round_rest,
    time_rule,
    time_step_rest,
)
from specdec.planning.work import count_work, launches, rounds
from specdec.utils.logging import get_logger

log = get_logger("plan")

CONTEXT, FAR = 16, 1024  # tokens in the cache: so few that they cost nothing, and many
NARROW = {"num_hidden_layers": 12, "hidden_size": 64, "intermediate_size": 128}
WIDE_LAYERS = 4
LARGEST = 2**28  # weights of the wide model: far beyond any cache of a processor
FEW, MANY = 256, 32_768  # logits a row, whose difference in time is that of the choice
SAMPLES = 9  # at least, of each quantity


def measure_card(side: ModelSide, request: Request, as_draft: bool = False) -> Card:
    """The card of `request.device`, for models of the side's dtype and about its size."""
    as_rounding = as_draft and rounds(side, request)
    narrow, wide = _side(side.dtype, **NARROW), _wide_side(side, request)
    log.info("timing models of known cost in %s …", side.dtype)
    counts = sorted({1, *(k + 1 for k in request.draft_tokens)})
    passes = _passes("narrow", narrow, counts, request, as_draft)
    passes |= _passes("far", narrow, counts, request, as_draft, context=FAR)
    passes |= _passes("wide", wide, counts, request, as_draft)
    rests = _rests(narrow, request)
    times = interleave(passes | rests, request.seconds / 2, SAMPLES)
    took = {name: float(np.median(values)) for name, values in times.items()}
    wide_work = count_work(wide, request.device, as_rounding)
    narrow_work = count_work(narrow, request.device)
    operation = took["narrow 1"] / launches(narrow_work, request.engine)
    cached = narrow_work.cache_bytes * (FAR - CONTEXT)
    launching = operation * launches(wide_work, request.engine)
    rates = {n: wide_work.weight_bytes / (took[f"wide {n}"] - launching) for n in counts}
    cache_rates = {n: cached / max(took[f"far {n}"] - took[f"narrow {n}"], 1e-9) for n in counts}
    least, most = min(request.draft_tokens), max(request.draft_tokens)
    proposal = (took[f"rest {most}"] - took[f"rest {least}"]) / max(most - least, 1)
    logit = (took["many"] - took["few"]) / (MANY - FEW)
    return Card(
        name="this machine, measured",
        engine=request.engine,
        memory=float("inf"),
        cache_bandwidth=cache_rates[1],
        cache_rates=cache_rates,
        operation=operation,
        operations_overlap=False,
        round=took[f"rest {least}"] - least * proposal,
        proposal=proposal,
        step=took["rest 0"],
        logit=logit,
        rates=rates,
    )


def _side(dtype: str, **sizes: int) -> ModelSide:
    heads = sizes["hidden_size"] // 64
    shape = {
        "model_type": "llama",
        "vocab_size": FEW,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 4096,
        **sizes,
    }
    return ModelSide("calibration", dtype, weights="random", shape=shape)


def _wide_side(side: ModelSide, request: Request) -> ModelSide:
    """As many weights as the side has, or the most, in few layers; its head has its share."""
    work = count_work(side, request.device)
    weights = min(work.products, LARGEST)
    head = weights * work.head / work.products
    # A layer of size d has 4 d² weights in its attention and 3 · 4 d² behind it.
    size = max(64, round(((weights - head) / WIDE_LAYERS / 16) ** 0.5 / 64) * 64)
    sizes = {"num_hidden_layers": WIDE_LAYERS, "hidden_size": size, "intermediate_size": 4 * size}
    return _side(side.dtype, **sizes, vocab_size=max(FEW, round(head / size)))


def _passes(
    name: str,
    side: ModelSide,
    counts: list[int],
    request: Request,
    as_draft: bool,
    context: int = CONTEXT,
) -> dict:
    wrapper = load_random_weights(side, str(request.device))
    sessions = {n: reader(wrapper, context, [n], request.engine, as_draft) for n in counts}
    return {
        f"{name} {n}": lambda n=n, session=session: time_pass(wrapper, session, n)
        for n, session in sessions.items()
    }


def _rests(side: ModelSide, request: Request) -> dict:
    """What is not a pass: of rounds, of the baseline's steps, and of the choice of a token."""
    wrapper = load_random_weights(side, str(request.device))
    alone = AutoregressiveDecoder(wrapper, engine=request.engine)
    rests = {"rest 0": lambda: time_step_rest(alone, CONTEXT)}
    for k in {min(request.draft_tokens), max(request.draft_tokens)}:
        both = SpeculativeDecoder(
            wrapper, wrapper, k, engine=request.engine, synthetic_acceptance=ACCEPTANCE
        )
        rests[f"rest {k}"] = lambda both=both: time_round_rest(both, CONTEXT)
    for name, size in (("few", FEW), ("many", MANY)):
        logits = torch.randn(1, size).to(request.device, wrapper.model.dtype)
        rests[name] = lambda logits=logits: time_rule(logits)
    return rests
