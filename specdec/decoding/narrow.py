"""Passes over a few rows, on a CPU: operators of our own, and how they get into a program.

In float32 a pass over K + 1 tokens then costs little more than one over a single token (measured in
docs/performance.md).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch.utils import cpp_extension
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from specdec.utils.errors import SpecdecError
from specdec.utils.files import exclusive_lock
from specdec.utils.logging import get_logger
from specdec.utils.reproducibility import processor_name

SOURCE = Path(__file__).with_name("narrow.cpp")
MOST_ROWS = 16
LANES = 16  # as in the source
ATTENTION = "specdec_narrow"

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
        "specdec::narrow_linear", lambda x, weight, bias: x.new_empty(len(x), len(weight))
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
    """Store the weights of GPT-2's linear layers, `[in, out]`, as others are: output by output.

    The values do not change, nor what any other product makes of them.
    """
    for layer in model.modules():
        if isinstance(layer, Conv1D) and layer.weight.is_contiguous():
            layer.weight.data = layer.weight.data.T.contiguous().T


@contextmanager
def narrow_attention(model: torch.nn.Module) -> Iterator[None]:
    """Have a model that takes PyTorch's attention take ours, where ours can do what is asked."""
    config = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", None) != "sdpa":
        yield
        return
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def _attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **others):
    """As transformers asks for it: `[1, heads, n, dim]` in, `[1, n, heads, dim]` out."""
    heads, rows, dim = query.shape[1:]
    suits = (
        query.dtype == torch.float32
        and isinstance(rows, int)
        and rows <= MOST_ROWS
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


def use_narrow_linear(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with its narrow float32 products by our operator."""
    aten = torch.ops.aten
    return program.run_decompositions({aten.addmm.default: _addmm, aten.linear.default: _linear})


def _addmm(bias, x, weight, beta=1, alpha=1):
    if beta != 1 or alpha != 1 or bias.dim() != 1 or not _suits(x, weight.T):
        return NotImplemented
    return torch.ops.specdec.narrow_linear(x, weight.T, bias)


def _linear(x, weight, bias=None):
    flat = x.reshape(-1, x.shape[-1])
    if not _suits(flat, weight):
        return NotImplemented
    return torch.ops.specdec.narrow_linear(flat, weight, bias).view(*x.shape[:-1], -1)


def _suits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    both_float = x.dtype == weight.dtype == torch.float32
    few = isinstance(x.shape[0], int) and x.shape[0] <= MOST_ROWS
    return both_float and few and weight.stride(1) == 1 and weight.stride(0) == weight.shape[1]
