"""Compiled on a CPU, greedy and coupled output is the compiled baseline's at every K, bit for bit.

Without a word about near ties: a row's numbers depend on no row beside it, in any dtype.
"""

from __future__ import annotations

import pytest
import torch

from specdec.certification.greedy import DRAFT_TOKENS, NOT_BITWISE, check_greedy
from specdec.data.dataset import Prompt
from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.decoder import Decoder
from specdec.decoding.loaded_pair import LoadedPair
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.engine.compiler import _rows_apart
from specdec.models.registry import ModelPair, ModelSide
from tests.checks import needs_compiler
from tests.tiny import make_model, perturbed, wrap

PROMPTS = [[5, 9, 2, 7, 300], list(range(20, 90))]
PAIR = ModelPair("tiny", ModelSide("draft", "float32"), ModelSide("target", "float32"))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_output_is_the_baselines_at_every_k(kind, dtype, tiny_tokenizer):
    target = make_model(kind, len(tiny_tokenizer), dtype=torch.bfloat16).to(dtype)
    draft = wrap(perturbed(target, scale=0.02), tiny_tokenizer)
    target = wrap(target, tiny_tokenizer)
    for coupled, temperature in ((False, 0.0), (True, 0.8)):
        settings = dict(max_new_tokens=200, temperature=temperature, seed=1, eos_token_id=None)
        baseline = AutoregressiveDecoder(target, coupled, engine="compiled")
        alone = [baseline.generate(prompt, **settings) for prompt in PROMPTS]
        assert baseline.is_bitwise(temperature)
        for k in DRAFT_TOKENS:
            decoder = SpeculativeDecoder(draft, target, k, coupled=coupled, engine="compiled")
            assert decoder.is_bitwise(temperature)
            for prompt, expected in zip(PROMPTS, alone, strict=True):
                result = decoder.generate(prompt, **settings)
                assert result.engine_reason is None and 0 < result.acceptance_rate < 1
                assert result.generated_ids == expected.generated_ids
    texts = [Prompt(f"p{i}", "code", text, 3) for i, text in enumerate(["def f(x):", "The fox"])]
    part = check_greedy(LoadedPair(PAIR, "cpu", draft, target), texts, "compiled")
    assert part["bitwise"] and part["verdict"] == "pass"


def test_eager_output_promises_nothing(tiny_pair):
    prompts = [Prompt("p", "code", "def f(x):", 3)]
    part = check_greedy(LoadedPair(PAIR, "cpu", *tiny_pair), prompts, "eager")
    assert not part["bitwise"] and part["verdict"] == "pass"


def test_no_near_tie_excuses_a_broken_promise(tiny_pair, monkeypatch):
    generate = Decoder.generate

    def other_token(decoder, *prompt, **settings):
        result = generate(decoder, *prompt, **settings)
        if decoder.num_draft_tokens == 4:
            result.generated_ids[-1] += 1
        return result

    monkeypatch.setattr(Decoder, "is_bitwise", lambda decoder: True)
    monkeypatch.setattr(Decoder, "generate", other_token)
    monkeypatch.setattr("specdec.certification.greedy.is_near_tie", lambda gap, moved: True)
    prompts = [Prompt("p", "code", "def f(x):", 3)]
    part = check_greedy(LoadedPair(PAIR, "cpu", *tiny_pair), prompts, "eager")
    assert not part["bitwise"] and part["verdict"] == "defect"
    (broken,) = [d for d in part["divergences"] if d["verdict"] == NOT_BITWISE]
    assert broken["draft_tokens"] == 4


class Rotation(torch.nn.Module):
    def forward(self, x):
        return x[:, None] @ torch.ones(1, 4)


@pytest.mark.parametrize(("module", "apart"), [(torch.nn.Linear(4, 4), False), (Rotation(), True)])
def test_a_product_of_torchs_own_lets_rows_touch(module, apart):
    example = torch.ones(3, 4) if isinstance(module, torch.nn.Linear) else torch.ones(3)
    program = torch.export.export(module, (example,), strict=False)
    assert _rows_apart(program.graph_module) == apart
