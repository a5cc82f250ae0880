"""The models of a pair: checked together, loaded one by one."""

from __future__ import annotations

from specdec.models.loading.configuration import check_one_vocabulary, check_side
from specdec.models.loading.form import resolve_device
from specdec.models.loading.loader import load_trained
from specdec.models.loading.memory_check import check_memory
from specdec.models.loading.random_weights import load_random_weights
from specdec.models.registry import ModelPair, ModelSide
from specdec.models.wrapper import ModelWrapper


def check_pair(pair: ModelPair, device: str = "auto", with_draft: bool = True) -> None:
    """Raise SpecdecError unless both models can be had and what is to be loaded fits.

    Without draft, only the target is to be loaded.
    """
    for side in (pair.draft, pair.target):
        check_side(side)
    place = resolve_device(device)
    if with_draft:
        check_one_vocabulary(pair)
        check_memory(f"pair {pair.name}", [pair.draft, pair.target], place, pair.memory_gb)
    else:
        check_memory(f"pair {pair.name}, its target", [pair.target], place)


def load_side(side: ModelSide, device: str = "auto") -> ModelWrapper:
    """One model of a pair, wrapped; one of random weights has no tokenizer."""
    if side.has_random_weights:
        return load_random_weights(side, device)
    model, tokenizer = load_trained(side, device)
    return ModelWrapper(model, tokenizer, model.device)
