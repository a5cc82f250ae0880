"""Which models can be decoded with: the others are refused when they are wrapped, in one line."""

import sys

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    JambaConfig,
    JambaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)

from specdec.decoding.speculative import SpeculativeDecoder
from specdec.models.cache import GrowingCache
from specdec.models.loading.random_weights import load_random_weights
from specdec.models.registry import ModelSide
from specdec.models.wrapper import ModelWrapper
from specdec.utils.errors import SpecdecError
from specdec.utils.paths import PROJECT_ROOT
from tests.tiny import KINDS, make_model, wrap

SMALL = dict(vocab_size=128, hidden_size=64, num_hidden_layers=2)
HEADS = dict(num_attention_heads=4, intermediate_size=64)


def mamba():
    return MambaForCausalLM(MambaConfig(**SMALL))


def mamba2():
    return Mamba2ForCausalLM(Mamba2Config(**SMALL, num_heads=8, head_dim=16, expand=2))


def jamba():
    few = dict(num_experts=2, num_key_value_heads=2, use_mamba_kernels=False)
    return JambaForCausalLM(JambaConfig(**SMALL, **HEADS, **few))


def openai_gpt():
    return OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=128, n_embd=64, n_layer=2, n_head=4))


def bert(is_decoder: bool = False):
    return BertLMHeadModel(BertConfig(**SMALL, **HEADS, is_decoder=is_decoder))


@pytest.mark.parametrize(
    "make, says",
    [
        (mamba, "type 'mamba' can't be decoded with here: it keeps a state beside keys and values"),
        (mamba2, "type 'mamba2' can't be decoded with here: it keeps a state beside"),
        (jamba, "type 'jamba' can't be decoded with here: it keeps a state beside"),
        (openai_gpt, "type 'openai-gpt' can't be decoded with here: it doesn't keep what it reads"),
        (bert, "type 'bert' can't be decoded with here: .*it is not causal"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_would_be_silently_wrong_is_refused_in_one_line(make, says):
    with pytest.raises(SpecdecError, match=says) as caught:
        ModelWrapper(make(), None, "cpu")
    assert "\n" not in str(caught.value)


def test_the_same_type_as_a_decoder_is_right():
    target = wrap(bert(is_decoder=True))
    result = SpeculativeDecoder(target, target, 4, engine="eager").generate(
        [3, 5, 7], 16, eos_token_id=None
    )
    assert result.acceptance_rate == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_causal_model_with_a_cache_is_taken_in_every_dtype(kind, dtype):
    wrap(make_model(kind, dtype=dtype))


def test_random_weights_are_checked_too():
    side = ModelSide("mamba", "float32", weights="random", shape={"model_type": "mamba"} | SMALL)
    with pytest.raises(SpecdecError, match="type 'mamba' can't be decoded with here"):
        load_random_weights(side, "cpu")


def without_rollback(monkeypatch):
    monkeypatch.setattr(GrowingCache, "roll_back", lambda self, length: None)


def one_token_too_many(monkeypatch):
    right = GrowingCache.roll_back
    monkeypatch.setattr(GrowingCache, "roll_back", lambda self, n: right(self, n + 1))


@pytest.mark.parametrize("fault", [without_rollback, one_token_too_many])
def test_a_rollback_that_is_not_exact_is_noticed(fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises(SpecdecError, match="after a rollback it gives other logits"):
        wrap(make_model("llama"))


def test_a_model_that_sees_what_comes_after_is_noticed(monkeypatch):
    """Its cache is in order, so only the logits tell."""
    model = make_model("llama")
    forward = model.forward

    def sees_all(input_ids, past_key_values=None, use_cache=True, **settings):
        output = forward(input_ids, past_key_values=past_key_values, use_cache=use_cache)
        output.logits = output.logits + output.logits.mean(1, keepdim=True)
        return output

    monkeypatch.setattr(model, "forward", sees_all)
    with pytest.raises(SpecdecError, match="in two parts gives other logits than read at once"):
        wrap(model)


def test_logits_that_are_not_finite_are_left_to_whoever_decodes():
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    wrap(model)


@pytest.mark.parametrize("kind", ["llama", "mamba2", "no such type"])
def test_the_script_tells_what_became_of_a_type(kind, monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT_ROOT / "benchmarks"))
    import architectures

    expected = {"llama": "right", "mamba2": "refused"}.get(kind, "not tried")
    assert architectures.attempt(kind)[0] == expected
    sys.modules.pop("architectures")
