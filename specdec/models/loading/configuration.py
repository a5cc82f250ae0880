"""What is known of a model before its weights are read: where it lies, its sizes, its tokens."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, PreTrainedConfig

from specdec.models.loading.gguf import configuration_folder
from specdec.models.loading.hub import check_available, local_gguf, resolve_model
from specdec.models.loading.library import explained, quiet
from specdec.models.registry import ModelPair, ModelSide
from specdec.utils.errors import SpecdecError
from specdec.utils.paths import SHIPPED

#: Configurations, `<model id>.json` as `config.json` on the hub: those that ship, and before them
#: those of the folder that a study runs in.
SHAPES, OWN_SHAPES = SHIPPED / "config/shapes", Path("config/shapes")


def check_side(side: ModelSide) -> None:
    """Raise SpecdecError unless a model can be had; nothing is loaded or converted for that."""
    if side.has_random_weights:
        known_configuration(side)
    else:
        check_available(side.model, side.revision, side.gguf_file)


def source_of(side: ModelSide) -> str:
    """The folder or hub id that holds a trained model's configuration and tokenizer.

    Raises:
        SpecdecError: where the model can't be had.
    """
    check_side(side)
    with quiet(), explained(side.label):
        file = local_gguf(side.model, side.revision, side.gguf_file)
    return resolve_model(side.model) if file is None else configuration_folder(file)


def configuration(side: ModelSide) -> PreTrainedConfig:
    """The configuration of a model, trained or of random weights."""
    if side.has_random_weights:
        return known_configuration(side)
    source = source_of(side)
    with quiet(), explained(side.label):
        return AutoConfig.from_pretrained(
            source, revision=side.revision, trust_remote_code=side.trust_remote_code
        )


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


def _configuration_file(side: ModelSide) -> str:
    """Where the configuration of a model lies: its folder, the shapes that ship, or the cache."""
    source = resolve_model(side.model)
    shapes = [folder / f"{side.model}.json" for folder in (OWN_SHAPES, SHAPES)]
    if Path(source).is_dir():
        return source
    if Path(source).is_file():
        return configuration_folder(source)
    for file in shapes:
        if file.is_file():
            return str(file)
    wanted = side.gguf_file or "config.json"
    cached = try_to_load_from_cache(source, wanted, revision=side.revision)
    if isinstance(cached, str):
        return configuration_folder(cached) if side.gguf_file else cached
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
