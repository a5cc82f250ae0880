"""The operators for a few rows compute what PyTorch's do, and a row the same beside any others."""

from __future__ import annotations

import subprocess

import pytest
import torch
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers.pytorch_utils import Conv1D

from specdec.decoding import narrow
from specdec.utils.errors import SpecdecError
from tests.checks import needs_compiler
from tests.tiny import make_model

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def operators(tmp_path_factory):
    narrow.build_operators(tmp_path_factory.mktemp("operators"))
    return torch.ops.specdec


@pytest.mark.parametrize("rows", [1, 2, 5, 9, 16, 17, 40])
@pytest.mark.parametrize(("width_in", "width_out"), [(64, 128), (50, 37), (768, 3), (7, 1)])
def test_a_linear_layer_of_a_few_rows(operators, rows, width_in, width_out):
    x, weight = torch.randn(rows, width_in), torch.randn(width_out, width_in)
    bias = torch.randn(width_out)
    ours = operators.narrow_linear(x, weight, bias)
    torch.testing.assert_close(ours, linear(x, weight, bias), atol=1e-4, rtol=1e-5)
    alone = [operators.narrow_linear(row[None], weight, bias)[0] for row in x]
    assert torch.equal(ours, torch.stack(alone))


@pytest.mark.parametrize("rows", [1, 2, 5, 9, 16, 17, 40])
@pytest.mark.parametrize(("width_in", "width_out"), [(64, 128), (50, 37), (768, 3), (7, 1)])
def test_a_linear_layer_whose_weights_are_bfloat16(operators, rows, width_in, width_out):
    x, bias = torch.randn(rows, width_in), torch.randn(width_out)
    weight = torch.randn(width_out, width_in).bfloat16()
    ours = operators.narrow_linear(x, weight, bias)
    torch.testing.assert_close(ours, linear(x, weight.float(), bias), atol=1e-4, rtol=1e-5)
    alone = [operators.narrow_linear(row[None], weight, bias)[0] for row in x]
    assert torch.equal(ours, torch.stack(alone))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_weights_are_kept_in_half_the_bytes_only_where_nothing_is_lost(kind):
    model = make_model(kind, dtype=torch.float32)
    layers = narrow._linear_layers(model)
    exact = layers[0]
    exact.weight.data = exact.weight.data.bfloat16().float()
    before = [layer.weight.clone() for layer in layers]
    narrow.lay_out_weights(model)
    for layer, weight in zip(layers, before, strict=True):
        assert torch.equal(layer.weight, weight)
        by_output = weight.T if isinstance(layer, Conv1D) else weight
        read = narrow.read_weights(layer)
        assert read.is_contiguous() and torch.equal(read.float(), by_output)
        assert (read.dtype == torch.bfloat16) == (layer is exact)


def test_short_weights_need_room(monkeypatch):
    model = make_model("llama", dtype=torch.bfloat16).float()
    monkeypatch.setattr(narrow, "available_bytes", lambda device: 1000)
    narrow.lay_out_weights(model)
    assert not any(hasattr(layer, narrow.SHORT_WEIGHT) for layer in model.modules())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_with_our_operators_computes_the_same(operators, kind, dtype):
    model = make_model(kind, dtype=torch.bfloat16).to(dtype)
    tokens = torch.tensor([[3, 60, 9, 9, 41]])
    narrow.lay_out_weights(model)
    theirs = model(tokens).logits
    with narrow.narrow_operators(model):
        ours = model(tokens).logits
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    assert torch.equal(model(tokens).logits, theirs)


@pytest.mark.parametrize("rows", [1, 2, 5, 16, 17, 40])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(3, 3, 64), (4, 2, 32), (8, 1, 16)])
@pytest.mark.parametrize(("slots", "held"), [(128, 60), (20, 0)])
def test_attention_of_a_few_rows(operators, rows, heads, kv_heads, dim, slots, held):
    q = torch.randn(heads, rows, dim) * 3
    k, v = torch.randn(2, slots, kv_heads, dim).transpose(1, 2)
    mask = torch.arange(slots) <= held + torch.arange(rows)[:, None]
    ours = operators.narrow_attention(q, k, v, mask, dim**-0.5)
    theirs = scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=mask[None, None], enable_gqa=True
    )[0].transpose(0, 1)
    torch.testing.assert_close(ours, theirs, atol=3e-6, rtol=1e-5)
    first = operators.narrow_attention(q[:, :1], k, v, mask[:1], dim**-0.5)
    assert torch.equal(ours[:1], first)


def test_a_window_hides_what_lies_before_it(operators):
    q, k, v = torch.randn(2, 3, 32), torch.randn(2, 40, 32), torch.randn(2, 40, 32)
    places = 30 + torch.arange(3)[:, None]
    mask = (torch.arange(40) <= places) & (torch.arange(40) > places - 8)
    theirs = scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0]
    ours = operators.narrow_attention(q, k, v, mask, 32**-0.5)
    torch.testing.assert_close(ours, theirs.transpose(0, 1), atol=3e-6, rtol=1e-5)


def test_what_a_compiler_says_is_passed_on(tmp_path, monkeypatch):
    def fails(command, **settings):
        return subprocess.CompletedProcess(command, 1, "", "narrow.cpp:1: no such header")

    monkeypatch.setattr(narrow.subprocess, "run", fails)
    with pytest.raises(SpecdecError, match="no such header"):
        narrow._build("g++", tmp_path / "narrow.so")
