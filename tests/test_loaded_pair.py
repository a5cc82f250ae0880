"""A pair ready for use: prompts and limits without weights, decoders with what they need."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from transformers import GPT2Config

import specdec
from specdec.data.dataset import encode_prompt
from specdec.decoding import loaded_pair
from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.loaded_pair import Encoded, LoadedPair
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.models.registry import ModelPair, ModelSide, get_pair
from specdec.utils.errors import SpecdecError
from tests.tiny import make_model, perturbed

TEXT = "def add(a, b):"


@pytest.fixture(scope="module")
def without_weights(tmp_path_factory, tiny_tokenizer) -> ModelPair:
    """A pair of which there is everything but the weights."""
    folder = tmp_path_factory.mktemp("bare")
    for name, context in {"target": 256, "draft": 48}.items():
        GPT2Config(n_positions=context).save_pretrained(folder / name)
        tiny_tokenizer.save_pretrained(folder / name)
    target, draft = (ModelSide(str(folder / name), "float32") for name in ("target", "draft"))
    return ModelPair("bare", draft, target)


@pytest.fixture(scope="module")
def registry(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("whole")
    target = make_model(vocab_size=len(tiny_tokenizer))
    for name, model in {"target": target, "draft": perturbed(target)}.items():
        model.save_pretrained(folder / name)
        tiny_tokenizer.save_pretrained(folder / name)
    sides = {n: {"model": str(folder / n), "dtype": "float32"} for n in ("draft", "target")}
    path = folder / "pairs.yaml"
    path.write_text(yaml.safe_dump({"whole": sides}))
    return path


def test_prompts_are_encoded_and_limits_known_without_weights(without_weights, tiny_tokenizer):
    pair = LoadedPair(without_weights)
    assert pair.encode(TEXT) == Encoded(encode_prompt(tiny_tokenizer, TEXT))
    limits = pair.limits(room=40)
    assert [limit.max_tokens for limit in limits] == [216, 8]  # the target's first
    assert [limit.name for limit in limits] == [
        without_weights.target.label,
        without_weights.draft.label,
    ]
    assert pair.draft is None and pair.target is None


def test_a_context_that_leaves_no_room_is_refused(without_weights):
    with pytest.raises(
        SpecdecError, match="pair bare: the context of .*draft is 48 tokens, and 48"
    ):
        LoadedPair(without_weights).limits(room=48)


def test_loaded_or_not_prompts_and_limits_are_the_same(registry):
    entry = get_pair("whole", registry)
    before, after = LoadedPair(entry), LoadedPair(entry).load()
    assert before.encode(TEXT) == after.encode(TEXT)
    assert [limit.max_tokens for limit in before.limits(10)] == [
        limit.max_tokens for limit in after.limits(10)
    ]


def test_the_target_alone_loads_no_draft(registry, monkeypatch):
    loaded = []
    load_side = loaded_pair.load_side
    monkeypatch.setattr(
        loaded_pair, "load_side", lambda *side: loaded.append(side[0].model) or load_side(*side)
    )
    pair = LoadedPair(get_pair("whole", registry), "cpu")
    assert isinstance(pair.decoder(0), AutoregressiveDecoder) and len(loaded) == 1
    both = pair.decoder(3)
    assert isinstance(both, SpeculativeDecoder) and both.num_draft_tokens == 3
    pair.decoder(5)
    assert [model.split("/")[-1] for model in loaded] == ["target", "draft"]


def test_a_pair_unpacks_into_its_two_models(registry):
    draft, target = specdec.load_pair("whole", registry)
    assert draft.name.endswith("draft") and target.name.endswith("target")


def test_both_decoders_take_what_encode_gives(registry):
    entry = replace(get_pair("whole", registry), draft_prompt="own")
    pair = LoadedPair(entry, "cpu")
    encoded = pair.encode(TEXT)
    outputs = [
        pair.decoder(k, "eager").generate(max_new_tokens=12, **encoded._asdict()).generated_ids
        for k in (0, 3)
    ]
    assert outputs[0] == outputs[1]
