"""The baseline: the target alone."""

from __future__ import annotations

import pytest
import torch

from specdec.decoding.autoregressive import AutoregressiveDecoder
from tests.checks import transformers_greedy
from tests.tiny import KINDS, make_model, wrap

PROMPTS = [[5, 9, 2, 7, 300], [11], list(range(20, 60))]
TOKENS = 40


@pytest.fixture(scope="module")
def decoder():
    return AutoregressiveDecoder(wrap(make_model()))


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
@pytest.mark.parametrize("kind", KINDS)
def test_hf_match_of_greedy_tokens_in_float64(kind, prompt):
    model = make_model(kind, dtype=torch.float64)
    ours = AutoregressiveDecoder(wrap(model)).generate(prompt, TOKENS, eos_token_id=None)
    assert ours.generated_ids == transformers_greedy(model, prompt, TOKENS)


def test_the_result_is_autoregressive_and_its_speculative_fields_are_none(decoder):
    result = decoder.generate(PROMPTS[0], 10, eos_token_id=None)
    assert not result.is_speculative and result.summary().startswith("AR")
    assert result.accepted_per_round is None and result.draft_time_total_ms is None
    assert result.num_tokens == 10 and result.finish_reason == "length"


def test_each_token_has_its_own_latency_and_the_first_is_the_prefill(decoder):
    result = decoder.generate(PROMPTS[2], 10, eos_token_id=None)
    assert len(result.per_token_latencies) == 10 and min(result.per_token_latencies) > 0
    assert result.per_token_latencies[0] == result.time_to_first_token
    assert sum(result.per_token_latencies) == pytest.approx(result.total_time)
    assert set(result.phase_times_ms) == {"prefill", "verify", "sample"}


def test_an_end_token_is_kept_and_is_last(decoder):
    ids = decoder.generate(PROMPTS[0], 20, eos_token_id=None).generated_ids
    result = decoder.generate(PROMPTS[0], 20, eos_token_id=ids[7])
    assert result.generated_ids == ids[: ids.index(ids[7]) + 1]
    assert result.finish_reason == "stop"


def test_a_first_token_that_ends_the_text_is_the_whole_output(decoder):
    first = decoder.generate(PROMPTS[0], 1).generated_ids
    assert decoder.generate(PROMPTS[0], 20, eos_token_id=first[0]).generated_ids == first


def test_a_seed_fixes_the_sample_and_a_longer_budget_only_continues_it(decoder):
    settings = dict(temperature=1.0, seed=7, eos_token_id=None)
    short = decoder.generate(PROMPTS[0], 8, **settings).generated_ids
    assert decoder.generate(PROMPTS[0], 20, **settings).generated_ids[:8] == short
    assert decoder.generate(PROMPTS[0], 8, temperature=1.0, seed=8).generated_ids != short


def test_top_k_of_one_is_greedy(decoder):
    greedy = decoder.generate(PROMPTS[0], 12, eos_token_id=None).generated_ids
    narrow = decoder.generate(PROMPTS[0], 12, temperature=0.7, top_k=1, seed=1, eos_token_id=None)
    assert narrow.generated_ids == greedy


def test_generate_text_continues_a_text(tiny_wrapper):
    text = AutoregressiveDecoder(tiny_wrapper).generate_text("The quick brown fox", 5)
    assert isinstance(text, str)
