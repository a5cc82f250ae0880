"""The card of a benchmark: the machine, the bytes of the models, and the speed these allow.

A decoding step reads every weight once, and the cache of what was read before. Divided by the
bandwidth that a plain copy reaches here, these bytes give the least time that a step can take.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from specdec.kernels.formats import SHORT_WEIGHT
from specdec.models.wrapper import ModelWrapper
from specdec.profiling.timer import CUDATimer

MIB = 2**20
PASSES = 11  # over a buffer that are timed; the median counts
READ_ROWS = 1024
SMALLEST_BUFFER, LARGEST_BUFFER = 256 * MIB, 1024 * MIB


def model_card(wrapper: ModelWrapper, context: float, bandwidth: float) -> dict[str, Any]:
    """Bytes that one step of a model reads after `context` tokens; what `bandwidth` (B/s) allows.

    `in_cache` says whether the weights fit into the last-level cache of the processor, from which
    they can be read faster than `bandwidth`; None where the size of that cache isn't told.
    """
    weights, cache = weight_bytes(wrapper), cache_bytes_per_token(wrapper)
    step = weights + cache * context
    last_level = last_level_cache() if wrapper.device.type == "cpu" else 0
    return {
        "weight_bytes_per_token": weights,
        "cache_bytes_per_token": cache,
        "step_bytes": step,
        "tokens_per_s": bandwidth / step,
        "in_cache": None if last_level is None else weights < last_level,
    }


def round_card(
    draft: dict[str, Any], target: dict[str, Any], K: int, bandwidth: float
) -> dict[str, float]:
    """What `bandwidth` (B/s) allows a round of K draft passes and one target pass.

    `draft` and `target` are of `model_card`.
    """
    seconds = (K * draft["step_bytes"] + target["step_bytes"]) / bandwidth
    return {
        "ms": seconds * 1e3,
        "rounds_per_s": 1 / seconds,
        "most_tokens_per_s": (K + 1) / seconds,
    }


def weight_bytes(wrapper: ModelWrapper) -> int:
    """Bytes of weights that a step reads: all but the tables of which it looks up one row.

    An input embedding that is the output head as well is read whole; of weights that the compiled
    engine reads in bfloat16, those bytes count.
    """
    head = wrapper.model.get_output_embeddings()
    head_at = None if head is None else head.weight.data_ptr()
    unread = {
        module.weight.data_ptr(): module.weight.nbytes
        for module in wrapper.model.modules()
        if hasattr(module, SHORT_WEIGHT)
        or (isinstance(module, torch.nn.Embedding) and module.weight.data_ptr() != head_at)
    }
    return round(wrapper.memory_footprint_mb * MIB) - sum(unread.values())


def cache_bytes_per_token(wrapper: ModelWrapper) -> int:
    """Bytes of keys and values that a token leaves in the cache, as a pass over one token shows."""
    _, cache = wrapper.forward(torch.zeros(1, 1, dtype=torch.long), logits_to_keep=1)
    return sum(keys.nbytes + values.nbytes for keys, values in cache)


def copy_bandwidth(device: torch.device) -> dict[str, float]:
    """Measured speed of a plain copy, read and write counted: `bytes_per_s`, `buffer_bytes`.

    The buffer is 1 GiB on a GPU; elsewhere as large as the last-level cache, within 256 MiB and
    1 GiB, so that source and copy together do not fit into it.
    """
    source = _buffer(device)
    target = torch.zeros_like(source)
    seconds = _seconds(lambda: target.copy_(source), device)
    return {"bytes_per_s": 2 * source.nbytes / seconds, "buffer_bytes": source.nbytes}


def read_bandwidth(device: torch.device) -> dict[str, float]:
    """Measured speed of reading alone, by a product of a matrix and a vector, in which each number
    of the matrix is read once: `bytes_per_s`, `buffer_bytes`. The matrix is as large as a copy's
    source."""
    matrix = _buffer(device).view(READ_ROWS, -1)
    vector = torch.ones(matrix.shape[1], device=device)
    seconds = _seconds(lambda: torch.mv(matrix, vector), device)
    return {"bytes_per_s": matrix.nbytes / seconds, "buffer_bytes": matrix.nbytes}


def _buffer(device: torch.device) -> torch.Tensor:
    size = LARGEST_BUFFER
    if device.type == "cpu":
        size = min(max(last_level_cache() or 0, SMALLEST_BUFFER), LARGEST_BUFFER)
    return torch.ones(size // 4, dtype=torch.float32, device=device)


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The median time of some work, after a first that is not counted."""
    seconds = []
    for _ in range(PASSES + 1):
        with CUDATimer(device) as timer:
            work()
        seconds.append(timer.elapsed_ms / 1e3)
    return median(seconds[1:])


def last_level_cache() -> int | None:
    """Bytes of the processor's largest cache; None where the system does not tell."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    try:
        return max(int(path.read_text().strip().removesuffix("K")) * 1024 for path in sizes)
    except (OSError, ValueError):
        return None


def format_card(card: dict[str, Any]) -> str:
    """The card as lines for people; `card` is that of `specdec.benchmark.run.benchmark`."""
    environment, bandwidth = card["environment"], card["copy_bandwidth"]
    lines = [
        f"pair        {card['pair']}: {card['draft']['model']} → {card['target']['model']}",
        f"acceptance  {card['acceptance']}",
        f"device      {environment['device']}, {environment['threads']} thread(s), "
        f"TF32 {'on' if environment['tf32'] else 'off'}",
        *([f"vectors     {card['instruction_set']}"] if card["instruction_set"] else []),
        f"software    torch {environment['torch']}, transformers {environment['transformers']}",
        f"engine      asked {card['engine']['asked']}, got {_engines(card['engine']['got'])}",
        f"copy        {bandwidth['bytes_per_s'] / 1e9:.1f} GB/s, read and write counted, "
        f"buffer {bandwidth['buffer_bytes'] / MIB:.0f} MiB; what is allowed below goes by it",
        f"read        {card['read_bandwidth']['bytes_per_s'] / 1e9:.1f} GB/s, of a matrix times a "
        "vector: what a step does with its weights",
    ]
    for side in ("target", "draft"):
        model = card[side]
        lines.append(
            f"{side:<11} {model['weight_bytes_per_token'] / MIB:.2f} MiB of weights a token, "
            f"{model['cache_bytes_per_token'] / 1024:.1f} KiB of cache a token of context; "
            f"allowed: {model['tokens_per_s']:.0f} tokens/s"
            + (f"; {model['weights']}" if model["weights"] else "")
        )
    for K, allowed in card["rounds"].items():
        lines.append(
            f"{f'round K={K}':<11} allowed: {allowed['ms']:.3f} ms, so "
            f"{allowed['rounds_per_s']:.0f} rounds/s, at most {allowed['most_tokens_per_s']:.0f} "
            "tokens/s (all accepted)"
        )
    lines.append(
        f"workload    {card['prompts']} prompts, {card['mean_prompt_tokens']:.0f} tokens on "
        f"average; bytes counted at a context of {card['context']:.0f}"
    )
    if card["target"]["in_cache"] or card["draft"]["in_cache"]:
        lines.append(
            "note        weights that fit into the processor's last-level cache may be read from "
            "it, faster than a copy: a share above 100 % is possible"
        )
    if card["gpu"] is not None:
        lines.append(f"gpu         warming up: {format_gpu(card['gpu'])}")
    return "\n".join(lines)


def format_gpu(figures: dict[str, float]) -> str:
    """One line of what a `PowerSampler` tells."""
    return ", ".join(f"{name} {value:g}" for name, value in figures.items())


def _engines(got: dict[str, dict[str, str | None]]) -> str:
    """`eager (no compiler)`, or, where the arms differ, that of each."""
    told = {
        arm: f"{engine['engine']} ({engine['reason']})" if engine["reason"] else engine["engine"]
        for arm, engine in got.items()
    }
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return ", ".join(f"{arm}: {engine}" for arm, engine in told.items())
