"""A model's compiled pass with the face of a plain session."""

from __future__ import annotations

from copy import copy

import torch

from specdec.engine.capture import CapturedPass
from specdec.engine.fast_model import FastModel
from specdec.models.cache import FixedCache
from specdec.models.wrapper import Read


class FastSession:
    """Reads with a fast model over a cache that keeps its place; the first read is a prompt.

    `captured` is the pass, tapped where reads ask for it, as graphs over this cache: they serve
    passes over a few tokens, as long as the cache has room.
    """

    def __init__(
        self, model: FastModel, cache: FixedCache, captured: CapturedPass | None = None
    ) -> None:
        self.cache = cache
        self.length = 0
        self._model, self._captured = model, captured

    def read(self, tokens: torch.Tensor, keep: int, taps: tuple[int, ...] = ()) -> Read:
        """As `Session.read`."""
        reach = self.length + len(tokens)
        if self.length == 0:
            read, cache = self._model.read_prompt(tokens, keep, taps)
            self._reserve(reach)
            self.cache.fill(cache)
        elif self._captured is not None and self._captured.fits(len(tokens), self.length):
            logits, *hidden = self._captured.replay(tokens, self.length)
            read = Read(logits[-keep:], tuple(hidden))
        else:
            self._reserve(reach)
            length = torch.tensor(self.length, device=tokens.device)
            run = self._model.tapped_at(taps)
            logits, _, *hidden = run(tokens, length, self.cache.first(reach))
            read = Read(logits[-keep:], tuple(hidden))
        self.length = reach
        return read

    def roll_back(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.length = length

    def _reserve(self, slots: int) -> None:
        if self._captured is not None and slots > self.cache.slots:
            # The graphs keep the tensors that they were captured over.
            self.cache, self._captured = copy(self.cache), None
        self.cache.reserve(slots)
