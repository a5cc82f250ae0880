"""The fast engine on a GPU: one graph a round, one wait a round, the reference's tokens."""

from __future__ import annotations

import warnings

import pytest
import torch

from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.speculative import SpeculativeDecoder
from tests.tiny import make_model, perturbed, wrap

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
PROMPT = [5, 9, 2, 7]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def models(request):
    target = make_model(request.param, dtype=torch.float64)
    return wrap(perturbed(target).cuda()), wrap(target.cuda())


@pytest.mark.parametrize("settings", [dict(), dict(temperature=0.8, top_k=5)], ids=str)
def test_captured_rounds_give_the_references_tokens(models, settings):
    for make in (
        lambda engine: AutoregressiveDecoder(models[1], engine=engine),
        lambda engine: SpeculativeDecoder(*models, 3, engine=engine),
    ):
        request = dict(seed=1, eos_token_id=None, **settings)
        reference = make("eager").generate(PROMPT, 40, **request)
        fast = make("compiled").generate(PROMPT, 40, **request)
        assert fast.engine == "compiled"
        assert fast.generated_ids == reference.generated_ids
        assert fast.accepted_per_round == reference.accepted_per_round


@pytest.mark.parametrize("timed_phases", [True, False])
def test_a_round_waits_for_the_device_once(models, timed_phases):
    decoder = SpeculativeDecoder(*models, 3, engine="compiled")
    request = dict(seed=1, eos_token_id=None, timed_phases=timed_phases)
    decoder.generate(PROMPT, 20, **request)  # compiled and captured

    def waits(tokens):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                result = decoder.generate(PROMPT, tokens, **request)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        said = [w for w in caught if "synchroniz" in str(w.message)]
        return len(said), result.num_speculation_rounds

    few, few_rounds = waits(10)
    many, many_rounds = waits(40)
    assert many - few <= many_rounds - few_rounds


def test_phases_are_timed_inside_the_graph(models):
    decoder = SpeculativeDecoder(*models, 3, engine="compiled")
    result = decoder.generate(PROMPT, 40, eos_token_id=None)
    assert all(result.phase_times_ms[name] > 0 for name in ("draft", "verify", "sample"))
    bare = decoder.generate(PROMPT, 40, eos_token_id=None, timed_phases=False)
    assert bare.phase_times_ms == {}
