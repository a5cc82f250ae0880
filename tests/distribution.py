"""The exact joint distribution of what a table model emits, and a decoder's fit to it.

Stated power: of each distribution so many continuations are drawn that any output at a total
variation of `DETECTABLE` (or what a test states) or more from the target's is rejected with 99 %
probability.
"""

from __future__ import annotations

import itertools

import numpy as np
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specdec.analysis.goodness_of_fit import MIN_EXPECTED, GoodnessOfFit, goodness_of_fit

SIGNIFICANCE = 1e-4  # the draws are seeded, so a test that passes always passes
DETECTABLE = 0.12
MOST_DRAWS = 8000


def warped(logits, temperature, top_k, top_p):
    """Probabilities by transformers' own warpers, in float64: nothing of ours."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers(None, logits.double()).softmax(-1)


def exact_joint(wrapper, prompt, length, temperature=1.0, top_k=0, top_p=1.0) -> np.ndarray:
    """Probabilities `[V ** length]` of every continuation, in lexicographic order."""
    table = wrapper.model.table
    vocab_size = len(table)
    conditional = warped(table.view(-1, vocab_size), temperature, top_k, top_p).view(table.shape)
    joint = []
    for sequence in itertools.product(range(vocab_size), repeat=length):
        before, last, probability = prompt[-2], prompt[-1], 1.0
        for token in sequence:
            probability *= conditional[before, last, token].item()
            before, last = last, token
        joint.append(probability)
    return np.array(joint)


def enough_draws(expected: np.ndarray, detectable: float) -> int:
    """How many draws the stated power takes: the more, the more continuations are likely."""
    for draws in range(500, MOST_DRAWS + 1, 100):
        apart = draws * expected >= MIN_EXPECTED
        degrees = int(apart.sum()) - 1 + bool(expected[~apart].sum())
        fit = GoodnessOfFit(draws, statistic=0.0, degrees=degrees, p_value=1.0)
        if fit.detectable_total_variation(SIGNIFICANCE) <= detectable:
            return draws
    raise AssertionError(f"{MOST_DRAWS} draws don't detect a total variation of {detectable}")


def joint_fit(decoder, prompt, length, detectable=DETECTABLE, **warp) -> GoodnessOfFit:
    """Chi-square of the joint distribution of the first `length` tokens of enough generations."""
    vocab_size = decoder.target.vocab_size
    expected = exact_joint(decoder.target, prompt, length, **warp)
    place = vocab_size ** np.arange(length - 1, -1, -1)
    observed = np.zeros(vocab_size**length)
    for seed in range(enough_draws(expected, detectable)):
        result = decoder.generate(prompt, length, seed=seed, eos_token_id=None, **warp)
        observed[place @ result.generated_ids] += 1
    return goodness_of_fit(observed, expected)


def assert_lossless(fit: GoodnessOfFit, detectable: float = DETECTABLE) -> None:
    assert fit.detectable_total_variation(SIGNIFICANCE) <= detectable
    assert fit.p_value > SIGNIFICANCE, fit
