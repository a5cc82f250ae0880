"""Models of known sizes and random weights: for timing, where nothing has to be downloaded.

They are the same numbers on every device: whatever is drawn is drawn on the host.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from specdec.models.loading.configuration import known_configuration
from specdec.models.loading.form import (
    check_form,
    compute_dtype,
    keep_quantisation,
    resolve_device,
    weight_options,
)
from specdec.models.loading.library import explained, quiet
from specdec.models.registry import ModelSide
from specdec.models.wrapper import ModelWrapper

SEED = 0
BLOCK = 4_194_301  # numbers that are drawn, over and over; a prime, so that no two rows are equal
INT4_STD = 0.02  # of weights that are quantised; the others are drawn as their class draws them


def load_random_weights(side: ModelSide, device: str = "auto") -> ModelWrapper:
    """A model of random weights, the same at every call, wrapped without a tokenizer.

    Raises:
        SpecdecError: for sizes that are not known here or fit no model, and for int4 without
            bitsandbytes.
    """
    place = resolve_device(device)
    check_form(side.label, side.dtype, place)
    config = known_configuration(side)
    config.name_or_path = side.label
    with torch.random.fork_rng(), quiet(), explained(side.label):
        torch.manual_seed(SEED)
        make = _quantised if side.dtype == "int4" else _drawn
        model = make(side, config, place)
    return ModelWrapper(model.requires_grad_(False), None, place)


def model_without_weights(
    side: ModelSide, config: PreTrainedConfig, device: torch.device
) -> PreTrainedModel:
    """A model as `device` would compute it that takes no memory; tied weights are one tensor."""
    dtype = compute_dtype(side.dtype, device)
    with quiet(), explained(side.label), torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=side.trust_remote_code
        )


def _drawn(side: ModelSide, config: PreTrainedConfig, place: torch.device) -> PreTrainedModel:
    """Weights as the model's class initialises them, where and as what they are wanted."""
    model = model_without_weights(side, config, place).to_empty(device=place)
    with _DrawnOnTheHost():
        model.init_weights()  # weights, rotary tables, and what is tied
    return model


class _DrawnOnTheHost(TorchDispatchMode):
    """Has tensors of any device filled with the same numbers, from the host's generator.

    To draw 8 billion normal ones takes one thread 35 s, so a block of them is drawn once and laid
    behind itself; each tensor goes on where the one before it ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self._normal = torch.randn(BLOCK)
        self._blocks: dict[tuple, torch.Tensor] = {}
        self._next = 0  # of the block

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operation is torch.ops.aten.normal_.default:
            return self._fill(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded not in operation.tags:
            return operation(*args, **kwargs)
        if operation._schema.is_mutable:
            drawn = torch.empty(args[0].shape, dtype=args[0].dtype)
            return args[0].copy_(operation(drawn, *args[1:], **kwargs))
        like = args[0] if isinstance(args[0], torch.Tensor) else torch.empty(0)
        place = kwargs.pop("device", None) or like.device  # of a tensor that is made here
        on_host = [a.cpu() if isinstance(a, torch.Tensor) else a for a in args]
        return operation(*on_host, **kwargs, device="cpu").to(place)

    def _fill(self, tensor: torch.Tensor, mean=0.0, std=1.0, generator=None) -> torch.Tensor:
        address = mean, std, tensor.device
        if address not in self._blocks:
            self._blocks[address] = (self._normal * std + mean).to(tensor.device)
        block, flat, done = self._blocks[address], tensor.view(-1), 0
        while done < len(flat):
            part = block[self._next : self._next + len(flat) - done]
            flat[done : done + len(part)].copy_(part)
            done += len(part)
            self._next = (self._next + len(part)) % BLOCK
        return tensor


def _quantised(side: ModelSide, config: PreTrainedConfig, place: torch.device) -> PreTrainedModel:
    """Random weights in 4 bits, made by the loader of trained ones.

    Layers of one shape are given the same weights, for the unquantised ones of a large model would
    not fit beside it; each gets 4-bit ones of its own.
    """
    options = weight_options(side.dtype, place)
    empty = model_without_weights(side, config, place)
    drawn: dict[tuple, torch.Tensor] = {}
    state = {}
    for name, weight in empty.named_parameters():
        if weight.dim() > 1:
            if weight.shape not in drawn:
                drawn[weight.shape] = torch.empty(weight.shape).normal_(std=INT4_STD)
            state[name] = drawn[weight.shape]
        else:  # of a norm, or a bias
            state[name] = torch.full(weight.shape, float(name.endswith("weight")))
    model = type(empty).from_pretrained(None, config=config, state_dict=state, **options)
    model.config.name_or_path = side.label
    keep_quantisation(model)
    return model
