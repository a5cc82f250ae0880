"""Coupled sampling: the speculative output equals the baseline's at the same seed."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.method.noise import gumbel, key_words
from tests.distribution import assert_lossless, joint_fit
from tests.test_other_vocabulary import random_pair
from tests.tiny import KINDS, make_model, perturbed, table_pair, wrap
from tests.toy_tokenizers import byte_level, sentencepiece

WARPS = [dict(temperature=1.0), dict(temperature=0.7, top_k=20), dict(temperature=1.3, top_p=0.8)]


def assert_equals_the_baseline(draft, target, k, **settings):
    baseline = AutoregressiveDecoder(target, coupled=True)
    decoder = SpeculativeDecoder(draft, target, k, coupled=True)
    accepted = 0
    for seed in range(5):
        request = dict(seed=seed, eos_token_id=None, **settings)
        result = decoder.generate([5, 9, 2, 7], 24, **request)
        assert result.generated_ids == baseline.generate([5, 9, 2, 7], 24, **request).generated_ids
        accepted += sum(result.accepted_per_round)
    return accepted


@pytest.mark.parametrize("warp", WARPS, ids=str)
@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_the_output_equals_the_baselines_at_any_temperature(warp, k):
    target = make_model(dtype=torch.float64)
    assert assert_equals_the_baseline(wrap(perturbed(target)), wrap(target), k, **warp) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_equals_the_baselines_for_every_architecture(kind):
    target = make_model(kind, dtype=torch.float64)
    assert_equals_the_baseline(wrap(perturbed(target)), wrap(target), 4, temperature=0.9)


def test_the_output_equals_the_baselines_for_a_draft_of_another_vocabulary():
    draft, target = random_pair(sentencepiece(), byte_level(420))
    assert_equals_the_baseline(draft, target, 4, temperature=0.9)


def test_a_draft_that_is_the_target_is_always_accepted():
    target = wrap(make_model(dtype=torch.float64))
    decoder = SpeculativeDecoder(target, target, 4, coupled=True)
    result = decoder.generate([5, 9, 2], 21, temperature=1.0, seed=1, eos_token_id=None)
    assert result.acceptance_rate == 1


def test_coupled_sampling_follows_the_targets_distribution():
    decoder = SpeculativeDecoder(*table_pair(mix=0.6), 2, coupled=True)
    assert_lossless(joint_fit(decoder, [0, 1, 2], 4, temperature=0.9))


def test_the_noise_is_gumbel_distributed_and_independent():
    key = key_words(0x1234_5678_9ABC_DEF0_1111_2222_3333_4444, "cpu")
    noise = gumbel(key, torch.arange(50), 2000)
    assert stats.kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 1e-3
    neighbours = torch.corrcoef(torch.stack([noise[:-1].flatten(), noise[1:].flatten()]))[0, 1]
    assert abs(neighbours) < 0.01
    tokens = torch.corrcoef(torch.stack([noise[:, :-1].flatten(), noise[:, 1:].flatten()]))[0, 1]
    assert abs(tokens) < 0.01


def test_the_noise_of_a_place_depends_on_the_key_and_the_place_alone():
    key = 2**127 + 12345
    one = _gumbel_at_7(key)
    many = gumbel(key_words(key, "cpu"), torch.arange(10), 1000)
    assert torch.equal(one[0], many[7, :100])
    assert not torch.equal(_gumbel_at_7(key + 1), one)
    assert not torch.equal(_gumbel_at_7(key + 2**64), one)


def _gumbel_at_7(key: int) -> torch.Tensor:
    return gumbel(key_words(key, "cpu"), torch.tensor([7]), 100)
