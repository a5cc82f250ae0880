"""The acceptance rule enumerated exactly: every draft, every accept pattern, every budget.

A target and a draft are tables of random conditional distributions over a few words. What a round
emits is summed over all drafts and all accept patterns, with the rule's own functions, and compared
with what the target emits alone: for the right rule they differ by rounding only.
"""

from __future__ import annotations

import itertools
import math

import torch

from specdec.method import rule as rejection

TOLERANCE = 1e-12
#: (words, draft tokens, budget): all K up to 4, and a budget that cuts the round.
CASES = [(2, 1, 2), (2, 2, 3), (2, 3, 4), (2, 4, 5), (3, 1, 2), (3, 2, 3), (3, 3, 2), (5, 1, 2)]


class _WrongDecision(Exception):
    """The rule kept what it should have rejected, or the reverse."""


def check_rule() -> dict:
    """The `rule` part of a certificate: the largest error of a probability over all cases."""
    error = max(worst_error(*case, zeros=zeros) for case in CASES for zeros in (False, True))
    return {
        "verdict": "pass" if error <= TOLERANCE else "defect",
        "cases": 2 * len(CASES),
        # JSON has no infinity, the error where a draft token was decided on wrongly.
        "worst_error": error if math.isfinite(error) else None,
        "tolerance": TOLERANCE,
    }


def worst_error(vocab_size: int, k: int, budget: int, zeros: bool = False, seed: int = 0) -> float:
    """Largest error of the probability of any continuation of `budget` tokens, at most K + 1.

    Infinite where the rule decides wrongly on a draft token. `zeros` gives target and draft words
    of probability 0, as top-k and top-p do.
    """
    generator = torch.Generator().manual_seed(seed)
    target = _conditionals(generator, vocab_size, k + 1, zeros)
    draft = _conditionals(generator, vocab_size, k, zeros)
    exact = joint(target, vocab_size, budget)
    try:
        found = emitted(target, draft, vocab_size, k, budget)
    except _WrongDecision:
        return math.inf
    return max(abs(float(found[s]) - float(exact[s])) for s in exact)


def random_rows(
    generator: torch.Generator, rows: int, vocab_size: int, zeros: bool = False
) -> torch.Tensor:
    """Distributions `[rows, vocab_size]`, float64."""
    weights = torch.rand(rows, vocab_size, generator=generator, dtype=torch.float64)
    if zeros:  # at other places for target and draft
        weights = weights * (torch.rand(weights.shape, generator=generator) < 0.6)
        weights[weights.sum(-1) == 0, 0] = 1.0
    return weights / weights.sum(-1, keepdim=True)


def _conditionals(generator, vocab_size, length, zeros) -> dict:
    """A distribution `[V]` for every prefix of up to `length` tokens."""
    return {
        prefix: random_rows(generator, 1, vocab_size, zeros)[0]
        for n in range(length + 1)
        for prefix in itertools.product(range(vocab_size), repeat=n)
    }


def joint(model, vocab_size, length) -> dict:
    """Exact joint distribution of the first `length` tokens of a model."""
    return {
        sequence: torch.stack([model[sequence[:i]][sequence[i]] for i in range(length)]).prod()
        for sequence in itertools.product(range(vocab_size), repeat=length)
    }


def _probability_of_count(p, q, tokens, valid, count):
    """P(exactly `count` are kept), with the thresholds of the rule checked from both sides."""
    k = len(tokens)
    p_x, q_x = p[:-1].gather(1, tokens[:, None])[:, 0], q.gather(1, tokens[:, None])[:, 0]
    keep = torch.where(valid, (p_x / q_x).clamp(max=1), 0.0)  # the measure of uniforms that keep
    probability = keep[:count].prod() * (1 - keep[count] if count < k else 1)
    if probability == 0:
        return probability
    uniforms = torch.full((k,), 0.5, dtype=torch.float64)
    uniforms[:count] = keep[:count] * (1 - TOLERANCE)  # the largest that still keep
    if count < k:
        uniforms[count] = keep[count] * (1 + TOLERANCE) + 1e-300  # the smallest that do not
    if rejection.accepted_count(p, q, tokens, uniforms, valid) != count:
        raise _WrongDecision
    return probability


def emitted(target, draft, vocab_size, k, budget) -> dict:
    """Exact distribution of the first `budget` tokens that one round and the target emit."""
    result = dict.fromkeys(itertools.product(range(vocab_size), repeat=budget), 0.0)
    valid = torch.arange(k) < budget - 1
    for tokens in itertools.product(range(vocab_size), repeat=k):
        drafted = torch.stack([draft[tokens[:i]][tokens[i]] for i in range(k)]).prod()
        if drafted == 0:
            continue
        p = torch.stack([target[tokens[:i]] for i in range(k + 1)])
        q = torch.stack([draft[tokens[:i]] for i in range(k)]) * valid[:, None]
        for count in range(k + 1):
            kept = _probability_of_count(p, q, torch.tensor(tokens), valid, count)
            if kept == 0:
                continue
            weights = rejection.next_distribution(p, q, torch.tensor(count))
            for token, share in enumerate((weights / weights.sum()).tolist()):
                head = (*tokens[:count], token)
                rest = budget - len(head)
                for tail in itertools.product(range(vocab_size), repeat=rest):
                    sequence = head + tail
                    chain = drafted * kept * share
                    for i in range(len(head), budget):
                        chain = chain * target[sequence[:i]][sequence[i]]
                    result[sequence] = result[sequence] + chain
    return result
