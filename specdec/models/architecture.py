"""Whether a model can be decoded with here: read with a cache, and rolled back, exactly.

Speculation reads a block of tokens behind what a cache holds, and takes some of them back. A model
must then give what it gives for the same text at once. Many can't: a recurrent state can't be taken
back, some keep no cache, some see what comes after a token. They are told by a short text that is
read in each way, not by their names, so that a model of tomorrow is told too.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from specdec.models.cache import GrowingCache
from specdec.models.products import ProductsInFloat32
from specdec.utils.errors import SpecdecError, is_out_of_memory, one_line

#: The text: so many tokens, of which the cache holds SOME when the others come, and KEPT are left.
TOKENS, SOME, KEPT = 6, 4, 3

#: How far logits may be apart, as a share of their spread: another order of sums, and no more.
EXACT, HALF_PRECISION = 1e-3, 0.1


def check_architecture(model: torch.nn.Module, name: str, device: torch.device) -> None:
    """Raise SpecdecError unless a model can be read with a cache and rolled back, exactly.

    Four short passes. What they can't tell is let pass: logits that are not finite (whoever decodes
    says so), a context that is shorter than the text. So is a model that transformers doesn't know:
    who wrote it may count its passes, and knows what it keeps.
    """
    if not isinstance(model, PreTrainedModel) or device.type == "meta":  # that has no logits
        return
    if getattr(model, "_is_stateful", False):
        raise _refusal(
            name, model, "it keeps a state beside keys and values, which can't be rolled back"
        )
    config = model.config.get_text_config()
    if (getattr(config, "max_position_embeddings", None) or TOKENS) < TOKENS:
        return
    ids = (7 * torch.arange(TOKENS, device=device)[None] + 3) % config.vocab_size  # [1, TOKENS]
    try:
        with ProductsInFloat32():  # 15 rows, which would take a minute where a dtype is slow
            whole = _logits(model, ids, GrowingCache())
            cache = GrowingCache()
            parts = [_logits(model, ids[:, :SOME], cache), _logits(model, ids[:, SOME:], cache)]
            length = cache.length
            cache.roll_back(KEPT)
            again = _logits(model, ids[:, KEPT:], cache)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _refusal(
            name,
            model,
            f"a cache of keys and values fails ({type(error).__name__}: {one_line(error)[:100]})",
        ) from error
    if not whole.isfinite().all():
        return
    if length != TOKENS:
        raise _refusal(name, model, "it doesn't keep what it reads in a cache of keys and values")
    in_parts = torch.cat(parts)
    if _differ(whole, in_parts, model):
        raise _refusal(
            name,
            model,
            "a text read in two parts gives other logits than read at once: it is not "
            "causal, or keeps more than keys and values",
        )
    if _differ(whole[KEPT:], again, model):
        raise _refusal(name, model, "after a rollback it gives other logits than before")


@torch.no_grad()
def _logits(model: torch.nn.Module, ids: torch.Tensor, cache: GrowingCache) -> torch.Tensor:
    """Logits `[n, V]` in float32 of ids `[1, n]` that follow what the cache holds."""
    return model(ids, past_key_values=cache, use_cache=True).logits[0].float()


def _differ(one: torch.Tensor, other: torch.Tensor, model: torch.nn.Module) -> bool:
    exact = all(
        weight.dtype in (torch.float32, torch.float64)
        for weight in model.parameters()
        if weight.is_floating_point()
    )
    share = EXACT if exact else HALF_PRECISION
    return bool((one - other).abs().mean() > share * one.std())


def _refusal(name: str, model: torch.nn.Module, why: str) -> SpecdecError:
    kind = getattr(model.config, "model_type", type(model).__name__)
    return SpecdecError(
        f"{name}: models of type '{kind}' can't be decoded with here: {why}; take a causal model "
        "whose cache holds keys and values"
    )
