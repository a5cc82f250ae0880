"""Where a context ends: the target's is used to its last place, the draft's end ends its part."""

from __future__ import annotations

import pytest
import torch

from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.utils.errors import SpecdecError
from tests.distribution import SIGNIFICANCE, joint_fit
from tests.tiny import make_model, perturbed, table_pair, wrap

PROMPT = [5, 9, 2, 7]
ENGINES = ["eager", "compiled"]
CONTEXT = 40
SHORT = {"gpt2": dict(n_positions=CONTEXT), "llama": dict(max_position_embeddings=CONTEXT)}


def short_model(kind="gpt2"):
    return make_model(kind, dtype=torch.float64, **SHORT[kind])


@pytest.mark.parametrize("kind", SHORT)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("k", [1, 4, 9])
def test_a_request_that_fills_the_context_gets_the_baselines_tokens(uncompiled, kind, engine, k):
    target = wrap(short_model(kind))
    draft = wrap(perturbed(target.model))
    for settings in (dict(), dict(temperature=0.9, seed=2)):
        request = dict(eos_token_id=None, **settings)
        baseline = AutoregressiveDecoder(target, coupled=True, engine=engine)
        decoder = SpeculativeDecoder(draft, target, k, coupled=True, engine=engine)
        expected = baseline.generate(PROMPT, CONTEXT - 4, **request)
        result = decoder.generate(PROMPT, CONTEXT - 4, **request)
        assert result.generated_ids == expected.generated_ids
        assert result.engine == engine and result.notes is None
        assert sum(result.accepted_per_round) > 0
        for one in (baseline, decoder):
            with pytest.raises(SpecdecError, match="the context of .* is 40"):
                one.generate(PROMPT, CONTEXT - 3, **request)


@pytest.mark.parametrize("engine", ENGINES)
def test_where_the_drafts_context_ends_the_target_goes_on_alone(uncompiled, engine):
    target = wrap(make_model(dtype=torch.float64))
    draft = wrap(short_model())
    draft.model.load_state_dict(
        {
            name: weight[:CONTEXT] if name.endswith("wpe.weight") else weight
            for name, weight in target.model.state_dict().items()
        }
    )
    expected = AutoregressiveDecoder(target).generate(PROMPT, 80, eos_token_id=None)
    result = SpeculativeDecoder(draft, target, 4, engine=engine).generate(
        PROMPT, 80, eos_token_id=None
    )
    assert result.generated_ids == expected.generated_ids and result.engine == engine
    # The draft is the target: all is accepted up to its last place, and nothing proposed behind.
    # Its last proposal needs no place.
    assert result.acceptance_rate == 1
    inside = CONTEXT + 1 - len(PROMPT) - 1
    assert [n for n in result.proposed_per_round if n] == [4] * 7 + [1]
    assert sum(n + 1 for n in result.proposed_per_round[:8]) == inside + 1
    assert result.notes == [
        "the draft's context of 40 tokens is shorter than the text: behind it the target went on "
        "alone"
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_prompt_past_the_drafts_context_is_the_targets_alone(uncompiled, engine):
    target = wrap(make_model(dtype=torch.float64))
    decoder = SpeculativeDecoder(wrap(short_model()), target, 4, engine=engine)
    for settings in (dict(), dict(temperature=0.9, seed=2)):
        prompt = list(range(CONTEXT + 5))
        expected = AutoregressiveDecoder(target).generate(prompt, 9, eos_token_id=None, **settings)
        result = decoder.generate(prompt, 9, eos_token_id=None, **settings)
        assert result.generated_ids == expected.generated_ids
        assert result.proposed_per_round == [0] * 8 and result.acceptance_rate == 0
        assert "went on alone" in result.notes[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_output_follows_the_targets_distribution_across_the_drafts_end(uncompiled, engine):
    draft, target = table_pair()
    draft.model.config.max_position_embeddings = 5
    decoder = SpeculativeDecoder(draft, target, 2, engine=engine)
    fit = joint_fit(decoder, [0, 1, 2], 4, temperature=0.8)
    assert fit.p_value > SIGNIFICANCE, fit
