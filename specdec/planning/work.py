"""What one pass of a model is made of, counted on a model that holds no weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from specdec.benchmark.card import cache_bytes_per_token
from specdec.engine.fast_model import draft_rounds
from specdec.models.loading.loader import compute_dtype
from specdec.models.loading.memory_check import INT4_BYTES
from specdec.models.loading.random_weights import known_configuration, model_without_weights
from specdec.models.registry import ModelSide
from specdec.models.wrapper import ModelWrapper
from specdec.planning.costs import Request

COUNTED_CONTEXT = 8  # tokens in the cache of the pass that is counted; any number gives the same
# Of a Llama layer lowered for a GPU: 11 for one token, 13 for five (benchmarks/lowering.py).
KERNELS_A_LAYER = 12


@dataclass(frozen=True)
class Work:
    """One pass of a model: bytes, products and operations."""

    weight_bytes: float  # that a pass reads, whatever its rows: of products and norms
    int4_bytes: float  # of these, in 4 bits
    products: float  # multiplications a row
    head: float  # of these, of the layer that gives the logits
    cache_bytes: float  # of keys and values, a token of context
    layers: int
    operations: int  # of PyTorch, views left out: as many launches of an eager pass
    vocabulary: int  # logits a row
    dtype: torch.dtype  # that is computed in


def rounds(side: ModelSide, request: Request) -> bool:
    """Whether a draft reads its head in 8 bits, as one that rounds does."""
    return request.engine == "compiled" and draft_rounds(side.dtype == "int4", request.device)


def count_work(
    side: ModelSide, device: torch.device, rounds: bool = False, unquantised: str | None = None
) -> Work:
    """The work of a pass of a side's model on `device`, which need not be there.

    One that `rounds` is that of a compiled draft in 4 bits on a CPU, whose head has 8. Of a 4-bit
    self, what is `unquantised` has the target's dtype (`share_weights`), and so has its cache.
    """
    wide = replace(side, dtype=unquantised or side.dtype)
    model = model_without_weights(wide, known_configuration(side), device)
    products = _products(model)
    head = model.get_output_embeddings()
    width = 1 if rounds else compute_dtype(wide.dtype, device).itemsize  # of what isn't in 4 bits
    narrow = sum(n for module, n in products if module is not head) if side.dtype == "int4" else 0
    total = sum(n for _, n in products)
    wrapper = ModelWrapper(model, None, "meta")
    text = model.config.get_text_config()
    return Work(
        weight_bytes=width * (total - narrow) + INT4_BYTES * narrow,
        int4_bytes=INT4_BYTES * narrow,
        products=total,
        head=sum(n for module, n in products if module is head),
        cache_bytes=cache_bytes_per_token(wrapper),
        layers=text.num_hidden_layers,
        operations=_count_operations(wrapper),
        vocabulary=text.vocab_size,
        dtype=compute_dtype(wide.dtype, device),
    )


def launches(work: Work, engine: str) -> int:
    """Kernels of a pass: one for each operation, or those that a compiler leaves of a layer."""
    return work.operations if engine == "eager" else KERNELS_A_LAYER * work.layers


def _products(model: torch.nn.Module) -> list[tuple[torch.nn.Module, int]]:
    """The layers that multiply by a matrix, each with the size of it."""
    kinds = (torch.nn.Linear, Conv1D)
    return [(m, m.weight.numel()) for m in model.modules() if isinstance(m, kinds)]


def _count_operations(wrapper: ModelWrapper) -> int:
    token = torch.zeros(1, 1, dtype=torch.long)
    _, cache = wrapper.forward(token.expand(1, COUNTED_CONTEXT), logits_to_keep=1)
    with _Counting() as counting:
        wrapper.forward(token, cache, logits_to_keep=1)
    return counting.count


class _Counting(TorchDispatchMode):
    """Counts operations that compute; those that only look at a tensor otherwise launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += not operation.is_view
        return operation(*args, **(kwargs or {}))
