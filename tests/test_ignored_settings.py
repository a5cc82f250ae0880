"""What a checkpoint's generation config asks for beyond our settings is said, and recorded."""

import logging

import pytest
from transformers import GenerationConfig

from specdec.models.loading.loader import load_model
from specdec.models.wrapper import ModelWrapper
from tests.tiny import make_model, make_tokenizer, wrap

ASKED = {
    "do_sample": True,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.9,
    "repetition_penalty": 1.1,
    "no_repeat_ngram_size": 3,
    "suppress_tokens": [1, 2],
    "begin_suppress_tokens": [3],
    "bad_words_ids": [[4, 5]],
    "sequence_bias": [[[6], -1.0]],
    "forced_eos_token_id": 7,
    "min_new_tokens": 2,
    "num_beams": 2,
}
NOTHING = {
    "do_sample": False,
    "temperature": 1.0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "num_beams": 1,
    "suppress_tokens": [],
    "eos_token_id": [1, 2],
    "max_length": 20,
}


def with_settings(**settings):
    model = make_model()
    model.generation_config = GenerationConfig(**settings)
    return model


@pytest.mark.parametrize("name", ASKED)
def test_each_is_named_with_its_value(name):
    assert wrap(with_settings(**{name: ASKED[name]})).ignored_settings == [f"{name} {ASKED[name]}"]


def test_all_are_named():
    named = wrap(with_settings(**ASKED)).ignored_settings
    assert {text.partition(" ")[0] for text in named} == set(ASKED)


def test_what_changes_nothing_is_not_named():
    assert wrap(with_settings(**NOTHING)).ignored_settings == []
    assert wrap(make_model()).ignored_settings == []


def test_a_long_value_is_shortened():
    (text,) = wrap(with_settings(suppress_tokens=list(range(100)))).ignored_settings
    assert len(text) < 70 and text.endswith("…")


def test_it_is_said_once_in_the_log_and_comes_from_the_checkpoint(tmp_path, caplog):
    tokenizer = make_tokenizer()
    model = make_model("llama", len(tokenizer))
    model.generation_config = GenerationConfig(repetition_penalty=1.3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, logger="specdec"):
        wrapper = ModelWrapper(*load_model(str(tmp_path), "float32", "cpu"), "cpu")
    assert wrapper.ignored_settings == ["repetition_penalty 1.3"]
    said = [r.getMessage() for r in caplog.records if "repetition_penalty 1.3" in r.getMessage()]
    assert len(said) == 1
