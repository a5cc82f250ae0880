"""Logits that are no numbers: a target's are refused, a draft's propose nothing."""

from __future__ import annotations

import pytest
import torch

from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.utils.errors import SpecdecError
from tests.test_other_vocabulary import random_pair
from tests.tiny import TableModel, make_model, make_table, wrap
from tests.toy_tokenizers import byte_level, sentencepiece

PROMPT = [5, 9, 2, 7]
ENGINES = ["eager", "compiled"]
METHODS = {
    "greedy": (False, dict()),
    "sampling": (False, dict(temperature=0.8, seed=1)),
    "top-p": (False, dict(temperature=0.8, top_p=0.9, seed=1)),
    "coupled": (True, dict(temperature=0.8, seed=1)),
}
NOTE = "the draft's logits were not finite: there it proposed nothing"


def broken(model, value):
    with torch.no_grad():
        model.lm_head.weight.fill_(value)
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_a_target_whose_logits_are_not_finite_is_refused(uncompiled, method, engine, value):
    coupled, settings = METHODS[method]
    target, draft = wrap(broken(make_model("llama"), value)), wrap(make_model())
    for decoder in (
        AutoregressiveDecoder(target, coupled=coupled, engine=engine),
        SpeculativeDecoder(draft, target, 3, coupled=coupled, engine=engine),
    ):
        with pytest.raises(SpecdecError, match="the target's logits are not finite"):
            decoder.generate(PROMPT, 8, **settings)


def table_with_a_hole(seed=0):
    """A table model that has no numbers behind token 3."""
    table = make_table(6, seed)
    table[:, 3] = torch.nan
    return wrap(TableModel(table))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", ENGINES)
def test_only_logits_that_decide_something_need_be_finite(uncompiled, method, engine):
    """A proposal that is rejected may lead where the target has no numbers."""
    coupled, settings = METHODS[method]
    target, draft = table_with_a_hole(), wrap(TableModel(make_table(6, 0)))
    served = refused = 0
    for seed in range(30):
        request = settings | dict(seed=seed, eos_token_id=None)
        prompt = [0, seed % 3]
        results = []
        for decoder in (
            AutoregressiveDecoder(target, coupled=coupled, engine=engine),
            SpeculativeDecoder(draft, target, 3, coupled=coupled, engine=engine),
        ):
            try:
                results.append(decoder.generate(prompt, 6, **request).generated_ids)
            except SpecdecError as error:
                assert "not finite" in str(error)
                results.append(None)
        baseline, speculative = results
        # A text that ends at the hole is whole; one that goes on behind it is refused.
        for ids in results:
            assert ids is None or 3 not in ids[:-1]
        if coupled or not settings:
            assert baseline == speculative
        served += speculative is not None
        refused += speculative is None
    assert served or not settings.get("temperature")
    assert refused


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_a_draft_whose_logits_are_not_finite_proposes_nothing(
    uncompiled, method, engine, value, caplog
):
    coupled, settings = METHODS[method]
    target = wrap(make_model(dtype=torch.float64))
    draft = wrap(broken(make_model("llama"), value))
    decoder = SpeculativeDecoder(draft, target, 3, coupled=coupled, engine=engine)
    expected = AutoregressiveDecoder(target, coupled=coupled).generate(
        PROMPT, 12, eos_token_id=None, **settings
    )
    for _ in range(2):
        result = decoder.generate(PROMPT, 12, eos_token_id=None, **settings)
        # With nothing proposed each token is the target's own draw.
        assert result.generated_ids == expected.generated_ids
        assert result.proposed_per_round == [0] * 11 and result.notes == [NOTE]
    assert [record.message for record in caplog.records].count(NOTE) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_draft_that_overflows_now_and_then_proposes_up_to_there(uncompiled, engine):
    target, draft = wrap(TableModel(make_table(6, 0))), table_with_a_hole()
    decoder = SpeculativeDecoder(draft, target, 4, engine=engine)
    expected = AutoregressiveDecoder(target).generate([0, 1], 60, eos_token_id=None)
    result = decoder.generate([0, 1], 60, eos_token_id=None)
    assert result.generated_ids == expected.generated_ids
    if 3 in result.generated_ids:
        assert 0 < min(set(result.proposed_per_round) - {0}) and result.notes == [NOTE]
    fewer = [n for n in result.proposed_per_round[:-1] if n < 4]
    assert bool(fewer) == (result.notes is not None)


@pytest.mark.parametrize("vocabulary", ["intersection", "exact_match"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("settings", [dict(), dict(temperature=0.8, seed=1)], ids=str)
def test_so_does_a_draft_of_another_vocabulary(uncompiled, vocabulary, engine, settings):
    draft, target = random_pair(sentencepiece(), byte_level(420))
    broken(draft.model, torch.nan)
    decoder = SpeculativeDecoder(draft, target, 3, vocabulary, engine=engine)
    expected = AutoregressiveDecoder(target).generate(PROMPT, 9, eos_token_id=None, **settings)
    result = decoder.generate(PROMPT, 9, eos_token_id=None, **settings)
    assert result.generated_ids == expected.generated_ids
    assert result.proposed_per_round == [0] * 8 and result.notes == [NOTE]


def test_minus_infinity_is_a_logit():
    """A token that can't come: masked by the model itself."""
    table = make_table(6, 0)
    table[..., 2] = -torch.inf
    target = wrap(TableModel(table))
    for decoder in (AutoregressiveDecoder(target), SpeculativeDecoder(target, target, 2)):
        result = decoder.generate([0, 1], 30, temperature=1.0, seed=1, eos_token_id=None)
        assert result.num_tokens == 30 and 2 not in result.generated_ids
