"""Checks that the suite makes of the engine, and that the mutants must fail."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

from specdec.decoding.speculative import SpeculativeDecoder
from tests.tiny import make_model, perturbed, wrap

PROMPT = [5, 9, 2, 7]

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++")),
    reason="needs a C++ compiler (g++, or what CXX names)",
)


def assert_accepts_everything(k: int, **settings) -> None:
    """With draft = target every proposal is accepted, so a round emits K + 1 tokens."""
    target = wrap(make_model())
    result = SpeculativeDecoder(target, target, k).generate(
        PROMPT, 1 + 4 * (k + 1), eos_token_id=None, **settings
    )
    assert result.acceptance_rate == 1
    assert result.tokens_per_step == k + 1
    assert result.num_speculation_rounds == 4


def assert_identities(k: int, **settings) -> None:
    """What counts of one run must satisfy."""
    target = make_model()
    decoder = SpeculativeDecoder(wrap(perturbed(target)), wrap(target), k)
    result = decoder.generate(PROMPT, 30, eos_token_id=None, **settings)
    accepted, proposed = result.accepted_per_round, result.proposed_per_round
    rounds = result.num_speculation_rounds
    assert result.num_tokens == 30 and result.finish_reason == "length"
    assert len(accepted) == len(proposed) == rounds == len(result.round_tokens)
    # Only the last round may be cut, by its last token: one past the budget.
    cut = sum(accepted) + rounds - (result.num_tokens - 1)
    assert cut in (0, 1)
    assert [n + 1 for n in accepted[:-1]] == result.round_tokens[:-1]
    assert accepted[-1] + 1 - cut == result.round_tokens[-1]
    left = [29 - sum(result.round_tokens[:i]) for i in range(rounds)]
    assert proposed == [min(k, n) for n in left]
    assert all(0 <= n <= m for n, m in zip(accepted, proposed, strict=True))
    assert result.acceptance_rate == sum(accepted) / sum(proposed)
    assert abs(sum(result.per_token_latencies) - result.total_time) < 1e-9


def transformers_greedy(model, prompt: list[int], tokens: int) -> list[int]:
    """What transformers' own `generate` continues the prompt with, never stopping."""
    ids = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return ids[0, len(prompt) :].tolist()
