"""What a caller may give: ids of any integers, settings of any numbers; all else is one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.method.sampling import Warp
from specdec.utils.errors import SpecdecError
from tests.tiny import make_model, perturbed, wrap

PROMPT = [5, 9, 2, 7]


@pytest.fixture(scope="module")
def decoders():
    target = wrap(make_model())
    return AutoregressiveDecoder(target), SpeculativeDecoder(
        wrap(perturbed(target.model)), target, 3
    )


PROMPTS = {
    "a tuple": tuple(PROMPT),
    "numpy integers": [np.int64(token) for token in PROMPT],
    "an array of bytes": np.array(PROMPT, dtype=np.uint8),
    "a row": np.array([PROMPT]),
    "a tensor of int32": torch.tensor(PROMPT, dtype=torch.int32),
    "a list of tensors": [torch.tensor(token) for token in PROMPT],
    "a list of one row": [PROMPT],
}


@pytest.mark.parametrize("form", PROMPTS)
def test_a_prompt_is_integers_of_any_kind(decoders, form):
    for decoder in decoders:
        expected = decoder.generate(PROMPT, 6, eos_token_id=None).generated_ids
        assert decoder.generate(PROMPTS[form], 6, eos_token_id=None).generated_ids == expected


REFUSED_PROMPTS = {
    "two rows": ([PROMPT, PROMPT], r"the shape \[2, 4\]"),
    "three dimensions": (torch.tensor([[PROMPT]]), r"the shape \[1, 1, 4\]"),
    "floats": ([5.0, 9.7], "no integers but torch.float64"),
    "bools": ([True, False], "no integers but torch.bool"),
    "text": ("The quick", "is text"),
    "rows of unequal length": ([[1, 2], [3]], "no row of integers"),
    "nothing that has ids": (object(), "no row of integers"),
    "an integer too large": ([2**70], "no row of integers"),
}


@pytest.mark.parametrize("form", REFUSED_PROMPTS)
def test_a_prompt_that_is_no_row_of_integers_is_refused_in_one_line(decoders, form):
    prompt, message = REFUSED_PROMPTS[form]
    for decoder in decoders:
        with pytest.raises(SpecdecError, match=message) as refusal:
            decoder.generate(prompt, 5)
        assert "\n" not in str(refusal.value)
    with pytest.raises(SpecdecError, match="the draft's prompt"):
        decoders[1].generate(PROMPT, 5, draft_prompt_ids=prompt)


ENDS = {
    "numpy integer": np.int64,
    "tensor": torch.tensor,
    "tensor of one": lambda token: torch.tensor([token]),
    "array": lambda token: np.array([token]),
    "set": lambda token: {token},
}


@pytest.mark.parametrize("form", ENDS)
def test_an_end_token_of_any_kind_ends_the_text(decoders, form):
    for decoder in decoders:
        ids = decoder.generate(PROMPT, 20, eos_token_id=None).generated_ids
        result = decoder.generate(PROMPT, 20, eos_token_id=ENDS[form](ids[7]))
        assert result.generated_ids == ids[: ids.index(ids[7]) + 1]
        assert result.finish_reason == "stop"


@pytest.mark.parametrize("end", ["</s>", ["</s>"], 1.5, [[1, 2], [3, 4]]], ids=str)
def test_an_end_token_that_is_no_integer_is_refused_in_one_line(decoders, end):
    for decoder in decoders:
        with pytest.raises(SpecdecError, match="eos_token_id"):
            decoder.generate(PROMPT, 5, eos_token_id=end)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(temperature=float("inf")), "temperature inf is not finite"),
        (dict(temperature="warm"), "temperature 'warm'"),
        (dict(max_new_tokens=5.5), "max_new_tokens 5.5 is not a whole number"),
        (dict(max_new_tokens="5"), "max_new_tokens '5' is not a whole number"),
        (dict(top_k=2.5), "top_k 2.5 is not a whole number"),
    ],
    ids=str,
)
def test_a_setting_of_another_kind_is_refused_in_one_line(decoders, settings, message):
    request = dict(prompt_ids=PROMPT, max_new_tokens=5) | settings
    for decoder in decoders:
        with pytest.raises(SpecdecError, match=message):
            decoder.generate(**request)


@pytest.mark.parametrize("temperature", [1e-40, 1e-7, 9e-7], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_temperature_next_to_0_is_temperature_0(uncompiled, temperature, dtype, engine):
    assert Warp(temperature) == Warp(0.0)
    target = wrap(make_model(dtype=dtype))
    for decoder in (
        AutoregressiveDecoder(target, engine=engine),
        SpeculativeDecoder(target, target, 2, engine=engine),
    ):
        greedy = decoder.generate(PROMPT, 8, eos_token_id=None)
        near = decoder.generate(PROMPT, 8, temperature=temperature, seed=1, eos_token_id=None)
        assert near.generated_ids == greedy.generated_ids and near.engine == engine
