"""One model behind a readable face: forward passes, and a cache that can be rolled back."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cached_property
from threading import RLock
from typing import NamedTuple

import torch

from specdec.models.architecture import check_architecture
from specdec.models.cache import GrowingCache
from specdec.models.ignored_settings import ignored_settings
from specdec.utils.errors import SpecdecError
from specdec.utils.logging import get_logger
from specdec.vocabulary.token_bytes import number_of_ids

log = get_logger(__name__)


class ModelWrapper:
    """A causal language model with its tokenizer and device.

    `model` is any causal LM of transformers whose cache holds keys and values, `tokenizer` its
    tokenizer (or None, where only token ids are used), `device` where its inputs must lie.

    `ignored_settings` lists what the checkpoint's generation configuration asks for beyond a
    request's settings: decoding here doesn't do that.

    Raises:
        SpecdecError: for a model that can't be read with such a cache and rolled back, exactly.
    """

    def __init__(self, model, tokenizer, device) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        check_architecture(self.model, self.name, self.device)
        self.ignored_settings = ignored_settings(self.model.generation_config)
        if self.ignored_settings:
            log.info(
                "%s: its generation config asks for more than decoding here does: %s",
                self.name,
                ", ".join(self.ignored_settings),
            )
        self.fast = {}  # its fast forms, which specdec.engine makes
        self.lock = RLock()  # held by whoever has the model compute with other layers for a while
        # Some models written outside transformers cannot be asked for the last logits only.
        self._limits_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def __repr__(self) -> str:
        return (
            f"ModelWrapper({self.name}, {self.param_count / 1e6:.1f} M parameters, "
            f"{self.memory_footprint_mb:.0f} MB, {self.device})"
        )

    @property
    def name(self) -> str:
        """What the model was loaded from, or its class where it was made in memory."""
        return self.model.config.name_or_path or type(self.model).__name__

    @cached_property
    def vocab_size(self) -> int:
        """Number of tokens the model can emit; logits may be padded beyond the tokenizer."""
        size = self.logit_size
        return size if self.tokenizer is None else min(size, number_of_ids(self.tokenizer))

    @property
    def logit_size(self) -> int:
        """Width of the logits, padding included."""
        return self.model.config.get_text_config().vocab_size

    @property
    def param_count(self) -> int:
        """Number of parameters; a 4-bit weight counts as the weight that it stands for."""
        return self.model.num_parameters()

    @property
    def is_4bit(self) -> bool:
        """Whether the weights are held in 4 bits."""
        return getattr(self.model, "is_loaded_in_4bit", False)

    @property
    def memory_footprint_mb(self) -> float:
        """Memory that the weights and buffers really take, in MB (2^20 bytes).

        Scales of 4-bit weights count, which are no parameters; what is shared counts once.
        """
        sizes = {tensor.data_ptr(): tensor.nbytes for tensor in _held_tensors(self.model)}
        return sum(sizes.values()) / 2**20

    @property
    def context_length(self) -> int | None:
        """Largest number of tokens that the model's positions reach; None where nothing says."""
        config = self.model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None)

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Every token that the model's generation configuration names as an end."""
        named = getattr(self.model.generation_config, "eos_token_id", None)
        if named is None:
            named = getattr(self.model.config, "eos_token_id", None)
        return frozenset([] if named is None else [named] if isinstance(named, int) else named)

    @torch.inference_mode()
    def forward(self, input_ids, past_key_values=None, use_cache=True, logits_to_keep=0):
        """Run the model over tokens that follow those in the cache.

        Args:
            input_ids: `[batch, n]` token ids.
            past_key_values: a cache from an earlier call, extended in place; None starts one.
            use_cache: False runs without a cache.
            logits_to_keep: how many of the last positions need logits; 0 means all.

        Returns:
            `(logits, cache)`: `[batch, n or logits_to_keep, vocabulary]` as the model gives them,
            and the cache, which then holds n tokens more (None with `use_cache=False`).
        """
        cache = past_key_values
        if use_cache and cache is None:
            cache = GrowingCache()
        output = self._call(input_ids, cache, logits_to_keep, use_cache=use_cache)
        return output.logits[:, -logits_to_keep:], cache

    @torch.inference_mode()
    def read(self, tokens: torch.Tensor, cache, keep: int, taps: tuple[int, ...] = ()) -> Read:
        """What tokens `[n]` behind those in the cache give; logits of the last `keep` of them."""
        output = self._call(tokens[None], cache, keep, use_cache=True, **asking_for(taps))
        return Read(output.logits[0, -keep:, : self.vocab_size], tapped(output, taps))

    def _call(self, input_ids, cache, logits_to_keep: int, **options):
        if self._limits_logits:
            options["logits_to_keep"] = logits_to_keep
        with self.lock:
            return self.model(input_ids.to(self.device), past_key_values=cache, **options)

    def get_cache_length(self, cache) -> int:
        """Number of tokens that the cache holds (0 for None)."""
        return 0 if cache is None else cache.length

    def truncate_cache(self, cache, keep_length: int):
        """The cache of the first `keep_length` tokens; `cache` itself stays usable as it was."""
        if not 0 <= keep_length <= cache.length:
            raise SpecdecError(
                f"truncate_cache: keep_length {keep_length} is outside 0..{cache.length}, the "
                "number of tokens that the cache holds"
            )
        return cache.copy_prefix(keep_length)


class Read(NamedTuple):
    """What a pass gave of its last tokens."""

    logits: torch.Tensor  # [keep, vocab_size], of the last tokens, cut to those of the tokenizer
    hidden: tuple[torch.Tensor, ...] = ()  # [n, d] of each tap, of all tokens


def asking_for(taps: tuple[int, ...]) -> dict[str, bool]:
    """What a model is called with, that its output can be `tapped`."""
    return {"output_hidden_states": True} if taps else {}


def tapped(output, taps: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """Hidden states `[n, d]` of a model's output of one text, by transformers' numbers: 0 are the
    embeddings, i what layer i gives; those of the last layer are normed."""
    layers = len(output.hidden_states or ()) - 1 if taps else 0
    if missing := [tap for tap in taps if not 0 <= tap <= layers]:
        raise SpecdecError(f"hidden states {missing} are asked for: the target has 0 to {layers}")
    return tuple(output.hidden_states[tap][0] for tap in taps)


class Session:
    """A model and what it has read: extended by what is new, rolled back to a length."""

    def __init__(self, wrapper: ModelWrapper) -> None:
        self._wrapper = wrapper
        self.cache = GrowingCache()

    @property
    def length(self) -> int:
        """Number of tokens read."""
        return self.cache.length

    def read(self, tokens: torch.Tensor, keep: int, taps: tuple[int, ...] = ()) -> Read:
        """Read tokens `[n]` that follow those read before: logits of the last `keep` of them, and
        of all of them the hidden states at `taps`."""
        return self._wrapper.read(tokens, self.cache, keep, taps)

    def roll_back(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.cache.roll_back(length)


def _held_tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Parameters, buffers, and the constants that a 4-bit weight keeps for its dequantisation."""
    yield from model.buffers()
    for weight in model.parameters():
        yield weight
        state = getattr(weight, "quant_state", None)
        while state is not None:  # with double quantisation the scales have a state of their own
            yield from (value for value in vars(state).values() if torch.is_tensor(value))
            state = getattr(state, "state2", None)
