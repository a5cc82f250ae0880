"""What a model computes otherwise on a GPU, checked on a CPU; and how often it is compiled."""

from __future__ import annotations

import pytest
import torch
from torch._inductor import compile_fx
from torch.nn.functional import linear, scaled_dot_product_attention

from specdec.engine.capture import lengths
from specdec.engine.gpu_operators import (
    PRODUCTS,
    compile_for_gpu,
    gpu_operators,
    grouped_attention,
)
from specdec.engine.merge import merge_equal
from specdec.engine.pieces import ModelPass
from specdec.models.cache import FixedCache
from specdec.models.loading.random_weights import load_random_weights
from specdec.models.registry import ModelSide
from specdec.models.wrapper import ModelWrapper
from tests.test_int4 import needs_bitsandbytes
from tests.tiny import KINDS, make_model, wrap


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_attention_is_attention_with_heads_repeated(n, kv_heads):
    torch.manual_seed(0)
    query, slots = torch.randn(4, n, 8, dtype=torch.float64), 11
    key, value = (torch.randn(kv_heads, slots, 8, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(slots) <= torch.arange(5, 5 + n)[:, None]
    repeated = [part.repeat_interleave(4 // kv_heads, 0) for part in (key, value)]
    expected = scaled_dot_product_attention(query, *repeated, attn_mask=mask, scale=0.3)
    ours = grouped_attention(query, key, value, mask, 0.3)
    torch.testing.assert_close(ours, expected.transpose(0, 1))


def example(kind: str, rows: int = 3, slots: int = 64):
    """A pass of a tiny model and its arguments, over a cache that holds something."""
    return example_of(wrap(make_model(kind, dtype=torch.float64)), rows, slots)


def example_of(wrapper: ModelWrapper, rows: int = 3, slots: int = 64):
    _, grown = wrapper.forward(torch.tensor([[5, 9, 2, 7]]))
    cache = FixedCache(grown, slots)
    cache.fill(grown)
    return ModelPass(wrapper.model, 384), lambda n=rows, s=slots: (
        torch.arange(n) + 3,
        torch.tensor(4),
        [buffer[:s].clone() for buffer in cache.first(slots)],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_gives_the_same_logits_and_cache(kind):
    run, arguments = example(kind)
    expected_on, ours_on = arguments(), arguments()
    with torch.no_grad():
        expected, _ = run(*expected_on)
        with gpu_operators(run.model):
            ours, _ = run(*ours_on)
        again, _ = run(*arguments())
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(ours_on[2], expected_on[2])
    torch.testing.assert_close(again, expected)  # and the model is as it was


def test_joined_weights_are_held_once():
    wrapper = wrap(make_model("qwen2"))
    before = wrapper.memory_footprint_mb, wrapper.param_count, list(wrapper.model.state_dict())
    with gpu_operators(wrapper.model):
        pass
    assert (wrapper.memory_footprint_mb, wrapper.param_count) == before[:2]
    assert list(wrapper.model.state_dict()) == before[2]
    attention = wrapper.model.model.layers[0].self_attn
    joined = attention.q_proj.joined_weight
    assert torch.equal(joined[: attention.q_proj.out_features], attention.q_proj.weight)
    assert joined.data_ptr() == attention.q_proj.weight.data_ptr()


def test_products_of_one_input_are_computed_once():
    class Three(torch.nn.Module):
        def forward(self, x, w):
            return linear(x, w)[:2], linear(x, w)[2:], linear(x + 1, w)

    traced = torch.fx.symbolic_trace(Three())
    merge_equal(traced.graph, PRODUCTS)
    products = [node for node in traced.graph.nodes if node.target is linear]
    assert len(products) == 2
    traced.recompile()
    x, w = torch.randn(4, 3), torch.randn(3, 3)
    assert torch.equal(torch.cat(traced(x, w)[:2]), linear(x, w))


def check_for_any_size(run, arguments) -> None:
    """Compile with our operators, then call with others' and at other sizes: the same numbers."""
    with torch.no_grad():
        with gpu_operators(run.model):
            compiled = compile_for_gpu(run)
            given = arguments(3, 128)
            for tensor in (given[0], *given[2]):
                torch._dynamo.mark_dynamic(tensor, 0)
            compiled(*given)
        for rows, slots in ((2, 64), (9, 256), (5, 192)):
            given = arguments(rows, slots)
            torch.testing.assert_close(compiled(*given)[0], run(*arguments(rows, slots))[0])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_is_compiled_once_for_any_rows_and_slots(monkeypatch, kind):
    """And with ours, also when it is called after it has its own operators again."""
    graphs = []

    def count(traced, inputs, **_):
        graphs.append(traced)
        return traced.forward

    monkeypatch.setattr(compile_fx, "compile_fx", count)
    torch._dynamo.reset()
    run, arguments = example(kind, slots=256)
    check_for_any_size(run, arguments)
    assert len(graphs) == 1
    if kind == "llama":  # four products of a layer and the head, for seven and the head
        targets = [node.target for node in graphs[0].graph.nodes]
        assert targets.count(torch._C._nn.linear) == 2 * 4 + 1


@needs_bitsandbytes
def test_so_is_one_in_4_bits(monkeypatch):
    """Its layers are bitsandbytes' own, in one graph with the rest: nothing breaks it."""
    graphs = []

    def count(traced, inputs, **_):
        graphs.append(traced)
        return traced.forward

    monkeypatch.setattr(compile_fx, "compile_fx", count)
    torch._dynamo.reset()
    shape = dict(
        model_type="llama",
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    side = ModelSide("tiny", "int4", weights="random", shape=shape)
    wrapper = load_random_weights(side, "cpu")
    run, arguments = example_of(wrapper, slots=256)
    check_for_any_size(run, arguments)
    assert len(graphs) == 1
    names = [str(node.target) for node in graphs[0].graph.nodes]
    assert sum("bitsandbytes" in name for name in names) >= 2 * 7


def test_a_graph_sees_twice_the_slots_of_the_one_before():
    assert lengths(200) == [200]
    assert lengths(256) == [256]
    assert lengths(1300) == [256, 512, 1024, 1300]
