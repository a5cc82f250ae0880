"""At temperature 0 speculation gives what the target alone gives, token for token.

In float64 that is exact. In float32 one row and K + 1 rows go through different matrix kernels, so
a near tie can fall either way: each place where outputs part must be shown to be such a tie.
"""

from __future__ import annotations

import pytest
import torch

from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.speculative import SpeculativeDecoder
from tests.checks import transformers_greedy
from tests.tiny import KINDS, make_model, perturbed, wrap

TOKENS = 40
PROMPTS = [[5, 9, 2, 7, 300], [11], list(range(20, 60))]
FLOAT32_TIE = 1e-4  # a gap between two logits that the rounding of a float32 pass can bridge


def greedy(decoder, prompt):
    return decoder.generate(prompt, TOKENS, eos_token_id=None).generated_ids


@pytest.fixture(scope="module", params=KINDS)
def models(request):
    """`(draft, target)` in float64, of each architecture."""
    target = make_model(request.param, dtype=torch.float64)
    return perturbed(target), target


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_speculation_equals_the_target_alone_in_float64(models, k):
    draft, target = models
    baseline = AutoregressiveDecoder(wrap(target))
    decoder = SpeculativeDecoder(wrap(draft), wrap(target), k)
    accepted = []
    for prompt in PROMPTS:
        result = decoder.generate(prompt, TOKENS, eos_token_id=None)
        assert result.generated_ids == greedy(baseline, prompt)
        accepted += result.accepted_per_round
    # Otherwise one of the two paths of a round was never taken.
    assert 0 < sum(accepted) < k * len(accepted)


def assert_parts_only_at_a_tie(model, prompt, ours, theirs):
    """Where two greedy outputs part, the two tokens' logits must lie within rounding."""
    if ours == theirs:
        return
    place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ours[:place]])).logits[0, -1]
    gap = (logits[ours[place]] - logits[theirs[place]]).abs().item()
    assert gap < FLOAT32_TIE, f"token {place}: {ours[place]} against {theirs[place]}, gap {gap}"


@pytest.mark.parametrize("k", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_speculation_equals_the_target_alone_up_to_ties_in_float32(kind, k):
    target = make_model(kind)
    decoder = SpeculativeDecoder(wrap(perturbed(target)), wrap(target), k)
    for prompt in PROMPTS:
        ours = greedy(decoder, prompt)
        theirs = greedy(AutoregressiveDecoder(wrap(target)), prompt)
        assert_parts_only_at_a_tie(target, prompt, ours, theirs)
        assert_parts_only_at_a_tie(
            target, prompt, ours, transformers_greedy(target, prompt, TOKENS)
        )


def test_a_part_that_is_no_tie_is_noticed():
    model = make_model()
    ours = greedy(AutoregressiveDecoder(wrap(model)), PROMPTS[0])
    theirs = ours[:3] + [(ours[3] + 1) % 384] + ours[4:]
    with pytest.raises(AssertionError, match="token 3"):
        assert_parts_only_at_a_tie(model, PROMPTS[0], ours, theirs)
