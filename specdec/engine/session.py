"""A model's compiled pass with the face of a plain session."""

from __future__ import annotations

import torch

from specdec.engine.fast_model import FastModel
from specdec.models.cache import FixedCache
from specdec.models.wrapper import Read


class FastSession:
    """Reads with a fast model over a cache that keeps its place; the first read is a prompt."""

    def __init__(self, model: FastModel, cache: FixedCache) -> None:
        self.cache = cache
        self.length = 0
        self._model = model

    def read(self, tokens: torch.Tensor, keep: int) -> Read:
        """As `Session.read`."""
        if self.length == 0:
            read, cache = self._model.read_prompt(tokens, keep)
            self.cache.reserve(len(tokens))
            self.cache.fill(cache)
        else:
            reach = self.length + len(tokens)
            self.cache.reserve(reach)
            length = torch.tensor(self.length, device=tokens.device)
            logits, _ = self._model.run(tokens, length, self.cache.first(reach))
            read = Read(logits[-keep:])
        self.length += len(tokens)
        return read

    def roll_back(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.length = length
