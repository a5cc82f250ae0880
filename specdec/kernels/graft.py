"""Have a model compute with our kernels: its linear layers, and its attention over a cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from specdec.kernels.formats import COMPUTED, Form, forms

ATTENTION = "specdec"


@contextmanager
def graft(
    model: torch.nn.Module, may_round: bool = False, to_trace: bool = False
) -> Iterator[None]:
    """Our operators in place of a model's linear layers and attention, where they can do what is
    asked: eagerly or traced, for any number of rows, which may be a symbolic size.

    A row's result then does not depend on the rows beside it, bit for bit. What decides is dtype
    and layout alone. Weights in 4 bits are handed over as plain buffers, so that the model can be
    exported. A 4-bit draft `may_round` (see `forms`).

    A model `to_trace` computes layers that read the same input as one product, once for each of
    them: whoever traces it merges what is the same (`specdec.engine.merge`).
    """
    attention = getattr(model.config, "_attn_implementation", None)
    with ExitStack() as stack:
        for form in forms(model, may_round, to_trace):
            stack.enter_context(form.handed_over())
            begin = 0
            for layer in form.layers:
                own = slice(begin, begin := begin + _outputs(layer))
                layer.forward = partial(_linear, form, own if len(form.layers) > 1 else None)
                stack.callback(delattr, layer, "forward")
        if attention == "sdpa":
            AttentionInterface.register(ATTENTION, _attention)
            AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
            model.set_attn_implementation(ATTENTION)
            stack.callback(model.set_attn_implementation, "sdpa")
        yield


def _linear(form: Form, own: slice | None, x: torch.Tensor) -> torch.Tensor:
    y = form.product(x.reshape(-1, x.shape[-1]))
    y = y.view(*x.shape[:-1], y.shape[-1])
    return y if own is None else y[..., own]


def _outputs(layer: torch.nn.Module) -> int:
    return layer.nf if isinstance(layer, Conv1D) else layer.out_features


def _attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **others):
    """As transformers asks for it: `[1, heads, n, dim]` in, `[1, n, heads, dim]` out."""
    suits = (
        query.shape[0] == 1
        and query.dtype in COMPUTED
        and query.dtype == key.dtype == value.dtype
        and attention_mask is not None
        and attention_mask.dtype == torch.bool
        and attention_mask.shape[1] == 1
        and all(others.get(name) is None for name in ("softcap", "s_aux", "position_bias"))
    )
    if not suits:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = torch.ops.specdec.attention(query[0], key[0], value[0], attention_mask[0, 0], scale)
    return out[None], None
