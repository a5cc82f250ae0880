"""What a decoder emits follows the target's distribution: the joint one, over at least two rounds.

Each test draws some thousand continuations longer than K + 1 tokens and compares the counts of all
continuations with exact probabilities. How many it draws follows from the power that
`tests/distribution.py` states.
"""

from __future__ import annotations

import pytest

from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.speculative import SpeculativeDecoder
from tests.distribution import assert_lossless, joint_fit
from tests.tiny import table_pair

PROMPT = [0, 1, 2]
WARPS = [
    dict(temperature=1.0),
    dict(temperature=0.6),
    dict(temperature=1.5),
    dict(temperature=1.0, top_k=2),
    dict(temperature=1.0, top_p=0.8),
    dict(temperature=0.8, top_k=2, top_p=0.9),
]


@pytest.mark.parametrize("warp", WARPS, ids=str)
def test_the_target_alone_samples_its_own_distribution(warp):
    _, target = table_pair()
    assert_lossless(joint_fit(AutoregressiveDecoder(target), PROMPT, 4, **warp))


@pytest.mark.parametrize("warp", WARPS, ids=str)
def test_two_rounds_of_two_draft_tokens_follow_the_target(warp):
    assert_lossless(joint_fit(SpeculativeDecoder(*table_pair(), 2), PROMPT, 4, **warp))


@pytest.mark.parametrize("k", [1, 3, 4])
def test_the_joint_distribution_holds_for_every_k(k):
    decoder = SpeculativeDecoder(*table_pair(seed=5), k)
    assert_lossless(joint_fit(decoder, PROMPT, 4, temperature=1.0))


@pytest.mark.slow
def test_two_rounds_of_four_draft_tokens_follow_the_target():
    decoder = SpeculativeDecoder(*table_pair(vocab_size=2), 4)
    assert_lossless(joint_fit(decoder, [0, 1], 7, detectable=0.055, temperature=1.0), 0.055)


@pytest.mark.parametrize("mix", [0.0, 0.3])
def test_a_perfect_draft_and_a_good_one_are_lossless_too(mix):
    decoder = SpeculativeDecoder(*table_pair(mix=mix), 2)
    assert_lossless(joint_fit(decoder, PROMPT, 4, temperature=1.0))
