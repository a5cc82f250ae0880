"""A registered pair ready for use: its decoders, its prompts as token ids, its limits.

Prompts and limits come from tokenizers and configurations: no weights are loaded for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from specdec.data.dataset import encode_prompt
from specdec.data.hub import context_length, load_context_length, load_tokenizer
from specdec.data.prompts import Limit
from specdec.data.text_as_bytes import TextAsBytes
from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.decoder import Decoder
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.models.loading.configuration import source_of
from specdec.models.loading.random_weights import known_configuration
from specdec.models.pair import check_pair, load_side
from specdec.models.registry import ModelPair, ModelSide, get_pair
from specdec.models.shared_weights import share_weights
from specdec.models.wrapper import ModelWrapper
from specdec.utils.errors import SpecdecError


class Encoded(NamedTuple):
    """A prompt in token ids: the target's, and the draft's where it is shown another form.

    The names are those of `Decoder.generate`'s arguments.
    """

    prompt_ids: list[int]
    draft_prompt_ids: list[int] | None = None


class LoadedPair:
    """A draft and the target it proposes for.

    `entry` is what the registry says of it; `draft` and `target` are their wrappers, None until
    `load`. The pair unpacks into these two.
    """

    def __init__(
        self,
        entry: ModelPair,
        device: str = "auto",
        draft: ModelWrapper | None = None,
        target: ModelWrapper | None = None,
    ) -> None:
        self.entry, self.device = entry, device
        self.draft, self.target = draft, target
        self._tokenizers: dict[str, object] = {}  # of sides without weights so far

    def __iter__(self) -> Iterator[ModelWrapper]:
        return iter((self.draft, self.target))

    def load(self, with_draft: bool = True) -> LoadedPair:
        """Load the weights that are not there yet; returns the pair itself.

        Raises:
            SpecdecError: for a model that is missing or gated, or a pair too large for the machine:
                known before anything is loaded.
        """
        wanted = ["draft", "target"] if with_draft else ["target"]
        missing = [name for name in wanted if getattr(self, name) is None]
        if missing:
            check_pair(self.entry, self.device, with_draft)
        for name in missing:
            setattr(self, name, load_side(getattr(self.entry, name), self.device))
        if missing and with_draft and self.draft.is_4bit:
            sides = self.entry.draft, self.entry.target
            random = all(side.has_random_weights for side in sides)
            share_weights(self.draft.model, self.target.model, random)
        return self

    def decoder(
        self,
        k: int,
        engine: str = "auto",
        coupled: bool = False,
        synthetic_acceptance: float | None = None,
    ) -> Decoder:
        """The decoder that proposes K tokens a round; with 0 the target alone. Loads what it needs.

        The arguments are those of the decoders.
        """
        self.load(with_draft=k != 0)
        if k == 0:
            return AutoregressiveDecoder(self.target, coupled, engine)
        return SpeculativeDecoder(
            self.draft, self.target, k, self.entry.vocabulary, coupled, engine, synthetic_acceptance
        )

    def encode(self, prompt: str | list[dict[str, str]]) -> Encoded:
        """A prompt in the ids of the target, and in the draft's own form where the entry asks.

        It is a text, or the messages of a chat, as `encode_prompt` takes them.
        """
        ids = encode_prompt(self.tokenizer("target"), prompt, self.entry.target.chat)
        if self.entry.draft_prompt == "target":
            return Encoded(ids)
        return Encoded(ids, encode_prompt(self.tokenizer("draft"), prompt, self.entry.draft.chat))

    def longest(self, texts: Iterable[str]) -> int:
        """Tokens of the longest of some prompts, in whichever form they are read."""
        return max(len(ids) for text in texts for ids in self.encode(text) if ids is not None)

    def check_chat(self) -> None:
        """Raise SpecdecError unless the target is one to chat with."""
        if self.entry.target.chat == "none" or not self.tokenizer("target").chat_template:
            raise SpecdecError(
                f"pair {self.entry.name}: {self.entry.target.label} has no chat template, so there "
                "are no turns to tell it; leave out --chat, or take a chat model"
            )

    def decode(self, ids: list[int]) -> str:
        """The text of the target's token ids."""
        return self.tokenizer("target").decode(ids)

    def limits(self, room: int) -> list[Limit]:
        """What each model leaves for a prompt: its context less `room` tokens; the target's first.

        Raises:
            SpecdecError: where that is nothing.
        """
        return [self._limit(name, room) for name in ("target", "draft")]

    def tokenizer(self, name: str):
        """The tokenizer of "draft" or "target"; of random weights one that gives bytes."""
        wrapper, side = getattr(self, name), getattr(self.entry, name)
        if wrapper is not None:
            return wrapper.tokenizer or TextAsBytes()
        if side.has_random_weights:
            return TextAsBytes()
        if name not in self._tokenizers:
            self._tokenizers[name] = load_tokenizer(*_source(side))
        return self._tokenizers[name]

    def _limit(self, name: str, room: int) -> Limit:
        side, context = getattr(self.entry, name), self._context(name)
        if context is not None and context <= room:
            raise SpecdecError(
                f"pair {self.entry.name}: the context of {side.label} is {context} tokens, and "
                f"{room} new and draft tokens leave none for a prompt: lower max_new_tokens or "
                "draft_tokens"
            )
        left = None if context is None else context - room
        return Limit(side.label, self.tokenizer(name), left, side.chat)

    def _context(self, name: str) -> int | None:
        wrapper, side = getattr(self, name), getattr(self.entry, name)
        if wrapper is not None:
            return context_length(wrapper.model.config)
        if side.has_random_weights:
            return context_length(known_configuration(side))
        return load_context_length(*_source(side))


def load_pair(name: str, registry: str | None = None, device: str = "auto") -> LoadedPair:
    """A pair of the registry with its weights; it unpacks into the wrappers `(draft, target)`.

    Raises:
        SpecdecError: for an unknown pair, and as `LoadedPair.load`.
    """
    return LoadedPair(get_pair(name, registry), device).load()


def _source(side: ModelSide) -> tuple[str, str | None, bool]:
    """The arguments of `load_tokenizer` and `load_context_length`; says what can't be had."""
    return source_of(side), side.revision, side.trust_remote_code
