"""What a model computes otherwise on a GPU while it is compiled: fewer kernels, fewer bytes.

The queries that share a head of keys are one matrix, so that attention is two batched products over
the cache as it lies: nothing is expanded, nothing copied. Projections of the same input (q, k, v;
gate, up) are one product of weights that lie behind each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.nn.functional import linear
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from specdec.engine.merge import merge_equal
from specdec.kernels.formats import in_common, same_input, together

ATTENTION = "specdec_grouped"
#: Of the compiler: small kernels that wait for nothing of each other are one, and no product is
#: padded: a pass over a few rows waits for its weights, and to time it padded is time lost.
INDUCTOR = {"combo_kernels": True, "shape_padding": False}
PRODUCTS = (linear, torch.ops.aten.linear.default)


@contextmanager
def gpu_operators(model: torch.nn.Module) -> Iterator[None]:
    """Have a model take grouped attention and joined products while it is traced."""
    attention = getattr(model.config, "_attn_implementation", None)
    joined = [layers for group in _groups(model) for layers in group]
    try:
        if attention == "sdpa":
            AttentionInterface.register(ATTENTION, _attention)
            AttentionMaskInterface.register(ATTENTION, sdpa_mask)
            model.config._attn_implementation = ATTENTION
        for layer, whole, begin in joined:
            layer.forward = _part(layer, whole, begin)
        yield
    finally:
        for layer, *_ in joined:
            del layer.forward
        if attention == "sdpa":
            model.config._attn_implementation = attention


def grouped_attention(query, key, value, mask, scale: float) -> torch.Tensor:
    """Attention of queries `[heads, n, d]` over keys and values `[kv_heads, slots, d]`.

    `mask` `[n, slots]` says what a query sees. Returns `[n, heads, d]`.
    """
    heads, n, size = query.shape
    groups = heads // key.shape[0]
    queries = query.reshape(key.shape[0], groups * n, size)
    scores = _product_in_float32(queries, key.transpose(1, 2)) * scale
    seen = mask.repeat(groups, 1)  # [groups · n, slots]
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).to(value.dtype)
    out = torch.bmm(weights, value)  # [kv_heads, groups · n, d]
    return out.view(heads, n, size).transpose(0, 1)


def compile_for_gpu(module: torch.nn.Module) -> Callable:
    """A module compiled for whatever it is called with, as it is now.

    What it computes with is not looked at again: the model's layers are ours only while it is
    traced, and its code stays as it was traced.
    """
    options = {"guard_filter_fn": _shapes_alone}
    return torch.compile(module, fullgraph=True, backend=_lower, options=options)


def _lower(traced: torch.fx.GraphModule, inputs: list) -> Callable:
    # Late: the compiler takes a second to import, and a CPU that compiles nothing does without.
    from torch._inductor.compile_fx import compile_fx

    merge_equal(traced.graph, PRODUCTS)
    traced.recompile()
    return compile_fx(traced, inputs, config_patches=INDUCTOR)


def _shapes_alone(guards) -> list[bool]:
    return [guard.guard_type in ("TENSOR_MATCH", "SHAPE_ENV") for guard in guards]


def _product_in_float32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`[batch, n, m]`, not rounded to half precision before it is a distribution."""
    if a.device.type == "cuda" and a.dtype in (torch.float16, torch.bfloat16):
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a, b)


def _attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **others):
    """As transformers calls it; what is not a plain masked pass is left to its own."""
    plain = (
        query.shape[0] == 1
        and attention_mask is not None
        and attention_mask.dtype == torch.bool
        and attention_mask.shape[1] == 1
        and query.shape[1] % key.shape[1] == 0
    )
    if not plain:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = grouped_attention(query[0], key[0], value[0], attention_mask[0, 0], scale)
    return out[None], None


def _groups(model: torch.nn.Module) -> Iterator[list[tuple[torch.nn.Linear, torch.nn.Module, int]]]:
    """Each group of layers that read one input: `(layer, what holds the joined weights, begin)`."""
    for layers in same_input(model):
        plain = all(type(layer) is torch.nn.Linear for layer in layers)
        if plain and len({in_common(layer) for layer in layers}) == 1:
            yield _join(layers)


def _join(layers: list[torch.nn.Linear]) -> list[tuple[torch.nn.Linear, torch.nn.Module, int]]:
    """Lay the layers' weights behind each other; they become views, so nothing is held twice."""
    first = layers[0]
    if not hasattr(first, "joined_weight"):
        weight = together([layer.weight for layer in layers])
        bias = None if first.bias is None else together([layer.bias for layer in layers])
        first.register_buffer("joined_weight", weight, persistent=False)
        first.register_buffer("joined_bias", bias, persistent=False)
    begins = [0]
    for layer in layers[:-1]:
        begins.append(begins[-1] + layer.out_features)
    return [(layer, first, begin) for layer, begin in zip(layers, begins, strict=True)]


def _part(layer: torch.nn.Linear, whole: torch.nn.Module, begin: int):
    """The layer as its share of the joined product, which the compiler computes once for all."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        out = linear(x, whole.joined_weight, whole.joined_bias)
        return out[..., begin : begin + layer.out_features]

    return forward
