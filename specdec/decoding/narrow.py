"""Passes over a few rows, on a CPU: operators of our own, and how they get into a program.

A pass over K + 1 tokens then costs little more than one over a single token (measured in
docs/performance.md).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch.utils import cpp_extension
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from specdec.models.memory_check import available_bytes
from specdec.utils.errors import SpecdecError
from specdec.utils.files import exclusive_lock
from specdec.utils.logging import get_logger
from specdec.utils.reproducibility import processor_name

SOURCE = Path(__file__).with_name("narrow.cpp")
MOST_ROWS = 16  # that the operators take at a time
LANES = 16  # as in the source
ATTENTION = "specdec_narrow"
SHORT_WEIGHT = "bfloat16_weight"  # a layer's attribute

log = get_logger(__name__)


def build_operators(folder: Path) -> None:
    """Define `torch.ops.specdec.narrow_linear` and `narrow_attention`, built once into `folder`.

    A process defines them once, wherever they were built.

    Raises:
        SpecdecError: where the compiler fails.
        Exception: of `torch`, where there is no compiler.
    """
    if hasattr(torch.ops.specdec, "narrow_linear"):
        return
    compiler = get_cpp_compiler()
    identity = [SOURCE.read_text(), torch.__version__, processor_name(), compiler]
    digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:20]
    path = folder / f"narrow-{digest}.so"
    with exclusive_lock(path.with_suffix(".lock"), lambda: log.info("waiting for narrow.cpp")):
        if not path.exists():
            _build(compiler, path)
    torch.ops.load_library(str(path))
    torch.library.register_fake(
        "specdec::narrow_linear",
        lambda x, weight, bias: x.new_empty(x.shape[0], weight.shape[0]),
    )
    torch.library.register_fake(
        "specdec::narrow_attention",
        lambda q, k, v, mask, scale: q.new_empty(q.shape[1], q.shape[0], q.shape[2]),
    )


def _build(compiler: str, path: Path) -> None:
    unfinished = path.with_name(f".{os.getpid()}.{path.name}")
    command = [compiler, "-O3", "-march=native", "-std=c++20", "-shared", "-fPIC", "-w"]
    command += [f"-DMOST_ROWS={MOST_ROWS}", str(SOURCE), "-o", str(unfinished)]
    command += [f"-I{folder}" for folder in cpp_extension.include_paths()]
    command += [f"-L{folder}" for folder in cpp_extension.library_paths()]
    command += ["-lc10", "-ltorch_cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SpecdecError(f"{compiler} could not build {SOURCE.name}: {done.stderr.strip()[:200]}")
    unfinished.replace(path)


def lay_out_weights(model: torch.nn.Module) -> None:
    """Store the weights of linear layers as `narrow_linear` reads them.

    GPT-2's, `[in, out]`, come to lie as others do: output by output. Weights in float32 that are
    bfloat16 numbers, as those of most checkpoints are, are kept in that form as well, where there
    is memory for it (a buffer of the layer's, `[out, in]`): a pass then reads half the bytes. No
    value changes.
    """
    layers = _linear_layers(model)
    room = available_bytes(torch.device("cpu")) > 2 * sum(
        2 * layer.weight.numel() for layer in layers
    )
    for layer in layers:
        if isinstance(layer, Conv1D) and layer.weight.is_contiguous():
            layer.weight.data = layer.weight.data.T.contiguous().T
        if room and layer.weight.dtype == torch.float32 and not hasattr(layer, SHORT_WEIGHT):
            short = layer.weight.detach().bfloat16()
            if torch.equal(short.float(), layer.weight):
                layer.register_buffer(SHORT_WEIGHT, _by_output(layer, short), persistent=False)


def read_weights(layer: torch.nn.Module) -> torch.Tensor:
    """The weights `[out, in]` that a pass over a few rows reads."""
    short = getattr(layer, SHORT_WEIGHT, None)
    return _by_output(layer, layer.weight) if short is None else short


@contextmanager
def narrow_operators(model: torch.nn.Module) -> Iterator[None]:
    """Have a model take our linear layers and attention, where they can do what is asked."""
    layers = _linear_layers(model)
    for layer in layers:
        layer.forward = partial(_linear, layer)
    attention = getattr(model.config, "_attn_implementation", None)
    if attention == "sdpa":
        AttentionInterface.register(ATTENTION, _attention)
        AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
        if attention == "sdpa":
            model.set_attn_implementation("sdpa")


def _linear_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Plain ones: classes made from these (4-bit layers, for one) compute something else, and a
    layer with a `forward` of its own is in somebody's hands."""
    return [
        layer
        for layer in model.modules()
        if type(layer) in (torch.nn.Linear, Conv1D) and "forward" not in vars(layer)
    ]


def _by_output(layer: torch.nn.Module, weight: torch.Tensor) -> torch.Tensor:
    return weight.T if isinstance(layer, Conv1D) else weight


def _linear(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    weight, flat = read_weights(layer), x.reshape(-1, x.shape[-1])
    ours = x.dtype in (torch.float32, torch.bfloat16) and weight.dtype in (x.dtype, torch.bfloat16)
    if not (ours and weight.is_contiguous()):
        return type(layer).forward(layer, x)
    bias = None if layer.bias is None else layer.bias.float()
    y = torch.ops.specdec.narrow_linear(flat.float(), weight, bias)
    return y.to(x.dtype).view(*x.shape[:-1], -1)


def _attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **others):
    """As transformers asks for it: `[1, heads, n, dim]` in, `[1, n, heads, dim]` out."""
    dim = query.shape[-1]
    suits = (
        query.dtype == torch.float32
        and dim % LANES == 0
        and value.shape[-1] == dim
        and attention_mask is not None
        and attention_mask.dtype == torch.bool
        and attention_mask.shape[1] == 1
        and all(others.get(name) is None for name in ("softcap", "s_aux", "position_bias"))
    )
    if not suits:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    scale = dim**-0.5 if scaling is None else scaling
    out = torch.ops.specdec.narrow_attention(
        query[0], key[0], value[0], attention_mask[0, 0], scale
    )
    return out[None], None
