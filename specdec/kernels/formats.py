"""In what form a linear layer's weights lie, and the product with them by our kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from transformers.pytorch_utils import Conv1D

COMPUTED = (torch.float32, torch.bfloat16, torch.float16)  # float64 stays with torch
BLOCK = 64  # numbers that share a scale, in NF4 as in rows of 8 bits
SCALES = 256  # that share one themselves
SHORT_WEIGHT = "bfloat16_weight"  # a layer's attributes
INT8_WEIGHT, INT8_SCALE = "int8_weight", "int8_scale"
NF4_PARTS = ("packed", "scales", "levels", "scale_levels", "scale_scales", "offset")


class Plain:
    """Weights as numbers, `[out, in]` in a dtype that we compute in."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self.layer = layer

    def handed_over(self) -> AbstractContextManager:
        """The layer with plain tensors as weights: it has them."""
        return nullcontext()

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """`[rows, in]` → `[rows, out]`, bias added, in the dtype of `x`."""
        layer = self.layer
        return torch.ops.specdec.linear(x, read_weights(layer), layer.bias)


class Int8:
    """A copy of the weights in 8 bits, one scale for each output: the head of a draft that rounds.

    A step reads a quarter or half of the bytes.
    """

    def __init__(self, layer: torch.nn.Linear) -> None:
        self.layer = layer

    @contextmanager
    def handed_over(self) -> Iterator[None]:
        """The layer with the copy: whoever traces it keeps that."""
        weight = self.layer.weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=1e-30) / 127
        eight = (weight / scale[:, None]).round().char()
        self.layer.register_buffer(INT8_WEIGHT, eight, persistent=False)
        self.layer.register_buffer(INT8_SCALE, scale, persistent=False)
        try:
            yield
        finally:
            delattr(self.layer, INT8_WEIGHT)
            delattr(self.layer, INT8_SCALE)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """As `Plain.product`."""
        layer = self.layer
        return torch.ops.specdec.int8_linear(
            x, getattr(layer, INT8_WEIGHT), getattr(layer, INT8_SCALE), layer.bias
        )


class Nf4:
    """bitsandbytes' NF4 with double quantisation, read as it lies.

    Computed exactly, in float32, with the weights that bitsandbytes means.
    """

    def __init__(self, layer: torch.nn.Module) -> None:
        self.layer = layer

    @contextmanager
    def handed_over(self) -> Iterator[None]:
        """The layer with plain tensors as weights: bitsandbytes' class can't be exported."""
        weight, parts = self.layer.weight, self._parts()
        for name, part in parts.items():
            self.layer.register_buffer(f"nf4_{name}", part.detach(), persistent=False)
        del self.layer.weight
        try:
            yield
        finally:
            for name in parts:
                delattr(self.layer, f"nf4_{name}")
            self.layer.weight = weight

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """As `Plain.product`."""
        layer = self.layer
        parts = [getattr(layer, f"nf4_{name}") for name in NF4_PARTS]
        return torch.ops.specdec.nf4_linear(x, *parts, layer.out_features, layer.bias)

    def _parts(self) -> dict[str, torch.Tensor]:
        weight, state = self.layer.weight, self.layer.weight.quant_state
        second = state.state2
        parts = (weight.data, state.absmax, state.code, second.code, second.absmax, state.offset)
        return dict(zip(NF4_PARTS, parts, strict=True))


class RoundedNf4(Nf4):
    """The same with activations and levels in 8 bits, for a draft.

    Its scales are a copy in float32, an eighth of the bytes of the numbers, so that no pass takes
    them apart.
    """

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """As `Plain.product`."""
        layer = self.layer
        return torch.ops.specdec.nf4_rounded_linear(
            x, layer.nf4_packed, layer.nf4_scales, layer.nf4_levels, layer.bias
        )

    def _parts(self) -> dict[str, torch.Tensor]:
        parts = super()._parts()
        packed, scales, levels, *others = parts.values()
        scales = nf4_scales(scales, *others).view(self.layer.out_features, -1)
        return {"packed": packed, "scales": scales, "levels": levels}


def nf4_scales(
    scales: torch.Tensor,
    scale_levels: torch.Tensor,
    scale_scales: torch.Tensor,
    offset: torch.Tensor,
) -> torch.Tensor:
    """The scales `[blocks]` in float32 that doubly quantised ones mean."""
    of_each = scale_scales.repeat_interleave(SCALES)[: scales.numel()]
    return scale_levels[scales.long()] * of_each + offset


Form = Plain | Int8 | Nf4


def forms(model: torch.nn.Module, may_round: bool = False) -> list[Form]:
    """The linear layers of a model that our kernels can read.

    A 4-bit *draft* `may_round` where it pays: q is what its tokens were drawn from, so nothing is
    lost but acceptance. Never a target. Its 4-bit layers then compute with activations in 8 bits,
    and its output head is read in 8 bits.

    A layer with a `forward` of its own is in somebody's hands, and classes made from these may
    compute something else.
    """
    found = []
    head = model.get_output_embeddings() if may_round else None
    for layer in model.modules():
        if "forward" in vars(layer):
            continue
        if type(layer) in (torch.nn.Linear, Conv1D):
            if layer is head and type(layer) is torch.nn.Linear and layer.in_features % BLOCK == 0:
                found.append(Int8(layer))
            elif layer.weight.dtype in COMPUTED and read_weights(layer).is_contiguous():
                found.append(Plain(layer))
        elif _is_nf4(layer):
            rounds = may_round and layer.in_features % BLOCK == 0
            found.append(RoundedNf4(layer) if rounds else Nf4(layer))
    return found


def lay_out_weights(model: torch.nn.Module, free_bytes: int) -> None:
    """Store the weights of linear layers as the kernels read them, given how much memory is free.

    GPT-2's, `[in, out]`, come to lie as others do: output by output. Weights in float32 that are
    bfloat16 numbers, as those of most checkpoints are, are kept in that form as well, where there
    is memory for it (a buffer of the layer's, `[out, in]`): a pass then reads half the bytes. No
    value changes.
    """
    layers = [part for part in model.modules() if type(part) in (torch.nn.Linear, Conv1D)]
    room = free_bytes > 2 * sum(2 * layer.weight.numel() for layer in layers)
    for layer in layers:
        if isinstance(layer, Conv1D) and layer.weight.is_contiguous():
            layer.weight.data = layer.weight.data.T.contiguous().T
        if room and layer.weight.dtype == torch.float32 and not hasattr(layer, SHORT_WEIGHT):
            short = layer.weight.detach().bfloat16()
            if torch.equal(short.float(), layer.weight):
                layer.register_buffer(SHORT_WEIGHT, _by_output(layer, short), persistent=False)


def read_weights(layer: torch.nn.Module) -> torch.Tensor:
    """The weights `[out, in]` that a pass reads."""
    short = getattr(layer, SHORT_WEIGHT, None)
    return _by_output(layer, layer.weight) if short is None else short


def _is_nf4(layer: torch.nn.Module) -> bool:
    """Whether bitsandbytes holds this layer in the one form of its 4 bits that we read."""
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    return (
        type(layer).__name__ == "Linear4bit"
        and getattr(state, "quant_type", None) == "nf4"
        and state.nested
        and (state.blocksize, state.state2.blocksize) == (BLOCK, SCALES)
        and layer.weight.device.type == "cpu"
        and not getattr(state, "packing_format_for_cpu", False)
    )


def _by_output(layer: torch.nn.Module, weight: torch.Tensor) -> torch.Tensor:
    return weight.T if isinstance(layer, Conv1D) else weight
