"""The speculative loop: acceptance, end tokens, budgets, seeds, refusals."""

from __future__ import annotations

import pytest
import torch

from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.utils.errors import SpecdecError
from tests.checks import PROMPT, assert_accepts_everything, assert_identities
from tests.tiny import make_model, perturbed, wrap

SAMPLING = dict(temperature=0.9, seed=3)


@pytest.fixture(scope="module")
def pair():
    target = make_model()
    return wrap(perturbed(target)), wrap(target)


@pytest.mark.parametrize("k", [1, 2, 4, 8])
@pytest.mark.parametrize("settings", [{}, SAMPLING], ids=["greedy", "sampling"])
def test_a_draft_that_is_the_target_is_always_accepted(k, settings):
    # A hole in the draft's cache after full acceptance would make it sag for K > 1.
    assert_accepts_everything(k, **settings)


@pytest.mark.parametrize("k", [1, 2, 4, 8])
@pytest.mark.parametrize("settings", [{}, SAMPLING], ids=["greedy", "sampling"])
def test_the_counts_of_a_run_satisfy_their_identities(k, settings):
    assert_identities(k, **settings)


@pytest.mark.parametrize("settings", [{}, SAMPLING], ids=["greedy", "sampling"])
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_an_end_token_anywhere_in_a_block_is_kept_and_is_last(uncompiled, pair, engine, settings):
    decoder = SpeculativeDecoder(*pair, 4, engine=engine)
    whole = decoder.generate(PROMPT, 30, eos_token_id=None, **settings)
    for place, token in enumerate(whole.generated_ids):
        first = whole.generated_ids.index(token)
        result = decoder.generate(PROMPT, 30, eos_token_id=token, **settings)
        assert result.generated_ids == whole.generated_ids[: first + 1], f"end at {place}"
        assert result.finish_reason == "stop"
        assert_counts_end_with_the_text(result)


def assert_counts_end_with_the_text(result):
    """What was proposed behind the end is no text, and counts nowhere."""
    accepted, proposed = result.accepted_per_round, result.proposed_per_round
    rounds, emitted = result.num_speculation_rounds, result.num_tokens - 1
    assert sum(accepted) + rounds - emitted in (0, 1)  # the token behind an accepted end
    assert all(0 <= n <= m for n, m in zip(accepted, proposed, strict=True))
    assert [n + 1 for n in accepted[:-1]] == result.round_tokens[:-1]
    if rounds:
        assert accepted[-1] <= proposed[-1] <= result.round_tokens[-1]
        assert result.tokens_per_step == emitted / rounds
    assert result.acceptance_rate == (sum(accepted) / sum(proposed) if sum(proposed) else 0)


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_tokens_behind_an_accepted_end_are_not_counted(uncompiled, engine):
    # With draft = target all eight of a block are accepted, of which three were emitted.
    target = wrap(make_model(dtype=torch.float64))
    decoder = SpeculativeDecoder(target, target, 8, engine=engine)
    ids = decoder.generate(PROMPT, 20, eos_token_id=None).generated_ids
    end = next(i for i in range(3, 9) if ids.index(ids[i]) == i)
    result = decoder.generate(PROMPT, 20, eos_token_id=ids[end])
    assert result.num_tokens == end + 1 and result.acceptance_rate == 1
    assert result.accepted_per_round == result.proposed_per_round == [end]
    assert result.tokens_per_step == end


def test_several_end_tokens_may_be_named(pair):
    decoder = SpeculativeDecoder(*pair, 4)
    ids = decoder.generate(PROMPT, 30, eos_token_id=None).generated_ids
    result = decoder.generate(PROMPT, 30, eos_token_id=[ids[9], ids[6]])
    assert result.generated_ids == ids[: min(ids.index(ids[9]), ids.index(ids[6])) + 1]


def test_by_default_the_models_own_end_tokens_stop_it(pair):
    draft, target = pair
    ids = AutoregressiveDecoder(target).generate(PROMPT, 20, eos_token_id=None).generated_ids
    named = wrap(target.model)
    named.model.generation_config.eos_token_id = [ids[4], ids[8]]
    try:
        for decoder in (AutoregressiveDecoder(named), SpeculativeDecoder(draft, named, 3)):
            result = decoder.generate(PROMPT, 20)
            assert result.generated_ids == ids[: ids.index(ids[4]) + 1]
    finally:
        named.model.generation_config.eos_token_id = 0


@pytest.mark.parametrize("budget", range(1, 12))
@pytest.mark.parametrize("settings", [{}, SAMPLING], ids=["greedy", "sampling"])
def test_a_budget_cuts_the_output_and_changes_nothing_before(pair, budget, settings):
    # A K that shrank near the budget would shift what the last tokens are drawn with.
    decoder = SpeculativeDecoder(*pair, 4)
    whole = decoder.generate(PROMPT, 30, eos_token_id=None, **settings).generated_ids
    result = decoder.generate(PROMPT, budget, eos_token_id=None, **settings)
    assert len(result.generated_ids) == budget
    assert result.generated_ids == whole[:budget]


def test_the_same_seed_gives_the_same_tokens_whatever_ran_before(pair):
    decoder = SpeculativeDecoder(*pair, 4)
    first = decoder.generate(PROMPT, 20, **SAMPLING).generated_ids
    decoder.generate([1, 2, 3], 7, temperature=1.3, seed=8)
    torch.manual_seed(0)
    assert SpeculativeDecoder(*pair, 4).generate(PROMPT, 20, **SAMPLING).generated_ids == first
    assert decoder.generate(PROMPT, 20, temperature=0.9, seed=4).generated_ids != first


def test_without_a_seed_two_runs_differ(pair):
    decoder = SpeculativeDecoder(*pair, 4)
    runs = {tuple(decoder.generate(PROMPT, 20, temperature=1.5).generated_ids) for _ in range(4)}
    assert len(runs) > 1


def test_a_prompt_may_be_a_tensor_of_one_row_or_a_list(pair):
    decoder = SpeculativeDecoder(*pair, 2)
    expected = decoder.generate(PROMPT, 8).generated_ids
    assert decoder.generate(torch.tensor([PROMPT]), 8).generated_ids == expected
    assert all(type(token) is int for token in expected)


def test_tokens_are_handed_over_round_by_round(pair):
    bursts = []
    result = SpeculativeDecoder(*pair, 3).generate(
        PROMPT, 20, eos_token_id=None, on_tokens=bursts.append
    )
    assert [len(burst) for burst in bursts] == [1, *result.round_tokens]
    assert sum(bursts, []) == result.generated_ids


def test_times_of_the_phases_fit_into_the_time_of_decoding(pair):
    result = SpeculativeDecoder(*pair, 3).generate(PROMPT, 30, eos_token_id=None)
    phases = (
        result.draft_time_total_ms + result.verify_time_total_ms + result.sampling_time_total_ms
    )
    assert 0 < phases <= result.decode_time * 1e3
    assert set(result.phase_times_ms) == {"prefill", "draft", "verify", "sample"}


def test_logits_padded_beyond_the_tokenizer_are_never_emitted(tiny_tokenizer):
    # As 50304 against 50257: the model's last rows belong to no token.
    size = len(tiny_tokenizer)
    target = make_model(vocab_size=size + 64)
    with torch.no_grad():
        target.lm_head.weight[size:] *= 50
    wrapper = wrap(target, tiny_tokenizer)
    assert wrapper.vocab_size == size
    draft = wrap(make_model(vocab_size=size, seed=4), tiny_tokenizer)
    for settings in ({}, SAMPLING):
        for decoder in (AutoregressiveDecoder(wrapper), SpeculativeDecoder(draft, wrapper, 3)):
            result = decoder.generate(PROMPT, 30, eos_token_id=None, **settings)
            assert max(result.generated_ids) < size


def test_generate_text_returns_the_continuation(tiny_pair):
    decoder = SpeculativeDecoder(*tiny_pair, 2)
    text = decoder.generate_text("The quick brown fox", max_new_tokens=6)
    assert isinstance(text, str) and not text.startswith("The quick brown fox")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(temperature=-0.1), "temperature -0.1 is below 0"),
        (dict(temperature=float("nan")), "temperature nan"),
        (dict(top_p=0.0), "top_p 0.0 is outside"),
        (dict(top_p=1.1), "top_p 1.1 is outside"),
        (dict(top_k=-1), "top_k -1"),
        (dict(max_new_tokens=0), "max_new_tokens 0"),
        (dict(max_new_tokens=600), "context"),
        (dict(prompt_ids=[]), "prompt is empty"),
        (dict(prompt_ids=[400]), "outside the vocabulary"),
    ],
    ids=str,
)
def test_a_bad_request_is_refused_in_one_line(pair, settings, message):
    request = dict(prompt_ids=PROMPT, max_new_tokens=5) | settings
    for decoder in (AutoregressiveDecoder(pair[1]), SpeculativeDecoder(*pair, 2)):
        with pytest.raises(SpecdecError, match=message) as refusal:
            decoder.generate(**request)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("k", [0, -1])
def test_a_k_below_one_is_refused(pair, k):
    with pytest.raises(SpecdecError, match="give 1 or more"):
        SpeculativeDecoder(*pair, k)


def test_a_block_across_a_change_of_rotary_scaling_is_refused():
    # Long-context scaling: a block over the original length differs from single steps.
    target = make_model(
        "phi3",
        original_max_position_embeddings=32,
        rope_parameters=dict(
            rope_type="longrope", long_factor=[2.0] * 4, short_factor=[1.0] * 4, rope_theta=10000.0
        ),
    )
    decoder = SpeculativeDecoder(wrap(target), wrap(target), 2)
    assert decoder.generate(PROMPT, 20).num_tokens <= 20
    with pytest.raises(SpecdecError, match="rescales its rotary positions"):
        decoder.generate(PROMPT, 40)
