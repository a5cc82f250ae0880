"""In what form a linear layer's weights lie, and the product with them by our kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from transformers.pytorch_utils import Conv1D

COMPUTED = (torch.float32, torch.bfloat16, torch.float16)  # float64 stays with torch
BLOCK = 64  # numbers that share a scale, in NF4 as in rows of 8 bits
SCALES = 256  # that share one themselves
SHORT_WEIGHT = "bfloat16_weight"  # a layer's attributes
INT8_WEIGHT, INT8_SCALE = "int8_weight", "int8_scale"
FLOAT_SCALES = "float_scales"
#: Layers of one module that read the same input, as the models of transformers call them.
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
NF4_PARTS = ("packed", "scales", "levels", "scale_levels", "scale_scales", "offset")


class Plain:
    """Weights as numbers, `[out, in]` in a dtype that we compute in.

    Several layers, which read the same input, are one product: their outputs lie behind each other.
    """

    def __init__(self, *layers: torch.nn.Module) -> None:
        self.layers = layers

    @contextmanager
    def handed_over(self) -> Iterator[None]:
        """The layers with plain tensors as weights: they have them; several have them joined."""
        parts = {} if len(self.layers) == 1 else self._joined()
        with _lent(self.layers[0], parts):
            yield

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """`[rows, in]` → `[rows, out]`, bias added, in the dtype of `x`."""
        first = self.layers[0]
        if len(self.layers) == 1:
            return torch.ops.specdec.linear(x, read_weights(first), first.bias)
        return torch.ops.specdec.linear(x, first.joined_weight, getattr(first, "joined_bias", None))

    def _joined(self) -> dict[str, torch.Tensor]:
        parts = {"joined_weight": together([read_weights(layer) for layer in self.layers])}
        if self.layers[0].bias is not None:
            parts["joined_bias"] = torch.cat([layer.bias.detach() for layer in self.layers])
        return parts


class Int8:
    """A copy of the weights in 8 bits, one scale for each output: the head of a draft that rounds.

    A step reads a quarter or half of the bytes.
    """

    def __init__(self, layer: torch.nn.Linear) -> None:
        self.layers = (layer,)

    @contextmanager
    def handed_over(self) -> Iterator[None]:
        """The layer with the copy, which stays with it."""
        (layer,) = self.layers
        if not hasattr(layer, "in_8_bits"):
            weight = layer.weight.detach().float()
            scale = weight.abs().amax(1).clamp(min=1e-30) / 127
            layer.in_8_bits = (weight / scale[:, None]).round().char(), scale
        eight, scale = layer.in_8_bits
        with _lent(layer, {INT8_WEIGHT: eight, INT8_SCALE: scale}):
            yield

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """As `Plain.product`."""
        (layer,) = self.layers
        return torch.ops.specdec.int8_linear(
            x, getattr(layer, INT8_WEIGHT), getattr(layer, INT8_SCALE), layer.bias
        )


class Nf4:
    """bitsandbytes' NF4 with double quantisation, read as it lies.

    Computed exactly, in float32, with the weights that bitsandbytes means.
    """

    def __init__(self, *layers: torch.nn.Module) -> None:
        self.layers = layers

    @contextmanager
    def handed_over(self) -> Iterator[None]:
        """The layers with plain tensors as weights: bitsandbytes' class can't be exported."""
        parts = {f"nf4_{name}": part for name, part in self._parts().items()}
        weights = [layer.weight for layer in self.layers]
        for layer in self.layers:
            del layer.weight
        try:
            with _lent(self.layers[0], parts):
                yield
        finally:
            for layer, weight in zip(self.layers, weights, strict=True):
                layer.weight = weight

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """As `Plain.product`."""
        (layer,) = self.layers
        parts = [getattr(layer, f"nf4_{name}") for name in NF4_PARTS]
        return torch.ops.specdec.nf4_linear(x, *parts, layer.out_features, layer.bias)

    def _parts(self) -> dict[str, torch.Tensor]:
        return _nf4_parts(self.layers[0])


class RoundedNf4(Nf4):
    """The same with activations and levels in 8 bits, for a draft.

    Its scales are a copy in float32, an eighth of the bytes of the numbers, so that no pass takes
    them apart. Several layers are one product, as in `Plain`.
    """

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """As `Plain.product`."""
        first = self.layers[0]
        bias = getattr(first, "nf4_bias", None)
        return torch.ops.specdec.nf4_rounded_linear(
            x, first.nf4_packed, first.nf4_scales, first.nf4_levels, bias
        )

    def _parts(self) -> dict[str, torch.Tensor]:
        parts = {
            "packed": together([layer.weight for layer in self.layers]),
            "scales": together([_scales(layer) for layer in self.layers]),
            "levels": self.layers[0].weight.quant_state.code,
        }
        if self.layers[0].bias is not None:
            parts["bias"] = torch.cat([layer.bias.detach() for layer in self.layers])
        return parts


@contextmanager
def _lent(layer: torch.nn.Module, parts: dict[str, torch.Tensor]) -> Iterator[None]:
    """The layer with these buffers."""
    for name, part in parts.items():
        layer.register_buffer(name, part.detach(), persistent=False)
    try:
        yield
    finally:
        for name in parts:
            delattr(layer, name)


def _nf4_parts(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    state = layer.weight.quant_state
    second = state.state2
    parts = (
        layer.weight.data,
        state.absmax,
        state.code,
        second.code,
        second.absmax,
        state.offset,
    )
    return dict(zip(NF4_PARTS, parts, strict=True))


def _scales(layer: torch.nn.Module) -> torch.Tensor:
    """The layer's scales in float32, `[out, in / 64]`: a copy that stays with it."""
    if not hasattr(layer, FLOAT_SCALES):
        _, scales, _, *others = _nf4_parts(layer).values()
        setattr(layer, FLOAT_SCALES, nf4_scales(scales, *others).view(layer.out_features, -1))
    return getattr(layer, FLOAT_SCALES)


def together(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One tensor of which the parts are the rows; they become views, so nothing is held twice."""
    follow = all(
        after.data_ptr() == before.data_ptr() + before.nbytes
        and after.untyped_storage().data_ptr() == before.untyped_storage().data_ptr()
        for before, after in pairwise(parts)
    )
    if not follow:
        whole, begin = torch.cat([part.data for part in parts]), 0
        for part in parts:
            part.data = whole[begin : begin + len(part)]
            begin += len(part)
    first = parts[0].data  # of bitsandbytes' classes too the plain tensor
    shape = sum(len(part) for part in parts), *first.shape[1:]
    return first.as_strided(shape, first.stride(), first.storage_offset())


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


def forms(model: torch.nn.Module, may_round: bool = False, to_trace: bool = False) -> list[Form]:
    """The linear layers of a model that our kernels can read.

    A 4-bit *draft* `may_round` where it pays: q is what its tokens were drawn from, so nothing is
    lost but acceptance. Never a target. Its 4-bit layers then compute with activations in 8 bits.

    For passes that are kept, `to_trace`, layers that read the same input are one product, and the
    output head of a draft that rounds is read from a copy in 8 bits.

    A layer with a `forward` of its own is in somebody's hands, and classes made from these may
    compute something else.
    """
    found: list[Form] = []
    head = model.get_output_embeddings() if may_round and to_trace else None
    grouped: set[torch.nn.Module] = set()
    for group in same_input(model) if to_trace else ():
        of_each = {_form(layer, head, may_round) for layer in group}
        if of_each in ({Plain}, {RoundedNf4}) and len({in_common(layer) for layer in group}) == 1:
            found.append(of_each.pop()(*group))
            grouped.update(group)
    for layer in model.modules():
        if layer not in grouped and (form := _form(layer, head, may_round)) is not None:
            found.append(form(layer))
    return found


def _form(layer: torch.nn.Module, head: torch.nn.Module | None, may_round: bool) -> type | None:
    if "forward" in vars(layer):
        return None
    if type(layer) in (torch.nn.Linear, Conv1D):
        if layer is head and type(layer) is torch.nn.Linear and layer.in_features % BLOCK == 0:
            return Int8
        plain = layer.weight.dtype in COMPUTED and read_weights(layer).is_contiguous()
        return Plain if plain else None
    if _is_nf4(layer):
        return RoundedNf4 if may_round and layer.in_features % BLOCK == 0 else Nf4
    return None


def in_common(layer: torch.nn.Module) -> tuple:
    """What layers of one product have in common."""
    dtype = read_weights(layer).dtype if type(layer) is torch.nn.Linear else None
    return layer.in_features, layer.bias is None, dtype


def same_input(model: torch.nn.Module) -> Iterator[list[torch.nn.Module]]:
    """Each group of layers of one module that read the same input."""
    for module in model.modules():
        for names in SAME_INPUT:
            layers = [getattr(module, name, None) for name in names]
            if all(isinstance(layer, torch.nn.Linear) for layer in layers):
                yield layers


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
