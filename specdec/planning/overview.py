"""What pairs there are, what each needs, and whether it fits this machine."""

from __future__ import annotations

import importlib.util

import torch
from huggingface_hub import try_to_load_from_cache

from specdec.models.loading.hub import resolve_model
from specdec.models.loading.memory_check import available_bytes, needed_bytes
from specdec.models.registry import ModelPair, ModelSide, with_random_weights
from specdec.utils.errors import SpecdecError
from specdec.utils.table import aligned

HEADINGS = ["pair", "draft → target", "needs", "weights", "here"]


def format_overview(pairs: list[ModelPair], device: torch.device) -> str:
    """A line a pair; GB are 10^9 bytes."""
    free = available_bytes(device)
    rows = [HEADINGS, *(_row(pair, device, free) for pair in pairs)]
    table = aligned(rows, words=len(HEADINGS))
    return f"{free / 1e9:.1f} GB free on {device}\n\n{table}"


def _row(pair: ModelPair, device: torch.device, free: int) -> list[str]:
    sides, needed = (pair.draft, pair.target), _needed(pair, device)
    if "int4" in (pair.draft_dtype, pair.target_dtype) and not _has_int4():
        here = "needs the extra 'gpu'"
    elif needed is None:
        here = "?"
    else:
        here = "fits" if needed <= free else "too large"
    return [
        pair.name,
        " → ".join(f"{side.model} ({side.dtype})" for side in sides),
        "?" if needed is None else f"{needed / 1e9:.1f} GB",
        ", ".join(dict.fromkeys(_weights(side) for side in sides)),
        here,
    ]


def _needed(pair: ModelPair, device: torch.device) -> float | None:
    """Bytes that both models take; None where this machine has no configuration of them."""
    if pair.memory_gb is not None:
        return pair.memory_gb * 1e9
    try:
        sides = [with_random_weights(side) for side in (pair.draft, pair.target)]
        return needed_bytes(sides, device)
    except SpecdecError:
        return None


def _weights(side: ModelSide) -> str:
    """Where the weights come from."""
    if side.has_random_weights:
        return "random"
    try:
        source = resolve_model(side.model)
    except SpecdecError:
        return "missing"
    if source != side.model:
        return "on disk"
    cached = try_to_load_from_cache(source, "config.json", revision=side.revision)
    return "in the hub's cache" if isinstance(cached, str) else "from the hub"


def _has_int4() -> bool:
    return all(importlib.util.find_spec(name) for name in ("bitsandbytes", "accelerate"))
