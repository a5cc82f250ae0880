"""The registry of draft-target pairs, read from `config/pairs.yaml`."""

import difflib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from specdec.utils.errors import SpecdecError
from specdec.utils.paths import SHIPPED
from specdec.utils.schema import find_mistake
from specdec.utils.yaml_reader import read_yaml

REGISTRY_PATH = Path("config/pairs.yaml")
SCHEMA_PATH = SHIPPED / "config/schemas/pairs.schema.yaml"


@dataclass(frozen=True)
class ModelSide:
    """One model of a pair: a hub id, a local folder or a GGUF file, and how to load it.

    With random weights only its sizes count: those known of `model`, with those of `shape` over
    them; a shape that names its `model_type` stands alone, and `model` is then but a name.
    """

    model: str
    dtype: str  # float32, float16, bfloat16 or int4
    revision: str | None = None  # branch, tag or commit on the hub; None is its default
    chat: str = "auto"  # "auto": the tokenizer's chat template if it has one; "none": plain text
    trust_remote_code: bool = False  # whether code that comes with the model may run
    notes: str = ""
    weights: str = "trained"  # or "random": of the model's sizes, for timing; nothing is downloaded
    shape: dict[str, Any] = field(default_factory=dict)  # keywords of a transformers configuration
    gguf_file: str | None = None  # the file to take of `model`, a repository on the hub

    @property
    def has_random_weights(self) -> bool:
        return self.weights == "random"

    @property
    def label(self) -> str:
        """What identifies the model, for people and records: random weights say so, with sizes."""
        if not self.has_random_weights:
            return f"{self.model}/{self.gguf_file}" if self.gguf_file else self.model
        sizes = "".join(f", {name} {value}" for name, value in self.shape.items())
        return f"{self.model} (random weights{sizes})"


@dataclass(frozen=True)
class ModelPair:
    """A draft and the target it proposes for."""

    name: str
    draft: ModelSide
    target: ModelSide
    notes: str = ""
    vocabulary: str = "auto"  # or "intersection", "exact_match": how another vocabulary is bridged
    draft_prompt: str = "target"  # what the draft reads: the target's prompt, or its "own" form
    memory_gb: float | None = None  # what both need (10^9 bytes); None: told from configurations

    @property
    def draft_model_id(self) -> str:
        return self.draft.label

    @property
    def target_model_id(self) -> str:
        return self.target.label

    @property
    def draft_dtype(self) -> str:
        return self.draft.dtype

    @property
    def target_dtype(self) -> str:
        return self.target.dtype


def load_registry(path: Path | str | None = None) -> dict[str, ModelPair]:
    """All pairs by name: the shipped ones, and those of `path`, which add to or replace them.

    Without `path`, `config/pairs.yaml` of the current folder counts if there is one.
    """
    shipped = SHIPPED / REGISTRY_PATH
    own = Path(path) if path is not None else REGISTRY_PATH
    pairs = _read_pairs(shipped)
    if path is not None or own.exists():
        if not own.exists() or not own.samefile(shipped):
            pairs |= _read_pairs(own)
    return pairs


def list_pairs(registry: Path | str | None = None) -> list[str]:
    """Names of all pairs; `registry` is the path of a file as in `load_registry`."""
    return list(load_registry(registry))


def get_pair(name: str, registry: Path | str | None = None) -> ModelPair:
    """The pair of that name; `registry` is the path of a file as in `load_registry`."""
    pairs = load_registry(registry)
    if name in pairs:
        return pairs[name]
    close = difflib.get_close_matches(name, pairs, n=1)
    guess = f"did you mean '{close[0]}'? " if close else ""
    elsewhere = "" if registry else "; name another file of pairs by --registry"
    raise SpecdecError(
        f"{registry or REGISTRY_PATH}: there is no pair '{name}'; {guess}known: {', '.join(pairs)}"
        f"{elsewhere}"
    )


def needs_synthetic_acceptance(pair: ModelPair) -> bool:
    """Whether what a pair accepts means nothing by itself, because a side has random weights."""
    return pair.draft.has_random_weights or pair.target.has_random_weights


def with_random_weights(side: ModelSide) -> ModelSide:
    """The same sizes and dtype, of random weights."""
    return replace(side, weights="random")


def _read_pairs(path: Path) -> dict[str, ModelPair]:
    """The pairs of one file, checked against the schema."""
    document = read_yaml(path, "the registry") or {}
    if mistake := find_mistake(document, SCHEMA_PATH):
        raise SpecdecError(f"{path}: {mistake.text}")
    return {name: _make_pair(name, entry, path) for name, entry in document.items()}


def _make_pair(name: str, entry: dict[str, Any], path: Path) -> ModelPair:
    sides = {
        side: _make_side(entry[side], f"{path}: {name}.{side}") for side in ("draft", "target")
    }
    return ModelPair(name=name, **{**entry, **sides})


def _make_side(entry: dict[str, Any], where: str) -> ModelSide:
    """A side; what the schema cannot say of `model`, `weights` and `shape` is checked here."""
    shape = entry.get("shape", {})
    if shape and entry.get("weights") != "random":
        raise SpecdecError(
            f"{where}: 'shape' goes with `weights: random` only; add that or drop it"
        )
    if "model" not in entry and "model_type" not in shape:
        raise SpecdecError(
            f"{where}: 'model' is a required property, unless random weights have a `shape` with "
            "a model_type"
        )
    return ModelSide(**{"model": shape.get("model_type"), **entry})
