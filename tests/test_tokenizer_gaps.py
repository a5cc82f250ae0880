"""A tokenizer whose ids leave some out: the highest id counts, not the number of entries."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.models.wrapper import ModelWrapper
from specdec.vocabulary.match import compare
from specdec.vocabulary.token_bytes import ByteTokenizer
from tests.checks import transformers_greedy
from tests.tiny import make_model, perturbed
from tests.toy_tokenizers import byte_level

START, END, IDS = 300, 319, 320
PROMPT = [5, 9, 2, 7]


def with_gaps() -> PreTrainedTokenizerFast:
    """The 256 bytes, and two special tokens far behind them: 258 entries, ids up to 319."""
    definition = json.loads(byte_level().backend_tokenizer.to_str())
    alphabet = [token for token in byte_level().get_vocab() if len(token) == 1]
    definition["model"] |= {"vocab": {token: i for i, token in enumerate(alphabet)}, "merges": []}
    definition["model"]["vocab"] |= {"<start>": START, "<end>": END}
    plain = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    definition["added_tokens"] = [
        {"id": i, "content": content} | plain for i, content in ((START, "<start>"), (END, "<end>"))
    ]
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


@pytest.fixture(scope="module")
def target():
    return ModelWrapper(make_model("llama", 384), with_gaps(), "cpu")


def test_the_logits_are_cut_behind_the_highest_id(target):
    assert len(target.tokenizer) == 258
    assert target.vocab_size == IDS == ByteTokenizer(target.tokenizer, 384).size


def test_greedy_decoding_gives_the_tokens_that_generate_gives():
    model = make_model("llama", IDS)
    wrapper = ModelWrapper(model, with_gaps(), "cpu")
    expected = transformers_greedy(model, PROMPT, 40)
    assert max(expected) >= 258  # an entry count as the width would have cut these off
    alone = AutoregressiveDecoder(wrapper, engine="eager").generate(PROMPT, 40, eos_token_id=None)
    assert alone.generated_ids == expected
    draft = ModelWrapper(perturbed(model), with_gaps(), "cpu")
    both = SpeculativeDecoder(draft, wrapper, 3, engine="eager")
    assert both.generate(PROMPT, 40, eos_token_id=None).generated_ids == expected


def test_the_end_token_behind_the_gap_ends_the_text():
    model = make_model("llama", IDS)
    with torch.no_grad():  # a head that prefers the end token wherever it is
        model.lm_head.weight[END] = 50 * model.lm_head.weight.mean(0).sign()
        model.lm_head.weight[START:END] = -model.lm_head.weight[END]
    ids = [0, 1, 2]
    expected = transformers_greedy(model, ids, 20)
    assert END in expected
    wrapper = ModelWrapper(model, with_gaps(), "cpu")
    result = AutoregressiveDecoder(wrapper, engine="eager").generate(ids, 20, eos_token_id=END)
    assert result.generated_ids == expected[: expected.index(END) + 1]
    assert result.finish_reason == "stop"


@pytest.mark.parametrize("method", ["intersection", "exact_match"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_of_another_vocabulary_serves_it(target, method, temperature):
    draft = ModelWrapper(make_model("llama", 420, seed=3), byte_level(), "cpu")
    settings = dict(temperature=temperature, seed=1, eos_token_id=None)
    decoder = SpeculativeDecoder(draft, target, 3, vocabulary=method, engine="eager")
    result = decoder.generate(PROMPT, 30, **settings)
    assert max(result.generated_ids) < IDS
    if temperature == 0:
        alone = AutoregressiveDecoder(target, engine="eager").generate(PROMPT, 30, **settings)
        assert result.generated_ids == alone.generated_ids


def test_a_draft_with_gaps_proposes_for_another_vocabulary():
    draft = ModelWrapper(make_model("llama", 384, seed=3), with_gaps(), "cpu")
    target = ModelWrapper(make_model("llama", 420), byte_level(), "cpu")
    for method in ("intersection", "exact_match"):
        decoder = SpeculativeDecoder(draft, target, 3, vocabulary=method, engine="eager")
        alone = AutoregressiveDecoder(target, engine="eager").generate(PROMPT, 20)
        assert decoder.generate(PROMPT, 20).generated_ids == alone.generated_ids


def test_both_sides_are_as_wide_as_what_they_emit(target):
    match = compare(byte_level(), target.tokenizer, 420, target.logit_size)
    assert match.target_size == target.vocab_size == IDS
    assert match.draft_size == 420
