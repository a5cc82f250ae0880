"""Models of known sizes and random weights: for timing, where nothing has to be downloaded."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from specdec.models.loading.hub import resolve_model
from specdec.models.loading.loader import (
    compute_dtype,
    explained,
    keep_quantisation,
    quiet,
    resolve_device,
    weight_options,
)
from specdec.models.registry import ModelPair, ModelSide
from specdec.models.wrapper import ModelWrapper
from specdec.utils.errors import SpecdecError
from specdec.utils.paths import SHIPPED

#: Configurations, `<model id>.json` as `config.json` on the hub: those that ship, and before them
#: those of the folder that a study runs in.
SHAPES, OWN_SHAPES = SHIPPED / "config/shapes", Path("config/shapes")

SEED = 0
INT4_STD = 0.02  # of weights that are quantised; the others are drawn as their class draws them


def load_random_weights(side: ModelSide, device: str = "auto") -> ModelWrapper:
    """A model of random weights, the same at every call, wrapped without a tokenizer.

    Raises:
        SpecdecError: for sizes that are not known here or fit no model, and for int4 without
            bitsandbytes.
    """
    place = resolve_device(device)
    config = known_configuration(side)
    config.name_or_path = side.label
    with torch.random.fork_rng(), quiet(), explained(side.label):
        torch.manual_seed(SEED)
        make = _quantised if side.dtype == "int4" else _drawn
        model = make(side, config, place)
    return ModelWrapper(model.requires_grad_(False), None, place)


def known_configuration(side: ModelSide) -> PreTrainedConfig:
    """The configuration of a side with random weights, from files of this machine alone."""
    with quiet(), explained(side.label):
        if "model_type" in side.shape:
            _check_names(side, side.shape["model_type"])
            return AutoConfig.for_model(**side.shape)
        source = _configuration_file(side)
        hub = {"trust_remote_code": side.trust_remote_code}
        if side.shape:
            _check_names(side, AutoConfig.from_pretrained(source, **hub).model_type)
        return AutoConfig.from_pretrained(source, **hub, **side.shape)


def model_without_weights(
    side: ModelSide, config: PreTrainedConfig, device: torch.device
) -> PreTrainedModel:
    """A model as `device` would compute it that takes no memory; tied weights are one tensor."""
    dtype = compute_dtype(side.dtype, device)
    with quiet(), explained(side.label), torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=side.trust_remote_code
        )


def check_one_vocabulary(pair: ModelPair) -> None:
    """Raise SpecdecError where both sides have random weights and numbers of tokens that differ.

    Random weights have no tokenizer, so there is nothing to tell which token is which.
    """
    if not (pair.draft.has_random_weights and pair.target.has_random_weights):
        return
    draft, target = (
        known_configuration(side).get_text_config().vocab_size for side in (pair.draft, pair.target)
    )
    if draft != target:
        raise SpecdecError(
            f"pair {pair.name}: {pair.draft.label} has {draft} tokens, {pair.target.label} "
            f"{target}, and random weights have no tokenizers to tell which are the same; give "
            f"both one vocab_size, for the draft `shape: {{vocab_size: {target}}}`"
        )


def _drawn(side: ModelSide, config: PreTrainedConfig, place: torch.device) -> PreTrainedModel:
    """Weights as the model's class initialises them, drawn where and as what they are wanted."""
    model = model_without_weights(side, config, place).to_empty(device=place)
    model.init_weights()  # weights, rotary tables, and what is tied
    return model


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
    keep_quantisation(model)
    return model


def _configuration_file(side: ModelSide) -> str:
    """Where the configuration of a model lies: its folder, the shapes that ship, or the cache."""
    source = resolve_model(side.model)
    shapes = [folder / f"{side.model}.json" for folder in (OWN_SHAPES, SHAPES)]
    if Path(source).is_dir():
        return source
    for file in shapes:
        if file.is_file():
            return str(file)
    cached = try_to_load_from_cache(source, "config.json", revision=side.revision)
    if isinstance(cached, str):
        return cached
    known = [path.relative_to(SHAPES).with_suffix("").as_posix() for path in SHAPES.rglob("*.json")]
    raise SpecdecError(
        f"{side.model}: its sizes are not known here; give them as `shape: {{model_type: …, …}}`, "
        f"name a local folder, or a model whose sizes ship: {', '.join(sorted(known))}"
    )


def _check_names(side: ModelSide, model_type: str) -> None:
    """Refuse a size that no configuration of this kind has: transformers would pass it over."""
    plain = AutoConfig.for_model(model_type)
    for name in side.shape:
        if not hasattr(plain, name):
            close = get_close_matches(name, vars(plain), n=1)
            guess = f"; did you mean '{close[0]}'?" if close else ""
            raise SpecdecError(
                f"{side.model}: shape: a {model_type} configuration has no '{name}'{guess}"
            )
